"""The house's law: a package imports itself and lower rows only; one table says which row is which."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import anatogen

ROOT = Path(anatogen.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# From the bottom up; siblings of a row never import each other.
ROWS = (
    ("core", "diffusion"),
    ("config", "io", "report"),
    ("models", "dataset"),
    ("generators", "doctor"),
    ("training",),
    ("evaluation", "planning"),
    ("downstream", "study"),
    ("workflow",),
    ("api",),
    ("cli",),
)
RANK = {package: rank for rank, row in enumerate(ROWS) for package in row}

# Peers that were found wrong, or that drag in another torch.
BANNED = ("torchvision", "lpips", "pickle.load")


def _imports(path: Path) -> Iterator[str]:
    """Names that a file imports anywhere, `from a import b` as both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("package", RANK)
def test_a_package_imports_itself_and_lower_rows_only(package):
    allowed = {package, *(other for other, rank in RANK.items() if rank < RANK[package])}
    found = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if _package(path) == package
        for name in _imports(path)
        if name.startswith("anatogen.") and name.split(".")[1] not in allowed
    }
    assert not found


def test_every_package_has_its_row():
    facade = {"__init__", "__main__"}
    assert {_package(path) for path in FILES} - facade == set(RANK)


def test_nothing_banned_is_imported():
    found = [(path.name, name) for path in FILES for name in _imports(path) if name.startswith(BANNED)]
    assert not found


def test_no_module_is_named_after_nothing():
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "common", "misc")]


def test_no_file_outgrows_what_can_be_read():
    assert not [path.name for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 500]

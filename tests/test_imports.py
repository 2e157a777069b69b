"""Imports run one way, from the command line down to the data."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import anatogen

ROOT = Path(anatogen.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, `from a import b` as both a and a.b; without type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _under(part: str) -> list[Path]:
    return [path for path in FILES if str(path.relative_to(ROOT)).startswith(part)]


RULES = [
    # (files, what they never import, but for these files)
    ("diffusion/", ("anatogen.models",), ()),
    (
        "diffusion/",
        ("anatogen.training", "anatogen.sampling", "anatogen.cli", "anatogen.bundle", "anatogen.data"),
        (),
    ),
    ("models/", ("anatogen.training", "anatogen.sampling", "anatogen.cli", "anatogen.bundle"), ()),
    ("models/", ("anatogen.diffusion",), ()),
    ("data/", ("torch", "lightning_fabric"), ("data/dataset.py",)),
    (
        "data/",
        ("anatogen.models", "anatogen.diffusion", "anatogen.training", "anatogen.sampling"),
        (),
    ),
    ("training/", ("anatogen.sampling", "anatogen.evaluation"), ()),
    ("planning/", ("anatogen.sampling", "anatogen.evaluation", "anatogen.api"), ()),
    ("training/", ("anatogen.planning",), ()),
    ("models/", ("anatogen.planning",), ()),
    ("data/", ("anatogen.planning",), ()),
    ("bundle", ("anatogen.planning",), ()),
    ("evaluation/", ("anatogen.sampling", "anatogen.api"), ()),
    ("diffusion/", ("anatogen.evaluation",), ()),
    ("reader_study/", ("anatogen.training", "anatogen.sampling", "anatogen.api", "anatogen.models"), ()),
    # What the study's server imports starts at once.
    ("reader_study/store.py", ("torch", "anatogen.evaluation", "anatogen.seeding"), ()),
    ("reader_study/answers.py", ("torch", "anatogen.evaluation", "anatogen.seeding"), ()),
    ("evaluation/", ("anatogen.reader_study",), ()),
    ("downstream/", ("anatogen.sampling", "anatogen.api", "anatogen.bundle", "anatogen.reader_study"), ()),
    ("downstream/settings.py", ("torch", "monai", "torchio"), ()),
    ("training/", ("anatogen.downstream", "anatogen.reader_study"), ()),
    ("evaluation/", ("anatogen.downstream",), ()),
    ("reader_study/", ("anatogen.downstream",), ()),
    ("models/", ("anatogen.evaluation",), ()),
    ("data/", ("anatogen.evaluation", "anatogen.bundle"), ()),
    ("bundle", ("anatogen.training", "anatogen.evaluation", "anatogen.sampling"), ()),
    ("gan_bundle.py", ("anatogen.training", "anatogen.evaluation", "anatogen.sampling"), ()),
    ("", ("anatogen.cli",), ()),
    # What the command line imports before it knows the command, and plain descriptions.
    ("settings.py", ("torch",), ()),
    ("config.py", ("torch",), ()),
    ("presets.py", ("torch",), ()),
    ("errors.py", ("torch",), ()),
    ("bundle_description.py", ("torch",), ()),
    ("shipped.py", ("torch",), ()),
    ("storage.py", ("torch",), ()),
    # Peers whose code was found wrong or that drag in another torch.
    ("", ("torchvision", "lpips", "pickle.load"), ()),
]


@pytest.mark.parametrize(("files", "banned", "allowed"), RULES, ids=lambda value: str(value)[:50])
def test_imports_run_one_way(files, banned, allowed):
    paths = [path for path in _under(files) if str(path.relative_to(ROOT)) not in allowed]
    assert paths
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in _imports(path)
        if any(name == ban or name.startswith(f"{ban}.") for ban in banned)
    ]
    assert not found


def test_no_module_is_named_after_nothing():
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "common", "misc")]


def test_no_file_outgrows_what_can_be_read():
    assert not [path.name for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 500]

import base64
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from anatogen.study import niivue


def _fake_npm(folder: Path, archive: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An npm that packs this archive, or fails as the real one does without a network."""
    program = folder / "npm"
    if archive is None:
        program.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    else:
        (folder / "archive").write_bytes(archive)
        program.write_text(f"#!/bin/sh\ncp {folder}/archive niivue.tgz\n")
    program.chmod(0o755)
    monkeypatch.setattr(niivue, "_npm", lambda: str(program))


def _archive(module: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/dist/index.js")
        member.size = len(module)
        archive.addfile(member, io.BytesIO(module))
    return out.getvalue()


def test_takes_the_module_out_of_the_pinned_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _archive(b"export {};")
    digest = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    monkeypatch.setattr(niivue, "INTEGRITY", f"sha512-{digest}")
    monkeypatch.setattr(niivue, "_MODULE_SHA256", hashlib.sha256(b"export {};").hexdigest())
    _fake_npm(tmp_path, archive, monkeypatch)
    folder = tmp_path / "static"
    assert niivue.fetch(folder) is None
    assert niivue.is_there(folder)
    assert [path.name for path in folder.iterdir()] == ["index.js"]
    # Once it is there, npm is not asked.
    monkeypatch.setattr(niivue, "_npm", lambda: None)
    assert niivue.fetch(folder) is None


def test_refuses_a_package_that_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_npm(tmp_path, _archive(b"steal();"), monkeypatch)
    problem = niivue.fetch(tmp_path / "static")
    assert problem == "what npm fetched is not @niivue/niivue@0.69.0 as pinned: its hash differs"
    assert not (tmp_path / "static").exists()


def test_a_module_that_was_changed_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "index.js").write_text("steal();")
    assert not niivue.is_there(tmp_path)


def test_says_where_it_can_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _archive(b"export {};")
    digest = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    monkeypatch.setattr(niivue, "INTEGRITY", f"sha512-{digest}")
    _fake_npm(tmp_path, archive, monkeypatch)
    (tmp_path / "file").write_text("")
    problem = niivue.fetch(tmp_path / "file" / "niivue")
    assert problem is not None and problem.startswith(f"{tmp_path / 'file' / 'niivue'} can't be written")


def test_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_npm(tmp_path, None, monkeypatch)
    assert (
        niivue.fetch(tmp_path / "a") == "npm could not fetch @niivue/niivue@0.69.0: npm error code ENOTFOUND"
    )
    monkeypatch.setattr(niivue, "_npm", lambda: None)
    problem = niivue.fetch(tmp_path / "b")
    assert problem is not None
    assert problem.startswith("npm is not installed")

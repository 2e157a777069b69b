"""Archives are unpacked inside their folder, whole, within limits, or refused with the reason."""

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scan_makers import head, tree_bytes

from anatogen.core.errors import UserError
from anatogen.dataset.prepare import PrepareConfig, prepare
from anatogen.io import archives
from anatogen.io.archives import scans_folder
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.nifti import write_nifti

FILES = {"a/one.bin": b"1" * 5000, "a/b/two.bin": os.urandom(3000), "three.bin": b""}


def make_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def make_tar(path: Path, files: dict[str, bytes] = FILES, links: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 10**9
            archive.addfile(info, io.BytesIO(content))
        for info in links:
            archive.addfile(info)
    return path


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_a_zip_of_windows(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "s.zip", {"a\\": b"", "a\\one.bin": b"1"})
    with scans_folder(archive) as folder:
        assert tree_bytes(folder) == {"a/one.bin": b"1"}


def test_a_zip_without_times(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "s.zip")
    content = archive.read_bytes()
    # 1980-01-01 00:00 in the DOS format, in local headers and the directory; then month and day 0.
    assert content.count(b"\0\0\x21\0") == 2 * len(FILES)
    archive.write_bytes(content.replace(b"\0\0\x21\0", bytes(4)))
    with scans_folder(archive) as folder:
        assert tree_bytes(folder) == dict(sorted(FILES.items()))


def _negative_size(path: Path) -> Path:
    """Made older versions of tarfile go round in circles."""
    content = bytearray(make_tar(path).read_bytes())
    content[124:136] = (-512).to_bytes(12, "big", signed=True)
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["s.zip", "s.tar", "s.tar.gz", "s.tgz", "S.ZIP"])
def test_an_archive_is_its_folder(tmp_path: Path, name: str) -> None:
    archive = (make_zip if name.lower().endswith("zip") else make_tar)(tmp_path / name)
    with scans_folder(archive) as folder:
        assert tree_bytes(folder) == dict(sorted(FILES.items()))
    assert not folder.exists()
    with scans_folder(archive, tmp_path / "work") as first:
        assert tree_bytes(first) == dict(sorted(FILES.items()))
        before = {file: file.stat().st_mtime_ns for file in first.rglob("*.bin")}
    with scans_folder(archive, tmp_path / "work") as again:
        assert again == first
        assert before == {file: file.stat().st_mtime_ns for file in again.rglob("*.bin")}
    with scans_folder(first) as same:
        assert same == first


def _zip_with_mode(path: Path, mode: int) -> Path:
    info = zipfile.ZipInfo("link")
    info.external_attr = mode << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return path


def _encrypted(path: Path) -> Path:
    content = bytearray(make_zip(path, {"a": b"secret"}).read_bytes())
    content[content.index(b"PK\x03\x04") + 6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    return path


def _cut(path: Path, keep: int) -> Path:
    path.write_bytes(path.read_bytes()[:keep])
    return path


def _flipped(path: Path, at: int) -> Path:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)
    return path


def _twice(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a", "1")
        archive.writestr("a", "2")
    return path


EVIL: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip above": (lambda p: make_zip(p / "s.zip", {"../evil": b"x"}), "leads outside"),
    "zip above deep": (lambda p: make_zip(p / "s.zip", {"a/../../evil": b"x"}), "leads outside"),
    "zip backslash": (lambda p: make_zip(p / "s.zip", {"..\\evil": b"x"}), "leads outside"),
    "zip absolute": (lambda p: make_zip(p / "s.zip", {f"{p}/evil": b"x"}), "leads outside"),
    "zip link": (lambda p: _zip_with_mode(p / "s.zip", stat.S_IFLNK | 0o777), "link or device"),
    "zip device": (lambda p: _zip_with_mode(p / "s.zip", stat.S_IFCHR | 0o666), "link or device"),
    "zip encrypted": (lambda p: _encrypted(p / "s.zip"), "is encrypted"),
    "zip twice": (lambda p: _twice(p / "s.zip"), "'a' .* twice"),
    "zip cut": (lambda p: _cut(make_zip(p / "s.zip"), 900), "truncated or damaged"),
    "zip flipped": (lambda p: _flipped(make_zip(p / "s.zip"), 2000), "truncated or damaged"),
    "zip of nothing": (lambda p: _cut(make_zip(p / "s.zip"), 0), "truncated or damaged"),
    "tar above": (lambda p: make_tar(p / "s.tar", {"../evil": b"x"}), "leads outside"),
    "tar absolute": (lambda p: make_tar(p / "s.tar", {f"{p}/evil": b"x"}), "leads outside"),
    "tar link": (
        lambda p: make_tar(p / "s.tar", {}, (member("a", tarfile.SYMTYPE, ".."),)), "link or device",
    ),
    "tar through link": (
        lambda p: make_tar(p / "s.tar", {}, (member("a", tarfile.SYMTYPE, str(p)), member("a/evil", b"0"))),
        "link or device",
    ),
    "tar hard link": (
        lambda p: make_tar(p / "s.tar", {}, (member("a", tarfile.LNKTYPE, "/etc/passwd"),)), "link or device",
    ),
    "tar device": (lambda p: make_tar(p / "s.tar", {}, (member("a", tarfile.CHRTYPE),)), "link or device"),
    "tar pipe": (lambda p: make_tar(p / "s.tar", {}, (member("a", tarfile.FIFOTYPE),)), "link or device"),
    "tar cut between members": (lambda p: _cut(make_tar(p / "s.tar"), 512 + 5120), "truncated or damaged"),
    "tar cut in a member": (lambda p: _cut(make_tar(p / "s.tar"), 3000), "truncated or damaged"),
    "tar header damaged": (lambda p: _flipped(make_tar(p / "s.tar"), 5632 + 100), "truncated or damaged"),
    "tar negative size": (lambda p: _negative_size(p / "s.tar"), "truncated or damaged"),
    "tgz cut": (lambda p: _cut(make_tar(p / "s.tgz"), 2000), "truncated or damaged"),
    "tgz checksum": (lambda p: _flipped(make_tar(p / "s.tgz"), -6), "truncated or damaged"),
    "name too long": (lambda p: make_zip(p / "s.zip", {"n" * 300: b"x"}), "File name too long"),
    "another file": (lambda p: _cut(make_zip(p / "s.rar"), 900), "no folder and no archive"),
    "absent": (lambda p: p / "s.zip", "no folder and no archive"),
}  # fmt: skip


@pytest.mark.parametrize("case", EVIL)
def test_what_is_not_safe_or_whole_is_refused(tmp_path: Path, case: str) -> None:
    make, reason = EVIL[case]
    (tmp_path / "place").mkdir()
    archive = make(tmp_path / "place")
    before = tree_bytes(tmp_path)
    with pytest.raises(UserError, match=reason) as caught, scans_folder(archive, tmp_path / "work"):
        pass
    assert "\n" not in str(caught.value)
    assert tree_bytes(tmp_path) == before
    assert not list((tmp_path / "work").glob("*"))


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = make_zip(tmp_path / "bomb.zip", {"zeros": bytes(1 << 22)})
    with scans_folder(bomb):
        pass
    monkeypatch.setattr(archives, "HARMLESS_BYTES", 1 << 20)
    with pytest.raises(UserError, match="200 times its size"), scans_folder(bomb):
        pass
    good = make_tar(tmp_path / "good.tar")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="MB that are free"):
        patch.setattr(archives, "SPARE_BYTES", 1 << 60)
        with scans_folder(good):
            pass


@pytest.mark.parametrize("strict", [False, True])
def test_prepare_that_fails_leaves_no_scans(tmp_path: Path, strict: bool) -> None:
    files = {"scans/broken.nii": b"x" * 400} | ({"scans/good.npy": b"x"} if strict else {})
    archive = make_zip(tmp_path / "scans.zip", files)
    with pytest.raises(UserError):
        prepare(archive, tmp_path / "out", PrepareConfig(), strict=strict, workers=1, progress=False)
    assert not [name for name in tree_bytes(tmp_path / "out") if "unpacked" in name]


def test_prepare_takes_an_archive(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for seed in range(3):
        write_nifti(head(seed), scans / f"sub-{seed}" / "t1.nii.gz")
    write_dicom(head(3), scans / "dicom", "MR", uid_from="a", patient_id="p")
    with tarfile.open(tmp_path / "scans.tar.gz", "w:gz") as archive:
        archive.add(scans, "scans")
    config = PrepareConfig(include="*")
    first = prepare(tmp_path / "scans.tar.gz", tmp_path / "out", config, workers=1, progress=False)
    assert len(first.manifest.cases) == 4
    assert not (tmp_path / "out" / ".work").exists()
    again = prepare(tmp_path / "scans.tar.gz", tmp_path / "out", config, workers=1, progress=False)
    assert again.was_complete
    assert not (tmp_path / "out" / ".work").exists()
    from_folder = prepare(scans, tmp_path / "other", config, workers=1, progress=False)
    for case, other in zip(first.manifest.cases, from_folder.manifest.cases, strict=True):
        assert case == other
        assert np.array_equal(np.load(first.folder / case.file), np.load(from_folder.folder / other.file))

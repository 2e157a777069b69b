"""Scans in a .zip or .tar, as the providers of public datasets deliver them: unpacked beside the work.

An archive comes from elsewhere, so nothing in it is trusted: only plain files and folders inside it are
written, whole or not at all, up to a limit.
"""

import calendar
import json
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console

from anatogen.core.errors import UserError
from anatogen.core.files import atomic_folder, remove_parts, sha256_json, write_json

ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")

# The largest public sets of scans have under a million files and 400 GB.
MAX_MEMBERS = 5_000_000
MAX_BYTES = 1 << 40
# Scans shrink to a third, label maps to a hundredth; what shrinks further is made to fill a disk. Small
# archives may hold anything.
MAX_RATIO = 200
HARMLESS_BYTES = 1 << 28
# Other programs need some of the disk too.
SPARE_BYTES = 1 << 28

_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Member:
    name: str
    is_folder: bool
    size: int
    modified: float
    # Why it can't be unpacked.
    trouble: str | None
    open: Callable[[], IO[bytes] | None]


def is_archive(path: Path) -> bool:
    """Whether the path is a file with the ending of an archive that can be read."""
    return path.name.lower().endswith(ARCHIVE_ENDINGS) and path.is_file()


@contextmanager
def scans_folder(path: Path, work: Path | None = None, *, progress: bool = False) -> Iterator[Path]:
    """The folder of scans that a path stands for: itself, or what an archive holds.

    Args:
        path: A folder, or an archive of scans.
        work: Folder that keeps the unpacked scans, for a later call that finds them there; it is the
            caller's to remove, unless a `UserError` ends the call. None unpacks to a temporary folder,
            removed at the end.
        progress: Whether to say on the terminal that an archive is being unpacked.

    Yields:
        The folder; names of scans are relative to it. Files have the times that the archive tells.

    Raises:
        UserError: If there is no such folder or archive, the archive is damaged, encrypted, too large for the
            disk or suspiciously compressed, or a member is a link, a device or leads outside.
    """
    if path.is_dir():
        yield path
    elif not is_archive(path):
        raise UserError(
            f"{path} is no folder and no archive of scans ({', '.join(ARCHIVE_ENDINGS)}): name one"
        )
    elif work is not None:
        folder = _unpacked(path, work, progress)
        try:
            yield folder
        except UserError:
            # Patients' scans do not stay where the user has to change something first.
            shutil.rmtree(folder, ignore_errors=True)
            _origin(folder).unlink(missing_ok=True)
            raise
    else:
        with tempfile.TemporaryDirectory(prefix="anatogen-") as temporary:
            yield _unpacked(path, Path(temporary), progress)


def place_of(download: Path) -> Path:
    """The folder that a download lies in, where its tables may lie too.

    Args:
        download: A folder that `scans_folder` gave; of an unpacked one, it is the folder of its archive.
    """
    origin = _origin(download)
    return Path(json.loads(origin.read_text())) if origin.is_file() else download.resolve().parent


def _origin(unpacked: Path) -> Path:
    """The file that says where the archive of an unpacked folder lies."""
    return unpacked.with_name(f".{unpacked.name}.origin")


def _unpacked(path: Path, work: Path, progress: bool) -> Path:
    status = path.stat()
    key = sha256_json([path.name, status.st_size, status.st_mtime_ns])[:16]
    folder = work / f"unpacked-{key}"
    if not folder.is_dir():
        _unpack_whole(path, folder, progress)
    # Said anew each time: the archive may have been moved.
    write_json(_origin(folder), str(path.resolve().parent))
    return folder


def _unpack_whole(path: Path, folder: Path, progress: bool) -> None:
    remove_parts(folder.parent)
    shown = Console(stderr=True).status(f"Unpacking {path.name}") if progress else nullcontext()
    with shown, atomic_folder(folder) as temporary:
        # Its headers may hold names, which nothing else in the work folder does.
        temporary.chmod(0o700)
        _unpack(path, temporary)


def _unpack(path: Path, folder: Path) -> None:
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                _extract(path, _zip_members(archive), folder)
        else:
            with tarfile.open(path, "r:*") as tar:
                _extract(path, _tar_members(tar), folder)
                _check_end(tar)
    except (UserError, MemoryError):
        raise
    except NotImplementedError as error:
        raise UserError(f"{path} can't be unpacked here ({error}): unpack it and name the folder") from error
    except OSError as error:
        if error.errno is not None:
            raise UserError(f"{path} can't be unpacked: {error.strerror}") from error
        raise _damaged(path) from error  # gzip's complaints are OSErrors without a number
    except Exception as error:  # a damaged archive can raise nearly anything
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"the archive {path} is truncated or damaged: fetch it again")


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        name = info.filename.replace("\\", "/")  # as some Windows programs write it
        trouble = None
        if info.flag_bits & 1:
            trouble = "is encrypted"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            trouble = "is a link or device"
        yield _Member(
            name,
            name.endswith("/"),
            info.file_size,
            _seconds(info.date_time),
            trouble,
            lambda info=info: archive.open(info),  # type: ignore[misc]
        )


def _seconds(date_time: tuple[int, int, int, int, int, int]) -> int:
    # Programs that keep no times write month 0 and day 0.
    year, month, day, *clock = date_time
    return calendar.timegm((year, min(max(month, 1), 12), max(day, 1), *clock, 0, 0, 0))


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    while (info := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # else it keeps all it has seen
        yield _Member(
            info.name,
            info.isdir(),
            info.size,
            info.mtime,
            None if info.isreg() or info.isdir() else "is a link or device",
            lambda info=info: archive.extractfile(info),  # type: ignore[misc]
        )


def _check_end(archive: tarfile.TarFile) -> None:
    # Where a header is cut or damaged, tarfile takes it for the end of the archive.
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no end")
    while file.read(_CHUNK):  # the checksum of compressed archives comes last
        pass


def _extract(path: Path, members: Iterator[_Member], folder: Path) -> None:
    largest = max(HARMLESS_BYTES, MAX_RATIO * path.stat().st_size)
    free = shutil.disk_usage(folder).free - SPARE_BYTES
    total = 0
    for count, member in enumerate(members, 1):
        place = PurePosixPath(member.name)
        if place.is_absolute() or ".." in place.parts or "\0" in member.name:
            raise UserError(f"the archive {path} is not safe to unpack: {member.name!r} leads outside it")
        if member.trouble:
            raise UserError(
                f"{member.name!r} in {path} {member.trouble}: unpack the archive yourself and name the folder"
            )
        if member.size < 0:
            raise _damaged(path)
        total += member.size
        if count > MAX_MEMBERS or total > MAX_BYTES:
            raise UserError(
                f"{path} holds more than {MAX_MEMBERS} files or {MAX_BYTES >> 30} GB: unpack it in parts"
            )
        if total > largest:
            raise UserError(
                f"{path} unpacks to more than {MAX_RATIO} times its size, which scans do not: it is made to "
                "fill the disk, or unpack it yourself and name the folder"
            )
        if total > free:
            raise UserError(f"{path} unpacks to more than the {free >> 20} MB that are free for it")
        target = folder.joinpath(*place.parts)
        if member.is_folder:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(path, member, target)


def _write(path: Path, member: _Member, target: Path) -> None:
    try:
        file = target.open("xb")
    except FileExistsError as error:
        raise UserError(
            f"{path} holds {member.name!r} twice: unpack it yourself and name the folder"
        ) from error
    source = member.open()
    if source is None:
        raise _damaged(path)
    left = member.size
    with file, source:
        while left and (chunk := source.read(min(left, _CHUNK))):
            file.write(chunk)
            left -= len(chunk)
        # Beyond the last byte zip compares checksums.
        if left or source.read(1):
            raise _damaged(path)
    modified = min(max(member.modified, 0), 1 << 32)
    os.utime(target, (modified, modified))

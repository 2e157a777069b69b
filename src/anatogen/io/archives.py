"""Scans in a .zip or .tar, as the providers of public datasets deliver them: unpacked beside the work.

An archive comes from elsewhere, so nothing in it is trusted: only plain files and folders inside it are
written, whole or not at all, up to a limit.
"""

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
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console

from anatogen.core.errors import UserError
from anatogen.core.files import atomic_folder, remove_parts, sha256_json, write_json, writes_into

ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")

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
    # Why it can't be unpacked.
    trouble: str | None
    open: Callable[[], IO[bytes]]


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
        The folder; names of scans are relative to it. Unpacked files have the archive's own time.

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
    folder = work / f"unpacked-{sha256_json([path.name, status.st_size, status.st_mtime_ns])[:16]}"
    if not folder.is_dir():
        remove_parts(work)
        shown = Console(stderr=True).status(f"Unpacking {path.name}") if progress else nullcontext()
        with shown, atomic_folder(folder) as temporary:
            # Its headers may hold names, which nothing else in the work folder does.
            temporary.chmod(0o700)
            _unpack(path, temporary)
    # Said anew each time: the archive may have been moved.
    write_json(_origin(folder), str(path.resolve().parent))
    return folder


def _unpack(path: Path, folder: Path) -> None:
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive, writes_into(folder):
                _extract(path, _zip_members(archive), folder)
        else:
            with tarfile.open(path, "r:*") as tar, writes_into(folder):
                _extract(path, _tar_members(tar), folder)
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
        yield _Member(name, name.endswith("/"), info.file_size, trouble, partial(archive.open, info))


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    while (info := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # else it keeps all it has seen
        trouble = None if info.isreg() or info.isdir() else "is a link or device"
        source = partial(archive.extractfile, info)
        yield _Member(info.name, info.isdir(), info.size, trouble, source)  # type: ignore[arg-type]
    # Where a header is cut or damaged, tarfile takes it for the end of the archive.
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no end")
    while file.read(_CHUNK):  # the checksum of compressed archives comes last
        pass


def _extract(path: Path, members: Iterator[_Member], folder: Path) -> None:
    status = path.stat()
    largest = max(HARMLESS_BYTES, MAX_RATIO * status.st_size)
    free = shutil.disk_usage(folder).free - SPARE_BYTES
    total = 0
    for member in members:
        place = PurePosixPath(member.name)
        if place.is_absolute() or ".." in place.parts or "\0" in member.name:
            raise UserError(f"the archive {path} is not safe to unpack: {member.name!r} leads outside it")
        target = folder.joinpath(*place.parts)
        trouble = "is there twice" if not member.is_folder and target.exists() else member.trouble
        if trouble:
            raise UserError(
                f"{member.name!r} in {path} {trouble}: unpack the archive yourself and name the folder"
            )
        if member.size < 0:
            raise _damaged(path)
        total += member.size
        if total > largest:
            raise UserError(
                f"{path} unpacks to more than {MAX_RATIO} times its size, which scans do not: it is made to "
                "fill the disk, or unpack it yourself and name the folder"
            )
        if total > free:
            raise UserError(f"{path} unpacks to more than the {free >> 20} MB that are free for it")
        if member.is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file, member.open() as source:
            shutil.copyfileobj(source, file, _CHUNK)  # beyond the last byte zip compares checksums
            if file.tell() != member.size:
                raise _damaged(path)
        os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))

"""Files that are whole or absent: atomic writes and content hashes, used by every stage."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anatogen.core.errors import StorageError, UserError

# What the system says where it does not let a file be written, and what helps.
_ADVICE = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or have the quota raised",
    errno.EFBIG: "its file system or a limit allows no file of this size: raise it",
    errno.EROFS: "have it mounted for writing",
    errno.EACCES: "get the right to write there",
    errno.EPERM: "get the right to write there",
}
# As much as a file system needs to have to take any file.
_TRIAL_BYTES = 1 << 16


@contextmanager
def writes_into(folder: Path) -> Iterator[None]:
    """Makes one clear error of any with which a block ends because the folder can't be written to.

    Libraries report a full disk as errors of their own, so the folder is tried then.

    Raises:
        StorageError: Names the folder, what the system said, and what to do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = error if isinstance(error, OSError) and error.errno in _ADVICE else _trial(folder)
        if cause is None or not _concerns(cause, folder):
            raise
        raise StorageError(
            f"{folder} can't be written to ({cause.strerror}): {_ADVICE[cause.errno or 0]}, or name another "
            "folder; the same command then goes on"
        ) from error


def _trial(folder: Path) -> OSError | None:
    """What the system says to a small file in the folder, or where that will be; None where it is written."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), None)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(_TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error if error.errno in _ADVICE else None
    return None


def _concerns(error: OSError, folder: Path) -> bool:
    """Whether an error is of the folder, of what is in it or what it is in; not of a file that was read."""
    if not isinstance(error.filename, str):
        return True
    path, folder = Path(error.filename).absolute(), folder.absolute()
    return path.is_relative_to(folder) or folder.is_relative_to(path)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that replaces it when the block ends well.

    A kill at any moment leaves the old file or the new one, never a part; the temporary name starts with
    a dot and keeps the file's endings, which some writers choose the format by.

    Raises:
        StorageError: If the folder can't be written to; nothing is left there then.
    """
    with writes_into(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-", suffix="".join(path.suffixes[-2:]))
        os.close(handle)
    temporary = Path(name)
    try:
        with writes_into(path.parent):
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path` that becomes `path` when the block ends well.

    A kill at any moment leaves no folder of that name or a whole one. What was written into the temporary one
    goes if the block fails.

    Raises:
        OSError: If `path` is there and not an empty folder.
        StorageError: If the folder that it lies in can't be written to; nothing is left there then.
    """
    with writes_into(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        above = Path(tempfile.mkdtemp(dir=path.parent, prefix=".part-"))
    try:
        with writes_into(path.parent):
            # mkdtemp's rights are the owner's alone; a folder within has those of any other.
            temporary = above / path.name
            temporary.mkdir()
            yield temporary
            if path.is_dir():
                path.rmdir()
            temporary.replace(path)
    finally:
        shutil.rmtree(above, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def remove_parts(folder: Path) -> None:
    """Removes what kills left of files and folders that were being written in the folder."""
    for part in folder.glob(".part-*"):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def is_utf8(path: Path) -> bool:
    """Whether a path is UTF-8, as some libraries need it; names from older systems may be of any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def utf8_name(path: Path, *beside: Path) -> Iterator[str]:
    """Yields a name of a file for libraries that need UTF-8: SimpleITK ends the process at any other.

    Args:
        path: The file; where its path is not UTF-8 the name is that of a link to it.
        beside: Files that it names by their way from its folder, which has to be the same from the link.
    """
    if is_utf8(path):
        yield str(path)
        return
    ways = {os.path.relpath(file, path.parent): file for file in beside}
    with tempfile.TemporaryDirectory() as above:
        depth = max((Path(way).parts.count("..") for way in ways), default=0)
        folder = Path(above, *["below"] * depth)
        folder.mkdir(parents=True, exist_ok=True)
        for way, file in ways.items():
            link = Path(os.path.normpath(folder / way))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.absolute())
        # Endings decide the format, and may hold what is not UTF-8 but for the last one.
        link = folder / f"scan{path.suffix}"
        link.symlink_to(path.absolute())
        yield str(link)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically; a byte of a file name that is not UTF-8 becomes "\\udce9"."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, with sorted keys so that equal content is equal bytes."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def sha256_file(path: Path) -> str:
    """SHA-256 of the file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """SHA-256 of the content as canonical JSON, as 64 hex digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()

"""Folders that describe themselves: JSON with a format version and the hashes of the files beside it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from anatogen.core.errors import UserError
from anatogen.core.files import sha256_file

DescriptionT = TypeVar("DescriptionT")


def read_description_file(
    path: Path, parse: Callable[[Any], DescriptionT], *, version: int, missing: str, mend: str
) -> DescriptionT:
    """Reads a JSON file that describes its folder.

    Args:
        path: The file.
        parse: Makes a description of its content; raises ValueError, KeyError or TypeError for wrong content,
            UserError for what this program no longer reads.
        version: Format version that this program reads.
        missing: Message where there is no such file.
        mend: What to do about a damaged file or one of another version, as the end of a message.

    Raises:
        UserError: If the file is missing, damaged, of another format version or not read any more.
    """
    if not path.is_file():
        raise UserError(missing)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format_version"]
        if found == version:
            return parse(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): {mend}") from error
    raise UserError(f"{path} has format version {found}, this program reads {version}: {mend}")


def check_hashes(folder: Path, sha256_by_name: Mapping[str, str], *, mend: str) -> None:
    """Compares files of a folder with the hashes that its description gives.

    Raises:
        UserError: If one is missing or damaged.
    """
    for name, sha256 in sha256_by_name.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != sha256:
            raise UserError(f"{folder / name} is missing or damaged: {mend}")

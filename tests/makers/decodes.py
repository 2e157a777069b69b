"""Counts how often each file of a scan or mask is decoded, and how often one is hashed."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from anatogen.dataset import reading


def count_decodes(patch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts, from now on, by the name of the first file; of work in this process."""
    decodes = Counter[str]()
    read_scan, read_dicom = reading.read_scan, reading.read_dicom

    def scan(path: Path, *arguments: Any) -> Any:
        decodes[path.name] += 1
        return read_scan(path, *arguments)

    def dicom(files: Sequence[Path], **named: Any) -> Any:
        decodes[files[0].parent.name] += 1
        return read_dicom(files, **named)

    patch.setattr(reading, "read_scan", scan)
    patch.setattr(reading, "read_dicom", dicom)
    return decodes


def count_hashes(patch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts, from now on, by the name of the file; of work in this process."""
    hashes = Counter[str]()
    sha256_file = reading.sha256_file

    def counted(path: Path) -> str:
        hashes[path.name] += 1
        return sha256_file(path)

    patch.setattr(reading, "sha256_file", counted)
    return hashes

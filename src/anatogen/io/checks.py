"""Checks that readers of every format share: whether an array can be a scan."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason, Refusal
from anatogen.io.volume import Volume

# Fewer voxels than this along an axis is a localiser or a single image, not a volume.
MIN_VOXELS = 4

# From micrometres of small samples to what no scanner has.
_SPACING_MM = (1e-4, 1e3)


# What git-lfs keeps in place of a file, and git-annex where there are no links.
_STAND_IN = re.compile(rb"(?:(?:\.\./)*(?:\.git)?/?annex/objects/|version https://git-lfs\.)")
# Names of units of length end in one of these; what comes before says how many.
_METRE = re.compile(r"(?:met(?:er|re)s?|m)$")
_MM = {
    "": 1e3, "c": 10.0, "centi": 10.0, "m": 1.0, "milli": 1.0, "u": 1e-3, "\N{MICRO SIGN}": 1e-3,
    "\N{GREEK SMALL LETTER MU}": 1e-3, "micro": 1e-3, "n": 1e-6, "nano": 1e-6,
}  # fmt: skip
# Where nothing is said, lengths are in millimetres.
_NOT_SAID = ("", "?", "???", "unknown")


class ConstantScanError(ScanError):
    """Every voxel of a scan has one value: it is of no use for training, and `volume` is what was read."""

    def __init__(self, volume: Volume) -> None:
        super().__init__(Reason.CONSTANT(value=float(volume.array.flat[0])))
        self.volume = volume

    def __reduce__(self) -> tuple[type["ConstantScanError"], tuple[Volume]]:
        return type(self), (self.volume,)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences the warnings of nibabel and pydicom about headers that they cope with."""
    loggers = [logging.getLogger(name) for name in ("nibabel.global", "pydicom", "pylibjpeg")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def quiet_native_code() -> Iterator[None]:
    """Silences ITK's C++, which prints past Python: the process's output streams lead nowhere meanwhile."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {stream: os.dup(stream) for stream in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in saved:
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, copy in saved.items():
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)


def checked_volume(array: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]) -> Volume:
    """Makes a float32 `Volume` of an array (D, H, W) that was read, if its values can be a scan.

    Raises:
        ScanError: If it is empty, has too few slices, is constant, holds NaN or infinite values or voxels
            of an impossible size.
    """
    if array.size == 0:
        raise ScanError(Reason.EMPTY(shape=array.shape))
    if array.ndim == 3 and min(array.shape) < MIN_VOXELS:
        raise ScanError(Reason.TOO_FEW_VOXELS(num=min(array.shape), shape=array.shape, least=MIN_VOXELS))
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        bad = int(values.size - np.isfinite(values).sum())
        raise ScanError(Reason.NOT_FINITE(num=bad, total=values.size))
    if low == high:
        raise ConstantScanError(Volume(values, affine))
    volume = Volume(values, affine)
    smallest, largest = min(volume.spacing_mm), max(volume.spacing_mm)
    if not (_SPACING_MM[0] <= smallest and largest <= _SPACING_MM[1]):
        raise ScanError(Reason.IMPOSSIBLE_SPACING(smallest=smallest, largest=largest))
    return volume


def squeezed_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape without trailing axes of size 1 beyond the third.

    Raises:
        ScanError: If it does not have 3 dimensions then.
    """
    squeezed = shape
    while len(squeezed) > 3 and squeezed[-1] == 1:
        squeezed = squeezed[:-1]
    if len(squeezed) != 3:
        raise ScanError(Reason.NOT_3D(num=len(squeezed), shape=shape))
    return squeezed[0], squeezed[1], squeezed[2]


def check_dtype(dtype: np.dtype) -> None:
    """Checks that voxels are real numbers.

    Raises:
        ScanError: For colour (structured), complex and other types.
    """
    if dtype.fields is not None:
        raise ScanError(Reason.COLOUR())
    if dtype.kind == "c":
        raise ScanError(Reason.COMPLEX())
    if dtype.kind not in "buif":
        raise ScanError(Reason.NO_NUMBERS(dtype=str(dtype)))


def check_size(num_bytes: int, *paths: Path) -> None:
    """Checks that the voxels which a header announces can lie in the files.

    Args:
        num_bytes: Least size of the voxels that the header announces.
        paths: The scan's files, compressed or not.

    Raises:
        ScanError: If no compression could make them fit, before a damaged header makes memory run out.
    """
    # DEFLATE shrinks to 1/1032 at best.
    found = sum(path.stat().st_size for path in paths)
    if num_bytes > 1032 * found:
        raise ScanError(Reason.OTHER_NUMBER_OF_BYTES(announced=int(num_bytes), found=found))


def why_absent(path: Path) -> Refusal | None:
    """The refusal of a link to nothing, or of a stand-in for content that was not fetched; else None."""
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError:
        return Reason.ABSENT() if path.is_symlink() and not path.exists() else None
    return Reason.ABSENT() if _STAND_IN.match(start) else None


def millimetres(unit: str) -> float:
    """How many millimetres a unit of length is, by its symbol or name.

    Raises:
        ScanError: If it is not known.
    """
    name = unit.strip().lower()
    if name in _NOT_SAID:
        return 1.0
    prefix = "micro" if name in ("micron", "microns") else _METRE.sub("", name, count=1)
    if prefix not in _MM or prefix == name:
        raise ScanError(Reason.UNKNOWN_UNIT(unit=unit))
    return _MM[prefix]


def unreadable(error: Exception) -> ScanError:
    """Makes the error for a file that a library could not read."""
    # The library's own text is left out: it holds the path, and for some formats header content.
    return ScanError(Reason.DAMAGED_FILE(error=type(error).__name__))

"""A discovered scan, or a mask, from disk: the one place of this package that decodes voxels."""

from dataclasses import replace

from anatogen.core.errors import ScanError
from anatogen.core.files import sha256_file, sha256_json
from anatogen.core.reasons import Reason
from anatogen.dataset.discover import Source
from anatogen.dataset.masks import as_labels
from anatogen.io.checks import ConstantScanError
from anatogen.io.dicom.reading import read_dicom
from anatogen.io.formats import AS_IT_IS, Reading, read_scan
from anatogen.io.volume import Volume


def source_sha256(source: Source) -> str:
    """Hash of the source's bytes; where it is of several files it does not depend on their names."""
    if len(source.files) == 1 and not source.is_dicom:
        return sha256_file(source.files[0])
    return sha256_json(sorted(sha256_file(file) for file in source.files))


def read_source(source: Source, reading: Reading = AS_IT_IS) -> Volume:
    """Reads a discovered scan.

    Args:
        source: The scan.
        reading: What the files do not tell, and what is allowed.

    Raises:
        ScanError: If it can't be read or can't be right.
    """
    if source.is_dicom:
        return read_dicom(source.files, allow_tilt=reading.allow_tilt, is_labels=reading.is_labels)
    return read_scan(source.files[0], reading)


def read_mask(source: Source, reading: Reading) -> Volume:
    """Reads a label map, whole numbers from 0 to 255; an empty one is a mask too.

    Raises:
        ScanError: If it can't be read, or a value is no label.
    """
    try:
        mask = read_source(source, replace(reading, is_labels=True))
    except ConstantScanError as error:
        mask = error.volume
    except ScanError as error:
        raise ScanError(Reason.MASK_UNUSABLE(why=str(error))) from error
    return as_labels(mask)

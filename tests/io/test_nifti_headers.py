"""NIfTI headers as other programs write them: the right voxels in the right place, or refused."""

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatogen.core.errors import ScanError
from anatogen.dataset.discover import Source
from anatogen.doctor.headers import read_scan_header
from anatogen.io.formats import read_scan


def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-500, 500, (12, 10, 8)).astype(np.int16)


def write_with_offset(
    path: Path, version: int, offset: int, before: bytes = b"", after: bytes = b"", extender: bytes = b"\0"
) -> Path:
    """A single file whose header tells an offset of its own, with bytes before and after the voxels."""
    kind = {1: nib.Nifti1Image, 2: nib.Nifti2Image}[version]
    image = kind(voxels().T, np.diag([1.0, 2, 3, 1]))
    image.header.set_slope_inter(0.5, 3)
    content = bytearray(image.to_bytes())
    first = {1: 352, 2: 544}[version]
    if version == 1:
        struct.pack_into("<f", content, 108, offset)
    else:
        struct.pack_into("<q", content, 168, offset)
    content[first - 4 : first - 3] = extender
    content[first:first] = before
    content += after
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_single_file_without_offset_has_no_header_for_voxels(
    tmp_path: Path, version: int, ending: str
) -> None:
    """The header's bytes were the first voxels, and all others were shifted."""
    path = write_with_offset(tmp_path / f"scan{ending}", version, 0)
    assert np.array_equal(read_scan(path).array, voxels() * 0.5 + 3)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("offset", [1, 16, 340, 348, -352])
def test_an_offset_inside_the_header_is_refused(tmp_path: Path, version: int, offset: int) -> None:
    with pytest.raises(ScanError, match="damaged"):
        read_scan(write_with_offset(tmp_path / "scan.nii", version, offset))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("extra", [{"before": bytes(16)}, {"after": bytes(16)}])
def test_it_is_not_guessed_where_voxels_begin(tmp_path: Path, version: int, extra: dict[str, bytes]) -> None:
    with pytest.raises(ScanError, match="header is damaged: 1920 bytes announced, 1936 found"):
        read_scan(write_with_offset(tmp_path / "scan.nii", version, 0, **extra))


@pytest.mark.parametrize("version", [1, 2])
def test_an_extension_is_no_voxels(tmp_path: Path, version: int) -> None:
    """It is told by the byte before it, and the offset denies it: it was taken for voxels."""
    extension = struct.pack("<ii8s", 16, 6, b"comment")
    first = {1: 352, 2: 544}[version]
    for offset in (0, first):
        path = write_with_offset(tmp_path / "scan.nii", version, offset, before=extension, extender=b"\1")
        with pytest.raises(ScanError, match="damaged"):
            read_scan(path)
    path = write_with_offset(tmp_path / "scan.nii", version, first + 16, before=extension, extender=b"\1")
    assert np.array_equal(read_scan(path).array, voxels() * 0.5 + 3)


@pytest.mark.parametrize("unit, factor", [("meter", 1000), ("mm", 1), ("micron", 1e-3), (0, 1)])
@pytest.mark.parametrize("form", ["sform", "qform", "none"])
def test_units_of_lengths(tmp_path: Path, unit: str, factor: float, form: str) -> None:
    image = nib.Nifti1Image(voxels().T, np.diag([0.4, 0.5, 0.6, 1]))
    image.header.set_xyzt_units(unit)
    image.set_sform(image.affine, "scanner" if form == "sform" else "unknown")
    image.set_qform(image.affine, "scanner" if form == "qform" else "unknown")
    nib.save(image, tmp_path / "scan.nii")
    np.testing.assert_allclose(
        read_scan(tmp_path / "scan.nii").spacing_mm, np.array([0.6, 0.5, 0.4]) * factor
    )
    header = read_scan_header(Source("scan.nii", (tmp_path / "scan.nii",)))
    np.testing.assert_allclose(header.spacing_mm, np.array([0.6, 0.5, 0.4]) * factor, rtol=1e-6)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("size", [0, -1.5])
@pytest.mark.parametrize("form", ["sform", "qform", "none"])
def test_voxels_without_size_or_of_negative_size(tmp_path: Path, size: float, form: str, ending: str) -> None:
    """The sform says all by itself; else programs differ in what they take: 1, or the size without sign."""
    image = nib.Nifti1Image(voxels().T, np.diag([1.5, 2, 3, 1]))
    image.set_sform(image.affine, "scanner" if form == "sform" else "unknown")
    image.set_qform(image.affine, "scanner" if form == "qform" else "unknown")
    content = bytearray(image.to_bytes())
    struct.pack_into("<f", content, 80, size)
    path = tmp_path / f"scan{ending}"
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    if form == "sform":
        np.testing.assert_allclose(read_scan(path).affine[:3, :3], np.diag([1.5, 2, 3])[:, ::-1])
    else:
        with pytest.raises(ScanError, match=rf"voxels of {size:g} to 3 mm can't be right"):
            read_scan(path)

"""Formats: every voxel stays where it was, and what can't be a scan is refused with its reason."""

import gzip
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scan_makers import head, oblique_affine, pattern_volume, same_place, world

from anatogen.core.errors import ScanError, UserError
from anatogen.io.formats import Reading, files_beside, read_scan
from anatogen.io.geometry import axis_codes
from anatogen.io.itk import read_itk_header
from anatogen.io.nifti import read_nifti, write_nifti
from anatogen.io.npy import write_npy
from anatogen.io.volume import Volume

SHAPE = (6, 9, 7)


def sheared_affine() -> np.ndarray:
    affine = oblique_affine(4)
    affine[:3, 0] += 0.4 * affine[:3, 1]
    return affine


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("affine", [*map(oblique_affine, range(4)), sheared_affine()], ids=str)
def test_nifti_round_trip(tmp_path: Path, ending: str, affine: np.ndarray) -> None:
    volume = pattern_volume(affine, SHAPE)
    write_nifti(volume, tmp_path / f"scan{ending}")
    back = read_nifti(tmp_path / f"scan{ending}")
    assert np.array_equal(back.array, volume.array)
    assert same_place(back, volume) < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_nifti_agrees_with_itk(tmp_path: Path, seed: int) -> None:
    # ITK reads the qform where nibabel reads the sform: both must be written, and agree.
    volume = pattern_volume(oblique_affine(seed), SHAPE)
    write_nifti(volume, tmp_path / "scan.nii.gz")
    image = sitk.ReadImage(tmp_path / "scan.nii.gz")
    for index in [(0, 0, 0), (5, 0, 0), (0, 8, 0), (5, 8, 6)]:
        x, y, z = image.TransformIndexToPhysicalPoint(index[::-1])
        ours = (volume.affine @ [*index, 1])[:3]
        np.testing.assert_allclose([-x, -y, z], ours, atol=1e-3)
        assert image.GetPixel(index[::-1]) == volume.array[index]


# Names as an older system wrote them: in Latin-1, so no UTF-8.
LATIN = os.fsdecode(b"Caf\xe9")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".npy"])
def test_names_that_are_not_utf8_are_read_and_written(tmp_path: Path, ending: str) -> None:
    volume = pattern_volume(oblique_affine(1), SHAPE)
    path = tmp_path / LATIN / f"{LATIN}.{LATIN}{ending}"
    volume.save(path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    back = read_scan(path)
    assert np.array_equal(back.array, volume.array)
    if ending != ".npy":
        assert same_place(back, volume) < 1e-3


@pytest.mark.parametrize("written, files", [("scan.nhdr", 2), ("scan.hdr", 2), ("scan.mgz", 1)])
def test_scans_of_several_files_and_of_freesurfer_may_be_named_in_latin(
    tmp_path: Path, written: str, files: int
) -> None:
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    if written == "scan.nhdr":
        sitk.WriteImage(sitk.GetImageFromArray(array), tmp_path / written)
    else:
        kind = nib.Nifti1Pair if written == "scan.hdr" else nib.MGHImage
        nib.save(kind(array.T, np.diag([2.0, 3, 4, 1])), tmp_path / written)
    folder = tmp_path / LATIN
    folder.mkdir()
    parts = sorted(tmp_path.glob("scan.*"))
    assert len(parts) == files
    for part in parts:
        content = part.read_bytes()
        if written == "scan.nhdr":
            content = content.replace(b"file: scan.", b"file: Caf\xe9.")
        (folder / f"{LATIN}{part.suffix}").write_bytes(content)
    path = folder / f"{LATIN}{Path(written).suffix}"
    assert np.array_equal(read_scan(path).array, array)
    if written == "scan.nhdr":
        assert read_itk_header(path)[0] == SHAPE


@pytest.mark.parametrize("way", ["{}.raw", "sub/{}.raw", "../other/{}.raw"])
@pytest.mark.parametrize("header_name, name", [(LATIN, LATIN), (LATIN, "plain"), ("plain", LATIN)])
def test_a_header_that_is_not_named_in_utf8_finds_its_data(
    tmp_path: Path, way: str, header_name: str, name: str
) -> None:
    folder = tmp_path / header_name
    folder.mkdir()
    image = sitk.GetImageFromArray(pattern_volume(oblique_affine(1), SHAPE).array)
    sitk.WriteImage(image, tmp_path / "scan.mhd")
    data = Path(os.path.normpath(folder / way.format(name)))
    data.parent.mkdir(exist_ok=True)
    (tmp_path / "scan.raw").rename(data)
    header = (tmp_path / "scan.mhd").read_bytes().replace(b"scan.raw", os.fsencode(way.format(name)))
    path = folder / f"{header_name}.mhd"
    path.write_bytes(header)
    assert np.array_equal(read_scan(path).array, sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("seed", range(3))
def test_itk_formats_keep_every_voxel(tmp_path: Path, ending: str, seed: int) -> None:
    volume = pattern_volume(oblique_affine(seed), SHAPE)
    image = sitk.GetImageFromArray(volume.array)
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    image.SetSpacing(volume.spacing_mm[::-1])
    image.SetDirection((lps[:3, :3] / volume.spacing_mm)[:, ::-1].ravel())
    image.SetOrigin(lps[:3, 3])
    sitk.WriteImage(image, tmp_path / f"scan{ending}")
    back = read_scan(tmp_path / f"scan{ending}")
    assert np.array_equal(back.array, volume.array)
    assert same_place(back, volume) < 1e-3


def test_detached_nrrd(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(array), tmp_path / "scan.nhdr")
    (tmp_path / "scan.nhdr").rename(tmp_path / "scan.nrrd")
    assert files_beside(tmp_path / "scan.nrrd") == (tmp_path / "scan.raw",)
    assert np.array_equal(read_scan(tmp_path / "scan.nrrd").array, array)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii"])
def test_attached_data_are_no_other_file(tmp_path: Path, ending: str) -> None:
    text = np.frombuffer(b"\nElementDataFile = no\ndata file: no\n" + bytes(476), np.uint8).reshape(8, 8, 8)
    sitk.WriteImage(sitk.GetImageFromArray(text), tmp_path / f"scan{ending}")
    assert files_beside(tmp_path / f"scan{ending}") == ()


def test_npy_is_taken_as_axial_slices(tmp_path: Path) -> None:
    volume = head()
    write_npy(volume, tmp_path / "scan.npy")
    back = read_scan(tmp_path / "scan.npy", Reading(npy_spacing_mm=(3, 0.5, 0.7)))
    assert np.array_equal(back.array, volume.array)
    assert axis_codes(back.affine) == "SPL"
    np.testing.assert_allclose(back.spacing_mm, (3, 0.5, 0.7))
    np.testing.assert_allclose(world(back.affine, back.array.shape).mean(axis=(1, 2, 3)), 0, atol=1e-9)


def test_compressed_nifti_is_reproducible(tmp_path: Path) -> None:
    for name in ("first.nii.gz", "second.nii.gz"):
        write_nifti(head(), tmp_path / name)
    assert (tmp_path / "first.nii.gz").read_bytes() == (tmp_path / "second.nii.gz").read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["first.nii.gz", "second.nii.gz"]


def test_nifti_scaling_units_and_trailing_axes(tmp_path: Path) -> None:
    stored = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6, 1, 1)
    image = nib.Nifti1Image(stored, np.diag([2000.0, 3000, 4000, 1]))
    image.header.set_slope_inter(0.5, -3)
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "scan.nii")
    back = read_scan(tmp_path / "scan.nii")
    assert back.array.shape == (6, 5, 4)
    assert back.array.dtype == np.float32
    np.testing.assert_allclose(back.spacing_mm, (4, 3, 2))
    np.testing.assert_allclose(back.array, stored[..., 0, 0].T * 0.5 - 3)


def test_nifti_can_not_have_another_ending(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.nii"):
        write_nifti(head(), tmp_path / "scan.mha")


def test_real_scans_agree_with_nibabel(shared_data: Path, tmp_path: Path) -> None:
    path = next(iter(sorted((shared_data / "brain").glob("*.nii.gz"))))
    volume = read_scan(path)
    reference = nib.load(path)
    assert np.array_equal(volume.array, reference.get_fdata(dtype=np.float32).T)
    corner = [3, 20, 100]
    np.testing.assert_allclose(
        (volume.affine @ [*corner, 1])[:3], (reference.affine @ [*corner[::-1], 1])[:3], atol=1e-3
    )


def _nifti(path: Path, array: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def _array(**changes: float) -> np.ndarray:
    array = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    for value in changes.values():
        array[1, 2, 3] = value
    return array


def _truncated(path: Path, keep: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def _structured(path: Path) -> Path:
    colour = np.zeros((8, 8, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return _nifti(path, colour)


def _itk(path: Path, array: np.ndarray, is_vector: bool = False) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=is_vector), path)
    return path


def _npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def _huge_header(path: Path) -> Path:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape((30000, 30000, 30000))
    path.write_bytes(gzip.compress(header.binaryblock + bytes(64)))
    return path


def _singular(path: Path) -> Path:
    image = nib.Nifti1Image(_array(), np.eye(4))
    image.header["srow_x"] = image.header["srow_y"]
    image.header["sform_code"] = 1
    image.header.set_data_offset(352)
    path.write_bytes(image.header.binaryblock + bytes(4) + _array().tobytes(order="F"))
    return path


BAD = {
    "missing": (lambda t: t / "none.nii", "no such file"),
    "empty file": (lambda t: _truncated(_nifti(t / "a.nii", _array()), 0), "truncated, damaged"),
    "text": (lambda t: (t / "a.nii").write_text("hello") and t / "a.nii", "truncated, damaged"),
    "truncated nii": (lambda t: _truncated(_nifti(t / "a.nii", _array()), 0.6), "truncated"),
    "truncated gz": (lambda t: _truncated(_nifti(t / "a.nii.gz", _array()), 0.6), "truncated"),
    "truncated nrrd": (lambda t: _truncated(_itk(t / "a.nrrd", _array()), 0.6), "truncated"),
    "truncated mha": (lambda t: _truncated(_itk(t / "a.mha", _array()), 0.6), "truncated"),
    "truncated npy": (lambda t: _truncated(_npy(t / "a.npy", _array()), 0.6), "truncated"),
    "huge header": (lambda t: _huge_header(t / "a.nii.gz"), "bytes announced"),
    "4D nifti": (lambda t: _nifti(t / "a.nii", np.stack([_array()] * 3, -1)), "4 dimensions"),
    "2D nifti": (lambda t: _nifti(t / "a.nii", _array()[0]), "2 dimensions"),
    "4D npy": (lambda t: _npy(t / "a.npy", np.stack([_array()] * 3, -1)), "4 dimensions"),
    "rgb nifti": (lambda t: _structured(t / "a.nii"), "colour"),
    "rgb nrrd": (lambda t: _itk(t / "a.nrrd", np.zeros((8, 8, 8, 3), np.uint8), True), "colour"),
    "complex nifti": (lambda t: _nifti(t / "a.nii", _array().astype(np.complex64)), "complex"),
    "complex npy": (lambda t: _npy(t / "a.npy", _array().astype(np.complex64)), "complex"),
    "objects": (lambda t: _npy(t / "a.npy", np.array([{}, {}], dtype=object)), "damaged"),
    "text npy": (lambda t: _npy(t / "a.npy", np.full((8, 8, 8), "a")), "expected numbers"),
    "constant": (lambda t: _nifti(t / "a.nii", np.full((8, 8, 8), 7, np.int16)), "constant.*7"),
    "nan": (lambda t: _nifti(t / "a.nii", _array(x=np.nan)), "1 of 512 voxels are NaN"),
    "infinite": (lambda t: _npy(t / "a.npy", _array(x=np.inf)), "1 of 512 voxels are NaN or infinite"),
    "empty array": (lambda t: _npy(t / "a.npy", np.zeros((0, 8, 8))), "empty"),
    "few slices": (lambda t: _nifti(t / "a.nii", _array()[..., :2]), "only 2"),
    "singular affine": (lambda t: _singular(t / "a.nii"), "singular"),
    "unknown ending": (lambda t: (t / "a.bin").write_bytes(b"x") and t / "a.bin", "unknown format .bin"),
    "empty folder": (lambda t: t, "0 DICOM series"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_scans_are_refused_with_their_reason(
    tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, reason = BAD[case]
    with pytest.raises(ScanError) as caught:
        read_scan(make(tmp_path))
    message = str(caught.value)
    assert re.search(reason, message)
    assert "\n" not in message
    assert str(tmp_path) not in message
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


def test_volume_refuses_what_has_no_place() -> None:
    with pytest.raises(ScanError, match="finite"):
        Volume(_array(), np.full((4, 4), np.nan))


def test_a_nifti_file_is_not_read_through_a_map(tmp_path: Path) -> None:
    """A file that changes or shrinks later changed the scan in memory, or killed the process."""
    write_nifti(head(), tmp_path / "scan.nii")
    volume = read_scan(tmp_path / "scan.nii")
    before = volume.array.copy()
    (tmp_path / "scan.nii").write_bytes(b"")
    assert np.array_equal(volume.array, before)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".npy"])
def test_voxels_that_the_header_denies_are_damage(tmp_path: Path, ending: str) -> None:
    """An axis that is told too short gave a scan of mixed-up voxels."""
    volume = head()
    path = tmp_path / f"scan{ending}"
    if ending in (".nrrd", ".mha"):
        sitk.WriteImage(sitk.GetImageFromArray(volume.array), str(path))
    elif ending == ".npy":
        write_npy(volume, path)
    else:
        write_nifti(volume, path)
    read_scan(path)
    content = path.read_bytes()
    raw = gzip.decompress(content) if ending == ".nii.gz" else content
    old, new = {
        ".npy": (b"(20, 24, 18)", b"(20, 23, 18)"),
        ".nrrd": (b"sizes: 18 24 20", b"sizes: 18 23 20"),
        ".mha": (b"DimSize = 18 24 20", b"DimSize = 18 23 20"),
    }.get(ending, (bytes([18, 0, 24, 0, 20, 0]), bytes([18, 0, 23, 0, 20, 0])))
    assert raw.count(old) >= 1
    raw = raw.replace(old, new, 1)
    path.write_bytes(gzip.compress(raw) if ending == ".nii.gz" else raw)
    with pytest.raises(ScanError, match="header is damaged"):
        read_scan(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_checksums_of_compressed_scans_are_compared(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    if ending == ".nii.gz":
        write_nifti(head(), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(head().array), str(path), useCompression=True)
    read_scan(path)
    content = bytearray(path.read_bytes())
    content[-8 if ending != ".mha" else -2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ScanError, match=r"damaged|truncated"):
        read_scan(path)


def test_impossible_voxel_sizes_are_damage(tmp_path: Path) -> None:
    volume = head()
    affine = volume.affine.copy()
    affine[:3, 0] *= 1e5
    write_nifti(Volume(volume.array, affine), tmp_path / "scan.nii")
    with pytest.raises(ScanError, match="can't be right"):
        read_scan(tmp_path / "scan.nii")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_what_a_volume_saves_it_loads(tmp_path: Path, ending: str) -> None:
    volume = pattern_volume(oblique_affine(1), SHAPE)
    volume.save(tmp_path / f"scan{ending}")
    assert [path.name for path in tmp_path.iterdir()] == [f"scan{ending}"]
    back = Volume.load(str(tmp_path / f"scan{ending}"))
    assert np.array_equal(back.array, volume.array)
    assert same_place(back, volume) < 1e-3


def test_npy_keeps_the_array_alone(tmp_path: Path) -> None:
    volume = pattern_volume(oblique_affine(1), SHAPE)
    volume.save(tmp_path / "scan.npy")
    back = Volume.load(tmp_path / "scan.npy")
    assert np.array_equal(back.array, volume.array)
    assert axis_codes(back.affine) == "SPL" and back.spacing_mm == (1, 1, 1)


def test_other_endings_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in .nii, .nii.gz, .nrrd, .mha or .npy"):
        head().save(tmp_path / "scan.jpg")

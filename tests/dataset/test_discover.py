"""Whatever looks like a scan is found, or named with its reason; the rest is counted by why it is ignored."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scan_makers import head, oblique_affine, pattern_volume, same_place

from anatogen.core.errors import ScanError, UserError
from anatogen.dataset.discover import HIDDEN, NOT_INCLUDED, Source, discover, ignored_text
from anatogen.dataset.prepare import PrepareConfig, PrepareSummary, prepare
from anatogen.dataset.reading import read_source
from anatogen.doctor.examine import as_json, examine
from anatogen.doctor.headers import read_scan_header
from anatogen.doctor.page import summary
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.formats import OTHER_SCAN_ENDINGS, Reading, read_scan
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume

SHAPE = (6, 9, 7)
LINK = "../.git/annex/objects/aa/bb/MD5E-s9--0.nii.gz/MD5E-s9--0.nii.gz"
POINTER = "/annex/objects/MD5E-s9--0.nii.gz\n"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def reasons_in(folder: Path) -> dict[str, str]:
    return {scan.name: scan.reason for scan in discover(folder)[1]}


def run(scans: Path, out: Path, strict: bool = False) -> PrepareSummary:
    return prepare(scans, out, PrepareConfig(), strict=strict, workers=1, progress=False)


# --- links to nothing


def test_links_to_nothing_are_named_and_strict_fails(tmp_path: Path) -> None:
    """A clone of which 6 of 10 scans were not fetched was prepared as 4 scans of 4."""
    scans = tmp_path / "scans"
    for seed in range(10):
        path = scans / f"sub-{seed}" / "anat" / f"sub-{seed}_T1w.nii.gz"
        if seed < 4:
            write_nifti(head(seed), path)
        else:
            path.parent.mkdir(parents=True)
            path.symlink_to("../../../.git/annex/objects/key")
    made = run(scans, tmp_path / "out")
    assert len(made.manifest.cases) == 4
    assert [scan.name for scan in made.left_out] == [f"sub-{n}/anat/sub-{n}_T1w.nii.gz" for n in range(4, 10)]
    assert all("a link or stand-in for a file that is not there" in scan.reason for scan in made.left_out)
    with pytest.raises(UserError, match="strict: 6 scans can't be used"):
        run(scans, tmp_path / "strict", strict=True)
    diagnosis = examine(scans, workers=1, progress=False)
    assert summary(diagnosis.facts)["scans that can be used"] == "4 of 10"
    finding = next(one for one in diagnosis.findings if one.count == 6)
    assert "datalad get" in finding.advice


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nhdr", "a.hdr", "a.img", "a.mgz", "a.npy",
                                  "a.dcm", "IM0001", "00017", "a.mnc"])  # fmt: skip
@pytest.mark.parametrize("content", [None, "loop", LINK, POINTER, LFS], ids=str)
def test_what_was_not_fetched_is_named(tmp_path: Path, name: str, content: str | None) -> None:
    (tmp_path / "scans").mkdir()
    path = tmp_path / "scans" / name
    if content is None:
        path.symlink_to("gone")
    elif content == "loop":
        path.symlink_to(name)
    else:
        path.write_text(content)
    assert "that is not there" in reasons_in(tmp_path / "scans")[name]


def test_links_to_nothing_of_other_files_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to("gone")
    assert discover(tmp_path) == ([], [], {".json": 1})


def test_a_slice_that_was_not_fetched_condemns_its_series(tmp_path: Path) -> None:
    """The last one: nothing else tells that the stack was longer."""
    write_dicom(head(0), tmp_path / "scans" / "a", "MR", uid_from="0")
    last = max((tmp_path / "scans" / "a").iterdir())
    last.unlink()
    last.symlink_to("gone")
    found = reasons_in(tmp_path / "scans")
    assert "is damaged: a/slice_0020.dcm" in found["a"]
    assert "that is not there" in found["a/slice_0020.dcm"]


def test_data_that_were_not_fetched(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(head(0).array), tmp_path / "a.mhd")
    (tmp_path / "a.raw").unlink()
    (tmp_path / "a.raw").symlink_to("gone")
    assert "that is not there" in reasons_in(tmp_path)["a.mhd"]


# --- formats that were passed over


def save(volume: Volume, path: Path) -> None:
    affine = volume.affine[:, [2, 1, 0, 3]]
    if path.suffix in (".mgz", ".mgh"):
        nib.save(nib.MGHImage(volume.array.T, affine), path)
    elif path.suffix in (".hdr", ".HDR"):
        nib.save(nib.Nifti1Pair(volume.array.T, affine), path)
    else:
        image = sitk.GetImageFromArray(volume.array)
        lps = np.diag([-1.0, -1, 1, 1]) @ volume.affine
        image.SetSpacing(volume.spacing_mm[::-1])
        image.SetDirection((lps[:3, :3] / volume.spacing_mm)[:, ::-1].ravel())
        image.SetOrigin(lps[:3, 3])
        sitk.WriteImage(image, path, useCompression=path.name.startswith("zipped"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["a.mgz", "a.mgh", "a.hdr", "a.HDR", "a.nhdr", "zipped.nhdr"])
def test_other_formats_keep_every_voxel_and_its_place(tmp_path: Path, name: str, seed: int) -> None:
    volume = pattern_volume(oblique_affine(seed), SHAPE)
    save(volume, tmp_path / name)
    sources, left_out, ignored = discover(tmp_path)
    assert [source.name for source in sources] == [name] and not left_out and not ignored
    assert len(sources[0].files) == (1 if name.startswith("a.mg") else 2)
    back = read_source(sources[0])
    assert np.array_equal(back.array, volume.array)
    assert same_place(back, volume) < 1e-3
    header = read_scan_header(sources[0])
    assert header.shape == SHAPE
    np.testing.assert_allclose(header.spacing_mm, volume.spacing_mm, rtol=1e-5)


def test_mgh_with_what_follows_its_voxels(tmp_path: Path) -> None:
    """FreeSurfer writes the commands that made it behind them."""
    volume = pattern_volume(oblique_affine(0), SHAPE)
    save(volume, tmp_path / "a.mgh")
    with (tmp_path / "a.mgh").open("ab") as file:
        file.write(b"mri_convert in out\0" * 500)
    assert np.array_equal(read_scan(tmp_path / "a.mgh").array, volume.array)


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh", "a.hdr", "a.nhdr", "zipped.nhdr"])
def test_cut_files_of_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    save(pattern_volume(oblique_affine(0), SHAPE), tmp_path / name)
    voxels = discover(tmp_path)[0][0].files[-1]
    os.truncate(voxels, voxels.stat().st_size - 60)
    with pytest.raises(ScanError, match=r"truncated|damaged"):
        read_scan(tmp_path / name)


def test_mgh_without_geometry_is_told(tmp_path: Path) -> None:
    image = nib.MGHImage(head(0).array.T, oblique_affine(0))
    nib.save(image, tmp_path / "a.mgh")
    source = Source("a.mgh", (tmp_path / "a.mgh",))
    assert "no_geometry" not in read_scan_header(source).hints
    content = bytearray((tmp_path / "a.mgh").read_bytes())
    content[28:30] = bytes(2)
    (tmp_path / "a.mgh").write_bytes(content)
    header = read_scan_header(source)
    assert "no_geometry" in header.hints
    assert json.loads(json.dumps(header.shape)) == [20, 24, 18]


def test_checksums_of_mgz_are_compared(tmp_path: Path) -> None:
    save(pattern_volume(oblique_affine(0), SHAPE), tmp_path / "a.mgz")
    content = bytearray((tmp_path / "a.mgz").read_bytes())
    content[-8] ^= 1
    (tmp_path / "a.mgz").write_bytes(content)
    with pytest.raises(ScanError, match="damaged"):
        read_scan(tmp_path / "a.mgz")


def test_sheared_mgh_is_refused_or_straightened(tmp_path: Path) -> None:
    volume = pattern_volume(oblique_affine(0), SHAPE)
    affine = volume.affine.copy()
    affine[:3, 0] += 0.5 * affine[:3, 1]
    image = nib.MGHImage(volume.array.T, affine[:, [2, 1, 0, 3]])
    nib.save(image, tmp_path / "a.mgz")
    with pytest.raises(ScanError, match="sheared"):
        read_scan(tmp_path / "a.mgz")
    straight = read_scan(tmp_path / "a.mgz", Reading(allow_tilt=True))
    axes = straight.affine[:3, :3] / straight.spacing_mm
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-4)


def test_pairs_that_are_no_pairs(tmp_path: Path) -> None:
    volume = pattern_volume(oblique_affine(0), SHAPE)
    for name in ("whole", "no_header", "no_voxels"):
        save(volume, tmp_path / f"{name}.hdr")
    (tmp_path / "no_header.hdr").unlink()
    (tmp_path / "no_voxels.img").unlink()
    (tmp_path / "envi.hdr").write_text("ENVI\nsamples = 3\n")
    sources, left_out, ignored = discover(tmp_path)
    assert [source.name for source in sources] == ["whole.hdr"]
    assert [scan.name for scan in left_out] == ["no_voxels.hdr", "no_header.img"]
    assert "names no data file" in left_out[0].reason and "header (.hdr)" in left_out[1].reason
    assert ignored == {".hdr": 1}


def test_analyze_does_not_tell_left_from_right(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(head(0).array.T, np.eye(4)), tmp_path / "a.hdr")
    (source,), _, _ = discover(tmp_path)
    with pytest.raises(ScanError, match=r"Analyze 7\.5, whose header does not tell left from right"):
        read_source(source)


@pytest.mark.parametrize("ending", OTHER_SCAN_ENDINGS)
def test_scans_that_can_not_be_read_are_named(tmp_path: Path, ending: str) -> None:
    write_nifti(head(0), tmp_path / "scans" / "a.nii")
    (tmp_path / "scans" / f"b.v1{ending.upper()}").write_bytes(bytes(900))
    found = reasons_in(tmp_path / "scans")
    assert f"unknown format {ending}: known are .nii" in found[f"b.v1{ending.upper()}"]
    with pytest.raises(UserError, match="strict: 1 scans"):
        run(tmp_path / "scans", tmp_path / "out", strict=True)


# --- what is ignored


def test_every_file_is_accounted_for(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for seed in range(4):
        write_nifti(head(seed), scans / f"{seed}.nii.gz")
    save(head(4), scans / "4.hdr")
    (scans / ".git").mkdir()
    (scans / ".git" / "config").write_text("")
    for name in (".DS_Store", "a.json", "b.json", "notes.TXT", "README", "old.zip", "DICOMDIR"):
        (scans / name).write_text("{}")
    (scans / "5.mnc").write_text("{}")
    sources, left_out, ignored = discover(scans, exclude=["0.*", "5.*", "4.hdr"])
    assert [source.name for source in sources] == ["1.nii.gz", "2.nii.gz", "3.nii.gz"] and not left_out
    assert ignored == {".json": 2, ".txt": 1, "without ending": 2, ".zip": 1, NOT_INCLUDED: 4, HIDDEN: 2}
    config = PrepareConfig(exclude=["0.*", "5.*", "4.hdr"])
    made = prepare(scans, tmp_path / "out", config, workers=1, progress=False)
    again = prepare(scans, tmp_path / "out", config, workers=1, progress=False)
    assert made.ignored == again.ignored == ignored and again.was_complete
    assert made.num_ignored == 10
    assert ignored_text(made.ignored) == (
        "2 .json, 2 without ending, 1 .txt, 1 .zip (no scans); 4 not included; 2 hidden"
    )
    diagnosis = examine(scans, config, workers=1, progress=False)
    assert summary(diagnosis.facts)["files ignored"] == ignored_text(ignored)
    assert as_json(diagnosis)["ignored"] == ignored


def test_what_a_recipe_does_not_take_is_counted(tmp_path: Path) -> None:
    for seed in range(3):
        write_nifti(head(seed), tmp_path / "scans" / f"{seed}.nii.gz")
    config = PrepareConfig(limit=2)
    made = prepare(tmp_path / "scans", tmp_path / "out", config, workers=1, progress=False)
    assert ignored_text(made.ignored) == "1 not of the recipe"


def test_many_endings_are_told_in_a_line() -> None:
    text = ignored_text({f".e{number}": 20 - number for number in range(12)})
    assert text.count(",") == 8 and text.endswith("42 of other endings (no scans)")
    assert ignored_text({}) == "none"


def test_a_source_of_a_pair_has_both_files(tmp_path: Path) -> None:
    save(head(0), tmp_path / "a.hdr")
    assert discover(tmp_path)[0] == [Source("a.hdr", (tmp_path / "a.hdr", tmp_path / "a.img"))]

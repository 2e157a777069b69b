"""Label and probability maps never become scans: by values, names, sidecars and what lies beside them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scan_makers import ct_head, head

from anatogen.core.errors import UserError
from anatogen.dataset.discover import Source
from anatogen.dataset.label_maps import beside, word_of_map
from anatogen.dataset.prepare import prepare
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.doctor.examine import examine
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume
from anatogen.planning.fingerprint import take_fingerprint

RNG = np.random.default_rng(0)


def parcels(scan: Volume, num: int = 117) -> Volume:
    d, h, w = np.indices(scan.array.shape)
    cells = (d // 4) * 64 + (h // 4) * 8 + w // 4
    values = RNG.integers(1, num + 1, cells.max() + 1)
    return Volume(np.where(scan.array > 0, values[cells], 0).astype(np.float32), scan.affine)


def prepared(scans: Path, out: Path, **config: object):
    return prepare(scans, out, PrepareConfig(**config), workers=1, progress=False)


def reasons(summary) -> dict[str, str]:
    return {scan.name: scan.reason for scan in summary.left_out}


def test_ct_beside_maps_of_117_labels_stays_ct(tmp_path: Path) -> None:
    """All CT was left out, and the maps were prepared as MR: a tie decided."""
    scans = tmp_path / "scans"
    for seed in range(12):
        scan = ct_head(seed)
        write_nifti(scan, scans / f"s{seed:04d}" / "ct.nii.gz")
        write_nifti(parcels(Volume(scan.array + 900, scan.affine)), scans / f"s{seed:04d}" / "many.nii.gz")
    summary = prepared(scans, tmp_path / "data")
    assert len(summary.manifest.cases) == 12
    assert summary.manifest.intensity.modality == "CT"
    assert all("it looks like a label map" in reason for reason in reasons(summary).values())
    assert len(summary.left_out) == 12
    diagnosis = examine(scans, workers=1, progress=False)
    assert (len(diagnosis.facts.usable), diagnosis.facts.num_candidates) == (12, 12)
    assert len(diagnosis.facts.masks.masks) == 12
    found = take_fingerprint(scans, PrepareConfig(), workers=1, progress=False)
    assert (found.modality, found.num_scans, found.num_patients) == ("CT", 12, 12)
    assert (found.num_label_maps, found.num_left_out) == (12, 0)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("sub-1/anat/sub-1_dseg.nii.gz", "dseg"),
        ("sub-1_space-MNI_label-GM_probseg.nii.gz", "probseg"),
        ("mri/aparc+aseg.mgz", "aparc"),
        ("aparc.a2009s+aseg.mgz", "aparc"),
        ("harvard-oxford-prob-1mm.nii.gz", None),
        ("gm_prob.nii.gz", "prob"),
        ("signmask.nii", "signmask"),
        ("case3_brainMask.nii.gz", "mask"),
        ("label0007.nrrd", "label"),
        ("x_seg_2.mha", "seg"),
        ("labelsTr/liver_3.nii.gz", "labels"),
        ("s1/segmentations/liver.nii.gz", "segmentations"),
        ("masks/p1/visit.nii.gz", "masks"),
        # Parts of words, of sequences and of studies.
        ("proband_3.nii.gz", None),
        ("masked_3.nii.gz", None),
        ("t1_seg_epi.nii.gz", None),
        ("GT_001_T1w.nii.gz", None),
        ("segmentation/images/p1.nii.gz", None),
        ("segmentation_study/p1.nii.gz", None),
        ("unlabeled/p1.nii.gz", None),
        ("probe.nii.gz", None),
    ],
)
def test_names_tell_by_whole_words(name: str, word: str | None) -> None:
    assert word_of_map(name) == word


def test_what_values_and_names_contradict_is_left_out_until_it_is_named(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for seed in range(3):
        write_nifti(head(seed), scans / f"{seed}.nii.gz")
    write_nifti(head(7), scans / "7_brainmask.nii.gz")
    nifti = nib.Nifti1Image(head(8).array.T, head(8).affine[:, [2, 1, 0, 3]])
    nifti.header["intent_code"] = 1002
    nib.save(nifti, scans / "8.nii.gz")
    write_nifti(head(9), scans / "9.nii.gz")
    (scans / "9.json").write_text(json.dumps({"Type": "Lesion", "Sources": []}))
    write_nifti(head(10), scans / "10.nii.gz")
    (scans / "10.json").write_text(json.dumps({"EchoTime": 0.01}))
    asked = "if it is a scan, name it in include, else in exclude"
    assert reasons(prepared(scans, tmp_path / "a")) == {
        "7_brainmask.nii.gz": f"it may be a label or probability map by its name (brainmask): {asked}",
        "8.nii.gz": f"it may be a label or probability map by its header: {asked}",
        "9.nii.gz": f"it may be a label or probability map by its sidecar: {asked}",
    }
    for patterns in (["*", "*brainmask*", "8.*", "9.nii*"], ["?.nii.gz", "10*", "*_brainmask.nii.gz"]):
        summary = prepared(scans, tmp_path / "b", include=patterns)
        assert (len(summary.manifest.cases), summary.left_out) in ((7, ()), (5, summary.left_out))
    # A pattern of formats or folders names nothing.
    assert len(prepared(scans, tmp_path / "c", include=["*.nii.gz"]).left_out) == 3


def test_values_from_0_to_1_are_in_doubt_on_the_grid_of_a_scan(tmp_path: Path) -> None:
    def stripped(seed: int) -> Volume:
        scan = head(seed)
        return Volume(np.where(scan.array > 100, scan.array / 900, 0).astype(np.float32), scan.affine)

    for seed in range(3):
        write_nifti(head(seed), tmp_path / "both" / f"p{seed}" / "t1.nii.gz")
        write_nifti(stripped(seed), tmp_path / "both" / f"p{seed}" / "grey.nii.gz")
        write_nifti(stripped(seed), tmp_path / "alone" / f"p{seed}.nii.gz")
    left_out = reasons(prepared(tmp_path / "both", tmp_path / "a"))
    assert set(left_out) == {f"p{seed}/grey.nii.gz" for seed in range(3)}
    assert "on the grid of a scan beside it" in left_out["p0/grey.nii.gz"]
    assert not prepared(tmp_path / "alone", tmp_path / "b").left_out
    named = tmp_path / "named"
    write_nifti(head(0), named / "p.nii.gz")
    write_nifti(stripped(0), named / "p_prob.nii.gz")
    assert reasons(prepared(named, tmp_path / "c")) == {
        "p_prob.nii.gz": "it looks like a probability map (values from 0 to 1, many of them 0)"
    }


def test_what_lies_beside_a_file() -> None:
    names = ["a/p1.nii", "a/p1_x.nii", "a/p10.nii", "b/p1.nii", "c/d/t1.nii", "c/d/gm.nii"]
    sources = [Source(name, (Path(name),)) for name in names]
    near = {source.name: [other.name for other in beside(source, sources)] for source in sources}
    assert near["a/p1_x.nii"] == ["a/p1.nii", "b/p1.nii"]
    assert near["c/d/gm.nii"] == ["c/d/t1.nii"]


@pytest.mark.parametrize("num_ct", [2, 6, 9])
def test_most_scans_do_not_decide_on_the_modality(tmp_path: Path, num_ct: int) -> None:
    scans = tmp_path / "scans"
    for seed in range(12):
        write_nifti(ct_head(seed) if seed < num_ct else head(seed), scans / f"{seed}.nii.gz")
    told = f"{num_ct} look like CT by their values and {12 - num_ct} like MR; choose by include or exclude"
    for call in (
        lambda: prepared(scans, tmp_path / "data"),
        lambda: take_fingerprint(scans, PrepareConfig(), workers=1, progress=False),
    ):
        with pytest.raises(UserError, match=told):
            call()
    diagnosis = examine(scans, workers=1, progress=False)
    assert not diagnosis.is_usable
    assert [finding.code for finding in diagnosis.findings if finding.severity == "error"] == ["modalities"]
    assert len(prepared(scans, tmp_path / "data", modality="MR").manifest.cases) == 12

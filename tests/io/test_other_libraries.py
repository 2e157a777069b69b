"""The snippets of docs/how-to/other-libraries.md: scans go to MONAI and TorchIO and back, voxel for voxel."""

import re
from pathlib import Path

import monai.transforms
import numpy as np
import pytest
import torchio
from scan_makers import oblique_affine, pattern_volume, same_place
from synthetic_dataset import write_dataset

from anatogen.io.geometry import axis_codes, orient
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "other-libraries.md"
LOAD, TO_PYTORCH, TO_MONAI, FROM_MONAI, TO_TORCHIO, FROM_TORCHIO = re.findall(
    r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
)


@pytest.fixture
def volume() -> Volume:
    return pattern_volume(oblique_affine(2), (6, 9, 7))


def test_the_first_snippet_copies_a_scan(volume, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_nifti(volume, tmp_path / "scan.nii.gz")
    exec(LOAD, {})
    back = Volume.load("copy.nrrd")
    assert np.array_equal(back.array, volume.array)
    assert same_place(back, volume) < 1e-3


def test_a_loader_takes_a_prepared_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "data")
    names = {}
    exec(TO_PYTORCH, names)
    batch = next(iter(names["loader"]))
    assert batch.shape[1:] == names["dataset"][0].shape
    case = Volume.load("case.nii.gz")
    assert np.array_equal(case.array, names["dataset"].volume(0).array)


@pytest.mark.parametrize(
    ("there", "back", "canonical"),
    [
        (TO_MONAI, FROM_MONAI, monai.transforms.Orientation(axcodes="RAS")),
        (TO_TORCHIO, FROM_TORCHIO, torchio.ToCanonical()),
    ],
    ids=["monai", "torchio"],
)
def test_a_scan_goes_there_and_back(volume, there, back, canonical):
    names = {"volume": volume, "Volume": Volume}
    exec(there, names)
    exec(back, names)
    assert np.array_equal(names["back"].array, volume.array)
    np.testing.assert_allclose(names["back"].affine, volume.affine, rtol=0, atol=1e-12)
    # They understand the affine as it is meant: what they turn to RAS is what we turn to RAS.
    names["image"] = canonical(names["image"])
    exec(back, names)
    assert axis_codes(names["back"].affine) == "RAS"
    assert np.array_equal(names["back"].array, orient(volume, "RAS").array)
    assert same_place(names["back"], orient(volume, "RAS")) < 1e-6

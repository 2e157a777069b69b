"""breast_segmentation: each breast with its mask on the grid; the search for breasts is stood in for.

Whatever its mask shows, a scan is cut alike: the mask is what a segmenter has to find.
"""

from pathlib import Path

import numpy as np
import pytest
from itk_reference import near_tie, resampled
from scan_makers import head

from anatogen.dataset import regions
from anatogen.dataset.prepare import prepare
from anatogen.dataset.prepare_config import prepare_settings
from anatogen.io.geometry import Box, box_after_orient, orient
from anatogen.io.nifti import read_nifti, write_nifti
from anatogen.io.volume import Volume


def halves(volume: Volume, mask: Volume | None) -> tuple[Box, Box]:
    """The patient's left and right of the head's middle column, within its slices; no mask is seen."""
    assert mask is None
    turned = orient(volume, "SPL")
    inside = turned.array > 200.5
    slices = np.flatnonzero(inside.any(axis=(1, 2)))
    columns = np.flatnonzero(inside.any(axis=(0, 1)))
    middle = int(columns[0] + columns[-1]) // 2
    _, h, w = turned.array.shape
    d, depth = int(slices[0]), int(slices[-1] - slices[0]) + 1
    left = (d, 0, middle), (depth, h, w - middle)
    right = (d, 0, 0), (depth, h, middle)
    return box_after_orient(left, turned, volume), box_after_orient(right, turned, volume)


def test_both_breasts_with_their_masks_on_the_papers_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "breast_boxes", halves)
    for seed, codes in enumerate(("SPL", "RAS", "LIP")):
        volume = head(seed, shape=(20, 40, 44), spacing=1.3)
        mask = Volume(np.digitize(volume.array, [200.5, 550.5]).astype(np.float32), volume.affine)
        write_nifti(orient(volume, codes), tmp_path / "scans" / "images" / f"{seed}.nii.gz")
        write_nifti(orient(mask, codes), tmp_path / "scans" / "labels" / f"{seed}.nii.gz")
    settings = prepare_settings(recipe="breast_segmentation")
    summary = prepare(tmp_path / "scans", tmp_path / "out", settings, workers=1, progress=False)
    assert not summary.left_out
    cases = summary.manifest.cases
    assert [case.conditions["side"] for case in cases] == ["left", "right"] * 3
    assert summary.manifest.grid.shape == (32, 256, 256)
    for number, case in enumerate(cases):
        image, mask = (tmp_path / "scans" / kind / f"{number // 2}.nii.gz" for kind in ("images", "labels"))
        found = np.load(tmp_path / "out" / str(case.mask))
        expected = resampled(mask, found.shape, case.affine, nearest=True)
        tie = near_tie(read_nifti(mask).affine, found.shape, case.affine)
        assert np.array_equal(found[~tie], expected[~tie])
        assert set(np.unique(found)) == {0, 1, 2}
        array = case.intensity.restore(np.load(tmp_path / "out" / case.file).astype(np.float32))
        reference = resampled(image, found.shape, case.affine, nearest=False)
        difference = array - np.clip(reference, case.intensity.low, case.intensity.high)
        assert np.nanmax(np.abs(difference)) < 1e-3 * (case.intensity.high - case.intensity.low)
        assert np.isnan(reference).mean() < 0.1

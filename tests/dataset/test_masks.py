"""Masks: the scan's way to the voxel, or refused with the reason."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from itk_reference import near_tie, resampled
from scan_makers import head, oblique_affine, tree_bytes, world

from anatogen.config.resolving import parse_overrides
from anatogen.core.files import sha256_json
from anatogen.core.reasons import Refusal
from anatogen.dataset.manifest import Manifest
from anatogen.dataset.masks import grid_refusal, nearest, on_grid_of
from anatogen.dataset.prepare import PrepareSummary, prepare
from anatogen.dataset.prepare_config import PrepareConfig, prepare_settings
from anatogen.io.formats import read_scan
from anatogen.io.geometry import axis_codes, orient
from anatogen.io.nifti import write_nifti
from anatogen.io.npy import write_npy
from anatogen.io.volume import Volume


def run(scans: Path, out: Path, *overrides: str, recipe: str = "folder_with_masks") -> PrepareSummary:
    return prepare(
        scans,
        out,
        prepare_settings(parse_overrides(overrides, PrepareConfig), recipe=recipe),
        workers=1,
        progress=False,
    )


def octants(volume: Volume) -> Volume:
    """Labels 1 to 8 of the bright object by the octant of the world around its middle; 0 outside of it."""
    bright = volume.array > 200
    points = world(volume.affine, volume.array.shape)
    middle = points[:, bright].mean(axis=1)
    label = 1 + sum((points[axis] > middle[axis]) * 2**axis for axis in range(3))
    return Volume(np.where(bright, label, 0).astype(np.float32), volume.affine)


def write_labels(mask: Volume, path: Path, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(mask.array.T.astype(dtype), mask.affine[:, [2, 1, 0, 3]]), path)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four heads, their files and those of their masks in several orders of axes, one of them oblique."""
    folder = tmp_path / "scans"
    for seed, (codes, mask_codes) in enumerate(
        [("SPL", "SPL"), ("RAS", "SPL"), ("AIL", "LIP"), ("SPL", "PRS")]
    ):
        volume = head(seed, shape=(22, 26, 20), spacing=1.5)
        if seed == 3:
            volume = Volume(volume.array, oblique_affine(3, (1.5, 1.4, 1.6)))
        write_nifti(orient(volume, codes), folder / "images" / f"{seed}.nii.gz")
        write_labels(orient(octants(volume), mask_codes), folder / "labels" / f"{seed}.nii.gz")
    return folder


WAYS = [
    (),
    ("spacing_mm=[1.03,0.87,1.21]", "shape=[40,40,40]"),
    ("spacing_mm=3.1",),
    ("orientation=LIP", "fit=resize", "shape=[24,32,16]"),
    ("region=foreground", "fit=resize", "shape=[32,32,32]", "orientation=RIP"),
    ("region=foreground", "cube=true", "fit=resize", "shape=[24,24,24]"),
    ("center=foreground", "shape=[8,16,16]", "interpolation=cubic", "spacing_mm=1.3"),
]


@pytest.mark.parametrize("overrides", WAYS, ids=lambda way: " ".join(way) or "as is")
def test_masks_go_where_their_scans_go(pairs: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    summary = run(pairs, tmp_path / "out", *overrides)
    assert not summary.left_out
    assert len(summary.manifest.cases) == 4
    for seed, case in enumerate(summary.manifest.cases):
        assert case.mask == f"masks/case_{seed:05d}.npy"
        mask = np.load(tmp_path / "out" / case.mask)
        assert (mask.dtype, mask.shape) == (np.uint8, summary.manifest.grid.shape)
        file = pairs / "labels" / f"{seed}.nii.gz"
        expected = resampled(file, mask.shape, case.affine, nearest=True)
        differs = (mask != expected) & ~near_tie(read_scan(file).affine, mask.shape, case.affine)
        assert not differs.any()
        assert len(np.unique(mask)) == 9


def test_real_masks_agree_with_another_program(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "hippocampus"
    for kind in ("images", "labels"):
        (tmp_path / "scans" / kind).mkdir(parents=True)
        for path in sorted((source / kind).iterdir())[:12]:
            (tmp_path / "scans" / kind / path.name).symlink_to(path)
    names = sorted(path.name for path in (tmp_path / "scans" / "images").iterdir())
    for number, overrides in enumerate([(), ("spacing_mm=[1.21,0.83,1.07]",), ("fit=resize",)]):
        out = tmp_path / str(number)
        summary = run(tmp_path / "scans", out, *overrides)
        assert len(summary.manifest.cases) == 12
        for name, case in zip(names, summary.manifest.cases, strict=True):
            mask = np.load(out / str(case.mask))
            expected = resampled(source / "labels" / name, mask.shape, case.affine, nearest=True)
            # Grids share their centres, so a plane of voxels often lies midway between two of the scan's.
            tie = near_tie(read_scan(source / "labels" / name).affine, mask.shape, case.affine)
            for label in (1, 2):
                ours, theirs = (mask == label) & ~tie, (expected == label) & ~tie
                assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) == 1
            assert set(np.unique(mask)) == {0, 1, 2}


def test_nearest_is_what_brute_force_finds() -> None:
    generator = np.random.default_rng(0)
    mask = Volume(generator.integers(0, 4, (5, 6, 7)).astype(np.float32), oblique_affine(1))
    affine = oblique_affine(5, (2.1, 0.9, 1.4))
    affine[:3, 3] = mask.affine[:3, :3] @ [2, 3, 3] + mask.affine[:3, 3]
    grid = Volume(np.zeros((6, 5, 4), np.float32), affine)
    found = nearest(mask, grid)
    assert np.unique(found).size == 4
    to_mask = np.linalg.inv(mask.affine)
    for index in np.ndindex(*grid.array.shape):
        place = np.rint(to_mask @ grid.affine @ [*index, 1])[:3].astype(int)
        inside = ((place >= 0) & (place < mask.array.shape)).all()
        assert found[index] == (mask.array[tuple(place)] if inside else 0)


def _with_values(mask: Volume, value: float) -> Volume:
    array = mask.array.copy()
    array[10, 12, 9] = value
    return Volume(array, mask.affine)


def _moved(mask: Volume, millimetres: float) -> Volume:
    affine = mask.affine.copy()
    affine[0, 3] += millimetres
    return Volume(mask.array, affine)


BAD = [
    (lambda mask: Volume(mask.array[:-1], mask.affine), "its mask has (19, 24, 18) voxels and the scan"),
    (lambda mask: _moved(mask, 0.2), "its mask lies on another grid: corners are up to 0.2 mm apart"),
    (lambda mask: Volume(mask.array, np.diag([1.1, 1.1, 1.1, 1]) @ mask.affine), "another grid"),
    (lambda mask: _with_values(mask, 1.5), "its mask holds 1.5: labels are whole numbers"),
    (lambda mask: _with_values(mask, -1), "its mask holds -1: labels are whole numbers from 0 to 255"),
    (lambda mask: _with_values(mask, 256), "its mask holds 256"),
    (lambda mask: _with_values(mask, np.nan), "its mask can't be used: 1 of 8640 voxels are NaN"),
    (lambda mask: Volume(mask.array[:2], mask.affine), "its mask can't be used: only 2 voxels along an axis"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_masks_that_do_not_fit_are_left_out_with_their_scans(tmp_path: Path, spoil, reason: str) -> None:
    for seed in range(2):
        mask = octants(head(seed))
        write_nifti(head(seed), tmp_path / "scans" / f"{seed}.nii.gz")
        write_labels(spoil(mask) if seed else mask, tmp_path / "scans" / f"{seed}_seg.nii.gz", np.float32)
    summary = run(tmp_path / "scans", tmp_path / "out")
    (left_out,) = summary.left_out
    assert left_out.name == "1.nii.gz"
    assert reason in left_out.reason
    assert len(summary.manifest.cases) == 1


def test_a_damaged_mask_is_named_as_such(tmp_path: Path) -> None:
    for seed in range(2):
        write_nifti(head(seed), tmp_path / "scans" / f"{seed}.nii.gz")
        write_labels(octants(head(seed)), tmp_path / "scans" / f"{seed}_seg.nii.gz")
    path = tmp_path / "scans" / "0_seg.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    (left_out,) = run(tmp_path / "scans", tmp_path / "out").left_out
    assert left_out.reason.startswith("its mask can't be used: the file is truncated")


def test_rounded_headers_and_other_orders_of_axes_are_one_grid() -> None:
    scan = head(0)
    mask = octants(scan)

    def refused(turned: Volume) -> Refusal | None:
        return grid_refusal((scan.array.shape, scan.affine), (turned.array.shape, turned.affine))

    for turned in (mask, _moved(mask, 0.05), orient(mask, "PRI"), orient(_moved(mask, -0.05), "LAS")):
        found = on_grid_of(scan, turned)
        assert refused(turned) is None
        assert np.array_equal(found.array, mask.array)
        assert np.array_equal(found.affine, scan.affine)
    assert "0.2 mm apart" in str(refused(orient(_moved(mask, 0.2), "PRI")))
    assert axis_codes(on_grid_of(scan, orient(_moved(mask, 5), "PRI")).affine) == "PRI"


def test_empty_masks_are_kept_and_lost_labels_told(tmp_path: Path) -> None:
    for seed in range(3):
        volume = head(seed)
        mask = octants(volume).array
        if seed == 0:
            mask = np.zeros_like(mask)
        if seed == 1:
            mask[0, 0, 0] = 9
        write_npy(volume, tmp_path / "scans" / "images" / f"{seed}.npy")
        write_npy(Volume(mask, volume.affine), tmp_path / "scans" / "masks" / f"{seed}.npy")
    summary = run(tmp_path / "scans", tmp_path / "out", "shape=[16,16,16]", "npy_orientation=RIP")
    assert "3 of 3 cases have a mask; labels on the grid: 1, 2, 3, 4, 5, 6, 7, 8" in summary.decisions
    assert "1 of 3 masks are empty: background alone; they are kept" in summary.decisions
    (lost,) = [line for line in summary.decisions if "lack a label" in line]
    assert lost.startswith("1 of 3 masks")
    assert not np.load(tmp_path / "out" / "masks" / "case_00000.npy").any()


def test_a_dataset_without_masks_forgets_those_of_before(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(pairs, out)
    before = tree_bytes(out)
    assert run(pairs, out).was_complete
    (out / "masks" / "case_00001.npy").unlink()
    assert not run(pairs, out).was_complete
    assert tree_bytes(out) == before
    plain = run(pairs, out, "include=images/*", recipe="folder")
    assert all(case.mask is None for case in plain.manifest.cases)
    assert not (out / "masks").exists()
    run(pairs, tmp_path / "fresh", "include=images/*", recipe="folder")
    assert tree_bytes(out) == tree_bytes(tmp_path / "fresh")


def test_a_changed_mask_is_prepared_anew(pairs: Path, tmp_path: Path) -> None:
    first = run(pairs, tmp_path / "out").manifest
    mask = read_scan(pairs / "labels" / "2.nii.gz")
    write_labels(Volume(np.where(mask.array == 3, 0, mask.array), mask.affine), pairs / "labels" / "2.nii.gz")
    second = run(pairs, tmp_path / "out")
    assert not second.was_complete
    assert [case.affine for case in second.manifest.cases] == [case.affine for case in first.cases]
    assert 3 not in np.load(tmp_path / "out" / "masks" / "case_00002.npy")


def test_manifests_of_before_masks_still_load(pairs: Path, tmp_path: Path) -> None:
    manifest = run(pairs, tmp_path / "out").manifest
    values = manifest.model_dump(mode="json")
    for key in ("recipe", "labels"):
        del values[key]
    for case in values["cases"]:
        del case["conditions"], case["mask"]
    old = Manifest.model_validate(values)
    assert (old.recipe, old.labels, old.cases[0].mask, old.cases[0].conditions) == ("folder", {}, None, {})
    # Runs know their dataset by its hash, and must go on.
    assert old.sha256() == sha256_json(values)
    assert manifest.sha256() != old.sha256()

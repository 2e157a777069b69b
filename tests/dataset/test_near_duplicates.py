"""Near-duplicates are found, whatever was done to the copy, and other patients are not taken for one."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from anatogen.dataset.near_duplicates import (
    COARSE_SIZE,
    FINE_SIZE,
    THRESHOLD,
    describe,
    likely_pairs,
    similarity,
)
from anatogen.io.formats import read_scan
from anatogen.io.geometry import orient
from anatogen.io.volume import Volume


def described(volumes: list[Volume]) -> tuple[np.ndarray, list[np.ndarray]]:
    coarse = np.stack([describe(volume, COARSE_SIZE).astype(np.float16) for volume in volumes])
    return coarse, [describe(volume, FINE_SIZE) for volume in volumes]


def alike(volumes: list[Volume]) -> dict[tuple[int, int], float]:
    coarse, fine = described(volumes)
    found = {
        (one, other): similarity(fine[one], np.flip(fine[other], flips))
        for one, other, flips in likely_pairs(coarse)
    }
    return {pair: value for pair, value in found.items() if value > THRESHOLD}


def blobs(seed: int, shape: tuple[int, int, int] = (36, 48, 40)) -> Volume:
    noise = np.random.default_rng(seed).standard_normal(shape)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = [1, -1, -1, 1]
    return Volume((1000 * ndimage.gaussian_filter(noise, 3)).astype(np.float32), affine)


def copies(volume: Volume, seed: int = 0) -> dict[str, Volume]:
    array, generator = volume.array, np.random.default_rng(seed)
    low, high = np.percentile(array, [1, 99])
    scaled = np.clip((array - array.min()) / np.ptp(array), 0, 1)
    changed = {
        "gamma": 4000 * scaled**0.6,
        "window": np.clip(array, *np.percentile(array, [10, 90])),
        "noise": array + generator.normal(0, 0.1 * (high - low), array.shape),
        "shift": np.roll(array, 1, axis=2),
        "shift along three axes": np.roll(array, (1, 1, 1), axis=(0, 1, 2)),
        "crop": array[1:, 1:, 1:],
        "resampled": ndimage.zoom(array, 0.7, order=1),
        "mirrored": array[:, :, ::-1],
        "upside down and mirrored": array[::-1, :, ::-1],
    }
    return {name: Volume(values.astype(np.float32), volume.affine) for name, values in changed.items()}


@pytest.mark.parametrize("name", copies(blobs(0)))
def test_a_changed_copy_is_found_among_others(name: str) -> None:
    others = [blobs(seed) for seed in range(1, 12)]
    assert alike([*others, blobs(0)]) == {}
    assert list(alike([blobs(0), *others, copies(blobs(0))[name]])) == [(0, 12)]


def test_a_symmetric_scan_is_not_called_mirrored() -> None:
    volume = blobs(0)
    symmetric = Volume(volume.array + volume.array[:, :, ::-1], volume.affine)
    noisy = copies(symmetric)["noise"]
    coarse, _ = described([symmetric, noisy])
    assert likely_pairs(coarse) == [(0, 1, ())]


def test_the_order_of_a_files_axes_does_not_matter() -> None:
    turned = orient(blobs(0), "RIP")
    assert np.allclose(describe(turned, FINE_SIZE), describe(blobs(0), FINE_SIZE))


def test_blocks_give_what_comparing_all_at_once_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = [blobs(seed) for seed in range(5)]
    volumes += [copies(volumes[0])["gamma"], copies(volumes[2])["mirrored"], copies(volumes[4])["crop"]]
    coarse, _ = described(volumes)
    at_once = likely_pairs(coarse)
    monkeypatch.setattr("anatogen.dataset.near_duplicates._CHUNK", 3)
    assert likely_pairs(coarse) == at_once
    assert {(one, other) for one, other, _ in at_once} >= {(0, 5), (2, 6), (4, 7)}


def test_big_scans_are_shrunk_without_a_shift() -> None:
    small = blobs(3, (24, 24, 24))
    large = np.kron(small.array, np.ones((8, 8, 8), np.float32))
    # Blocks of one value, so that the finer scan is the coarser one.
    first, second = describe(Volume(large, small.affine), FINE_SIZE), describe(small, FINE_SIZE)
    assert similarity(first, second) > 0.98


def test_of_real_hippocampi_copies_are_found_and_no_two_patients(shared_data: Path) -> None:
    files = sorted((shared_data / "hippocampus" / "images").glob("*.nii.gz"))
    volumes = [read_scan(file) for file in files]
    assert len(volumes) > 200
    assert alike(volumes) == {}
    for index in range(0, len(volumes), 54):
        for name, copy in copies(volumes[index], seed=index).items():
            found = alike([*volumes[max(index - 5, 0) : index], volumes[index], copy])
            assert len(found) == 1, (name, index, found)


def test_unlike_scans_of_one_phantom_are_told_apart() -> None:
    _, fine = described([blobs(seed) for seed in range(6)])
    assert max(similarity(one, other) for one, other in combinations(fine, 2)) < 0.6

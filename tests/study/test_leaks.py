"""The leak check finds what is planted, names it, and does not cry wolf."""

import os
import re

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp

from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume
from anatogen.study.design import check_files
from anatogen.study.leaks import SIGNIFICANCE, SUSPICION, BlindingStatus, _distances, check, differing
from anatogen.study.spec import VOLUMES, volume_path

NUM = 12


def _volume(seed):
    generator = np.random.default_rng(seed)
    array = np.clip(generator.normal(120, 50, (8, 9, 10)), 1, 254).round()
    array.flat[:8], array.flat[-8:] = 0, 255
    generator.shuffle(array.reshape(-1))
    return array


def _write(path, array, dtype=np.int16):
    write_nifti(Volume(array.astype(np.float32), np.diag([1.0, -1, -1, 1])), path, dtype)
    os.utime(path, (0, 0))


@pytest.fixture
def study(tmp_path):
    """Alike volumes in a study's folder, of two sources that nothing tells apart."""
    key = {f"{n:016x}": ("real" if n % 2 else "synthetic") for n in range(2 * NUM)}
    (tmp_path / VOLUMES).mkdir()
    for number, case in enumerate(key):
        _write(volume_path(tmp_path, case), _volume(number))
    return tmp_path, key


def _check(study):
    folder, key = study
    return check_files(folder, key, at_percentiles=True, seed=0)


def _synthetic(study):
    folder, key = study
    return [volume_path(folder, case) for case, source in key.items() if source == "synthetic"]


def _voxels(path):
    return np.asarray(nib.load(path).dataobj).T.copy()


def test_alike_scans_pass(study):
    found = _check(study)
    assert found.status is BlindingStatus.PASSED and not found.leaks


def _header(field, value):
    def plant(path):
        image = nib.load(path)
        array = np.asarray(image.dataobj)
        image.header[field] = value
        nib.save(nib.Nifti1Image(array, None, image.header), path)
        os.utime(path, (0, 0))

    return plant


def _change(function):
    def plant(path):
        _write(path, function(_voxels(path).astype(np.float32)))

    return plant


def _pad(array):
    array[:2] = 0
    return array


def _blacken(array):
    array[array < 40] = 0
    return array


PLANTED = {
    "file size": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "file size"),
    "file time": (lambda path: os.utime(path, (5, 5)), "file time"),
    "description": (_header("descrip", b"made by a network"), "header field descrip"),
    "spacing": (_header("pixdim", [1, 1, 1, 1.001, 1, 1, 1, 1]), r"header field pixdim\[3\]"),
    "window": (_header("cal_max", 255), "header field cal_max"),
    "type": (lambda path: _write(path, _voxels(path), np.float32), "header field datatype"),
    "minimum": (_change(lambda array: array + 1), "lowest value"),
    "maximum": (_change(lambda array: np.minimum(array, 250)), "highest value"),
    "levels": (
        _change(lambda array: np.round(array / 5) * 5),
        "grey levels in use.*commonest step",
    ),
    "padding": (_change(_pad), "border planes of padding|black"),
    "black": (_change(_blacken), "share of black voxels"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_leak_is_found_and_named(study, name):
    plant, feature = PLANTED[name]
    for path in _synthetic(study):
        plant(path)
    found = _check(study)
    assert not found.passed
    assert re.search(feature, found.finding), found.finding
    assert "synthetic" in found.finding


def test_a_leak_in_half_of_the_scans_is_found(study):
    for path in _synthetic(study)[: NUM // 2 + 3]:
        _change(lambda array: np.minimum(array, 250))(path)
    assert "highest value" in _check(study).finding


def test_blur_is_part_of_the_picture(study):
    """What a reader may see does not count as a leak, but is told."""
    folder, key = study
    for number, case in enumerate(key):
        array = _volume(number)
        if key[case] == "synthetic":
            # The same values in the order of a blurred picture's.
            order = gaussian_filter(array, 1).argsort(axis=None)
            array.flat[order] = np.sort(array, axis=None)
        _write(volume_path(folder, case), array)
    found = _check(study)
    assert found.passed
    assert "sharpness" in [difference.feature for difference in found.visible]


def test_too_few_scans_are_inconclusive():
    table = {"a": np.arange(8.0)}
    found = check(table, table, ["real"] * 4 + ["synthetic"] * 4, 0)
    assert found.status is BlindingStatus.UNTESTED
    assert check(table, table, ["synthetic"] * 8, 0).status is BlindingStatus.UNTESTED


def test_false_alarms_are_as_rare_as_they_should_be():
    """Ten features of noise, 100 studies: about one per cent name any of them, and not five."""
    generator = np.random.default_rng(0)
    sources = ["real"] * 15 + ["reconstructed"] * 15 + ["synthetic"] * 15
    found = [
        differing(
            {str(n): generator.standard_normal(45) for n in range(10)},
            sources,
            np.random.default_rng(seed),
            SUSPICION,
        )
        for seed in range(100)
    ]
    alarms = sum(any(d.p_value <= SIGNIFICANCE for d in differences) for differences in found)
    assert alarms <= 100 * SIGNIFICANCE * 3
    assert sum(map(bool, found)) <= 100 * SUSPICION * 1.7


def test_features_that_leak_only_together_are_found():
    generator = np.random.default_rng(0)
    sign = generator.standard_normal(120)
    sources = ["real" if s > 0 else "synthetic" for s in sign]
    shared = 6 * generator.standard_normal(120)
    table = {"a": shared + sign, "b": shared - sign}
    found = check(table, {}, sources, 0)
    assert not found.leaks and not found.passed
    assert found.accuracy > 0.6 and "together" in found.finding


def test_distances_are_those_of_kolmogorov_and_smirnov():
    generator = np.random.default_rng(0)
    values = generator.integers(0, 6, 40).astype(float)  # with ties
    labels = np.stack([generator.permutation(np.arange(40) % 2) for _ in range(5)])
    expected = [ks_2samp(values[row == 0], values[row == 1]).statistic for row in labels]
    np.testing.assert_allclose(_distances(values, labels), expected)

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from anatogen.downstream.metrics import case_metrics

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (0.5, 1.25, 2.0)]
BOX = (slice(3, 8), slice(4, 10), slice(5, 12))


def _mask(*boxes, shape=(14, 16, 18)):
    mask = np.zeros(shape, np.uint8)
    for number, box in enumerate(boxes, start=1):
        mask[box] = number
    return mask


def _moved(box, axis, by):
    moved = list(box)
    moved[axis] = slice(box[axis].start + by, box[axis].stop + by)
    return tuple(moved)


def _one(prediction, truth, spacing_mm=(1, 1, 1), tolerance_mm=1.0):
    found = case_metrics(prediction, truth, [1], spacing_mm, tolerance_mm)
    return SimpleNamespace(
        dice=found.dice["1"], surface_dice=found.surface_dice["1"], hausdorff=found.hausdorff95_mm["1"]
    )


def _border(mask):
    """Voxels of a mask of which a neighbour by a face lies outside, one by one."""
    mask = np.pad(mask > 0, 1)
    return np.array(
        [
            place
            for place in np.argwhere(mask)
            if not all(
                mask[tuple(place + step * np.eye(3, dtype=int)[a])] for a in range(3) for step in (-1, 1)
            )
        ]
    )


def _surface(mask, spacing_mm):
    """Places and areas of the surface elements of a box, one in each cell between 8 voxels that it cuts.

    A cell with 4 voxels inside is cut along a face, one with 2 along an edge, one with 1 at a corner.
    """
    mask = np.pad(mask > 0, 1)
    places, areas = [], []
    for place in itertools.product(*(range(length - 1) for length in mask.shape)):
        cell = mask[tuple(slice(index, index + 2) for index in place)]
        count = int(cell.sum())
        if count in (0, 8):
            continue
        corners = np.argwhere(cell)
        extent = corners.max(axis=0) - corners.min(axis=0)
        if count == 4:
            area = np.prod([spacing_mm[axis] for axis in range(3) if extent[axis]])
        elif count == 2:
            (along,) = np.flatnonzero(extent)
            area = spacing_mm[along] * np.hypot(*(spacing_mm[axis] / 2 for axis in range(3) if axis != along))
        else:
            assert count == 1, "not a box"
            d, h, w = (length / 2 for length in spacing_mm)
            area = np.sqrt((d * h) ** 2 + (d * w) ** 2 + (h * w) ** 2) / 2
        places.append(place)
        areas.append(area)
    return np.array(places) * spacing_mm, np.array(areas)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_a_mask_agrees_with_itself(spacing_mm):
    mask = _mask(BOX)
    assert _one(mask, mask, spacing_mm, 0.0) == SimpleNamespace(dice=1, surface_dice=1, hausdorff=0)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("by", [1, 2])
def test_a_moved_box_has_the_metrics_computed_by_hand(spacing_mm, axis, by):
    found = _one(_mask(_moved(BOX, axis, by)), _mask(BOX), spacing_mm)
    length = BOX[axis].stop - BOX[axis].start
    assert found.dice == pytest.approx((length - by) / length, abs=1e-6)
    # More than 5% of the border lies on the face that moved.
    assert found.hausdorff == pytest.approx(by * spacing_mm[axis], abs=1e-5)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("tolerance_mm", [0.0, 0.6, 1.0, 1.4, 3.0])
def test_surface_dice_is_the_area_within_the_tolerance(spacing_mm, tolerance_mm):
    truth = _mask(BOX)
    predictions = [
        _mask(_moved(_moved(BOX, 0, 1), 2, -2)),
        _mask((slice(2, 9), slice(5, 9), slice(5, 14))),
        _mask((slice(0, 3), slice(0, 2), slice(0, 1))),
    ]
    place, area = _surface(truth, spacing_mm)
    for prediction in predictions:
        other_place, other_area = _surface(prediction, spacing_mm)
        distances = cdist(place, other_place)
        near = area[distances.min(axis=1) <= tolerance_mm + 1e-5].sum()
        other_near = other_area[distances.min(axis=0) <= tolerance_mm + 1e-5].sum()
        expected = (near + other_near) / (area.sum() + other_area.sum())
        found = _one(prediction, truth, spacing_mm, tolerance_mm)
        assert found.surface_dice == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_hausdorff_and_dice_agree_with_brute_force(spacing_mm, seed):
    generator = np.random.default_rng(seed)
    prediction, truth = (generator.random((2, 6, 7, 5)) < [[[[0.15]]], [[[0.3]]]]).astype(np.uint8)
    distances = cdist(_border(prediction) * spacing_mm, _border(truth) * spacing_mm)
    expected = max(np.percentile(distances.min(axis=axis), 95) for axis in (0, 1))
    found = _one(prediction, truth, spacing_mm)
    assert found.hausdorff == pytest.approx(expected, abs=1e-5)
    common = np.sum((prediction == 1) & (truth == 1))
    assert found.dice == pytest.approx(2 * common / (prediction.sum() + truth.sum()), abs=1e-6)
    assert found == _one(truth, prediction, spacing_mm), "the metrics are symmetric"


def test_the_border_of_the_volume_changes_nothing():
    generator = np.random.default_rng(0)
    prediction, truth = (generator.random((2, 5, 6, 7)) < 0.4).astype(np.uint8)
    expected = _one(prediction, truth, (3.0, 0.7, 0.7))
    for margin in (1, 3):
        wider = [np.pad(mask, margin) for mask in (prediction, truth)]
        assert _one(*wider, (3.0, 0.7, 0.7)) == expected
    full = np.ones((4, 5, 6), np.uint8)
    assert _one(full, full, tolerance_mm=0.0).surface_dice == 1


def test_finer_slices_of_the_same_shape_change_little():
    """Area weighs a thick slice by its height: a surface does not depend on how finely it is stored."""
    truth, prediction = _mask(BOX), _mask((slice(3, 8), slice(4, 10), slice(7, 12)))
    coarse = _one(prediction, truth, (2.0, 1.0, 1.0), 1.0)
    fine = _one(*(np.repeat(mask, 4, axis=0) for mask in (prediction, truth)), (0.5, 1.0, 1.0), 1.0)
    assert fine.dice == pytest.approx(coarse.dice)
    assert fine.surface_dice == pytest.approx(coarse.surface_dice, abs=0.06)


@pytest.mark.parametrize("tolerance_mm", [0.7, 1.4, 2.1])
def test_a_distance_equal_to_the_tolerance_is_within_it(tolerance_mm):
    prediction = _mask(_moved(BOX, 1, round(tolerance_mm / 0.7)))
    assert _one(prediction, _mask(BOX), (3.0, 0.7, 0.7), tolerance_mm).surface_dice == 1


def test_what_is_not_there_is_undefined_or_missed():
    empty, first, second = _mask(), _mask(BOX), _mask((slice(0, 0),) * 3, BOX)
    labels = {1: "anterior", 2: "posterior"}
    found = case_metrics(second, first, labels, (1, 1, 1), 1)
    assert found.dice == {"1": 0.0, "2": 0.0} == found.surface_dice
    assert found.hausdorff95_mm == {"1": None, "2": None}
    assert found.mean("hausdorff95_mm") is None
    nothing = case_metrics(empty, empty, labels, (1, 1, 1), 1)
    assert nothing.dice == nothing.surface_dice == nothing.hausdorff95_mm == {"1": None, "2": None}
    half = case_metrics(first, first, labels, (1, 1, 1), 1)
    assert half.dice == {"1": 1.0, "2": None}
    assert half.mean("dice") == 1.0, "an absent label does not count as found or missed"


def test_only_named_labels_count():
    truth = _mask(BOX, (slice(10, 12), slice(4, 10), slice(5, 12)))
    assert case_metrics(truth, truth, [2], (1, 1, 1), 1).dice == {"2": 1.0}


def test_the_mean_is_over_labels():
    truth = _mask(BOX, (slice(10, 12), slice(4, 10), slice(5, 12)))
    prediction = np.where(truth == 2, 0, truth).astype(np.uint8)
    assert case_metrics(prediction, truth, [1, 2], (1, 1, 1), 1).mean("dice") == 0.5


def test_masks_on_other_grids_are_refused():
    with pytest.raises(ValueError, match="share one shape"):
        case_metrics(_mask(), _mask(shape=(14, 16, 19)), [1], (1, 1, 1), 1)
    with pytest.raises(ValueError, match="negative"):
        case_metrics(_mask(), _mask(), [1], (1, 1, 1), -1)

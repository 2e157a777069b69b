"""The breast region in halves: sides told by the affine, the region right, no guess without two breasts."""

import numpy as np
import pytest
from download_makers import ellipsoid, empty, millimetres, torso

from anatogen.core.errors import ScanError
from anatogen.dataset.breasts import breast_boxes
from anatogen.io.formats import read_scan
from anatogen.io.geometry import axis_codes, cut, orient
from anatogen.io.volume import Volume

# Where the phantom's midline is, in mm towards the right, and its left tip.
MIDLINE_MM = -4.0


def breast_halves(volume: Volume, mask: Volume | None = None) -> tuple[Volume, Volume]:
    """Left and right, with (D, H, W) towards superior, posterior and left."""
    left, right = breast_boxes(volume, mask)
    return orient(cut(volume, left), "SPL"), orient(cut(volume, right), "SPL")


def bounds(volume: Volume) -> np.ndarray:
    """Lowest and highest place of voxels along each body axis, (3, 2)."""
    points = millimetres(volume).reshape(3, -1)
    return np.stack([points.min(axis=1), points.max(axis=1)], axis=1)


def breast_mask(volume: Volume) -> Volume:
    points = millimetres(volume) + np.reshape([4.0, 0, 0], (3, 1, 1, 1))
    inside = (volume.array > 200) & (points[1] > -15) & (np.abs(points[0]) > 20) & (np.abs(points[2]) < 60)
    return Volume(inside.astype(np.float32), volume.affine)


def brightest_mm(volume: Volume) -> np.ndarray:
    return millimetres(volume)[:, volume.array > 1200].mean(axis=1)


@pytest.mark.parametrize("codes", ["SPL", "IAR", "RIP", "PIL", "LAS", "ASR"])
@pytest.mark.parametrize("masked", [False, True], ids=["outline", "mask"])
def test_sides_are_the_patients_in_every_orientation(codes: str, masked: bool) -> None:
    volume = torso()
    mask = orient(breast_mask(volume), codes) if masked else None

    left, right = breast_halves(orient(volume, codes), mask)

    assert axis_codes(left.affine) == axis_codes(right.affine) == "SPL"
    assert (left.array > 1200).sum() > 10  # the ball in the left breast
    assert not (right.array > 1200).any()
    np.testing.assert_allclose(brightest_mm(left), brightest_mm(volume), atol=1e-6)
    assert bounds(left)[0, 1] <= bounds(right)[0, 0] + 1e-6
    expected = breast_halves(volume, breast_mask(volume) if masked else None)
    for half, same in zip((left, right), expected, strict=True):
        # Coarse voxels start at the other end of a flipped axis.
        np.testing.assert_allclose(bounds(half), bounds(same), atol=0 if masked else 5.3)


def test_halves_are_cut_out_without_interpolation() -> None:
    volume = orient(torso(), "SPL")
    for half in breast_halves(volume):
        start = np.linalg.solve(volume.affine, half.affine[:, 3])[:3]
        first = np.rint(start).astype(int)
        np.testing.assert_allclose(start, first, atol=1e-9)
        box = tuple(slice(a, a + size) for a, size in zip(first, half.array.shape, strict=True))
        np.testing.assert_array_equal(volume.array[box], half.array)


@pytest.mark.parametrize(("left_mm", "right_mm"), [(75, 60), (40, 80), (30, 26)])
def test_the_region_reaches_from_the_tips_to_the_chest_wall(left_mm: float, right_mm: float) -> None:
    volume = torso(left_mm=left_mm, right_mm=right_mm)
    left, right = breast_halves(volume)

    tip = max(left_mm, right_mm) + 12 - 25
    for half in (left, right):
        low, high = bounds(half)[1]
        assert tip - 3 < high < tip + 8
        # The skin over the sternum is at 0 mm; the plane 20 mm behind it.
        assert -26 < low < -14
    assert abs(bounds(left)[0, 1] - MIDLINE_MM) < 10
    assert abs(bounds(right)[0, 0] - MIDLINE_MM) < 10
    # All of both breasts: what stands out more than 8 mm.
    points = millimetres(volume)
    inside = (volume.array > 200) & (points[1] > 8)
    box = np.stack([bounds(left), bounds(right)])
    for axis in range(3):
        assert points[axis][inside].min() > box[:, axis, 0].min() - 5.3
        assert points[axis][inside].max() < box[:, axis, 1].max() + 5.3


def test_the_outline_bears_the_brightness_that_surface_coils_give() -> None:
    volume = torso()
    depth = millimetres(volume)[1].max() - millimetres(volume)[1]
    coils = Volume((volume.array * np.exp(-depth / 70)).astype(np.float32), volume.affine)
    for half, same in zip(breast_halves(coils), breast_halves(volume), strict=True):
        np.testing.assert_allclose(bounds(half), bounds(same), atol=8)


def difficult(kind: str) -> Volume:
    """Both breasts at 78 mm from the midline at x = 0, tips at 60 mm, and something that may mislead."""
    shape, spacing = (40, 90, 110), (4.5, 3.5, 3.6)
    volume = empty(shape, spacing)
    volume.affine[1, 3] -= 40
    x, y, z = millimetres(volume)
    if kind == "sternum at a slope":
        y = y - 0.35 * z
    elif kind == "lying askew":
        angle = np.radians(8)
        x, y = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    points = np.stack([x, y, z])
    fat, muscle, gland = (150, 300, 400) if kind == "fat saturation" else (900, 300, 400)
    array = np.where((x / 160) ** 2 + ((y + 100) / 100) ** 2 < 1, fat, 0.0)
    array[(x / 148) ** 2 + ((y + 100) / 88) ** 2 < 1] = muscle
    for side in (-1, 1):
        middle = side * (58 if kind == "breasts that nearly touch" else 78)
        breast = ellipsoid(points, (middle, -25, 5), (62, 85, 65)) & (y > -60) & (array != muscle)
        array[breast] = fat
        array[ellipsoid(points, (middle, 5, 5), (30, 38, 35)) & breast] = gland
        if kind == "implants":
            array[ellipsoid(points, (middle, 0, 5), (45, 45, 45))] = 60
        elif kind == "arms at the sides":
            array[ellipsoid(points, (side * 174, -20, 0), (22, 40, 300))] = fat
    if kind == "belly":
        array[ellipsoid(points, (0, -60, -110), (130, 110, 60))] = fat
    generator = np.random.default_rng(1)
    level = (0.06 if kind == "noise" else 0.015) * array.max()
    noise = generator.normal(0, level, (2, *shape))
    return Volume(np.hypot(array + noise[0], noise[1]).astype(np.float32), volume.affine)


@pytest.mark.parametrize(
    "kind",
    ["sternum at a slope", "lying askew", "fat saturation", "breasts that nearly touch", "implants",
     "arms at the sides", "belly", "noise"],
)  # fmt: skip
def test_the_outline_bears_what_real_scans_bring(kind: str) -> None:
    left, right = (bounds(half) for half in breast_halves(difficult(kind)))
    assert abs(left[0, 1]) < 12
    assert abs(right[0, 0]) < 12
    # Both breasts to their sides, tips and ends; none of the arms.
    assert -170 < left[0, 0] < -110
    assert 110 < right[0, 1] < 170
    for half in (left, right):
        assert half[1, 1] > 55
        assert half[2, 0] < -40
        assert half[2, 1] > 50


def test_a_mask_may_lie_on_another_grid() -> None:
    volume = torso()
    mask = breast_mask(volume)
    coarse = Volume(np.ascontiguousarray(mask.array[::2, ::2, ::2]), mask.affine @ np.diag([2, 2, 2, 1]))
    for half, same in zip(breast_halves(volume, coarse), breast_halves(volume, mask), strict=True):
        np.testing.assert_allclose(bounds(half), bounds(same), atol=10.1)
        np.testing.assert_allclose(half.spacing_mm, volume.spacing_mm)


@pytest.mark.parametrize("sides", [{"right_mm": 0}, {"left_mm": 0}, {"left_mm": 0, "right_mm": 0}])
def test_a_missing_breast_is_told_not_guessed(sides: dict[str, float]) -> None:
    with pytest.raises(ScanError, match="two breasts are not found"):
        breast_halves(torso(**sides))


def test_masks_that_show_no_two_breasts_are_refused() -> None:
    volume = torso()
    mask = breast_mask(volume)
    with pytest.raises(ScanError, match="mask is empty"):
        breast_halves(volume, Volume(mask.array * 0, mask.affine))
    full = np.zeros_like(mask.array)
    full[5:30, 10:60, 30:110] = 1
    with pytest.raises(ScanError, match="no gap"):
        breast_halves(volume, Volume(full, mask.affine))
    elsewhere = mask.affine.copy()
    elsewhere[:3, 3] += 5000
    with pytest.raises(ScanError, match="outside the scan"):
        breast_halves(volume, Volume(mask.array, elsewhere))


def test_a_scan_without_a_body_is_refused() -> None:
    with pytest.raises(ScanError, match="no body"):
        breast_halves(Volume(np.zeros((20, 40, 40), np.float32), torso().affine))


@pytest.mark.parametrize("name", ["patient01_study1_T1W.nii.gz", "patient01_study1_FLAIR.nii.gz"])
def test_a_head_is_no_chest(shared_data, name: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ScanError, match="two breasts are not found"):
        breast_halves(read_scan(shared_data / "brain" / name))

"""Label and probability maps are told from scans by their values, however many labels they have."""

import numpy as np
import pytest
from scan_makers import ct_head, head
from scipy import ndimage

from anatogen.io.label_values import ValueKind, values_of

SHAPE = (24, 40, 36)


def body(shape=SHAPE):
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    return (grid**2).sum(axis=0) < 0.8


def parcels(num, seed=0, order=None):
    """Regions around random points, numbered at random or in the order of an axis; 0 outside the body."""
    generator = np.random.default_rng(seed)
    points = generator.uniform(0, 1, (num, 3)) * SHAPE
    if order is not None:
        points = points[points[:, order].argsort()]
    places = np.indices(SHAPE).reshape(3, -1).T
    nearest = ((places[:, None] - points) ** 2).sum(axis=-1).argmin(axis=1).reshape(SHAPE)
    return np.where(body(), nearest + 1, 0).astype(np.float32)


def freesurfer(num=90):
    """Identifiers far apart, as of aparc+aseg."""
    found = parcels(num)
    names = np.sort(np.random.default_rng(1).choice(np.arange(2, 2036), num, replace=False))
    return np.where(found > 0, names[np.maximum(found, 1).astype(int) - 1], 0).astype(np.float32)


def tissue(sigma):
    """A soft share of one tissue, 0 far from it and 1 within."""
    inside = ndimage.gaussian_filter(parcels(30) % 2 == 1, sigma, output=np.float64)
    return np.where(body(), np.clip(1.6 * inside - 0.3, 0, 1), 0).astype(np.float32)


@pytest.mark.parametrize(
    "array",
    [
        parcels(1),
        parcels(3),
        parcels(50),
        parcels(170),
        parcels(170) * 1000,
        parcels(24, order=0),
        freesurfer(),
        np.sign(parcels(3) - 2),
        np.where(body(), 255, 0).astype(np.float32),
    ],
)
def test_labels_are_told_however_many_there_are(array):
    found = values_of(array)
    assert found.kind is ValueKind.LABELS
    assert found.num_labels == len(np.unique(array))


def eight_bits(array, low=0, high=255):
    return np.rint(255 * np.clip((array - low) / (high - low), 0, 1)).astype(np.float32)


@pytest.mark.parametrize(
    "array",
    [
        head(0, SHAPE).array,
        ct_head(0).array,
        # CT whose intercept was lost, CT and MR as pictures of 8 bits with what is clipped, MR of 6 bits.
        ct_head(0).array + 1024,
        eight_bits(ct_head(0).array, -160, 240),
        eight_bits(head(0, SHAPE).array, 0, 600),
        np.rint(head(0, SHAPE).array / 13),
        # Skull-stripped, and with values far from 0 outside.
        np.where(body((20, 24, 18)), head(0).array, 0),
        np.where(body((20, 24, 18)), ct_head(0).array, -3024),
        # Smooth, with few values: neighbours are equal, but go up and down by one.
        np.rint(ndimage.gaussian_filter(head(0, SHAPE).array, 2) / 8),
        head(0, SHAPE).array / 700,
        # Without noise, and equal along two axes.
        *(np.where(body(), np.rint(600 + 60 * np.sin(np.indices(SHAPE)[axis] / 3)), 0) for axis in range(3)),
    ],
)
def test_scans_of_whole_numbers_are_scans(array):
    assert values_of(np.asarray(array, np.float32)).kind is ValueKind.SCAN


def test_probabilities_are_told_by_zeros_and_ones():
    assert values_of(tissue(0.8)).kind is ValueKind.PROBABILITIES
    # A scan without its background, brought to [0, 1], and the soft map of an atlas: values alone don't tell.
    stripped = np.where(body(), head(0, SHAPE).array / 900, 0).astype(np.float32)
    assert values_of(stripped).kind is ValueKind.UNIT
    assert values_of(tissue(6)).kind is ValueKind.UNIT


def test_what_may_be_labels_is_in_doubt():
    # Numbered from place to place, as superpixels are.
    assert values_of(parcels(400, order=0)).kind in (ValueKind.DOUBTFUL, ValueKind.LABELS)
    interpolated = ndimage.zoom(parcels(10), (1, 1, 1.3), order=1).astype(np.float32)
    assert values_of(interpolated).kind is ValueKind.DOUBTFUL

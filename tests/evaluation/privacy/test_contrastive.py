"""Learning by contrast: the loss by its definition, rigid views, one result for one seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from anatogen.core.seeding import derived_generator
from anatogen.dataset.manifest import Grid, Intensity
from anatogen.dataset.scan_sets import ScanSet
from anatogen.evaluation.privacy.contrastive import (
    ContrastiveSettings,
    cached_encoder,
    embeddings,
    nt_xent,
    scaled_down,
    train_encoder,
    working_shape,
)
from anatogen.evaluation.privacy.views import random_views

SETTINGS = ContrastiveSettings(widths=(4, 8), dimensions=8, max_voxels=16**3, batch_size=4, steps=3)
SPACING_MM = (1.0, 1.0, 1.0)


def smooth_scans(number: int, seed: int, side: int = 16) -> np.ndarray:
    """Gaussian-filtered noise in [-1, 1]."""
    noise = np.random.default_rng(seed).standard_normal((number, side, side, side))
    blobs = gaussian_filter(noise, (0, 2, 2, 2))
    return (blobs / np.abs(blobs).max(axis=(1, 2, 3), keepdims=True)).astype(np.float32)


def test_nt_xent_is_the_sum_of_its_definition():
    rng = np.random.default_rng(0)
    first, second, temperature = rng.standard_normal((5, 3)), rng.standard_normal((5, 3)), 0.3
    views = np.concatenate([first, second])
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    wanted = 0.0
    for i in range(10):
        partner = (i + 5) % 10
        others = sum(np.exp(views[i] @ views[k] / temperature) for k in range(10) if k != i)
        wanted -= np.log(np.exp(views[i] @ views[partner] / temperature) / others) / 10
    found = nt_xent(torch.from_numpy(first), torch.from_numpy(second), temperature)
    assert float(found) == pytest.approx(wanted, rel=1e-9)


def test_views_differ_from_the_scan_and_from_each_other_and_follow_the_generator():
    x = torch.from_numpy(smooth_scans(3, 0))[:, None]
    a, b = (random_views(x, SPACING_MM, derived_generator(0, side)) for side in (0, 1))
    assert a.shape == x.shape
    assert not torch.allclose(a, x, atol=0.1) and not torch.allclose(a, b, atol=0.1)
    assert torch.equal(a, random_views(x, SPACING_MM, derived_generator(0, 0)))


def test_a_view_keeps_the_volume_of_a_body_whatever_the_voxels():
    """Rotations are rigid in millimetres: only the scale, 0.9 to 1.1, changes a body's volume."""
    shape, spacing_mm = (16, 32, 24), (4.0, 1.0, 2.0)
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    inside = (z / 16) ** 2 + (y / 8) ** 2 + (x / 10) ** 2 < 1
    body = torch.from_numpy(np.where(inside, 1.0, -1.0).astype(np.float32))
    views = random_views(body.expand(20, 1, *shape), spacing_mm, derived_generator(1))
    middle = (views.amax(dim=(1, 2, 3, 4)) + views.amin(dim=(1, 2, 3, 4))) / 2
    volumes = (views > middle[:, None, None, None, None]).sum(dim=(1, 2, 3, 4)) / inside.sum()
    assert volumes.min() > 0.9**3 - 0.1 and volumes.max() < 1.1**3 + 0.15


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((16, 16, 16), (16, 16, 16)), ((64, 64, 64), (24, 24, 24)), ((16, 256, 256), (16, 29, 29))],
)
def test_big_grids_are_cut_along_their_longest_sides(shape, wanted):
    assert working_shape(shape, 24**3) == wanted


def test_scaling_down_averages():
    big = smooth_scans(1, 0, 32)
    wanted = big.reshape(1, 16, 2, 16, 2, 16, 2).mean(axis=(2, 4, 6))
    assert np.allclose(scaled_down(big, 16**3)[:, 0].numpy(), wanted, atol=1e-6)


def test_one_seed_gives_one_encoder_and_another_seed_another(tmp_path):
    scans = smooth_scans(5, 0)
    a, b, other = (train_encoder(scans, SPACING_MM, seed=s, settings=SETTINGS) for s in (0, 0, 1))
    found = [embeddings(encoder, scans) for encoder in (a, b, other)]
    assert np.array_equal(found[0], found[1]) and not np.allclose(found[0], found[2], atol=1e-3)


def test_embeddings_don_t_change_with_flips_and_give_pearson_correlations():
    scans = smooth_scans(4, 0)
    encoder = train_encoder(scans, SPACING_MM, seed=0, settings=SETTINGS)
    found = embeddings(encoder, scans)
    flipped = embeddings(encoder, np.ascontiguousarray(scans[:, ::-1, :, ::-1]))
    assert np.allclose(found, flipped, atol=1e-5)
    assert np.allclose(found @ found.T, np.corrcoef(found), atol=1e-5)


def test_the_encoder_is_trained_once_for_the_same_scans(tmp_path):
    arrays, steps = smooth_scans(4, 0), []
    grid = Grid(shape=(16, 16, 16), spacing_mm=SPACING_MM, affine=np.eye(4).tolist())
    intensity = Intensity(modality="MR", low=0, high=1)
    scans = ScanSet("train", arrays, ("a", "b", "c", "d"), grid, "MR", intensity)

    def count(what, done, total):
        steps.append(done)

    options = {"seed": 0, "settings": SETTINGS, "progress": count}
    first = cached_encoder(scans, tmp_path, **options)
    assert steps == [1, 2, 3]
    again = cached_encoder(scans, tmp_path, **options)
    assert steps == [1, 2, 3]
    assert np.array_equal(embeddings(first, arrays), embeddings(again, arrays))
    cached_encoder(replace(scans, hashes=("a", "b", "c", "e")), tmp_path, **options)
    assert len(steps) == 6


def test_a_few_thick_slices_are_learned_from_too():
    scans = np.ascontiguousarray(smooth_scans(4, 0)[:, 6:10])
    settings = ContrastiveSettings(dimensions=8, batch_size=4, steps=2)
    encoder = train_encoder(scans, (5.0, 1.0, 1.0), seed=0, settings=settings)
    found = embeddings(encoder, scans)
    assert np.isfinite(found).all() and np.linalg.matrix_rank(found) > 1

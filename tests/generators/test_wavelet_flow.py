"""The wavelet flow as a generator: what its scans depend on, and what it samples with exact networks."""

from typing import get_args

import numpy as np
import pytest
import torch
from flows import SHAPE, flow_bundle, flow_description, write_flow_bundle
from torch import Tensor, nn

from anatogen.core.choices import Sampler
from anatogen.generators.loading import load_bundle
from anatogen.generators.wavelet_flow import FlowLevels, WaveletFlowBundle
from anatogen.models.pyramid import BACKGROUND

SAMPLERS = get_args(Sampler)

pytestmark = pytest.mark.usefixtures("one_thread")


class _Gaussian(nn.Module):
    """The velocity of normal data of a mean and a standard deviation, in closed form."""

    def __init__(self, channels: int, mean: float, std: float) -> None:
        super().__init__()
        self.channels, self.mean, self.std = channels, mean, std

    def forward(self, x: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        x_t, alpha, sigma = x[:, : self.channels], 1 - t[0], t[0]
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return (x_t - self.mean - gain * (x_t - alpha * self.mean)) / sigma


def _scans(number: int) -> Tensor:
    """Noise with a box of background."""
    x = torch.rand(number, 1, *SHAPE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    x[:, :, :, :, 6:] = BACKGROUND
    return x


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_scan_depends_on_its_seed_and_number_alone(sampler):
    bundle = flow_bundle()
    options = bundle.sampling_options(sampler, 2)
    together = bundle.generate([4, 1, 2], seed=5, sampler=sampler, steps=2)
    assert torch.equal(bundle.generate([1], seed=5, sampler=sampler, steps=2)[0], together[1])
    with torch.inference_mode():
        batch = bundle._generate([4, 1, 2], 5, options)[:, 0]
    assert torch.allclose(batch, together, atol=1e-4), "one batch, as on a GPU"
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(bundle.generate([1], seed=6, sampler=sampler, steps=2)[0], together[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_have_the_mean_and_the_spread_of_gaussian_data(sampler):
    """With networks that know the exact denoiser of independent normal values at each level."""
    bundle = flow_bundle(channels=1)
    # The first halving is along W alone: one band; the second along all axes: seven.
    statistics = bundle.description.statistics.model_copy(
        update={"image_shift": [0.1], "image_scale": [0.1], "band_scales": [[0.1], [0.2] * 7]}
    )
    description = bundle.description.model_copy(update={"statistics": statistics})
    levels = FlowLevels(description)
    bundle = WaveletFlowBundle.build(description)
    laws = [(0.0, 1.5), (0.0, 0.5), (2.0, 0.7)]
    for level, (mean, std) in enumerate(laws):
        bundle.networks.levels[level] = _Gaussian(levels.shape(level)[0], mean, std)
    with torch.inference_mode():
        x = bundle._generate(range(80), 1, {"sampler": sampler, "steps": 80})
    # Bands are of unit norm: a voxel has their variance by their share of all channels.
    variance = (0.7 * 0.1) ** 2 + 7 / 8 * (0.5 * 0.2) ** 2 + 1 / 2 * (1.5 * 0.1) ** 2
    assert abs(float(x.mean()) - (0.1 + 2.0 * 0.1)) < 0.01
    assert abs(float(x.std()) / variance**0.5 - 1) < 0.05


def test_the_background_is_exactly_that_and_where_the_foreground_channel_says(monkeypatch):
    bundle, seen = flow_bundle(), []
    scans_of = bundle.levels.scans_of
    monkeypatch.setattr(bundle.levels, "scans_of", lambda x: seen.append(x) or scans_of(x))
    x = bundle.generate([0], seed=0)
    inside = bundle.levels.pyramid.crop(seen[0][:, 1:])[:, 0] > 0
    assert inside.any() and not inside.all()
    assert (x[~inside] == BACKGROUND).all() and x.abs().max() <= 1


def test_scans_without_a_background_have_no_channel_for_it():
    bundle = flow_bundle(channels=1)
    x = _scans(1)
    assert torch.equal(bundle.levels.scans_of(bundle.levels.channels_of(x)), x)
    assert bundle.levels.channels_of(x).shape[1] == 1 and bundle.generate([0]).shape == (1, *SHAPE)


def test_a_bundle_comes_back_from_disk_to_the_bit(tmp_path):
    bundle = flow_bundle()
    loaded = load_bundle(write_flow_bundle(tmp_path / "bundle"))
    assert isinstance(loaded, WaveletFlowBundle)
    assert torch.equal(loaded.generate([0, 1], seed=2), bundle.generate([0, 1], seed=2))
    assert loaded.loss(_scans(1), seed=0) == bundle.loss(_scans(1), seed=0)
    (volume,) = loaded.sample(1, seed=2, first=1)
    np.testing.assert_array_equal(
        volume.array, loaded.intensity.restore(loaded.generate([1], seed=2)[0].numpy())
    )


def test_the_loss_of_a_scan_is_the_same_at_every_call_and_its_own():
    bundle = flow_bundle()
    first, second = _scans(2).split(1)
    assert bundle.loss(first, seed=0) == bundle.loss(first, seed=0)
    assert bundle.loss(first, seed=0) != bundle.loss(second, seed=0)
    assert bundle.loss(first, seed=0) != bundle.loss(first, seed=1)


def test_the_loss_is_that_of_the_velocity_at_each_level():
    """Networks that say nothing are wrong by eps - x_0, of mean square 1 and that of the values."""
    bundle = WaveletFlowBundle.build(flow_description())
    x = _scans(1)
    found = bundle.losses(x, torch.full((40,), 0.5), torch.Generator().manual_seed(0))
    images, bands = bundle.levels.pyramid.analyse(bundle.levels.channels_of(x))
    nothing = torch.zeros(1)
    texture = bundle.levels.texture(images, bands)
    for level, loss in enumerate(found[:-1]):
        image = images[level + 1]
        batch = bundle.levels.details(level, image, bands[level], texture, (0, 0, 0), image, nothing)
        assert torch.isclose(loss, 1 + batch.x_0.square().mean(), rtol=0.1)
    x_0 = bundle.levels.coarse(images[-1], texture, (0, 0, 0), texture, deformed=False).x_0
    assert torch.isclose(found[-1], 1 + x_0.square().mean(), rtol=0.1)


def test_what_a_level_is_given_is_undone_by_what_its_samples_mean():
    levels = FlowLevels(flow_description())
    x = _scans(2)
    images, bands = levels.pyramid.analyse(levels.channels_of(x))
    texture = levels.texture(images, bands)
    image = levels.image_of(levels.coarse(images[-1], texture, (0, 0, 0), texture, deformed=False).x_0)
    assert torch.allclose(image, images[-1], atol=1e-5)
    for level in reversed(range(levels.num_levels)):
        nothing = torch.zeros_like(image)
        given = levels.details(level, image, bands[level], texture, (0, 0, 0), nothing, torch.zeros(2))
        image = levels.pyramid.refine(level, image, levels.bands_of(level, given.x_0))
    assert torch.allclose(levels.scans_of(image), x, atol=1e-5)


@pytest.mark.parametrize("offset", [(0, 0, 0), (1, 3, 2)])
def test_positions_are_the_means_of_their_voxels_places(offset):
    levels = FlowLevels(flow_description())
    pyramid = levels.pyramid
    places = [
        (torch.arange(size) + start + 0.5) / size * 2 - 1
        for size, start in zip(pyramid.shapes[0], offset, strict=True)
    ]
    images, _ = pyramid.analyse(torch.stack(torch.meshgrid(*places, indexing="ij"))[None])
    for level, image in enumerate(images):
        assert torch.allclose(levels.positions(level, offset), image, atol=1e-6)


def test_textures_are_drawn_with_the_spread_and_the_correlation_of_scans():
    levels = FlowLevels(flow_description())
    drawn = levels.texture_of(torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(drawn.T.cov(), torch.tensor([[1.0, 0.6], [0.6, 1.0]]), atol=0.03)
    assert drawn.mean(dim=0).abs().max() < 0.03


def test_the_coarse_level_is_told_a_blurred_texture_and_whether_it_was_deformed():
    levels = FlowLevels(flow_description())
    texture = torch.zeros(4000, 2)
    noise = torch.randn(texture.shape, generator=torch.Generator().manual_seed(0))
    _, told = levels.told_coarse(texture, (0, 0, 0), noise, deformed=True)
    assert (told[:, 0] == 1).all()
    assert torch.allclose(told[:, 1:].std(dim=0), torch.full((2,), 0.5), atol=0.02)


def test_texture_doubles_with_the_details_and_leaves_the_background_out():
    levels = FlowLevels(flow_description())
    x = _scans(1)
    images, bands = levels.pyramid.analyse(levels.channels_of(x))
    stronger = levels.texture(images, [2 * band for band in bands]) - levels.texture(images, bands)
    scale = torch.tensor(levels._statistics.texture_scale)
    assert torch.allclose(stronger * scale, torch.full((1, 2), 2.0).log(), atol=1e-4)
    outside = [band.clone() for band in bands]
    for level, band in enumerate(outside):
        band[:, :, images[level + 1][0, 1] == -1] = 9.0
    assert torch.allclose(levels.texture(images, outside), levels.texture(images, bands))

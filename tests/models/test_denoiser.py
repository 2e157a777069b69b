"""The denoiser: laws of its grid, and which cells may see which."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anatogen.config.presets import preset_named
from anatogen.config.resolving import resolve
from anatogen.config.settings import DenoiserSettings, LatentDiffusionSettings
from anatogen.models.denoiser import (
    Denoiser,
    DepthAttention,
    LinearSpatialAttention,
    SpatialAttention,
    VolumeAttention,
    _gather,
    _scatter,
    halving_strides,
)

SMALL = {"width": 8, "num_heads": 2, "head_dim": 4, "num_blocks": 1}


def _denoiser(kind: str, shape=(4, 8, 8), spacing=(1.0, 1.0, 1.0), channels=3, **options) -> Denoiser:
    torch.manual_seed(0)
    network = Denoiser(DenoiserSettings(kind=kind, **(SMALL | options)), channels, shape, spacing)
    # The last layer starts at 0, which would make every test of what flows through it pass.
    nn.init.normal_(network.exit[2].weight)
    return network.eval()


@given(
    shape=st.tuples(*[st.integers(1, 64)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 10)] * 3),
    number=st.integers(0, 4),
)
def test_halvings_bring_a_grid_towards_isotropic_cells(shape, spacing, number):
    strides = halving_strides(shape, spacing, number)
    assert len(strides) == number
    sizes, lengths = list(shape), list(spacing)
    for stride in strides:
        assert set(stride) <= {1, 2}
        can = [axis for axis in range(3) if sizes[axis] >= 4]
        # Something is halved wherever something can be, the finest axis first.
        assert (2 in stride) == bool(can)
        if can:
            assert stride[min(can, key=lambda axis: lengths[axis])] == 2
        for axis in range(3):
            if stride[axis] == 2:
                assert sizes[axis] >= 4
                assert lengths[axis] < 1.5 * min(lengths[other] for other in can)
        sizes = [math.ceil(size / step) for size, step in zip(sizes, stride, strict=True)]
        lengths = [length * step for length, step in zip(lengths, stride, strict=True)]


def test_isotropic_grids_are_halved_alike_and_thick_slices_plane_first():
    assert halving_strides((16, 16, 16), (1, 1, 1), 2) == [(2, 2, 2)] * 2
    assert halving_strides((16, 64, 64), (4, 1, 1), 3) == [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert halving_strides((2, 3, 3), (1, 1, 1), 2) == [(1, 1, 1)] * 2


@pytest.mark.parametrize("kind", ["factorised", "volumetric"])
@pytest.mark.parametrize("patch", [1, 2])
@given(shape=st.tuples(*[st.integers(1, 11)] * 3))
@settings(max_examples=8, deadline=None)
@torch.no_grad()
def test_any_latent_comes_out_in_its_shape(kind, patch, shape):
    network = _denoiser(kind, shape, (2.0, 1.0, 1.0), patch=patch, multipliers=(1, 2))
    found = network(torch.randn(2, 3, *shape), torch.tensor([0.1, 0.9]))
    assert found.shape == (2, 3, *shape) and found.isfinite().all()


@pytest.mark.parametrize("kind", ["factorised", "volumetric"])
@torch.no_grad()
def test_padding_inside_is_padding_with_zeros_outside(kind):
    network = _denoiser(kind, (5, 7, 7), multipliers=(1, 2, 2))
    x, t = torch.randn(1, 3, 5, 7, 7), torch.tensor([0.4])
    d, h, w = (math.ceil(n / m) * m for n, m in zip(x.shape[2:], network.multiple, strict=True))
    padded = torch.zeros(1, 3, d, h, w)
    padded[:, :, :5, :7, :7] = x
    assert torch.allclose(network(x, t), network(padded, t)[:, :, :5, :7, :7], atol=1e-5)


@pytest.mark.parametrize("kind", ["factorised", "volumetric"])
@torch.no_grad()
def test_the_time_matters_and_items_of_a_batch_do_not_see_each_other(kind):
    network = _denoiser(kind)
    x = torch.randn(1, 3, 4, 8, 8).expand(2, -1, -1, -1, -1)
    found = network(x, torch.tensor([0.1, 0.9]))
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    assert torch.allclose(found[1:], network(x[1:], torch.tensor([0.9])), rtol=1e-3, atol=1e-3)


def test_an_untrained_denoiser_predicts_zero():
    network = Denoiser(DenoiserSettings(**SMALL), 3, (4, 4, 4), (1.0, 1.0, 1.0))
    assert not network(torch.randn(1, 3, 4, 4, 4), torch.tensor([0.5])).any()


def _without_norms(network: nn.Module) -> nn.Module:
    """Group normalisation sees the whole volume; what the convolutions and attentions see is the rest."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return network


def _reach(network: nn.Module, where: tuple[int, int, int], shape: tuple[int, int, int]) -> torch.Tensor:
    """Whether each output cell (d, h, w) depends on the input cell at `where`."""
    x = torch.randn(1, 8, *shape, dtype=torch.float64, requires_grad=True)
    network = network.double()
    found = network(x)
    d, h, w = where
    (gradient,) = torch.autograd.grad(found[0, :, d, h, w].sum(), x)
    return gradient[0].abs().sum(0) > 1e-12


@pytest.mark.parametrize(
    ("attention", "axes"),
    [
        (SpatialAttention, (1, 2)),
        (LinearSpatialAttention, (1, 2)),
        (DepthAttention, (0,)),
        (VolumeAttention, (0, 1, 2)),
    ],
)
def test_attention_sees_the_cells_that_it_claims_and_no_others(attention, axes):
    torch.manual_seed(0)
    layer = _without_norms(attention(8, 2, 4))
    place, shape = (1, 2, 0), (3, 4, 5)
    wanted = torch.ones(shape, dtype=torch.bool)
    for axis in {0, 1, 2} - set(axes):
        index = torch.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
        wanted &= index == place[axis]
    assert torch.equal(_reach(layer, place, shape), wanted)


def test_the_bias_of_depth_attention_depends_on_the_distance_of_slices():
    layer = DepthAttention(8, 2, 4)
    x = torch.randn(1, 8, 80, 1, 1)
    before = layer(x)
    # The bias of slices as far below as can be told apart changes all slices that have such.
    layer.bias.data[:, 0] = 5.0
    changed = (layer(x) - before).abs().amax((0, 1, 3, 4)) > 0
    assert changed.tolist() == [index + 32 < 80 for index in range(80)]


@pytest.mark.parametrize("kind", ["factorised", "volumetric"])
def test_convolutions_of_the_factorised_network_stay_in_the_slice(kind):
    """With attention silenced, a change of one slice stays in it; the volumetric network spreads it."""
    network = _without_norms(_denoiser(kind, (4, 8, 8), multipliers=(1, 2)))
    for module in network.modules():
        if isinstance(module, SpatialAttention | LinearSpatialAttention | DepthAttention | VolumeAttention):
            nn.init.zeros_(module.to_out.weight)
    x = torch.randn(1, 3, 4, 8, 8)
    other = x.clone()
    other[:, :, 1] += 1
    t = torch.tensor([0.5])
    changed = ((network(x, t) - network(other, t)).abs().amax((0, 1, 3, 4)) > 1e-6).tolist()
    assert changed == ([False, True, False, False] if kind == "factorised" else [True] * 4)


def test_depth_attention_lets_slices_of_the_factorised_network_see_each_other():
    network = _without_norms(_denoiser("factorised", (4, 8, 8), multipliers=(1, 2)))
    x = torch.randn(1, 3, 4, 8, 8)
    other = x.clone()
    other[:, :, 1] += 1
    t = torch.tensor([0.5])
    assert ((network(x, t) - network(other, t)).abs().amax((0, 1, 3, 4)) > 1e-7).all()


@given(patch=st.sampled_from([1, 2]), cells=st.tuples(*[st.integers(1, 4)] * 3), channels=st.integers(1, 3))
def test_gathering_patches_is_undone_by_scattering_them(patch, cells, channels):
    x = torch.randn(2, channels, *(patch * n for n in cells))
    y = _gather(x, patch)
    assert y.shape == (2, channels * patch**3, *cells)
    assert torch.equal(_scatter(y, patch), x)
    # A gathered cell holds the cells of its own patch.
    corner = x[:, :, :patch, :patch, :patch].flatten(1)
    assert torch.equal(y[:, :, 0, 0, 0], corner)


@pytest.mark.parametrize("preset", ["paper", "latent_diffusion", "tiny"])
@pytest.mark.parametrize("shape", [(8, 16, 16), (7, 9, 5)])
def test_every_preset_s_denoiser_builds_and_keeps_the_shape(preset, shape):
    chosen = resolve(LatentDiffusionSettings, preset_named(preset))
    with torch.device("meta"):
        channels = chosen.autoencoder.latent_channels
        network = Denoiser(chosen.denoiser, channels, shape, (3.0, 1.0, 1.0))
        assert network(torch.zeros(1, channels, *shape), torch.zeros(1)).shape[2:] == shape

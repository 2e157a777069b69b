"""The denoiser: any latent, and which cells may see which."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anatogen.config.settings import DenoiserSettings
from anatogen.models.denoiser import Denoiser, DepthAttention, LinearSpatialAttention, SpatialAttention

SMALL = {"width": 8, "num_heads": 2, "head_dim": 4, "num_blocks": 1, "multipliers": (1, 2, 2)}


def _denoiser(**options) -> Denoiser:
    torch.manual_seed(0)
    network = Denoiser(DenoiserSettings(**(SMALL | options)), 3)
    # The last layer starts at 0, which would make every test of what flows through it pass.
    nn.init.normal_(network.exit[2].weight)
    return network.eval()


@given(shape=st.tuples(*[st.integers(1, 11)] * 3))
@settings(max_examples=8, deadline=None)
@torch.no_grad()
def test_any_latent_comes_out_in_its_shape(shape):
    found = _denoiser()(torch.randn(2, 3, *shape), torch.tensor([0.1, 0.9]))
    assert found.shape == (2, 3, *shape) and found.isfinite().all()


@torch.no_grad()
def test_padding_inside_is_padding_with_zeros_outside():
    network = _denoiser()
    x, t = torch.randn(1, 3, 5, 7, 6), torch.tensor([0.4])
    padded = torch.zeros(1, 3, 5, 8, 8)
    padded[..., :7, :6] = x
    assert torch.allclose(network(x, t), network(padded, t)[..., :7, :6], atol=1e-5)


@torch.no_grad()
def test_the_time_matters_and_items_of_a_batch_do_not_see_each_other():
    network = _denoiser()
    x = torch.randn(1, 3, 4, 8, 8).expand(2, -1, -1, -1, -1)
    found = network(x, torch.tensor([0.1, 0.9]))
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    assert torch.allclose(found[1:], network(x[1:], torch.tensor([0.9])), rtol=1e-3, atol=1e-3)


def test_an_untrained_denoiser_predicts_zero():
    network = Denoiser(DenoiserSettings(**SMALL), 3)
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


def _sees_the_second_slice(network: nn.Module) -> list[bool]:
    """For each of four slices, whether it depends on the second."""
    x = torch.randn(1, 3, 4, 8, 8)
    other = x.clone()
    other[:, :, 1] += 1
    t = torch.tensor([0.5])
    return ((network(x, t) - network(other, t)).abs().amax((0, 1, 3, 4)) > 1e-7).tolist()


def test_slices_see_each_other_by_depth_attention_alone():
    network = _without_norms(_denoiser())
    assert _sees_the_second_slice(network) == [True] * 4
    for module in network.modules():
        if isinstance(module, DepthAttention):
            nn.init.zeros_(module.to_out.weight)
    assert _sees_the_second_slice(network) == [False, True, False, False]

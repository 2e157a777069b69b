"""The denoiser: any latent, and which cells may see which."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anatogen.config.settings import DenoiserSettings
from anatogen.models.blocks import CellNorm
from anatogen.models.denoiser import (
    Denoiser,
    DepthAttention,
    DistanceBias,
    LinearSpatialAttention,
    ResidualBlock,
    SpatialAttention,
    TimeEmbedding,
    turned,
    width_of,
)

SMALL = {"width": 8, "num_heads": 2, "head_dim": 4, "num_blocks": 1, "multipliers": (1, 2, 2)}
NO_BIAS = torch.zeros(2, 1, 1)


def _denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(DenoiserSettings(**SMALL), 3, (4, 8, 8)).eval()


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


def test_the_paper_s_denoiser_has_the_parameters_of_its_origin():
    """10.0 million at width 32; 9.98 in the count of video-diffusion-pytorch for 8 channels."""
    with torch.device("meta"):
        network = Denoiser(DenoiserSettings(), 8, (32, 32, 32))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(9.98, abs=0.005)


def test_nothing_but_biases_starts_at_zero():
    parameters = dict(_denoiser().named_parameters())
    assert all(value.any() for name, value in parameters.items() if not name.endswith("bias"))


@pytest.mark.parametrize("shape", [(16, 16, 16), (32, 32, 32), (8, 64, 64)])
def test_the_width_is_the_side_of_the_paper_s_latents(shape):
    assert width_of(shape) == shape[1]


@given(shape=st.tuples(*[st.integers(1, 200)] * 3))
def test_the_width_is_enough_for_the_longer_side_of_the_plane_and_divides_into_groups(shape):
    width, side = width_of(shape), max(shape[1:])
    assert width % 8 == 0 and side <= width < side + 8


def _without_norms(network: nn.Module) -> nn.Module:
    """Group normalisation sees the whole volume; what convolutions and attentions see is the rest."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm | CellNorm):
                setattr(module, name, nn.Identity())
    return network


def _reach(network: nn.Module, where: tuple[int, int, int], shape: tuple[int, int, int]) -> torch.Tensor:
    """Whether each output cell (d, h, w) depends on the input cell at `where`."""
    x = torch.randn(1, 8, *shape, dtype=torch.float64, requires_grad=True)
    network = network.double()
    found = network(x, NO_BIAS.double()) if isinstance(network, DepthAttention) else network(x)
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


def test_the_bias_of_two_slices_depends_on_their_distance_and_its_direction():
    bias = DistanceBias(2)(80)
    assert bias.shape == (2, 80, 80)
    for offset in range(-79, 80):
        assert torch.equal(bias.diagonal(offset, 1, 2).unique(dim=1), bias.diagonal(offset, 1, 2)[:, :1])
    one_way = bias[0, :, 0]
    # One by one up to 8, ever more coarsely up to 32, then all alike.
    assert len(one_way[:8].unique()) == 8 and len(one_way.unique()) == 16
    assert len(one_way[31:].unique()) == 1
    assert not (bias[0, 1:, 0][:, None] == bias[0, 0, 1:]).any()


def test_rotary_positions_are_told_by_their_distance_alone():
    q, k = torch.randn(2, 8, dtype=torch.float64)
    products = turned(q.expand(20, 8)) @ turned(k.expand(20, 8)).T
    for offset in range(-19, 20):
        diagonal = products.diagonal(offset)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-9)
    assert products[0].unique().numel() == 20
    assert torch.allclose(turned(q.expand(20, 8)).norm(dim=1), q.norm().expand(20))


def test_a_residual_block_adds_what_was_activated_last():
    block = ResidualBlock(4, 4, 6)
    x = torch.randn(1, 4, 3, 5, 4)
    added = block(x, torch.randn(1, 6)) - x
    # The least that SiLU gives is -0.278.
    assert -0.28 < float(added.min()) < 0 < float(added.max())


def test_an_embedding_changes_each_item_alone():
    block = ResidualBlock(4, 8, embedding_dim=6)
    x, embedding = torch.randn(1, 4, 3, 3, 3).expand(2, -1, -1, -1, -1), torch.randn(2, 6)
    found = block(x, embedding)
    assert not torch.allclose(found[0], found[1])
    assert torch.allclose(found[:1], block(x[:1], embedding[:1]), atol=1e-5)


def test_time_embeddings_tell_neighbouring_levels_apart():
    embedding = TimeEmbedding(32, 64)
    t = torch.arange(1, 301) / 300
    angles = t[:, None] * embedding.frequencies
    features = torch.cat((angles.sin(), angles.cos()), 1)
    assert torch.pdist(features).min() > 0.1
    assert embedding(t).shape == (300, 64)


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

"""The autoencoder: shapes for any volume, and the settings' promises about compression."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anatogen.config.settings import AutoencoderSettings
from anatogen.models.vqgan import VQGAN, _doubling, latent_shape

SMALL = {"base_width": 4, "decoder_width": 4, "num_codes": 8, "code_dim": 3}
NETWORKS: dict[tuple, VQGAN] = {}


def _network(compression: tuple[int, int, int]) -> VQGAN:
    if compression not in NETWORKS:
        torch.manual_seed(0)
        NETWORKS[compression] = VQGAN(AutoencoderSettings(compression=compression, **SMALL))
    return NETWORKS[compression]


@given(
    compression=st.sampled_from([(1, 1, 1), (2, 2, 2), (4, 4, 4), (1, 4, 4), (2, 4, 8), (4, 2, 1)]),
    shape=st.tuples(*[st.integers(1, 17)] * 3),
)
@settings(max_examples=40, deadline=None)
@torch.no_grad()
def test_any_volume_comes_back_in_its_shape_and_its_latent_is_compressed_as_set(compression, shape):
    network = _network(compression)
    # Two volumes: torch refuses to normalise a latent of a single cell alone.
    x = torch.rand(2, 1, *shape) * 2 - 1
    reconstructed, z, indices = network(x)
    cells = tuple(math.ceil(size / factor) for size, factor in zip(shape, compression, strict=True))
    assert z.shape == (2, 3, *cells) and latent_shape(shape, compression) == cells
    assert indices.shape == (2, *cells)
    assert reconstructed.shape == x.shape and reconstructed.isfinite().all()


@torch.no_grad()
def test_a_volume_comes_back_by_way_of_its_latent_s_codes():
    network = _network((2, 2, 2))
    x = torch.rand(1, 1, 7, 8, 9) * 2 - 1
    reconstructed, z, indices = network(x)
    assert torch.equal(network.encode(x), z) and torch.equal(network.codebook.lookup(z), indices)
    again = network.decode(network.codebook.quantise(z), x.shape[2:])
    assert torch.allclose(again, reconstructed, atol=1e-4)


@torch.no_grad()
def test_volumes_are_padded_with_background_at_the_far_ends():
    network = _network((4, 4, 4))
    x = torch.rand(1, 1, 6, 7, 8) * 2 - 1
    padded = torch.full((1, 1, 8, 8, 8), -1.0)
    padded[:, :, :6, :7, :8] = x
    assert torch.allclose(network.encode(x), network.encode(padded), atol=1e-6)
    z = network.encode(x)
    assert torch.allclose(network.decode(z, (6, 7, 8)), network.decode(z, (8, 8, 8))[:, :, :6, :7, :8])


@torch.no_grad()
def test_where_nothing_changes_there_are_no_borders():
    z = _network((2, 4, 4)).encode(torch.full((1, 1, 8, 16, 12), 0.3))
    assert torch.allclose(z, z[:, :, :1, :1, :1].expand_as(z), atol=1e-5)
    x = _doubling(3, 2, (3, 4))(torch.full((1, 3, 4, 5, 6), 0.3))
    assert x.shape == (1, 2, 4, 10, 12)
    assert torch.allclose(x, x[:, :, :1, :2, :2].repeat(1, 1, 4, 5, 6), atol=1e-5)


@torch.no_grad()
def test_items_of_a_batch_do_not_see_each_other():
    network = _network((2, 2, 2))
    x = torch.rand(3, 1, 8, 8, 8) * 2 - 1
    assert torch.allclose(network.encode(x)[1:2], network.encode(x[1:2]), atol=1e-5)


def test_the_paper_s_autoencoder_keeps_the_shape():
    with torch.device("meta"):
        network = VQGAN(AutoencoderSettings())
        x = torch.zeros(1, 1, 30, 33, 37)
    assert network.decode(network.encode(x), x.shape[2:]).shape == x.shape


def test_all_weights_of_the_network_get_a_gradient():
    network = VQGAN(AutoencoderSettings(compression=(2, 4, 4), **SMALL))
    x = torch.rand(1, 1, 8, 8, 8)
    reconstructed, _, _ = network(x)
    (reconstructed - x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in network.parameters()) >= 0.9 * len(
        list(network.parameters())
    )

"""The baseline's networks: Kwon's at 64x64x64, any other grid, and no volume that acts on another."""

import pytest
import torch

from anatogen.config.settings import GANSettings
from anatogen.models.wgan_gp import (
    Critic,
    Generator,
    level_shapes,
)

SMALL = GANSettings(width=2, latent_dim=5)
SHAPES = [(64, 64, 64), (40, 56, 40), (32, 32, 32), (5, 33, 18), (1, 17, 16), (3, 2, 1)]


def test_levels_are_those_of_kwon_at_64():
    assert level_shapes((64, 64, 64)) == [(side, side, side) for side in (64, 32, 16, 8, 4)]


def test_thin_axes_are_halved_less_often_and_at_the_finest_levels():
    assert level_shapes((7, 40, 1)) == [(7, 40, 1), (4, 20, 1), (2, 10, 1), (2, 5, 1), (2, 3, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_networks_take_and_give_any_grid(shape):
    torch.manual_seed(0)
    volumes = Generator(SMALL, shape)(torch.randn(3, 5))
    assert volumes.shape == (3, 1, *shape) and volumes.abs().max() <= 1
    assert Critic(SMALL, shape)(volumes).shape == (3,)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_critic_looks_at_every_voxel(shape):
    torch.manual_seed(0)
    x = torch.randn(2, 1, *shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(Critic(SMALL, shape)(x).sum(), x)
    assert (gradient != 0).all()


def test_channels_are_those_of_kwon():
    generator, critic = Generator(GANSettings(), (64, 64, 64)), Critic(GANSettings(), (64, 64, 64))
    assert generator.entry.weight.shape == (512 * 4**3, 1_000)
    assert [part.weight.shape[:2] for part in generator.convolutions] == [
        (256, 512),
        (128, 256),
        (64, 128),
        (1, 64),
    ]
    convolutions = [part for part in critic.modules() if isinstance(part, torch.nn.Conv3d)]
    assert [part.weight.shape[0] for part in convolutions] == [64, 128, 256, 512, 1]
    assert all(part.kernel_size == (4, 4, 4) for part in convolutions)


def test_no_volume_of_a_batch_acts_on_another_in_the_critic_but_in_kwons():
    torch.manual_seed(0)
    x = torch.randn(3, 1, 16, 20, 16)
    for is_kwon in (False, True):
        critic = Critic(SMALL.model_copy(update={"kwon_compatible": is_kwon}), x.shape[2:])
        alone = torch.cat([critic(volume) for volume in x.split(1)])
        assert torch.allclose(critic(x), alone, atol=1e-5) != is_kwon

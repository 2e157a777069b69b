"""Scaling of latents to what the diffusion process expects."""

import torch

from anatogen.diffusion.latents import LatentScaling, codebook_range_scaling, standard_scaling

LATENTS = torch.randn(6, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 4 - 1


def test_undo_gives_back_the_latents():
    scaling = LatentScaling(torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 3.0, 7.0]))
    assert torch.allclose(scaling.undo(scaling.apply(LATENTS)), LATENTS, atol=1e-5)


def test_standard_scaling_gives_each_channel_mean_0_and_variance_1():
    scaled = standard_scaling(LATENTS[:, None]).apply(LATENTS).movedim(1, 0).flatten(1)
    assert torch.allclose(scaled.mean(1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(scaled.var(1, correction=0), torch.ones(3), atol=1e-4)


def test_standard_scaling_of_a_constant_channel_stays_finite():
    assert standard_scaling(torch.ones(2, 1, 1, 2, 2, 2)).apply(torch.ones(2, 1, 2, 2, 2)).isfinite().all()


def test_codebook_range_scaling_maps_the_codes_onto_minus_1_to_1():
    codes = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 2
    scaled = codebook_range_scaling(codes).apply(codes[:, :, None, None, None])
    assert torch.isclose(scaled.min(), torch.tensor(-1.0)) and torch.isclose(scaled.max(), torch.tensor(1.0))

"""Adversarial losses worked out by hand."""

import pytest
import torch

from anatogen.training.autoencoder import (
    discriminator_hinge_loss,
    feature_matching_loss,
    generator_hinge_loss,
)


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    # real: 0, 0.5, 2; fake: 0, 1, 2
    assert float(discriminator_hinge_loss(real, fake)) == pytest.approx((2.5 / 3 + 3 / 3) / 2)
    assert float(generator_hinge_loss(fake)) == pytest.approx(2 / 3)


def test_a_discriminator_that_is_sure_and_right_has_no_loss():
    assert float(discriminator_hinge_loss(torch.full((2, 3), 1.5), torch.full((2, 3), -1.5))) == 0


def test_feature_matching_is_the_sum_over_stages_and_pulls_the_fake_alone():
    fake = [torch.zeros(2, 2, requires_grad=True), torch.ones(4, requires_grad=True)]
    real = [torch.full((2, 2), 3.0, requires_grad=True), torch.zeros(4, requires_grad=True)]
    loss = feature_matching_loss(fake, real)
    assert loss.item() == pytest.approx(3 + 1)
    loss.backward()
    assert all(tensor.grad is not None for tensor in fake)
    assert all(tensor.grad is None for tensor in real)

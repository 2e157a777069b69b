"""PatchGAN discriminators: what they are shown, and that any size fits."""

import pytest
import torch

from anatogen.models.discriminators import Discriminators, PatchDiscriminator, take_slices


def test_a_slice_of_each_volume_is_taken_along_the_depth():
    volumes = torch.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    taken = take_slices(volumes, torch.tensor([3, 0]))
    assert torch.equal(taken[0], volumes[0, :, 3]) and torch.equal(taken[1], volumes[1, :, 0])


@pytest.mark.parametrize("size", [1, 3, 8, 17])
@pytest.mark.parametrize("num_dims", [2, 3])
def test_any_size_is_judged_by_one_logit_a_patch(num_dims, size):
    logits, features = PatchDiscriminator(num_dims, 2)(torch.randn(2, 1, *[size] * num_dims))
    assert logits.shape[:2] == (2, 1) and len(features) == 4
    assert [f.shape[1] for f in features] == [2, 4, 8, 16]


@pytest.mark.parametrize(("use_slice", "use_volume"), [(True, True), (True, False), (False, True)])
def test_real_and_fake_are_judged_by_those_that_take_part(use_slice, use_volume):
    critics = Discriminators(2, use_slice, use_volume)
    real, fake = torch.randn(2, 2, 1, 8, 8, 8)
    index = torch.tensor([1, 5])
    judged = critics(real, fake, index)
    assert set(judged) == {name for name, used in (("slice", use_slice), ("volume", use_volume)) if used}
    if use_slice:
        assert torch.equal(judged["slice"][1][0], critics.slice(fake[torch.arange(2), :, index])[0])
    if use_volume:
        assert torch.equal(judged["volume"][0][0], critics.volume(real)[0])


def test_the_slice_discriminator_sees_the_shown_slice_only():
    critics = Discriminators(2, True, False)
    fake = torch.randn(1, 1, 4, 8, 8, requires_grad=True)
    judged = critics(torch.randn(1, 1, 4, 8, 8), fake, torch.tensor([2]))
    judged["slice"][1][0].sum().backward()
    assert [bool(fake.grad[0, 0, d].any()) for d in range(4)] == [False, False, True, False]

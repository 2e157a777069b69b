"""Muon beside what it is made of: singular values near 1 for matrices, Adam for the rest."""

import copy

import pytest
import torch
from torch import nn

from anatogen.training.optimisation import Muon, orthogonalised


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 8, 3, padding=1), nn.SiLU(), nn.Conv3d(8, 4, 3, padding=1))


def _muon(network: nn.Module, **options) -> Muon:
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim == 1]
    return Muon(matrices, others, 0.02, (0.9, 0.99), **options)


def _learn(network: nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        (network(x) - x.mean()).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (1, 9), (64, 432)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_singular_values_become_about_one_and_directions_stay(shape, size):
    # Of a condition such as gradients have: five steps don't lift what is a thousand times smaller.
    u, _, v = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(1)), full_matrices=False
    )
    values = torch.linspace(1, 0.05, min(shape))
    found = orthogonalised(size * (u * values) @ v)
    singular = torch.diagonal(u.T @ found @ v.T)
    assert found.shape == torch.Size(shape)
    assert singular.min() >= 0.6 and singular.max() <= 1.25
    assert torch.allclose((u * singular) @ v, found, atol=1e-3)


def test_nothing_is_no_direction():
    assert not orthogonalised(torch.zeros(3, 5)).any()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_what_is_no_matrix_is_stepped_as_by_adam(weight_decay):
    ours, theirs = _network(), _network()
    options = {"betas": (0.9, 0.99), "weight_decay": weight_decay}
    _learn(ours, Muon([], ours.parameters(), 0.02, **options), range(20))
    _learn(theirs, torch.optim.AdamW(theirs.parameters(), 0.02, **options), range(20))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_matrices_shrink_by_their_decay_alone_where_no_gradient_pulls():
    weight = nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.zeros(3, 4)
    Muon([weight], [], 0.5, (0.9, 0.99), weight_decay=0.2).step()
    assert torch.allclose(weight, torch.full((3, 4), 0.9))


def test_a_step_of_a_matrix_has_the_size_of_a_step_of_adam():
    weight = nn.Parameter(torch.zeros(32, 4, 3, 3, 3))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 1e3
    Muon([weight], [], 0.01, (0.9, 0.99)).step()
    assert 0.1 * 0.01 < weight.square().mean().sqrt() < 0.3 * 0.01


def test_a_weight_without_a_gradient_stays():
    network = _network()
    before = copy.deepcopy(network.state_dict())
    _muon(network, weight_decay=0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.usefixtures("one_thread")
def test_a_restored_state_goes_on_to_the_bit(tmp_path):
    whole, stopped = _network(), _network()
    _learn(whole, _muon(whole), range(8))
    optimiser = _muon(stopped)
    _learn(stopped, optimiser, range(5))
    torch.save([stopped.state_dict(), optimiser.state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = _network()
    resumed.load_state_dict(weights)
    optimiser = _muon(resumed)
    optimiser.load_state_dict(state)
    _learn(resumed, optimiser, range(5, 8))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_muon_learns():
    network = _network()
    x = torch.randn(4, 2, 4, 4, 4)
    losses = []
    optimiser = _muon(network)
    for _ in range(60):
        optimiser.zero_grad()
        loss = (network(x)[:, :2] - x).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]

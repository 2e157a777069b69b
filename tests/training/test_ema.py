"""The moving average against its closed form."""

import copy

import pytest
import torch
from torch import nn

from anatogen.training.optimisation import ExponentialMovingAverage


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_the_shadow_is_the_weighted_mean_of_all_weights(decay):
    """shadow_n = prod d_i w_0 + sum_k (1 - d_k) prod_{i > k} d_i w_k, with d_k = min(decay, (1+k)/(10+k))."""
    network = nn.Linear(2, 2)
    history = [copy.deepcopy(network.weight.detach())]
    ema = ExponentialMovingAverage(network, decay)
    for step in range(25):
        nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(step))
        history.append(network.weight.detach().clone())
        ema.update(network, step)
    decays = [min(decay, (1 + step) / (10 + step)) for step in range(25)]
    wanted, left = torch.zeros(2, 2, dtype=torch.float64), 1.0
    for weight, kept in zip(reversed(history[1:]), reversed(decays), strict=True):
        wanted += left * (1 - kept) * weight.double()
        left *= kept
    wanted += left * history[0].double()
    assert torch.allclose(ema.shadow.weight.double(), wanted, atol=1e-6)


def test_until_its_start_the_shadow_is_a_copy_and_between_updates_it_stays():
    network = nn.Linear(2, 2)
    ema = ExponentialMovingAverage(network, 0.3, every=3, start=6)
    seen, wanted = [], []
    for step in range(11):
        nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(step))
        ema.update(network, step)
        seen.append(ema.shadow.weight.clone())
        weight = network.weight.detach()
        if step < 6:
            wanted.append(weight.clone())
        else:
            wanted.append(wanted[-1] if step % 3 else 0.3 * wanted[-1] + 0.7 * weight)
    assert torch.allclose(torch.stack(seen), torch.stack(wanted), atol=1e-6)


def test_the_shadow_stands_alone():
    network = nn.Linear(2, 2)
    ema = ExponentialMovingAverage(network, 0.9)
    assert not any(p.requires_grad for p in ema.shadow.parameters()) and not ema.shadow.training
    before = ema.shadow.weight.clone()
    nn.init.zeros_(network.weight)
    assert torch.equal(ema.shadow.weight, before) and network.weight.requires_grad

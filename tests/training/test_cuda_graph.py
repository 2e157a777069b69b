"""Recorded passes teach a network what its own passes would; those of other shapes stay possible."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from anatogen.downstream.network import PaddedSwinUNETR
from anatogen.downstream.settings import SwinUNETRSettings
from anatogen.training.cuda_graph import _Replayed, set_up
from anatogen.training.devices import build_fabric, loading_processes

SHAPE = (2, 1, 32, 40, 32)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def network() -> PaddedSwinUNETR:
    torch.manual_seed(0)
    return PaddedSwinUNETR(SwinUNETRSettings(feature_size=12), out_channels=1)


def losses_of_training(learner: nn.Module, optimiser, fabric, steps: int) -> list[float]:
    draws, losses = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        x = torch.randn(SHAPE, generator=draws).to(fabric.device)
        loss = (learner(x).float() - x).square().mean()
        optimiser.zero_grad()
        fabric.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    return losses


def test_a_cpu_learns_with_the_network_itself():
    fabric = build_fabric("cpu", 1)
    linear = nn.Linear(3, 3)
    wrapped, _ = set_up(fabric, linear, torch.optim.SGD(linear.parameters(), lr=0.1), (5, 3))
    assert wrapped.module is linear
    assert wrapped(torch.ones(2, 3)).shape == (2, 3)


def stand_in(module: nn.Module, _) -> None:
    """Replaces passes as PyTorch's recording does, by ones that double what comes out."""
    passes = module.forward
    module.forward = lambda x: 2 * passes(x)


def test_recorded_passes_are_for_learning_alone_and_end_with_their_network(monkeypatch):
    """Without a GPU: what becomes of the network, whoever records it."""
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", stand_in)
    linear = nn.Linear(3, 3)
    replayed = _Replayed(linear, (2, 3))
    replayed.record(build_fabric("cpu", 1))
    x = torch.ones(2, 3)
    torch.testing.assert_close(replayed(x), 2 * linear(x))
    assert linear(torch.ones(5, 3)).shape == (5, 3)
    with pytest.raises(ValueError, match="recorded for"):
        replayed(torch.ones(1, 3))
    assert torch.is_autocast_cache_enabled()
    watched = weakref.ref(linear)
    gc.disable()
    try:
        del replayed, linear
        assert watched() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("device", "threads", "expected"), [("cpu", 8, 0), ("cuda", 1, 0), ("cuda", 4, 3), ("cuda", 64, 8)]
)
def test_cores_that_launch_nothing_load(monkeypatch, device, threads, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert loading_processes(SimpleNamespace(device=torch.device(device))) == expected


@needs_gpu
@pytest.mark.parametrize(("mixed", "tolerance"), [(False, 1e-3), (True, 3e-2)])
def test_recorded_passes_teach_what_the_networks_own_would(mixed, tolerance):
    fabric = build_fabric("cuda", 1, mixed_precision=mixed)
    plain, recorded = network(), network()
    optimisers = [torch.optim.AdamW(one.parameters(), lr=1e-3) for one in (plain, recorded)]
    ours = losses_of_training(*fabric.setup(plain, optimisers[0]), fabric, 10)
    theirs = losses_of_training(*set_up(fabric, recorded, optimisers[1], SHAPE), fabric, 10)
    assert ours[-1] < ours[0]
    assert theirs == pytest.approx(ours, rel=tolerance)


@needs_gpu
def test_the_network_itself_still_takes_other_shapes_and_its_new_weights():
    fabric = build_fabric("cuda", 1, mixed_precision=False)
    one = network()
    learner, optimiser = set_up(fabric, one, torch.optim.AdamW(one.parameters(), lr=1e-2), SHAPE)
    losses_of_training(learner, optimiser, fabric, 3)
    fresh = copy.deepcopy(one)
    x = torch.randn(1, 1, 48, 64, 32, device=fabric.device)
    with torch.no_grad():
        torch.testing.assert_close(one(x), fresh(x))


@needs_gpu
def test_what_was_recorded_goes_with_its_network():
    fabric = build_fabric("cuda", 1)
    one = network()
    watched = weakref.ref(one)
    gc.disable()
    try:
        learner, optimiser = set_up(fabric, one, torch.optim.AdamW(one.parameters()), SHAPE)
        losses_of_training(learner, optimiser, fabric, 2)
        del learner, optimiser, one
        assert watched() is None
    finally:
        gc.enable()


@needs_gpu
def test_a_batch_of_another_shape_is_refused():
    fabric = build_fabric("cuda", 1)
    one = network()
    learner, _ = set_up(fabric, one, torch.optim.AdamW(one.parameters()), SHAPE)
    with pytest.raises(ValueError, match="recorded for"):
        learner(torch.zeros(1, *SHAPE[1:], device=fabric.device))

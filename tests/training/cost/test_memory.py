"""Memory that is counted without being taken, against sums by hand; what PyTorch must go on to do for it."""

import pytest
import torch
from synthetic_dataset import AFFINE, SPACING_MM, tiny_flow_settings, tiny_settings
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from anatogen.config.presets import gan_settings
from anatogen.dataset.manifest import Grid
from anatogen.training.cost.memory import LiveBytes, peak_memory_gb
from anatogen.training.cost.probe import _measure, probe
from anatogen.training.stages import STAGES

MEGABYTE = 2**20


@pytest.fixture
def counter():
    with FakeTensorMode(), LiveBytes(pieces=1.7) as found:
        yield found


def floats(megabytes: float, **options) -> torch.Tensor:
    return torch.empty(int(megabytes * MEGABYTE / 4), **options)


def test_each_storage_counts_once_while_it_lives(counter):
    x = floats(2)
    views = [x.view(2, -1), x[5:], x[None]]
    assert counter.peak == 1.7 * 2 * MEGABYTE, "pieces below 32 MB count 1.7 times, views nothing"
    del x, views
    y = floats(40)
    assert counter.peak == pytest.approx(1.1 * 40 * MEGABYTE), "what was freed does not count any more"
    del y


def test_what_no_machine_holds_is_counted(counter):
    x = floats(10**8)
    assert counter.peak == pytest.approx(1.1 * 10**8 * MEGABYTE)
    del x


def test_what_is_there_to_stay_costs_no_more_than_itself(counter):
    weights = floats(2)
    counter.settle()
    assert counter.peak == 2 * MEGABYTE
    doubled = 2 * weights
    assert counter.peak == (2 + 1.7 * 2) * MEGABYTE
    del doubled
    halved = weights / 2
    assert counter.peak == (2 + 1.7 * 2) * MEGABYTE
    del halved


def test_the_way_back_is_seen_with_its_temporaries(counter):
    """Of y = silu(w x): x, w and w x are kept; then the gradients of both factors are made at once."""
    x, w = floats(4), floats(4, requires_grad=True)
    counter.settle()
    loss = functional.silu(w * x).sum()
    forward = counter.peak
    loss.backward()
    assert forward == pytest.approx((8 + 1.7 * 8) * MEGABYTE, rel=1e-5)
    assert w.grad is not None and counter.peak > forward


def test_lists_of_tensors_are_counted(counter):
    parts = torch._foreach_mul([floats(1), floats(1)], 2.0)
    assert counter.peak == pytest.approx(1.7 * 4 * MEGABYTE)
    del parts


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_counted_alike_twice_and_can_be_timed(name):
    grid = Grid(shape=(16, 16, 16), spacing_mm=SPACING_MM, affine=AFFINE)
    gan = gan_settings({"gan": {"width": 2, "latent_dim": 8, "critic_steps": 1}})
    settings = {"gan": gan, "flow": tiny_flow_settings()}.get(name, tiny_settings())
    first, second = (peak_memory_gb(STAGES[name], settings, grid) for _ in range(2))
    assert first == second
    measured = _measure(STAGES[name], settings, grid, "cpu")
    assert measured.seconds_per_step > 0 and min(measured.num_parameters.values()) > 100
    # The base of a process, and something of its own.
    assert 0.42 < first < 1


def test_a_wavelet_flow_takes_what_was_counted_within_a_fifth():
    grid = Grid(shape=(64, 64, 64), spacing_mm=SPACING_MM, affine=AFFINE)
    settings = tiny_flow_settings("pyramid.crop=16", "details.width=32")
    measured = probe(STAGES["flow"], settings, grid, device="cpu")
    assert measured is not None and measured.peak_gb > 0.6, "a process takes 0.42 anyway"
    assert peak_memory_gb(STAGES["flow"], settings, grid) == pytest.approx(measured.peak_gb, rel=0.2)

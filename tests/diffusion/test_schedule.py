"""Laws of the noise schedules."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anatogen.diffusion.schedule import CosineSchedule, LinearFlowSchedule

SCHEDULES = {"cosine": CosineSchedule(300), "linear_flow": LinearFlowSchedule()}
TIMES = torch.linspace(0, 1, 301, dtype=torch.float64)


@given(st.integers(1, 2000), st.floats(0, 1))
def test_cosine_preserves_variance(num_steps, t):
    alpha, sigma = CosineSchedule(num_steps).alpha_sigma(torch.tensor(t, dtype=torch.float64))
    assert float(alpha**2 + sigma**2) == pytest.approx(1, abs=1e-12)


@given(st.floats(0, 1))
def test_linear_flow_runs_along_straight_lines(t):
    alpha, sigma = LinearFlowSchedule().alpha_sigma(torch.tensor(t, dtype=torch.float64))
    assert float(alpha + sigma) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_alpha_falls_and_sigma_rises_from_clean_to_noise(schedule):
    alpha, sigma = schedule.alpha_sigma(TIMES)
    assert (alpha.diff() < 0).all() and (sigma.diff() > 0).all()
    assert (alpha[0], sigma[0]) == (1, 0)
    assert alpha[-1] < 1e-3 and sigma[-1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_derivatives_are_those_of_alpha_and_sigma(schedule):
    t = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    h = 1e-6
    ahead, behind = schedule.alpha_sigma(t + h), schedule.alpha_sigma(t - h)
    for found, after, before in zip(schedule.derivatives(t), ahead, behind, strict=True):
        assert torch.allclose(found, (after - before) / (2 * h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("num_steps", [2, 50, 300, 1000])
def test_cosine_levels_are_those_of_nichol_and_dhariwal(num_steps):
    """beta_t = min(1 - f(t) / f(t - 1), 0.999), alpha_bar their product: equation 17."""

    def f(step: int) -> float:
        return math.cos((step / num_steps + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha_bar, wanted = 1.0, []
    for step in range(1, num_steps + 1):
        alpha_bar *= 1 - min(1 - f(step) / f(step - 1), 0.999)
        wanted.append(alpha_bar)
    levels = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    alpha, _ = CosineSchedule(num_steps).alpha_sigma(levels)
    assert torch.allclose(alpha**2, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=0)


def test_the_last_cosine_beta_is_0_999():
    schedule = CosineSchedule(300)
    alpha, _ = schedule.alpha_sigma(torch.tensor([299 / 300, 1.0], dtype=torch.float64))
    assert float(1 - alpha[1] ** 2 / alpha[0] ** 2) == pytest.approx(0.999, abs=1e-12)


@given(st.integers(1, 1000), st.data())
def test_cosine_sampling_times_are_distinct_levels_from_1_to_0(num_levels, data):
    num_steps = data.draw(st.integers(1, num_levels))
    times = CosineSchedule(num_levels).sampling_times(num_steps)
    assert times.shape == (num_steps + 1,) and times.dtype == torch.float64
    assert times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()
    assert torch.allclose(times * num_levels, (times * num_levels).round(), atol=1e-9)


@given(st.integers(1, 1000))
def test_linear_flow_sampling_times_are_even_from_1_to_0(num_steps):
    times = LinearFlowSchedule().sampling_times(num_steps)
    assert times.shape == (num_steps + 1,) and times.dtype == torch.float64
    assert times[0] == 1 and times[-1] == 0
    assert torch.allclose(times.diff(), torch.tensor(-1 / num_steps, dtype=torch.float64))


def test_a_shift_multiplies_the_noise_at_every_time():
    plain, later = LinearFlowSchedule(), LinearFlowSchedule(shift=3.0)
    for name, argument in (("sampling_times", ()), ("draw_times", (torch.Generator(),))):
        found = []
        for schedule in (plain, later):
            draws = [part.manual_seed(1) if isinstance(part, torch.Generator) else part for part in argument]
            found.append(getattr(schedule, name)(50, *draws))
        (alpha, sigma), (later_alpha, later_sigma) = (plain.alpha_sigma(t) for t in found)
        assert torch.allclose(later_sigma * alpha, 3 * sigma * later_alpha, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("num_steps", [0, -3])
def test_a_number_of_steps_below_one_is_refused(schedule, num_steps):
    with pytest.raises(ValueError, match="steps"):
        schedule.sampling_times(num_steps)


def test_more_steps_than_levels_are_refused():
    with pytest.raises(ValueError, match="301 sampling steps: this process has 300"):
        CosineSchedule(300).sampling_times(301)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_training_times_are_in_range_and_repeat_with_their_generator(schedule):
    t = schedule.draw_times(20_000, torch.Generator().manual_seed(3))
    assert t.shape == (20_000,) and t.dtype == torch.float32
    assert (t > 0).all() and (t <= 1).all()
    assert t.mean() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(t, schedule.draw_times(20_000, torch.Generator().manual_seed(3)))


def test_cosine_training_times_are_each_level_alike():
    t = CosineSchedule(10).draw_times(50_000, torch.Generator().manual_seed(0))
    levels, counts = (t * 10).round().unique(return_counts=True)
    assert levels.tolist() == list(range(1, 11))
    assert (counts / 5000 - 1).abs().max() < 0.06


def test_logit_normal_times_are_logits_of_a_standard_normal():
    logits = LinearFlowSchedule().draw_times(50_000, torch.Generator().manual_seed(0)).logit()
    assert logits.mean() == pytest.approx(0, abs=0.02) and logits.std() == pytest.approx(1, abs=0.02)

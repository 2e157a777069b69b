"""Noise schedules: how much of the clean latent and how much noise x_t = alpha_t x_0 + sigma_t eps holds.

Time t runs from 0 (clean) to 1 (noise). Everything else in `diffusion` is written in alpha and sigma alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_OFFSET = 0.008
# The last beta is clipped to 0.999 (Nichol and Dhariwal 2021), which leaves this share of alpha_bar.
_LAST_STEP_LEFT = 0.001


@dataclass(frozen=True)
class CosineSchedule:
    """alpha_bar(t) = cos^2((t + s) / (1 + s) * pi / 2), scaled to 1 at t = 0; alpha = sqrt(alpha_bar).

    Nichol and Dhariwal 2021, equation 17. Variance preserving: alpha^2 + sigma^2 = 1.

    Attributes:
        num_steps: Levels of the discrete process: times are multiples of 1 / num_steps.
    """

    num_steps: int = 300

    def _angle(self, t: Tensor) -> Tensor:
        return (t + _OFFSET) / (1 + _OFFSET) * (math.pi / 2)

    def _alpha_bar(self, t: Tensor) -> Tensor:
        start = math.cos(_OFFSET / (1 + _OFFSET) * math.pi / 2)
        before_last = torch.full_like(t, 1 - 1 / self.num_steps)
        smallest = _LAST_STEP_LEFT * (self._angle(before_last).cos() / start).square()
        return torch.maximum((self._angle(t).cos() / start).square(), smallest)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of x_0 and of eps at times in [0, 1]; any shape."""
        alpha_bar = self._alpha_bar(t)
        return alpha_bar.sqrt(), (1 - alpha_bar).clamp(min=0).sqrt()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha / dt and d sigma / dt at times in [0, 1]; any shape. The latter is infinite at t = 0."""
        speed = math.pi / 2 / (1 + _OFFSET)
        start = math.cos(_OFFSET / (1 + _OFFSET) * math.pi / 2)
        alpha, sigma = self.alpha_sigma(t)
        d_alpha = -speed * self._angle(t).sin() / start
        return d_alpha, -alpha * d_alpha / sigma

    def sampling_times(self, num_steps: int) -> Tensor:
        """(num_steps + 1,) float64 times that fall from 1 to 0; each is a level of the discrete process.

        Raises:
            ValueError: If there are more steps than levels.
        """
        if not 1 <= num_steps <= self.num_steps:
            raise ValueError(
                f"{num_steps} sampling steps: this process has {self.num_steps}, ask for 1 to that"
            )
        levels = torch.linspace(self.num_steps, 0, num_steps + 1, dtype=torch.float64).round()
        return levels / self.num_steps

    @property
    def shortest_time(self) -> Tensor:
        """0-d float64, a time at which hardly any noise is left: the first level."""
        return torch.tensor(1 / self.num_steps, dtype=torch.float64)

    def draw_times(self, number: int, generator: torch.Generator) -> Tensor:
        """(number,) float32 random times in (0, 1] for training, uniform over the levels 1 to num_steps."""
        return torch.randint(1, self.num_steps + 1, (number,), generator=generator) / self.num_steps


@dataclass(frozen=True)
class LinearFlowSchedule:
    """alpha = 1 - t, sigma = t: straight lines from data to noise (Lipman et al. 2023; Liu et al. 2023).

    Attributes:
        shift: All times are later by this factor of sigma / alpha (the same, equation 23): for values that
            vary together over many places, whose mean shows through noise that hides each of them.
    """

    shift: float = 1.0

    def shifted(self, t: Tensor) -> Tensor:
        """Times in [0, 1], of any shape, as `shift` moves them."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `CosineSchedule`."""
        return 1 - t, t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `CosineSchedule`."""
        return -torch.ones_like(t), torch.ones_like(t)

    def sampling_times(self, num_steps: int) -> Tensor:
        """See `CosineSchedule`: evenly spaced before they are shifted.

        Raises:
            ValueError: If there is not at least one step.
        """
        if num_steps < 1:
            raise ValueError(f"{num_steps} sampling steps: ask for at least 1")
        return self.shifted(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64))

    @property
    def shortest_time(self) -> Tensor:
        """See `CosineSchedule`: sigma is 0.01."""
        return torch.tensor(0.01, dtype=torch.float64)

    def draw_times(self, number: int, generator: torch.Generator) -> Tensor:
        """(number,) float32 random times in (0, 1) for training, logit-normal: most in the middle.

        There the prediction is hard (Esser et al. 2024).
        """
        return self.shifted(torch.randn(number, generator=generator).sigmoid())


Schedule = CosineSchedule | LinearFlowSchedule

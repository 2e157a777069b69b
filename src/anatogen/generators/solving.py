"""From noise to a sample by the sampler of a name: what all families with a diffusion process share."""

from collections.abc import Callable

from torch import Tensor

from anatogen.core.choices import Sampler
from anatogen.diffusion import samplers
from anatogen.diffusion.process import Network
from anatogen.diffusion.schedule import Schedule


def solve(
    sampler: Sampler,
    predict_x_0: Network,
    noise: Callable[[], Tensor],
    schedule: Schedule,
    num_steps: int,
    x_0_variance: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """A sample of the process.

    Args:
        sampler: Name of the sampler.
        predict_x_0: Estimates x_0 (B, ...) from (x_t, t).
        noise: Returns standard normal noise of the sample's shape, anew at each call.
        schedule: Gives alpha and sigma.
        num_steps: Number of steps.
        x_0_variance: As `samplers.ddpm`; unused by others.

    Raises:
        ValueError: If there is no such sampler, or the schedule has not so many steps.
    """
    times = schedule.sampling_times(num_steps)
    x = noise()
    match sampler:
        case "ddpm":
            times = samplers.ancestral_times(schedule, num_steps)
            return samplers.ddpm(predict_x_0, x, times, schedule, noise, x_0_variance)
        case "ddim":
            return samplers.ddim(predict_x_0, x, times, schedule)
        case "dpm_solver_pp":
            return samplers.dpm_solver_pp(predict_x_0, x, times, schedule)
        case "euler":
            return samplers.euler(predict_x_0, x, times, schedule)
        case "heun":
            return samplers.heun(predict_x_0, x, times, schedule)
        case unknown:
            raise ValueError(f"sampler {unknown!r} is unknown: use ddpm, ddim, dpm_solver_pp, euler or heun")

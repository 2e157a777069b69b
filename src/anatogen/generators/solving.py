"""What all families with a diffusion process share: options, samplers by name, times of the loss."""

from collections.abc import Callable

from torch import Tensor

from anatogen.config.settings import DiffusionSettings, FlowSettings
from anatogen.core.choices import Sampler
from anatogen.diffusion import samplers
from anatogen.diffusion.process import Network
from anatogen.diffusion.schedule import Schedule

# Times at which the loss of a scan is asked for, each twice, with two draws of noise.
LOSS_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9) * 2


def options_in_force(
    own: DiffusionSettings | FlowSettings, sampler: Sampler | None, steps: int | None
) -> dict[str, str | int]:
    """Sampler and number of steps that are asked for or, where they are not, the bundle's own."""
    return {
        "sampler": own.sampler if sampler is None else sampler,
        "steps": own.sampling_steps if steps is None else steps,
    }


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

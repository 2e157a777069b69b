"""The row of SSIM: ours, and the inputs that MONAI's has too."""

import torch
from torch import Tensor

from anatogen.evaluation.ssim import ssim
from benchmarks.steps import in_inference_mode, volumes
from benchmarks.task import Part, Sizes, Task

DATA_RANGE = 2.0


def build(workload: str, sizes: Sizes) -> Task:
    """The task of Anatogen's row."""
    if workload != "ssim":
        raise ValueError(f"workload {workload!r} is unknown")
    x, y = volume_and_noisy_copy(sizes)
    call = in_inference_mode(lambda: ssim(x[:, 0], y[:, 0], DATA_RANGE))
    return Task((Part(call),), {}, value_note(ssim(x[:, 0], y[:, 0], DATA_RANGE)))


def volume_and_noisy_copy(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Two volumes (1, 1, D, H, W) in [-1, 1], the same in every process."""
    torch.manual_seed(0)
    x = volumes(sizes)
    return x, (x + 0.3 * torch.randn_like(x)).clamp(-1, 1)


def value_note(value: Tensor) -> str:
    """Says what was computed, so that rows can be seen to compute the same."""
    return f"window 11, sigma 1.5; value {float(value):.7f}"

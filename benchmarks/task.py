"""What is measured: the rows, the workloads, and the form that both modules of rows hand them over in.

Free of torch: the process that starts the measurements reads it, and has to stay small (see `measure`).
"""

from collections.abc import Callable
from dataclasses import dataclass

WORKLOADS = {
    "vqgan_step": "VQ-GAN training step",
    "denoiser_step": "Denoiser training step",
    "denoiser_forward": "Denoiser forward",
    "sample": "One sampled volume: noise, all steps, decoding",
    "decode": "Autoencoder decoding of one latent",
    "lookup": "Codebook lookup and embedding",
    "ssim": "SSIM of two volumes",
}

# The workloads of each row, in the order of the tables.
ROWS = {
    "paper": ("vqgan_step", "denoiser_step", "denoiser_forward", "sample", "decode", "lookup"),
    "paper_two_passes": ("vqgan_step", "decode", "lookup"),
    "anatogen": ("ssim",),
    "monai": ("vqgan_step", "denoiser_step", "denoiser_forward", "sample", "decode", "lookup", "ssim"),
    "video_diffusion": ("denoiser_step", "denoiser_forward", "sample"),
    "video_diffusion_32": ("denoiser_step", "denoiser_forward", "sample"),
}

TITLES = {
    "paper": "Anatogen `paper`",
    "paper_two_passes": "`paper`, as two forward passes",
    "anatogen": "Anatogen",
    "monai": "MONAI",
    "video_diffusion": "video-diffusion-pytorch, width 40",
    "video_diffusion_32": "video-diffusion-pytorch, width 32",
}

NUM_CODES = 2048
CODE_DIM = 8
COMPRESSION = 4
# Of the paper; the peers sample with as many.
NUM_STEPS = 300


@dataclass(frozen=True)
class Sizes:
    """How large the inputs are.

    Attributes:
        volume: Voxels per side of a volume; one volume is a batch.
        denoiser_batch: Latents in a batch of the denoiser's training step and forward.
        lookup: Latent cells per side in the lookup.
        full_sampling: Whether the longer samplers run all their steps, instead of `timed_steps`, multiplied.
        timed_steps: Steps that are timed then.
    """

    volume: int = 64
    denoiser_batch: int = 4
    lookup: int = 32
    full_sampling: bool = False
    timed_steps: int = 5

    @property
    def latent(self) -> int:
        """Latent cells per side of a volume."""
        return self.volume // COMPRESSION

    def steps_to_time(self, num_steps: int) -> int:
        """How many of a sampler's steps are run."""
        return num_steps if self.full_sampling else min(num_steps, self.timed_steps)


@dataclass(frozen=True)
class Part:
    """A call, and how many times a task takes it."""

    call: Callable[[], object]
    times: float = 1.0


@dataclass(frozen=True)
class Task:
    """Something to measure.

    Attributes:
        parts: What it consists of.
        parameters: Trained parameters by network; the codebook, which has no gradient, is not counted.
        note: What a reader must know to compare it.
    """

    parts: tuple[Part, ...]
    parameters: dict[str, int]
    note: str = ""

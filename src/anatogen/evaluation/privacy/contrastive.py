"""A 3D encoder trained by contrast, for which two views of one scan are alike and two patients are not.

The privacy audit correlates its embeddings, as Dar et al. (Nature BME 2025, arXiv 2307.01148) do. The loss is
NT-Xent of SimCLR (Chen et al., ICML 2020).
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.core.files import sha256_json
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import load_weights, save_weights
from anatogen.dataset.scan_sets import ScanSet
from anatogen.dataset.volumes import shuffled_indices
from anatogen.evaluation.privacy.views import random_views
from anatogen.models.blocks import channels_last, group_norm
from anatogen.models.convolution import Conv3d
from anatogen.report.progress import Progress, silent

Array = npt.NDArray[np.float32]

# Sides are averaged down to no less than this; shorter ones stay as they are.
_MIN_SIDE = 16
# Tensor axes of a (1, d, h, w) scan.
_ALL_FLIPS = [[axis for axis in (1, 2, 3) if number >> axis - 1 & 1] for number in range(8)]


@dataclass(frozen=True)
class ContrastiveSettings:
    """How the encoder is built and trained.

    Attributes:
        widths: Channels of each level; each level halves the sides.
        dimensions: Length of the embedding.
        max_voxels: Bigger scans are averaged down to at most this many voxels, longest sides first.
        batch_size: Scans in a step; each gives two views.
        steps: Steps of Adam; None for 12 per scan, at least 600 and at most 3,000.
        learning_rate: Highest; it falls to 0 along a cosine.
        temperature: Temperature of NT-Xent.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128)
    dimensions: int = 64
    max_voxels: int = 24**3
    batch_size: int = 32
    steps: int | None = None
    learning_rate: float = 2e-3
    temperature: float = 0.1

    def num_steps(self, num_scans: int) -> int:
        """Steps for this many training scans."""
        return self.steps if self.steps is not None else min(max(12 * num_scans, 600), 3000)


DEFAULT_SETTINGS = ContrastiveSettings()


class Encoder(nn.Module):
    """Maps views (B, 1, d, h, w) in [-1, 1] to embeddings (B, dimensions).

    Strided convolutions with group normalisation, the mean over space, and a projection head of two layers
    with batch normalisation, as in SimCLR.

    Args:
        settings: The architecture.
    """

    def __init__(self, settings: ContrastiveSettings) -> None:
        super().__init__()
        self.settings = settings
        layers: list[nn.Module] = []
        channels = 1
        for width in settings.widths:
            layers += [Conv3d(channels, width, 3, stride=2, padding=1), group_norm(width), nn.SiLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        # Batch norm keeps all dimensions of the embedding in use: without it, most go the same way.
        self.head = nn.Sequential(
            nn.Linear(channels, channels, bias=False),
            nn.BatchNorm1d(channels),
            nn.SiLU(),
            nn.Linear(channels, settings.dimensions, bias=False),
            nn.BatchNorm1d(settings.dimensions, affine=False),
        )
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Embeds float (B, 1, d, h, w)."""
        out: Tensor = self.head(self.features(x).mean(dim=(2, 3, 4)))
        return out


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy, equation 1 of Chen et al. 2020.

    Each view must name its partner among all other views of the batch, by cosine similarity.

    Args:
        first: float (B, K), one view of each scan.
        second: float (B, K), another view of the same scans, in the same order.
        temperature: Above 0.

    Returns:
        0-d float, the mean over all 2 B views.
    """
    views = functional.normalize(torch.cat([first, second]), dim=1)
    logits = views @ views.T / temperature
    logits.fill_diagonal_(-torch.inf)
    number = len(first)
    partners = torch.arange(2 * number, device=views.device).roll(number)
    return functional.cross_entropy(logits, partners)


def working_shape(shape: tuple[int, ...], max_voxels: int) -> tuple[int, int, int]:
    """The shape that scans of this shape are averaged down to: longest sides are cut first, alike."""
    side = max(shape)
    while np.prod([min(length, side) for length in shape]) > max_voxels and side > _MIN_SIDE:
        side -= 1
    depth, height, width = (min(length, side) for length in shape)
    return depth, height, width


def scaled_down(arrays: Array, max_voxels: int) -> Tensor:
    """Scans (N, D, H, W) as float32 (N, 1, d, h, w), block means of them where they are big."""
    shape = working_shape(arrays.shape[1:], max_voxels)
    parts = [torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)) for array in arrays]
    return torch.stack([functional.adaptive_avg_pool3d(part[None], shape) for part in parts])


def train_encoder(
    arrays: Array,
    spacing_mm: tuple[float, float, float],
    *,
    seed: int,
    settings: ContrastiveSettings = DEFAULT_SETTINGS,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Encoder:
    """Trains the encoder on scans. The same on every run, to the bit on a CPU with one number of threads.

    Args:
        arrays: float32 (N, D, H, W) in [-1, 1], the generator's training scans, at least 2.
        spacing_mm: Distance between voxels along (D, H, W).
        seed: Random seed of initial weights, order and augmentations.
        settings: Architecture and training.
        device: Device to train on.
        progress: Called with (what, done, total).
    """
    scans = scaled_down(arrays, settings.max_voxels)
    ratios = [big / small for big, small in zip(arrays.shape[1:], scans.shape[2:], strict=True)]
    working_mm = (spacing_mm[0] * ratios[0], spacing_mm[1] * ratios[1], spacing_mm[2] * ratios[2])
    encoder = _initialised(settings, seed).to(device).train()
    steps, batch_size = settings.num_steps(len(scans)), min(settings.batch_size, len(scans))
    optimizer = torch.optim.AdamW(encoder.parameters(), settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    for step in range(steps):
        indices = shuffled_indices(len(scans), seed, step * batch_size, batch_size)
        batch = scans[indices].to(device)
        views = [
            random_views(batch, working_mm, derived_generator(seed, "contrast", step, side))
            for side in (0, 1)
        ]
        first, second = encoder(torch.cat(views)).chunk(2)
        loss = nt_xent(first, second, settings.temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        progress("training the audit's encoder", step + 1, steps)
    return encoder.requires_grad_(False).eval()


def cached_encoder(
    scans: ScanSet,
    folder: Path,
    *,
    seed: int,
    settings: ContrastiveSettings = DEFAULT_SETTINGS,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Encoder:
    """The encoder that `train_encoder` makes of the scans, read from the folder where it lies there already.

    Args:
        scans: The generator's training scans.
        folder: Folder of encoders as safetensors, by scans, spacing, seed and settings.
        seed: As for `train_encoder`.
        settings: As for `train_encoder`.
        device: As for `train_encoder`.
        progress: As for `train_encoder`.
    """
    spacing_mm = scans.grid.spacing_mm
    key = sha256_json([list(scans.hashes), list(spacing_mm), seed, asdict(settings)])[:16]
    path = folder / f"contrastive_{key}.safetensors"
    if path.is_file():
        return load_weights(Encoder(settings), path).to(device)
    encoder = train_encoder(
        scans.arrays, spacing_mm, seed=seed, settings=settings, device=device, progress=progress
    )
    save_weights(encoder, path)
    return encoder


@torch.inference_mode()
def embeddings(encoder: Encoder, arrays: Array) -> Array:
    """Embeddings that don't change when a scan is flipped along any axis: means over its eight flips.

    Args:
        encoder: Trained.
        arrays: float32 (N, D, H, W) in [-1, 1].

    Returns:
        float32 (N, dimensions), each of mean 0 and length 1: inner products are Pearson correlations.
    """
    device = next(encoder.parameters()).device
    found = []
    for array in arrays:
        scan = scaled_down(array[None], encoder.settings.max_voxels)[0].to(device)
        flips = torch.stack([scan.flip(axes) for axes in _ALL_FLIPS])
        embedding = functional.normalize(encoder(flips), dim=1).mean(0)
        found.append(functional.normalize(embedding - embedding.mean(), dim=0).cpu().numpy())
    return np.stack(found)


def _initialised(settings: ContrastiveSettings, seed: int) -> Encoder:
    """An encoder whose weights depend on the seed alone, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_generator(seed, "contrastive encoder").initial_seed())
        return Encoder(settings)

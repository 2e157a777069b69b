"""A critic: a small network learns to tell real from synthetic scans, and shows by what.

    python experiments/critic.py DATA SYNTHETIC OUT [--split test] [--epochs 30] [--seed 0]

It learns from half of the scans, as many real as synthetic ones and no patient in both halves, and is asked
about the other half. OUT/critic.json has the share that it gets right, with its exact 95% interval: 0.5 is
perfect, 1 means that any reader could. OUT/critic.png shows a real and a synthetic scan, the mean over each,
and where a voxel's change would change the answer most (magnitude of the gradient, mean over the scans that
it was asked about).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.core.files import write_json
from anatogen.dataset.manifest import Split, load_manifest
from anatogen.dataset.scan_sets import load_scans
from anatogen.evaluation.privacy.neighbours import binomial_estimate
from anatogen.report.intervals import Estimate
from anatogen.report.volume_figures import planes_figure

Array = npt.NDArray[np.float32]

_WIDTHS = (16, 32, 64)
# The dark window ends at this part of the range.
_DARK_CONTRAST = 10
_BATCH_SIZE = 8
_LEARNING_RATE = 2e-3
# Voxels by which a scan is moved along each axis, at most.
_SHIFT = 2


class Criticism(NamedTuple):
    """What the critic found.

    Attributes:
        accuracy: Share of held-out scans that it told right.
        num_asked: Held-out scans.
        saliency: float32 (D, H, W), mean magnitude of the gradient of its answer.
    """

    accuracy: Estimate
    num_asked: int
    saliency: Array


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="prepared dataset")
    parser.add_argument("synthetic", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=list(Split), default=Split.TEST, help="of the real scans")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    real = load_scans(Path(f"{arguments.data}:{arguments.split}"), "real")
    synthetic = load_scans(arguments.synthetic, "synthetic", real)
    patients = [case.patient for case in load_manifest(arguments.data).cases if case.split == arguments.split]
    found = criticise(real.arrays, synthetic.arrays, patients, epochs=arguments.epochs, seed=arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    value, low, high = found.accuracy
    about = {"accuracy": value, "low": low, "high": high, "num_asked": found.num_asked}
    write_json(arguments.out / "critic.json", about)
    shown = 2 * found.saliency / max(float(found.saliency.max()), 1e-12) - 1
    columns = [
        (name, [scans[0], scans.mean(axis=0)])
        for name, scans in (("real: one, mean", real.arrays), ("synthetic: one, mean", synthetic.arrays))
    ]
    planes_figure(
        [*columns, ("what the critic looks at", [shown])],
        arguments.out / "critic.png",
        spacing_mm=real.grid.spacing_mm,
        axis_codes=real.grid.axis_codes,
    )
    print(f"tells {value:.3f} ({low:.3f} to {high:.3f}) of {found.num_asked} scans right; 0.5 is perfect")


def criticise(
    real: Array, synthetic: Array, patients: Sequence[str], *, epochs: int = 30, seed: int = 0
) -> Criticism:
    """Trains a critic on half of the scans and asks it about the other half.

    Args:
        real: float32 (N, D, H, W) in [-1, 1].
        synthetic: float32 (M, D, H, W), likewise.
        patients: Whose each real scan is.
        epochs: Times that it sees each scan.
        seed: Random seed of everything; the number is the same on one machine with one thread.
    """
    known, unknown = _halves(real, synthetic, patients, np.random.default_rng(seed))
    # Weights and dropout draw from the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _trained(*known, epochs, torch.Generator().manual_seed(seed))
    num_asked = len(unknown[0])
    num_right, saliency = 0, torch.zeros(real.shape[1:])
    for x, label in zip(*unknown, strict=True):
        x = x[None].requires_grad_()
        answer = network(x)
        num_right += int(bool(answer > 0) == bool(label))
        saliency += torch.autograd.grad(answer.sum(), x)[0][0, 0].abs()
    return Criticism(binomial_estimate(num_right, num_asked), num_asked, (saliency / num_asked).numpy())


def _halves(
    real: Array, synthetic: Array, patients: Sequence[str], generator: np.random.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Scans (N, 1, D, H, W) and whether each is real (N,): half of the patients, then the others."""
    order = generator.permutation(np.unique(np.asarray(patients)))
    whose = np.isin(np.asarray(patients), order[: len(order) // 2])
    reals = [generator.permutation(np.flatnonzero(whose == first)) for first in (True, False)]
    fakes = np.array_split(generator.permutation(len(synthetic)), 2)
    number = min(map(len, [*reals, *fakes]))
    return [
        (
            torch.from_numpy(np.concatenate([real[a[:number]], synthetic[b[:number]]]))[:, None],
            torch.cat([torch.ones(number), torch.zeros(number)]),
        )
        for a, b in zip(reals, fakes, strict=True)
    ]


class _Windows(nn.Module):
    """Shows a scan twice, as readers do: in the whole range, and with the dark end of it spread."""

    def forward(self, x: Tensor) -> Tensor:
        """From (B, 1, D, H, W) in [-1, 1] to (B, 2, D, H, W)."""
        return torch.cat([x, (_DARK_CONTRAST * (x + 1) - 1).clamp(max=1)], dim=1)


def _trained(scans: Tensor, labels: Tensor, epochs: int, generator: torch.Generator) -> nn.Sequential:
    """A network that has learned which of the scans (N, 1, D, H, W) are real."""
    network = _build()
    num_batches = -(-len(scans) // _BATCH_SIZE)
    optimiser = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, epochs * num_batches)
    for _ in range(epochs):
        for chosen in torch.randperm(len(scans), generator=generator).chunk(num_batches):
            x = torch.stack([_moved(scans[index], generator) for index in chosen])
            loss = functional.binary_cross_entropy_with_logits(network(x)[:, 0], labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def _build() -> nn.Sequential:
    """Convolutions that halve the grid, and the mean over space; the first sees the finest texture.

    Normalised over the batch: over a scan, how strong its texture is would be lost.
    """
    parts: list[nn.Module] = [_Windows()]
    for before, width in zip((2, *_WIDTHS), _WIDTHS, strict=False):
        parts += [nn.Conv3d(before, width, 4, 2, padding=2), nn.BatchNorm3d(width), nn.SiLU()]
    parts += [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(_WIDTHS[-1], 1)]
    return nn.Sequential(*parts)


def _moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """A scan (1, D, H, W) moved by a few voxels, mirrored or not; what leaves comes back on the other side.

    No interpolation: it would take away what tells blurred from sharp.
    """
    shifts = torch.randint(-_SHIFT, _SHIFT + 1, (3,), generator=generator).tolist()
    moved = torch.roll(x, shifts, (1, 2, 3))
    return moved.flip(3) if bool(torch.rand((), generator=generator) < 0.5) else moved


if __name__ == "__main__":
    main()

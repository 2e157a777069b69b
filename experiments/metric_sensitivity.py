"""Which damage does each metric see? Real scans, damaged in known ways, measured as if they were synthetic.

python experiments/metric_sensitivity.py DATA OUT [--autoencoder RUN_OR_BUNDLE] [--number 48] [--seed 0]

The scans of DATA (a prepared dataset, or DATA:split) are divided at random: `--number` of them are damaged
and measured against the others. Writes OUT/table.md; each damage is measured once and kept, so a run that
was stopped goes on where it stopped.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from anatogen.core.files import write_json, write_text
from anatogen.core.weights import WEIGHTS_NAME, load_weights
from anatogen.dataset.scan_sets import ScanSet, load_scans
from anatogen.evaluation.diversity import measure_diversity
from anatogen.evaluation.fidelity.measure import measure_fidelity
from anatogen.generators.description import DESCRIPTION_NAME
from anatogen.generators.loading import load_latent_diffusion
from anatogen.models.vqgan import VQGAN
from anatogen.report.rows import Row
from anatogen.training.run_folder import read_settings

Arrays = npt.NDArray[np.float32]
Damage = Callable[[Arrays, float, np.random.Generator], Arrays]

_NUM_PAIRS = 300
_UNDAMAGED = "none"
# Means over planes stand for their planes, and each Fréchet distance is shown at equal n.
_HIDDEN = ("_axial", "_coronal", "_sagittal", "_all", "_extrapolated", "constant_scans")


def blur(arrays: Arrays, strength: float, generator: np.random.Generator) -> Arrays:
    """Gaussian blur; strength is its standard deviation in voxels."""
    return np.stack([gaussian_filter(array, strength) for array in arrays])


def noise(arrays: Arrays, strength: float, generator: np.random.Generator) -> Arrays:
    """White noise of this standard deviation, in the range [-1, 1]."""
    return np.clip(arrays + strength * generator.standard_normal(arrays.shape, np.float32), -1, 1)


def shuffled_slices(arrays: Arrays, strength: float, generator: np.random.Generator) -> Arrays:
    """This part of the slices along D change places among themselves, in each scan otherwise."""
    shuffled = arrays.copy()
    for array in shuffled:
        places = generator.permutation(len(array))[: round(strength * len(array))]
        array[places] = array[generator.permutation(places)]
    return shuffled


def shift(arrays: Arrays, strength: float, generator: np.random.Generator) -> Arrays:
    """All intensities rise by this, in the range [-1, 1]."""
    return np.clip(arrays + np.float32(strength), -1, 1)


def collapse(arrays: Arrays, strength: float, generator: np.random.Generator) -> Arrays:
    """Only this many different scans, repeated."""
    return np.resize(arrays[generator.permutation(len(arrays))[: int(strength)]], arrays.shape)


def reconstruction(network: VQGAN) -> Damage:
    """The damage of passing scans through an autoencoder, this many times."""

    @torch.inference_mode()
    def reconstruct(arrays: Arrays, strength: float, generator: np.random.Generator) -> Arrays:
        rebuilt = []
        for array in arrays:
            x = torch.from_numpy(array)[None, None]
            for _ in range(int(strength)):
                x = network(x)[0].clamp(-1, 1)
            rebuilt.append(x[0, 0].numpy())
        return np.stack(rebuilt)

    return reconstruct


# (what, strengths from weak to strong, how)
DAMAGES: list[tuple[str, tuple[float, float, float], Damage]] = [
    ("blur", (0.4, 0.6, 1.0), blur),
    ("noise", (0.01, 0.03, 0.1), noise),
    ("slice shuffling", (0.1, 0.3, 1.0), shuffled_slices),
    ("intensity shift", (0.03, 0.06, 0.12), shift),
    ("mode collapse", (24, 8, 2), collapse),
]
RECONSTRUCTION_PASSES = (1, 3, 9)


def verdict(rows: list[Row]) -> str:
    """Whether a metric sees a damage: "strong", "weak" or "no".

    Strong: already the weakest damage lies outside the real-against-real interval, on the bad side, and more
    damage is always worse. Weak: the strongest does. For metrics that are best at their reference, both sides
    are bad.

    Args:
        rows: Of the damage's strengths, from weak to strong.
    """
    excess = []
    for row in rows:
        if row.value is None or row.reference is None:
            return "?"
        low = row.reference if row.reference_low is None else row.reference_low
        high = row.reference if row.reference_high is None else row.reference_high
        above, below = row.value - high, low - row.value
        sides = {"lower": (above,), "higher": (below,)}.get(row.better, (above, below))
        excess.append(max(sides))
    if excess[-1] <= 0:
        return "no"
    return "strong" if excess[0] > 0 and excess == sorted(excess) else "weak"


def measure(real: ScanSet, damaged: ScanSet, seed: int, cache: Path) -> list[Row]:
    """Fidelity and diversity of damaged scans against others."""
    rows = measure_fidelity(real, damaged, seed=seed, cache=cache)
    diversity, _ = measure_diversity(
        real, damaged, seed=seed, num_pairs=_NUM_PAIRS, progress=lambda what, done, total: None
    )
    gap = [row for row in diversity if row.name == "ms_ssim_gap"]
    return [row for row in rows + gap if not row.name.endswith(_HIDDEN)]


def table(results: dict[str, list[list[Row]]]) -> str:
    """Markdown: a line for each metric, a column for each damage."""
    damages = [name for name in results if name != _UNDAMAGED]
    lines = [
        "| metric | floor (95%) | undamaged | " + " | ".join(damages) + " |",
        "| --- |" + " --- |" * (len(damages) + 2),
    ]
    for index, row in enumerate(results[_UNDAMAGED][0]):
        cells = [
            row.label,
            f"{_text(row.reference)} ({_text(row.reference_low)}, {_text(row.reference_high)})",
        ]
        cells.append(_text(row.value))
        for damage in damages:
            rows = [strength[index] for strength in results[damage]]
            cells.append(f"{verdict(rows)}: " + ", ".join(_text(found.value) for found in rows))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _load_autoencoder(folder: Path) -> VQGAN:
    if (folder / DESCRIPTION_NAME).is_file():
        return load_latent_diffusion(folder).autoencoder
    return load_weights(VQGAN(read_settings(folder).autoencoder), folder / "autoencoder" / WEIGHTS_NAME)


def main() -> None:
    """Runs what is missing, and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--autoencoder", type=Path)
    parser.add_argument("--number", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    scans = load_scans(arguments.data, "real")
    order = np.random.default_rng(arguments.seed).permutation(len(scans))
    real, held = scans.take(order[arguments.number :]), scans.take(order[: arguments.number])
    damages = list(DAMAGES)
    if arguments.autoencoder is not None:
        network = _load_autoencoder(arguments.autoencoder)
        damages.append(("reconstruction", RECONSTRUCTION_PASSES, reconstruction(network)))
    results: dict[str, list[list[Row]]] = {}
    for name, strengths, damage in [(_UNDAMAGED, (0.0,), None), *damages]:
        for strength in strengths:
            file = arguments.out / f"{name.replace(' ', '_')}_{strength:g}.json"
            if not file.is_file():
                generator = np.random.default_rng([arguments.seed, 1])
                arrays = held.arrays if damage is None else damage(held.arrays, strength, generator)
                stored = arrays.astype(np.float16).astype(np.float32)
                rows = measure(real, held.with_arrays(stored), arguments.seed, arguments.out / "cache")
                write_json(file, [asdict(row) for row in rows])
                print(f"{name} {strength:g}", flush=True)
            content = json.loads(file.read_text(encoding="utf-8"))
            results.setdefault(name, []).append([Row(**row) for row in content])
    text = table(results)
    write_text(arguments.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()

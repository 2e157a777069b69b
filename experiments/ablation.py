"""One change at a time from preset `paper` to `default`, each with the same minutes of one core.

python experiments/ablation.py run DATA OUT [--minutes 3 3] [--number 48] [--only NAME ...]
python experiments/ablation.py table DATA OUT

`run` trains every variant that is not complete and samples from it; a run that was stopped goes on where it
stopped. `table` measures them (held-out PSNR, KID, MS-SSIM gap, seconds) and writes OUT/table.md.
DATA is a prepared dataset; its test scans judge.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from anatogen import sample
from anatogen.config.presets import training_settings
from anatogen.config.resolving import parse_overrides
from anatogen.config.settings import LatentDiffusionSettings, Sampler
from anatogen.core.files import write_json, write_text
from anatogen.core.weights import WEIGHTS_NAME, load_weights
from anatogen.dataset.manifest import Split
from anatogen.dataset.scan_sets import ScanSet, load_scans
from anatogen.dataset.volumes import VolumeDataset
from anatogen.evaluation.diversity import measure_diversity
from anatogen.evaluation.fidelity.measure import measure_fidelity
from anatogen.models.vqgan import VQGAN
from anatogen.report.progress import silent
from anatogen.training.autoencoder_check import check_autoencoder
from anatogen.training.loop import read_log
from anatogen.training.run_folder import read_settings
from anatogen.training.train import train


@dataclass(frozen=True)
class Autoencoder:
    """An autoencoder of the ladder.

    Attributes:
        name: Of its run.
        change: What differs from `base`, in words.
        base: The autoencoder that it changes; none for preset `paper`.
        overrides: The change as settings.
    """

    name: str
    change: str
    base: "Autoencoder | None" = None
    overrides: tuple[str, ...] = ()

    @property
    def settings(self) -> tuple[str, ...]:
        """All changes from `paper`, oldest first."""
        return (() if self.base is None else self.base.settings) + self.overrides


@dataclass(frozen=True)
class Diffusion:
    """A stage two of the ladder.

    Attributes:
        name: Of its run.
        change: What differs from `base`, in words.
        base: The variant that it changes.
        overrides: The change as settings.
        autoencoder: Whose latents it learns.
    """

    name: str
    change: str
    base: "Diffusion | None" = None
    overrides: tuple[str, ...] = ()
    autoencoder: str = "compression_8"

    @property
    def settings(self) -> tuple[str, ...]:
        """All settings, oldest first."""
        return (() if self.base is None else self.base.settings) + self.overrides


# The discriminators of `paper` start at step 10,000, which no run of minutes on a CPU reaches.
_paper = Autoencoder("paper", "preset `paper`; its discriminators don't start in this time")
_l1 = Autoencoder(
    "l1",
    "no perceptual loss, no discriminators",
    _paper,
    (
        "losses.l1=1",
        "losses.perceptual=0",
        "losses.adversarial_slice=0",
        "losses.adversarial_volume=0",
        "losses.feature_matching=0",
    ),
)
_wavelet = Autoencoder(
    "wavelet",
    "Haar wavelet at either end",
    _l1,
    (
        "autoencoder.wavelet_levels=1",
        "autoencoder.num_blocks=0",
        "autoencoder.num_decoder_blocks=1",
        "autoencoder.num_core_blocks=2",
    ),
)
_wide = Autoencoder("wide", "twice the width", _wavelet, ("autoencoder.base_width=32",))
_rate = Autoencoder(
    "rate",
    "learning rate 1e-3 with warm-up and cosine decay, betas (0.9, 0.99)",
    _wide,
    (
        "autoencoder_training.learning_rate=1e-3",
        "autoencoder_training.betas=[0.9,0.99]",
        "autoencoder_training.warmup_steps=100",
        "autoencoder_training.decay=cosine",
    ),
)
_groups = Autoencoder(
    "groups",
    "four groups of codes: 2,048 of length 4",
    _rate,
    (
        "autoencoder.num_codes=2048",
        "autoencoder.code_dim=4",
        "autoencoder.num_groups=4",
    ),
)
_groups_2 = Autoencoder("groups_2", "two groups in place of four", _groups, ("autoencoder.num_groups=2",))
_perceptual = Autoencoder(
    "perceptual", "with the perceptual loss, weight 1", _groups, ("losses.perceptual=1",)
)
_compression_8 = Autoencoder(
    "compression_8", "compression 8 in place of 4", _groups, ("autoencoder.compression=8",)
)
_CODES = (
    Autoencoder("eight_groups", "compression 8, eight groups", _compression_8, ("autoencoder.num_groups=8",)),
    Autoencoder(
        "one_group",
        "compression 8, 16,384 codes of length 8 as `paper`",
        _compression_8,
        ("autoencoder.num_codes=16384", "autoencoder.code_dim=8", "autoencoder.num_groups=1"),
    ),
)
AUTOENCODERS = (
    _paper,
    _l1,
    _wavelet,
    _wide,
    _rate,
    _groups,
    _groups_2,
    _perceptual,
    _compression_8,
    *_CODES,
)

# Latents of compression 8: at compression 4 all that minutes of a CPU give is noise, whatever the process.
_paper_process = Diffusion(
    "paper_process",
    "process and optimiser of `paper`, with a small volumetric denoiser",
    None,
    (
        "denoiser.kind=volumetric",
        "denoiser.width=64",
        "denoiser.multipliers=[1,2]",
        "denoiser.num_blocks=1",
        "denoiser.num_heads=4",
    ),
)
# Without it, nothing else shows in minutes.
_fast = Diffusion(
    "fast",
    "learning rate 7e-4 with warm-up, cosine decay and clipping",
    _paper_process,
    (
        "diffusion_training.learning_rate=7e-4",
        "diffusion_training.warmup_steps=200",
        "diffusion_training.decay=cosine",
        "diffusion_training.gradient_clip=1",
    ),
)
_standardised = Diffusion(
    "standardised",
    "latents standardised per channel, not clipped",
    _fast,
    ("diffusion.latent_scaling=standardise", "diffusion.clip_x_0=null"),
)
_l2 = Diffusion("l2", "L2 in place of L1", _standardised, ("diffusion.loss=l2",))
_v = Diffusion("v", "v in place of eps", _l2, ("diffusion.prediction=v",))
_flow = Diffusion(
    "flow",
    "flow matching in place of v on the cosine schedule",
    _v,
    (
        "diffusion.schedule=linear_flow",
        "diffusion.num_train_steps=null",
        "diffusion.prediction=velocity",
    ),
)
_logit = Diffusion(
    "logit_normal",
    "times logit-normal in place of uniform",
    _flow,
    ("diffusion.time_sampling=logit_normal",),
)
_ema = Diffusion("ema", "moving average 0.999 in place of 0.995", _logit, ("diffusion.ema_decay=0.999",))
DIFFUSIONS = (
    _paper_process,
    _fast,
    _standardised,
    _l2,
    _v,
    _flow,
    _logit,
    _ema,
    Diffusion("wide_denoiser", "denoiser twice as wide", _ema, ("denoiser.width=128",)),
    Diffusion("deep_denoiser", "denoiser of three levels, 1-2-4", _ema, ("denoiser.multipliers=[1,2,4]",)),
    Diffusion(
        "factorised",
        "the denoiser of `paper`",
        _ema,
        (
            "denoiser.kind=factorised",
            "denoiser.width=32",
            "denoiser.multipliers=[1,2,4,8]",
            "denoiser.num_blocks=2",
            "denoiser.num_heads=8",
        ),
    ),
    Diffusion("quantised", "quantised latents are diffused", _ema, ("diffusion.latents=post",)),
    Diffusion(
        "codebook_range",
        "latents in the codebook's range, not standardised",
        _ema,
        ("diffusion.latent_scaling=codebook_range",),
    ),
    *(Diffusion(f"ema_{a.name}", f"latents of autoencoder `{a.name}`", _ema, (), a.name) for a in _CODES),
    *(
        Diffusion(
            f"ema_{a.name}",
            f"latents of autoencoder `{a.name}`",
            _ema,
            # As many cells for the denoiser's convolutions as at compression 8.
            ("denoiser.patch=2",),
            a.name,
        )
        for a in (_rate, _groups, _groups_2)
    ),
)


# Sampler and steps, on the last rung.
SAMPLERS: tuple[tuple[Sampler, int], ...] = (
    *(("dpm_solver_pp", steps) for steps in (5, 10, 25, 50, 300)),
    *((sampler, 25) for sampler in ("ddpm", "ddim", "euler", "heun")),
)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--minutes", type=float, nargs=2, default=(3.0, 3.0), help="of stage one and stage two"
    )
    parser.add_argument("--number", type=int, default=48, help="synthetic scans of each")
    parser.add_argument("--only", nargs="+", default=[], help="names of variants, or `samplers`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.action == "run":
        run(arguments.data, arguments.out, arguments.minutes, arguments.number, arguments.only)
    else:
        write_table(arguments.data, arguments.out)


def run(data: Path, out: Path, minutes: tuple[float, float], number: int, only: list[str]) -> None:
    """Trains and samples all variants, or those named."""
    common = [
        "training.flip=left_right",
        "training.preview_minutes=1000",
        "training.require_fit_autoencoder=false",
    ]
    for a in AUTOENCODERS:
        if not only or a.name in only:
            settings = training_settings(
                "paper", parse_overrides([*a.settings, *common], LatentDiffusionSettings), minutes=minutes[0]
            )
            train(data, out / "autoencoders" / a.name, settings, stages=("autoencoder",))
    for d in DIFFUSIONS:
        if not only or d.name in only:
            settings = training_settings(
                "paper", parse_overrides([*d.settings, *common], LatentDiffusionSettings), minutes=minutes[1]
            )
            source = out / "autoencoders" / d.autoencoder
            folder = out / "diffusion" / d.name
            train(data, folder, settings, stages=("diffusion",), autoencoder_run=source)
            _sample(folder / "bundle", out, d.name, number, "dpm_solver_pp", 25)
    if not only or "samplers" in only:
        for sampler, steps in SAMPLERS:
            bundle = out / "diffusion" / _ema.name / "bundle"
            _sample(bundle, out, f"{sampler}_{steps}", number, sampler, steps)


def _sample(bundle: Path, out: Path, name: str, number: int, sampler: Sampler, steps: int) -> None:
    timing = out / "timing" / f"{name}.json"
    if not timing.exists():
        started = time.perf_counter()
        sample(bundle, out / "samples" / name, num_samples=number, sampler=sampler, steps=steps, processes=1)
        write_json(timing, {"seconds_per_scan": (time.perf_counter() - started) / number})


def write_table(data: Path, out: Path) -> None:
    """Measures complete variants, as far as they are not measured yet, and writes OUT/table.md."""
    real = load_scans(Path(f"{data}:test"), "real")
    lines = ["| autoencoder | change | held-out PSNR, dB | codes used | steps |", "|---|---|---|---|---|"]
    for a in AUTOENCODERS:
        run = out / "autoencoders" / a.name
        if (run / "autoencoder" / WEIGHTS_NAME).exists():
            psnr, used = _measured(out, f"autoencoder_{a.name}", partial(_reconstruct, data, run))
            num_steps = _num_steps(run / "autoencoder")
            lines.append(f"| {a.name} | {a.change} | {psnr:.2f} | {used:.0%} | {num_steps} |")
    lines += [
        "",
        "| stage two | change | KID | Fréchet | MS-SSIM gap | spectrum | steps | s a scan |",
        "|---|---|---|---|---|---|---|---|",
    ]
    named = {d.name: (d.change, _num_steps(out / "diffusion" / d.name / "diffusion")) for d in DIFFUSIONS}
    named |= {f"{sampler}_{steps}": (f"{sampler}, {steps} steps", "") for sampler, steps in SAMPLERS}
    for name, (change, num_steps) in named.items():
        timing = out / "timing" / f"{name}.json"
        if timing.exists():
            values = _measured(out, name, partial(_compare, real, out / "samples" / name, out / "cache"))
            cells = " | ".join(f"{value:.3g}" for value in values)
            seconds = json.loads(timing.read_text(encoding="utf-8"))["seconds_per_scan"]
            lines.append(f"| {name} | {change} | {cells} | {num_steps} | {seconds:.2f} |")
    write_text(out / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def _num_steps(stage: Path) -> str:
    records = read_log(stage)
    return f"{records[-1]['step']:.0f}" if records else ""


def _measured(out: Path, name: str, measure: Callable[[], list[float]]) -> list[float]:
    path = out / "measured" / f"{name}.json"
    if not path.exists():
        write_json(path, measure())
    values: list[float] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _reconstruct(data: Path, folder: Path) -> list[float]:
    network = load_weights(VQGAN(read_settings(folder).autoencoder), folder / "autoencoder" / WEIGHTS_NAME)
    held_out = VolumeDataset(data, Split.TEST)
    check = check_autoencoder(network, held_out, held_out, torch.device("cpu"))
    return [check.psnr_db, check.codes_used]


def _compare(real: ScanSet, samples: Path, cache: Path) -> list[float]:
    synthetic = load_scans(samples, "synthetic", real)
    rows = measure_fidelity(real, synthetic, seed=0, cache=cache, medicalnet=None, progress=silent)
    rows += measure_diversity(real, synthetic, seed=0, num_pairs=200, progress=silent)[0]
    found = {row.name: row.value for row in rows}
    names = ("kid_slices", "frechet_slices", "ms_ssim_gap", "spectrum")
    return [value for name in names if (value := found[name]) is not None]


if __name__ == "__main__":
    main()

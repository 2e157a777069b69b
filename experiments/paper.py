"""The paper's generators, trained, sampled and measured as the paper did, on one dataset, as one page.

    python experiments/paper.py DATA OUT [--minutes 120 | --steps 20000] [--scans 2000] [KEY=VALUE ...]

DATA is a prepared dataset; the paper's are made by `anatogen prepare --recipe`. Trained are preset `paper`
at compressions 4 and 8, the WGAN-GP, and the WGAN-GP with the faults of its published code. --minutes is the
time of all trainings, of which each of the six stages takes an equal part; --steps is the length of each
stage. Without either they are as long as the paper's, which takes days of a GPU. A call that was stopped goes
on where it stopped; OUT is of one length, number of scans and set of settings.

OUT/page.md has MS-SSIM within 1,000 pairs by both formulas (of 2,000 scans, as in the paper, each is in one
pair), all other numbers of `anatogen evaluate` against the test scans, the paper's Fig. 1 and 3, and pictures
by which to tell the stage that fails: what the autoencoder gives back of held-out scans, and what the
denoiser makes of their latents at t = 0.5. OUT/studies has reader studies of 50 scans of each generator, in
the paper's words, with as many real ones among them. KEY=VALUE are settings of whichever generators have
them.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from race import Entrant, bundle_of, markdown_table, reported_rows, run, settings_of

from anatogen import compare_autoencoders, evaluate, new_study
from anatogen.config.resolving import parse_overrides
from anatogen.config.settings import GANConfig, LatentDiffusionSettings
from anatogen.core.devices import device_named
from anatogen.core.errors import ConfigError, UserError
from anatogen.core.files import write_json, write_text
from anatogen.core.seeding import derived_generator
from anatogen.dataset.scan_sets import count_scans, load_scans
from anatogen.diffusion.process import add_noise, x_0_predictor
from anatogen.diffusion.samplers import ancestral_times, ddpm
from anatogen.diffusion.schedule import CosineSchedule
from anatogen.evaluation.report import JSON_NAME
from anatogen.generators.latent_diffusion import LatentDiffusionBundle
from anatogen.generators.loading import load_latent_diffusion
from anatogen.report.rows import Row
from anatogen.report.volume_figures import planes_figure, slices_figure
from anatogen.training.loop import read_log

Array = npt.NDArray[np.float32]

# Latents of a sparing training are tested here by what comes of them, not by numbers that would stop it.
_GO_ON = {"training": {"require_fit_autoencoder": False}}
DIFFUSION = {
    f"diffusion_{compression}": Entrant("paper", _GO_ON | {"autoencoder": {"compression": compression}})
    for compression in (4, 8)
}
GANS = {
    "wgan_gp": Entrant(None),
    "wgan_gp_kwon": Entrant(None, {"gan": {"kwon_compatible": True}}),
}
_FAMILIES = (LatentDiffusionSettings, GANConfig)
ENTRANTS = DIFFUSION | GANS
_STAGES = dict.fromkeys(DIFFUSION, 2) | dict.fromkeys(GANS, 1)
_PAPER_SCANS = 2_000
_NUM_NEIGHBOURING = 2
_NUM_TRACED = 6


def main() -> None:
    """Reads the command line, does what is not done yet, and writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="of all trainings together")
    length.add_argument("--steps", type=int, help="of each stage")
    parser.add_argument("--scans", type=int, default=_PAPER_SCANS, help="synthetic scans of each generator")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_intermixed_args()
    overrides = parse_overrides(given.overrides, *_FAMILIES)
    asked = {"minutes": given.minutes, "steps": given.steps, "scans": given.scans, "settings": overrides}
    # All before the first is trained for days.
    _refuse_unknown(overrides)
    budgets = {name: _budget(name, given.minutes, given.steps) for name in ENTRANTS}
    values = {name: known_to(entrant, overrides) for name, entrant in ENTRANTS.items()}
    for name, entrant in ENTRANTS.items():
        settings_of(entrant, values[name], **budgets[name])
    _claim(given.out, asked)
    for name, entrant in ENTRANTS.items():
        run(name, entrant, given.data, given.out, given.scans, values[name], **budgets[name])
    for name in ENTRANTS:
        _measure(name, given.data, given.out)
    runs = [given.out / "runs" / name for name in DIFFUSION]
    compared = compare_autoencoders(given.data, given.out / "autoencoders", runs)
    _draw(Path(f"{given.data}:test"), given.out)
    columns = {name: reported_rows(given.out / "reports" / name, given.out, name) for name in ENTRANTS}
    write_text(given.out / "page.md", page(columns, compared.rows_by_bundle, given.out))
    print(f"{given.out / 'page.md'}")


def known_to(entrant: Entrant, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides whose keys an entrant's family has."""
    family = GANConfig if entrant.preset is None else LatentDiffusionSettings
    known = family().model_dump()
    return {
        section: {key: value for key, value in values.items() if key in known[section]}
        for section, values in overrides.items()
        if isinstance(values, Mapping) and isinstance(known.get(section), Mapping)
    }


def _refuse_unknown(overrides: Mapping[str, Any]) -> None:
    """Refuses keys that no generator has, and those by which the generators differ."""
    known = [known_to(entrant, overrides) for entrant in ENTRANTS.values()]
    for section, values in overrides.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"{section} is no setting of a generator of the paper: leave it out")
        for key in values:
            if not any(key in found.get(section, ()) for found in known):
                raise ConfigError(f"{section}.{key} is no setting of a generator of the paper: leave it out")
            if any(key in entrant.values.get(section, ()) for entrant in ENTRANTS.values()):
                raise ConfigError(f"{section}.{key} is what this page settles by itself: leave it out")


def _budget(name: str, minutes: float | None, steps: int | None) -> dict[str, Any]:
    share = None if minutes is None else minutes * _STAGES[name] / sum(_STAGES.values())
    return {"minutes": share, "steps": steps}


def _claim(out: Path, asked: Mapping[str, Any]) -> None:
    """Refuses a folder that was begun with other arguments."""
    path = out / "arguments.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, asked)
    elif json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(asked)):
        raise UserError(f"{out} was begun with other arguments, which {path} has: give those or another OUT")


def _measure(name: str, data: Path, out: Path) -> None:
    """Evaluates a generator's scans against the test scans, and makes a reader study of both."""
    samples, report, study = (out / folder / name for folder in ("samples", "reports", "studies"))
    if not (report / JSON_NAME).exists():
        evaluate(f"{data}:test", samples, report)
    if not study.exists():
        study.parent.mkdir(exist_ok=True)
        try:
            made = new_study(study, samples, real=f"{data}:test", readers=("first", "second"))
        except UserError as error:
            print(f"no reader study of {name}: {error}")
        else:
            print(made.summary)


def _draw(test: Path, out: Path) -> None:
    """The paper's Fig. 1, of all generators; and what each stage makes of held-out scans."""
    real = load_scans(test, "real", indices=range(min(_NUM_TRACED, count_scans(test, "real"))))
    about: dict[str, Any] = {"spacing_mm": real.grid.spacing_mm, "axis_codes": real.grid.axis_codes}
    neighbouring = [("real", array) for array in real.arrays[:_NUM_NEIGHBOURING]]
    for name in ENTRANTS:
        samples = out / "samples" / name
        shown = range(min(_NUM_TRACED, count_scans(samples, "synthetic")))
        made = load_scans(samples, "synthetic", real, shown).arrays
        label = name.replace("_", " ")
        neighbouring += [(label, array) for array in made[:_NUM_NEIGHBOURING]]
        if name in DIFFUSION:
            bundle = load_latent_diffusion(bundle_of(out, name), device_named("auto"))
            groups = [
                ("real, held out", list(real.arrays)),
                ("encoded and decoded", list(traced(bundle, real.arrays, 0.0))),
                ("noised to t = 0.5 and denoised", list(traced(bundle, real.arrays, 0.5))),
                ("synthetic", list(made)),
            ]
            planes_figure(groups, out / f"stages_{name}.png", **about)
    slices_figure(neighbouring, out / "neighbouring_slices.png", **about)


@torch.inference_mode()
def traced(bundle: LatentDiffusionBundle, scans: Array, t: float) -> Array:
    """What the model makes of real scans' latents with the noise of a time on them.

    Args:
        bundle: The model.
        scans: float32 (N, D, H, W) in [-1, 1].
        t: Time in [0, 1], of which sampling starts; at 0 the latents are decoded as they are.

    Returns:
        float32 (N, D, H, W) in [-1, 1].
    """
    settings = bundle.description.diffusion
    schedule = CosineSchedule(settings.num_train_steps)
    predict = x_0_predictor(bundle.denoiser, schedule, "eps", settings.clip_x_0)
    times = ancestral_times(schedule, settings.num_train_steps)
    times = times[times <= t]
    made = []
    for index, scan in enumerate(scans):
        generator = derived_generator("traced", index)
        latent = bundle.encode(torch.from_numpy(scan)[None, None].to(bundle.device))

        def noise(like: torch.Tensor = latent, source: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(like.shape, generator=source).to(like)

        if len(times) > 1:
            noisy = add_noise(latent, noise(), times[:1].to(latent), schedule)
            latent = ddpm(predict, noisy, times, schedule, noise)
        quantised = bundle.autoencoder.codebook.quantise(bundle.scaling.undo(latent))
        decoded = bundle.autoencoder.decode(quantised, bundle.grid.shape).float()
        made.append(decoded.clamp(-1, 1)[0, 0].cpu().numpy())
    return np.stack(made)


def page(
    columns: Mapping[str, Mapping[str, Row]],
    reconstructions: Mapping[str, Sequence[Row]],
    out: Path,
) -> str:
    """The page, in Markdown.

    Args:
        columns: Rows of each generator by name.
        reconstructions: Rows of each autoencoder.
        out: Where the runs lie, and the pictures beside the page.
    """
    shown = {
        name: {key: row for key, row in rows.items() if not row.is_detail} for name, rows in columns.items()
    }
    autoencoders = {
        name: {row.name: row for row in rows if not row.is_detail} for name, rows in reconstructions.items()
    }
    trained = "\n".join(f"- `{name}`: {_trained(out / 'runs' / name)}" for name in columns)
    return f"""\
## Trained

{trained}

## Synthetic scans

"Real against real" is the real set's own value, or the same distance between real halves. Intervals are 95%.

{markdown_table(shown)}
Neighbouring slices, as in the paper's Fig. 1; the first scans of each set, not chosen:

![Neighbouring slices of real and synthetic scans](neighbouring_slices.png)

## Compressions

{markdown_table(autoencoders)}
As in the paper's Fig. 3:

![Held-out scans and their reconstructions, a region enlarged](autoencoders/figures/reconstruction.png)

## Which stage fails

Held-out scans; the same decoded from their latents; from their latents with the noise of t = 0.5; and
synthetic ones.

Compression 4:

![What each stage makes of a scan, compression 4](stages_diffusion_4.png)

Compression 8:

![What each stage makes of a scan, compression 8](stages_diffusion_8.png)
"""


def _trained(run_folder: Path) -> str:
    """How long each stage of a run was trained."""
    said = []
    for stage in ("autoencoder", "diffusion", "gan"):
        records = read_log(run_folder / stage)
        if records:
            said.append(f"{stage} {records[-1]['step']:,.0f} steps in {records[-1]['minutes']:.1f} minutes")
    return ", ".join(said)


if __name__ == "__main__":
    main()

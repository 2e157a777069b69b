"""The rules of a plan: from a fingerprint and a budget to settings, each decision with its reason.

Pure: what things cost is asked of functions that are given. docs/planning.md lists the rules with their
sources; change both together.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from anatogen.config import merged, resolve
from anatogen.data.common_grid import SHAPE_MULTIPLE
from anatogen.data.manifest import Grid
from anatogen.data.transforms import centred_affine
from anatogen.errors import UserError
from anatogen.models.denoiser import halving_strides
from anatogen.models.vqgan import latent_shape
from anatogen.planning.fingerprint import Fingerprint
from anatogen.presets import preset_named
from anatogen.settings import Settings

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
# What a stage takes: (stage, settings, grid) -> GB at its peak, or seconds of a step.
Cost = Callable[[str, Settings, Grid], float]

STAGES = ("autoencoder", "diffusion")
MIN_PATIENTS = 10
_FEW_SCANS = 500
_WANTED_TEST_PATIENTS = 20
# Slices and rows below which a scan is no volume.
_MIN_SIZE = 8
_MAX_VOXELS = 512
# Spacings that differ by less are one: that of slices by which `prepare` chooses the orientation.
_ISOTROPIC = 1.5
# The foreground is cropped to where at least this share of the field of view is air.
_WORTH_CROPPING = 0.3
_MARGIN = 0.05
# A grid is not made coarser below this many voxels along its longest axis.
_MIN_LONGEST = 32
_COARSENING = 1.1
# Fewest cells of a latent along an axis: those of the smallest grid that compression 8 was measured on.
_MIN_CELLS = 5
_COMPRESSION = 8
_MAX_ATTENDED_CELLS = 4096
# Share of the memory that is planned with: the estimate may be wrong by a fifth.
_USABLE_MEMORY = 1 / 1.2
# Shares of the hours: the rest is for preparing, encoding, sampling.
STAGE_SHARES = {"autoencoder": 0.45, "diffusion": 0.45}
# Below these numbers of steps no training was seen to give anatomy (docs/results.md).
_MIN_STEPS = {"autoencoder": 2_000, "diffusion": 4_000}
# Passes over the training scans after which copies were found, and were not (docs/results.md).
_PASSES_THAT_COPIED = 187
_CT_WINDOW = (-1000.0, 1000.0)


@dataclass(frozen=True)
class Budget:
    """What there is to train with.

    Attributes:
        memory_gb: Of the GPU, or of the machine without one, in 10^9 bytes.
        hours: For everything.
        on_gpu: Whether a GPU is used.
        bf16: Whether it has bfloat16.
    """

    memory_gb: float
    hours: float
    on_gpu: bool = False
    bf16: bool = False


@dataclass(frozen=True)
class Decisions:
    """What the rules came to.

    Attributes:
        prepare: Nested values of `PrepareConfig`.
        training: Nested values of `Settings`, over the preset.
        grid: Of the prepared scans.
        reasons: One line for each decision.
        steps: Of each stage; empty until `decide_budgets`.
        warnings: What may go wrong, one line each.
    """

    prepare: dict[str, Any]
    training: dict[str, Any]
    grid: Grid
    reasons: tuple[str, ...] = ()
    steps: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def decide(
    fingerprint: Fingerprint,
    budget: Budget,
    given: Mapping[str, Any],
    given_training: Mapping[str, Any],
    memory_gb: Cost,
    seconds_per_step: Cost,
    preset: str = "default",
) -> Decisions:
    """Applies all rules, in the order in which one needs the other.

    Args:
        fingerprint: Of the scans.
        budget: Memory and time.
        given: Nested values of `PrepareConfig` that are settled: by a recipe, or the user.
        given_training: Nested values of `Settings` that the user settled.
        memory_gb: Peak of a stage.
        seconds_per_step: Time of a stage's step.
        preset: Where what no rule decides comes from.

    Raises:
        UserError: If the scans or the budget can't give a generator; one line with what would.
    """
    _require_enough(fingerprint)
    reasons: list[str] = []
    prepare = _intensity(fingerprint, given, reasons) | _splits(fingerprint, given, reasons)
    prepare["orientation"] = given.get("orientation", fingerprint.orientation)
    if "orientation" not in given:
        reasons.append(f"orientation {fingerprint.orientation}: that of most scans' slices")
    flip = _flip(fingerprint, given_training, reasons)

    def settings_on(grid: Grid) -> dict[str, Any]:
        return merged(merged(network_values(grid, []), {"training": {"flip": flip}}), given_training)

    def resolved(values: Mapping[str, Any]) -> Settings:
        return resolve(Settings, merged(preset_named(preset), values))

    def peak(grid: Grid) -> float:
        return max(memory_gb(stage, resolved(settings_on(grid)), grid) for stage in STAGES)

    def reachable_steps(stage: str, grid: Grid) -> float:
        available = 3600 * budget.hours * STAGE_SHARES[stage]
        return available / seconds_per_step(stage, resolved(settings_on(grid)), grid)

    limit = budget.memory_gb * _USABLE_MEMORY
    grid, geometry = _choose_grid(
        fingerprint, given, prepare["orientation"], budget, limit, peak, reachable_steps, reasons
    )
    prepare |= geometry
    training = settings_on(grid)
    network_values(grid, reasons)
    if peak(grid) > limit:
        training = _smaller_batches(
            training,
            lambda values: max(memory_gb(stage, resolved(values), grid) for stage in STAGES),
            limit,
            budget,
            grid,
            reasons,
        )
    else:
        settings = resolved(training)
        reasons.append(
            f"batches of {settings.autoencoder_training.batch_size} scans and "
            f"{settings.diffusion_training.batch_size} latents: small ones with large steps learned faster "
            "in equal time, and they fit the memory"
        )
    reasons.append(_precision(budget))
    return Decisions(merged(prepare, given), training, grid, tuple(reasons))


def decide_budgets(
    decisions: Decisions,
    fingerprint: Fingerprint,
    budget: Budget,
    given_training: Mapping[str, Any],
    seconds_per_step: Mapping[str, float],
    preset: str = "default",
) -> Decisions:
    """Adds to decisions how long each stage is trained, and what to beware of.

    Args:
        decisions: Of `decide`.
        fingerprint: Of the scans.
        budget: Memory and time.
        given_training: Nested values of `Settings` that the user settled.
        seconds_per_step: Time of each stage's step.
        preset: Where what no rule decides comes from.
    """
    reasons = list(decisions.reasons)
    training, steps = _budgets(decisions.training, given_training, preset, budget, seconds_per_step, reasons)
    training_scans = num_training_scans(fingerprint, decisions.prepare)
    settings = resolve(Settings, merged(preset_named(preset), training))
    warnings = _warnings(fingerprint, budget, training_scans, steps, settings)
    return replace(
        decisions, training=training, steps=steps, reasons=tuple(reasons), warnings=tuple(warnings)
    )


def network_values(grid: Grid, reasons: list[str]) -> dict[str, Any]:
    """Compression, groups, wavelet levels and denoiser for a grid, as nested values of `Settings`."""
    finest = min(grid.spacing_mm)
    compression = []
    for size, spacing in zip(grid.shape, grid.spacing_mm, strict=True):
        # Thick slices are compressed less, so that a latent cell is nearly a cube in millimetres.
        factor = _COMPRESSION // 2 ** max(0, round(math.log2(spacing / finest)))
        factor = max(2, factor)
        while factor > 1 and size < _MIN_CELLS * factor:
            factor //= 2
        compression.append(factor)
    voxels = math.prod(compression)
    groups = 4 if voxels > 8 else 1
    wavelet = 1 if max(compression) > 1 else 0
    cells = latent_shape(grid.shape, (compression[0], compression[1], compression[2]))
    cell_mm = [length * factor for length, factor in zip(grid.spacing_mm, compression, strict=True)]
    patch = 2 if max(compression) <= 2 and min(cells) >= 8 else 1
    gathered = [math.ceil(size / patch) for size in cells]
    levels = 2
    while levels < 4 and _attended(gathered, cell_mm, levels) > _MAX_ATTENDED_CELLS:
        levels += 1
    multipliers = [1, 2, 2, 4][:levels]
    reasons.append(
        f"compression {_text(compression)}: {voxels} voxels a latent cell of "
        f"{_text(np.round(cell_mm, 2))} mm; "
        + (
            "8 gave the best samples for the time by ablation"
            if compression == [_COMPRESSION] * 3
            else "thick slices and short axes are compressed less than 8, so that cells are cubes and "
            f"latents keep {_MIN_CELLS} cells an axis"
        )
    )
    reasons.append(
        f"{groups} group{'s' if groups > 1 else ''} of codes a cell, and {wavelet} wavelet level: "
        + ("one code holds too little of so many voxels" if groups > 1 else "a cell holds few voxels")
        + "; the wavelet gave ten times the steps in equal time"
    )
    reasons.append(
        f"denoiser of width 64 with {levels} levels"
        + (f", latent cells gathered by {patch}" if patch > 1 else "")
        + f": its coarsest level attends over {_attended(gathered, cell_mm, levels):,} cells (at most "
        f"{_MAX_ATTENDED_CELLS:,}); twice as wide was worse in equal time"
    )
    return {
        "autoencoder": {
            "compression": compression,
            "num_groups": groups,
            "wavelet_levels": wavelet,
        },
        "denoiser": {"multipliers": multipliers, "patch": patch},
    }


def _attended(cells: list[int], cell_mm: list[float], levels: int) -> int:
    sizes = list(cells)
    for stride in halving_strides(cells, cell_mm, levels - 1):
        sizes = [math.ceil(size / step) for size, step in zip(sizes, stride, strict=True)]
    return math.prod(sizes)


def _require_enough(fingerprint: Fingerprint) -> None:
    patients = fingerprint.num_patients
    if patients < MIN_PATIENTS:
        raise UserError(
            f"{fingerprint.num_scans} scans of {patients} patients are too few: a generator would store "
            f"them; bring scans of at least {MIN_PATIENTS} patients, better of some hundred"
        )
    if min(fingerprint.size.median) < _MIN_SIZE:
        raise UserError(
            f"the scans are {_text(fingerprint.size.median)} voxels in the median, which is 2D or nearly: "
            f"volumes of at least {_MIN_SIZE} slices are needed"
        )


def _intensity(fingerprint: Fingerprint, given: Mapping[str, Any], reasons: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {"modality": given.get("modality", fingerprint.modality)}
    if values["modality"] == "auto":
        values["modality"] = fingerprint.modality
    if values["modality"] == "CT":
        if "window_hu" in given:
            reasons.append(f"window {_text(given['window_hu'])} HU, as settled")
        else:
            values["window_hu"] = list(_CT_WINDOW)
            reasons.append(
                f"window {_text(_CT_WINDOW)} HU: one fixed window, so that synthetic scans have HU; air to "
                f"bone (the scans' tissue reaches {fingerprint.high:.0f})"
            )
    else:
        reasons.append(
            "each MR scan's own percentiles become -1 and +1: its unit is arbitrary"
            + (
                f" (tissue's upper end differs by a factor of {fingerprint.spread_of_high:,.0f} here)"
                if fingerprint.spread_of_high > 2
                else ""
            )
        )
    return values


def _splits(fingerprint: Fingerprint, given: Mapping[str, Any], reasons: list[str]) -> dict[str, Any]:
    if "split" in given:
        return {}
    test = min(0.3, max(0.1, _WANTED_TEST_PATIENTS / fingerprint.num_patients))
    test = math.floor(100 * test + 1e-9) / 100
    reasons.append(
        f"split: {test:.0%} of patients for the test, 10% for validation"
        + (
            f": the audit for copies needs about {_WANTED_TEST_PATIENTS} unseen patients"
            if test > 0.1
            else ""
        )
    )
    return {"split": {"validation": 0.1, "test": test}}


def num_training_scans(fingerprint: Fingerprint, prepare: Mapping[str, Any]) -> int:
    """Scans that a generator will learn from, about."""
    split = prepare.get("split", {})
    share = 1 - split.get("validation", 0.1) - split.get("test", 0.1)
    number = fingerprint.num_scans * (2 if prepare.get("region") == "breasts" else 1)
    return max(1, round(share * min(number, prepare.get("limit") or number)))


def _flip(fingerprint: Fingerprint, given_training: Mapping[str, Any], reasons: list[str]) -> str:
    if "flip" in given_training.get("training", {}):
        return str(given_training["training"]["flip"])
    gap = fingerprint.likeness - fingerprint.mirrored_likeness
    found = (
        f"scans are as like one another mirrored ({fingerprint.mirrored_likeness:.2f}) as not "
        f"({fingerprint.likeness:.2f})"
    )
    if gap > 0.01 + 2 * fingerprint.mirror_error:
        reasons.append(
            "no flips: the sides differ, for scans are less like one another mirrored "
            f"({fingerprint.mirrored_likeness:.2f}) than not ({fingerprint.likeness:.2f})"
        )
        return "none"
    reasons.append(f"half of the scans are mirrored left to right: {found}, and it doubles the data")
    return "left_right"


def _choose_grid(
    fingerprint: Fingerprint,
    given: Mapping[str, Any],
    orientation: str,
    budget: Budget,
    limit: float,
    peak: Callable[[Grid], float],
    reachable_steps: Callable[[str, Grid], float],
    reasons: list[str],
) -> tuple[Grid, dict[str, Any]]:
    """The grid, and the values of `PrepareConfig` that make it."""
    if given.get("shape") is not None:
        return _given_grid(fingerprint, given, orientation, reasons), {}
    extent, geometry, why = _extent(fingerprint, given)
    native = _native_spacing(fingerprint, given)
    fixed = given.get("spacing_mm") is not None
    grid = _grid(extent, native, orientation)
    spacing = native
    causes = []

    def too_much(grid: Grid) -> str | None:
        if max(grid.shape) > _MAX_VOXELS:
            return f"{_MAX_VOXELS} voxels an axis"
        if any(reachable_steps(stage, grid) < _MIN_STEPS[stage] for stage in STAGES):
            return f"{budget.hours:g} hours"
        # Counted last, for it takes a second.
        return f"{budget.memory_gb:g} GB of memory" if peak(grid) > limit else None

    while not fixed:
        cause = too_much(grid)
        if cause is None:
            break
        spacing = _coarser(spacing)
        smaller = _grid(extent, spacing, orientation)
        if max(smaller.shape) < _MIN_LONGEST:
            break
        causes += [cause] if cause not in causes else []
        grid = smaller
    geometry |= {"spacing_mm": list(grid.spacing_mm), "shape": list(grid.shape)}
    kind = "one spacing for all axes" if _isotropic(fingerprint) else "plane first, thick slices kept"
    if fixed:
        reasons.append(f"spacing {_text(grid.spacing_mm)} mm, as settled")
    elif causes:
        reasons.append(
            f"spacing {_text(grid.spacing_mm)} mm ({kind}), coarser than the scans' "
            f"{_text(np.round(native, 3))} mm to fit {' and '.join(causes)}"
        )
    else:
        reasons.append(f"spacing {_text(grid.spacing_mm)} mm ({kind}), the scans' median")
    reasons.append(f"grid {_text(grid.shape)} voxels: {why}, rounded up to multiples of {SHAPE_MULTIPLE}")
    return grid, geometry


def _given_grid(
    fingerprint: Fingerprint, given: Mapping[str, Any], orientation: str, reasons: list[str]
) -> Grid:
    shape = np.array(given["shape"])
    if given.get("spacing_mm") is not None:
        spacing = _three(given["spacing_mm"])
    elif given.get("fit") != "resize":
        spacing = fingerprint.spacing_mm.median
    else:
        # A region that is resized, so that its size decides.
        region = given.get("region", "scan")
        field = fingerprint.foreground_mm if region == "foreground" else fingerprint.field_mm
        size = np.array(field.median)
        size = np.full(3, size.max()) if given.get("cube") else size
        spacing = _three(np.round(size / shape, 4))
    grid = _made(orientation, (int(shape[0]), int(shape[1]), int(shape[2])), spacing)
    reasons.append(f"grid {_text(grid.shape)} voxels of {_text(grid.spacing_mm)} mm, as settled")
    return grid


def _extent(fingerprint: Fingerprint, given: Mapping[str, Any]) -> tuple[Triple, dict[str, Any], str]:
    """Millimetres along (D, H, W) that the grid is to hold, how they are found in a scan, and why."""
    field = np.array(fingerprint.field_mm.median)
    body = np.minimum(field, (1 + 2 * _MARGIN) * np.array(fingerprint.foreground_mm.high))
    air = 1 - np.prod(body) / np.prod(field)
    if air < _WORTH_CROPPING or "center" in given or given.get("fit") == "resize":
        return _three(field), {}, "the scans' median field of view"
    return (
        _three(body),
        {"center": "foreground"},
        f"what is not air in 95% of scans and a margin, which leaves {air:.0%} of the field of view away",
    )


def _native_spacing(fingerprint: Fingerprint, given: Mapping[str, Any]) -> Triple:
    if given.get("spacing_mm") is not None:
        return _three(given["spacing_mm"])
    spacing = np.array(fingerprint.spacing_mm.median)
    if _isotropic(fingerprint):
        spacing = np.full(3, float(np.prod(spacing) ** (1 / 3)))
    return _three([float(f"{value:.3g}") for value in spacing])


def _isotropic(fingerprint: Fingerprint) -> bool:
    return fingerprint.anisotropy < _ISOTROPIC


def _coarser(spacing: Triple) -> Triple:
    """The next coarser spacing: the finest axes first, until all are alike."""
    finest = min(spacing)
    target = finest * _COARSENING
    return _three([max(value, target) for value in spacing])


def _grid(extent: Triple, spacing: Triple, orientation: str) -> Grid:
    multiple = SHAPE_MULTIPLE
    # A hair less, so that a length that divides evenly stays what it is.
    shape = [
        max(1, math.ceil(mm / step / multiple - 1e-3)) * multiple
        for mm, step in zip(extent, spacing, strict=True)
    ]
    return _made(
        orientation, (shape[0], shape[1], shape[2]), _three([float(f"{step:.3g}") for step in spacing])
    )


def _made(orientation: str, shape: Shape, spacing: Triple) -> Grid:
    codes = "SPL" if orientation == "auto" else orientation
    return Grid(shape=shape, spacing_mm=spacing, affine=centred_affine(codes, shape, spacing).tolist())


def _smaller_batches(
    training: dict[str, Any],
    peak: Callable[[Mapping[str, Any]], float],
    limit: float,
    budget: Budget,
    grid: Grid,
    reasons: list[str],
) -> dict[str, Any]:
    for autoencoder, diffusion in ((2, 2), (1, 2), (1, 1)):
        batches = {
            "autoencoder_training": {"batch_size": autoencoder},
            "diffusion_training": {"batch_size": diffusion},
        }
        values = merged(training, batches)
        if peak(values) <= limit:
            reasons.append(
                f"batches of {autoencoder} and {diffusion}: more do not fit into {budget.memory_gb:g} GB"
            )
            return values
    needed = peak(values) / _USABLE_MEMORY
    # What remains is in proportion to voxels, or a process's own.
    factor = max(1.1, (needed / budget.memory_gb) ** (1 / 3))
    spacing = [float(f"{factor * length:.2g}") for length in grid.spacing_mm]
    example = ",".join(f"{length:g}" for length in spacing)
    raise UserError(
        f"a grid of {_text(grid.shape)} voxels needs {needed:.1f} GB at batch 1, and there are "
        f"{budget.memory_gb:g} GB: use a coarser one, e.g. spacing_mm=[{example}] "
        "with a smaller shape, or a larger machine"
    )


def _precision(budget: Budget) -> str:
    if budget.bf16:
        return "bfloat16 where it is safe: the GPU has it"
    if budget.on_gpu:
        return "full precision: the GPU has no bfloat16"
    return "full precision: bfloat16 convolutions are hundreds of times slower on most CPUs"


def _budgets(
    training: dict[str, Any],
    given: Mapping[str, Any],
    preset: str,
    budget: Budget,
    seconds_per_step: Mapping[str, float],
    reasons: list[str],
) -> tuple[dict[str, Any], dict[str, int]]:
    """Steps of each stage in its share of the hours, and what depends on their number."""
    steps: dict[str, int] = {}
    settings = resolve(Settings, merged(preset_named(preset), training))
    spare = 0.0
    for stage in STAGES:
        name = f"{stage}_training"
        own = getattr(settings, name)
        seconds = seconds_per_step[stage]
        # What stage one does not need is stage two's.
        available = 3600 * budget.hours * STAGE_SHARES[stage] + spare
        reachable = max(1, int(available / seconds))
        most = own.steps if own.steps is not None else reachable
        steps[stage] = min(reachable, most)
        spare = max(0.0, available - steps[stage] * seconds)
        settled = given.get(name, {})
        if "steps" in settled or "minutes" in settled:
            steps[stage] = own.steps or max(1, int(60 * own.minutes / seconds))
            reasons.append(f"{stage}: {steps[stage]:,} steps, as settled")
            continue
        warmup = min(own.warmup_steps, steps[stage] // 10)
        values = {"steps": steps[stage], "minutes": round(available / 60, 2), "warmup_steps": warmup}
        training = merged(
            training, {name: {key: value for key, value in values.items() if key not in settled}}
        )
        reasons.append(
            f"{stage}: {steps[stage]:,} steps of {seconds:.3g} s"
            + (
                f", what {available / 3600:.3g} hours hold"
                if steps[stage] < most
                else ", those of the preset: more were never measured"
            )
        )
    if "ema_decay" not in given.get("diffusion", {}) and steps["diffusion"] < 5_000:
        training = merged(training, {"diffusion": {"ema_decay": 0.995}})
        reasons.append("moving average over 200 steps (0.995): a longer one would hold much of a short start")
    return training, steps


def _warnings(
    fingerprint: Fingerprint,
    budget: Budget,
    training_scans: int,
    steps: Mapping[str, int],
    settings: Settings,
) -> list[str]:
    warnings = []
    passes = steps["diffusion"] * settings.diffusion_training.batch_size / training_scans
    if training_scans < _FEW_SCANS or passes > _PASSES_THAT_COPIED:
        warnings.append(
            f"{training_scans} training scans, each seen {passes:,.0f} times by stage two: with 108 scans a "
            f"training of {_PASSES_THAT_COPIED} passes stored them; release nothing without "
            "`anatogen evaluate ... --train --holdout`, the audit for copies"
        )
    warnings += [
        f"{budget.hours:g} hours hold {steps[stage]:,} steps of the {stage} stage, and below "
        f"{_MIN_STEPS[stage]:,} no anatomy is to be expected: give more --hours, or a coarser grid"
        for stage in STAGES
        if steps[stage] < _MIN_STEPS[stage]
    ]
    if fingerprint.num_patients == fingerprint.num_scans:
        warnings.append(
            "each scan counts as a patient: if one has several, set patient_pattern or patient_csv, or the "
            "splits leak"
        )
    if fingerprint.num_left_out:
        warnings.append(f"{fingerprint.num_left_out} scans can't be used: `anatogen doctor` says why")
    return warnings


def _three(values: Any) -> Triple:
    if isinstance(values, int | float):
        return float(values), float(values), float(values)
    return float(values[0]), float(values[1]), float(values[2])


def _text(values: Any) -> str:
    return " x ".join(f"{float(value):g}" for value in values)

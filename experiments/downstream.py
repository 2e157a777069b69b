"""The downstream experiment on the hippocampi: its data, source and target apart, and its tables.

python experiments/downstream.py ready HIPPOCAMPUS WORK
anatogen downstream experiment WORK/plan.yaml WORK/experiment
python experiments/downstream.py table WORK/experiment

WORK also holds a plan for each of VARIANTS: training from scratch and on synthetic scans, at 5% of the
labels, with some settings changed. `table` prints Dice of every arm, and differences of arms, as Markdown, of
an unfinished experiment too.

The source institution's scans are the training scans of the shipped model hippocampus-mr, which the model
saw; the target's are all others. HIPPOCAMPUS holds `images` and `labels` of the Decathlon's Task04.
"""

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anatogen import prepare, sample
from anatogen.config.resolving import merged, resolve, save_yaml
from anatogen.core.files import sha256_file
from anatogen.dataset.manifest import Split, load_manifest
from anatogen.downstream.experiment.plan import ExperimentPlan
from anatogen.downstream.experiment.results import read_results
from anatogen.downstream.experiment.run import PLAN_NAME
from anatogen.downstream.experiment.statistics import MeanEstimate, compare, estimate, scores_by_arm
from anatogen.downstream.experiment.trials import RESULTS_NAME
from anatogen.downstream.experiment.verdict import comparison_pairs, outcomes
from anatogen.downstream.experiment.wording import arm_text, dice_text, fraction_text
from anatogen.report.numbers import interval_text, p_text

# What a core of a CPU does in seven hours for the whole plan.
_SMALL: Mapping[str, Any] = {
    "pretraining": {"inpainter_training": {"batch_size": 1, "steps": 1_200}},
    "finetuning": {"segmenter_training": {"batch_size": 1, "steps": 300}},
}
# More draws of labelled scans, and what might be wrong with the pre-training or with what is made of it.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    # Mirrored as in the paper, where that makes hippocampi of the other side.
    "paper": {name: {"training": {"flip": "in_plane"}} for name in ("pretraining", "finetuning")},
    "few_labels": {"seeds": (0, 1, 2, 3, 4)},
    "encoder_only": {"finetuning": {"transfer": "encoder"}},
    "small": _SMALL,
    "small_longer": merged(_SMALL, {"pretraining": {"inpainter_training": {"steps": 6_000}}}),
    "small_larger_cubes": merged(_SMALL, {"pretraining": {"masking": {"patch_voxels": 16}}}),
    "small_encoder_only": merged(_SMALL, {"finetuning": {"transfer": "encoder"}}),
}
_GRID = {"shape": (40, 56, 40), "spacing_mm": 1}
_SPLIT = {"validation": 0.1, "test": 0.4}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(required=True)
    ready = actions.add_parser("ready", help="make everything that is not there yet")
    ready.add_argument("hippocampus", type=Path)
    ready.add_argument("work", type=Path)
    ready.add_argument("--number", type=int, default=400, help="synthetic scans")
    ready.set_defaults(run=lambda given: make_ready(given.hippocampus, given.work, given.number))
    table = actions.add_parser("table", help="print the tables of an experiment, finished or not")
    table.add_argument("experiment", type=Path)
    table.set_defaults(run=lambda given: print(table_text(given.experiment)))
    arguments = parser.parse_args()
    arguments.run(arguments)


def make_ready(hippocampus: Path, work: Path, number: int) -> None:
    """Writes WORK/source and WORK/target (prepared), WORK/synthetic, WORK/plan.yaml and WORK/VARIANT.yaml."""
    images = sorted((hippocampus / "images").iterdir())
    # The split that the shipped model was trained with; its card has this command.
    prepare(hippocampus / "images", work / "generator_data", overrides={"split": _SPLIT})
    seen = {case.source_sha256 for case in load_manifest(work / "generator_data").split(Split.TRAIN)}
    for folder in ("source_scans", "target_scans/images", "target_scans/labels"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    for image in images:
        if sha256_file(image) in seen:
            shutil.copy2(image, work / "source_scans")
        else:
            shutil.copy2(image, work / "target_scans/images")
            shutil.copy2(hippocampus / "labels" / image.name, work / "target_scans/labels")
    training_only = {"validation": 0, "test": 0}
    prepare(work / "source_scans", work / "source", overrides=_GRID | {"split": training_only})
    prepare(
        work / "target_scans",
        work / "target",
        overrides=_GRID | {"split": _SPLIT},
        recipe="folder_with_masks",
    )
    sample("hippocampus-mr", work / "synthetic", num_samples=number, file_format="npy")
    for name, one in {"plan": plan(work, number), **variants(work, number)}.items():
        save_yaml(resolve(ExperimentPlan, one), work / f"{name}.yaml")


def variants(work: Path, number: int) -> dict[str, dict[str, Any]]:
    """The plans of VARIANTS."""
    whole = plan(work, number)
    arms = {name: whole["arms"][name] for name in ("scratch", "synthetic")}
    few = whole | {"arms": arms, "fractions": whole["fractions"][:1]}
    return {name: merged(few, change) for name, change in VARIANTS.items()}


def plan(work: Path, number: int) -> dict[str, Any]:
    """Ten minutes of a large GPU: the smallest Swin UNETR, patches that hold most of a hippocampus."""
    network, patch_shape = {"feature_size": 12}, (32, 56, 32)
    synthetic, real = work / "synthetic", work / "source"
    optimiser = {"warmup_steps": 20, "decay": "cosine"}
    return {
        "data": work / "target",
        "arms": {
            "scratch": {},
            "synthetic": {"scans": [synthetic]},
            "real": {"scans": [real]},
            "shapes": {"shapes": number},
            "synthetic_and_real": {"scans": [synthetic, real]},
        },
        "fractions": (0.05, 0.1, 0.2, 1.0),
        "seeds": (0, 1, 2),
        "pretraining": {
            "network": network,
            "patch_shape": patch_shape,
            "inpainter_training": optimiser | {"batch_size": 4, "steps": 3_000},
        },
        "finetuning": {
            "network": network,
            "patch_shape": patch_shape,
            "validate_every": 50,
            "patience": None,
            "segmenter_training": optimiser | {"batch_size": 2, "steps": 500},
        },
    }


def table_text(experiment: Path) -> str:
    """Mean Dice, then differences of arms, each with its 95% interval over seeds and patients; Markdown."""
    arms = list(resolve(ExperimentPlan, file=experiment / PLAN_NAME).arms)
    scores = scores_by_arm(read_results(experiment / RESULTS_NAME), "dice")
    comparisons = compare(scores, comparison_pairs(arms))
    dice: dict[str, dict[float, str]] = {arm_text(arm): {} for arm in arms}
    for (arm, fraction), own in scores.items():
        if found := estimate(np.array([*own.values()])):
            dice[arm_text(arm)][fraction] = _with_interval(found, "{:.3f}".format)
    differences: dict[str, dict[float, str]] = {}
    for comparison, outcome in zip(comparisons, outcomes(comparisons), strict=True):
        pair = f"{arm_text(comparison.arm)} − {arm_text(comparison.other)}"
        text = f"{_with_interval(comparison.difference, dice_text)}, {p_text(comparison.p_corrected)}"
        differences.setdefault(pair, {})[comparison.fraction] = f"{text}: {outcome}"
    fractions = sorted({fraction for _, fraction in scores})
    return "\n\n".join(_table(rows, fractions) for rows in (dice, differences))


def _with_interval(found: MeanEstimate, number: Callable[[float | None], str]) -> str:
    if found.over_seeds is None:
        return number(found.mean)
    return f"{number(found.mean)} ({interval_text(*found.over_seeds, number)})"


def _table(rows: Mapping[str, Mapping[float, str]], fractions: Sequence[float]) -> str:
    lines = [["", *map(fraction_text, fractions)], ["---"] * (1 + len(fractions))]
    lines += [[name, *(row.get(fraction, "–") for fraction in fractions)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()

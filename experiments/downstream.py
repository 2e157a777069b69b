"""Makes ready what `anatogen downstream experiment` needs on the hippocampi, source and target apart.

python experiments/downstream.py HIPPOCAMPUS WORK
anatogen downstream experiment WORK/plan.yaml WORK/experiment

The source institution's scans are the training scans of the shipped model hippocampus-mr, which the model
saw; the target's are all others. HIPPOCAMPUS holds `images` and `labels` of the Decathlon's Task04.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from anatogen import prepare
from anatogen.config import resolve, save_yaml
from anatogen.data.manifest import Split, load_manifest
from anatogen.downstream.settings import ExperimentPlan
from anatogen.sampling import sample
from anatogen.storage import sha256_file

_GRID = ["shape=[40,56,40]", "spacing_mm=1"]


def main() -> None:
    """Reads the command line and makes everything that is not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("hippocampus", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--number", type=int, default=400, help="synthetic scans")
    arguments = parser.parse_args()
    make_ready(arguments.hippocampus, arguments.work, arguments.number)


def make_ready(hippocampus: Path, work: Path, number: int) -> None:
    """Writes WORK/source and WORK/target (prepared), WORK/synthetic and WORK/plan.yaml."""
    images = sorted((hippocampus / "images").iterdir())
    # The split that the shipped model was trained with; its card has this command.
    prepare(hippocampus / "images", work / "generator_data", ["split.validation=0.1", "split.test=0.4"])
    seen = {case.source_sha256 for case in load_manifest(work / "generator_data").split(Split.TRAIN)}
    for folder in ("source_scans", "target_scans/images", "target_scans/labels"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    for image in images:
        if sha256_file(image) in seen:
            shutil.copy2(image, work / "source_scans")
        else:
            shutil.copy2(image, work / "target_scans/images")
            shutil.copy2(hippocampus / "labels" / image.name, work / "target_scans/labels")
    prepare(work / "source_scans", work / "source", [*_GRID, "split.validation=0", "split.test=0"])
    prepare(
        work / "target_scans",
        work / "target",
        [*_GRID, "split.validation=0.1", "split.test=0.4"],
        recipe="folder_with_masks",
    )
    sample("hippocampus-mr", work / "synthetic", number=number, file_format="npy")
    save_yaml(resolve(ExperimentPlan, plan(work, number)), work / "plan.yaml")


def plan(work: Path, number: int) -> dict[str, Any]:
    """Sized for hours on a CPU: the smallest Swin UNETR, a patch a step that holds most of a hippocampus."""
    network, patch_shape = {"feature_size": 12}, (32, 56, 32)
    synthetic, real = work / "synthetic", work / "source"
    optimiser = {"batch_size": 1, "warmup_steps": 20, "decay": "cosine"}
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
            "inpainter_training": optimiser | {"steps": 1_200},
        },
        "finetuning": {
            "network": network,
            "patch_shape": patch_shape,
            "validate_every": 50,
            "patience": None,
            "segmenter_training": optimiser | {"steps": 300},
        },
    }


if __name__ == "__main__":
    main()

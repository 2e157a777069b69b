"""The `anatogen downstream` commands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anatogen.api import downstream as api
from anatogen.cli.command import Group

if TYPE_CHECKING:
    from anatogen.config.resolving import Section
    from anatogen.dataset.discover import LeftOut
    from anatogen.downstream.metrics import CaseMetrics


def _pretrain_keys() -> "Sequence[type[Section]]":
    from anatogen.downstream.settings import PretrainConfig

    return (PretrainConfig,)


def _finetune_keys() -> "Sequence[type[Section]]":
    from anatogen.downstream.settings import FinetuneConfig

    return (FinetuneConfig,)


def _experiment_keys() -> "Sequence[type[Section]]":
    from anatogen.downstream.experiment.plan import ExperimentPlan

    return (ExperimentPlan,)


def _show_pretrained(weights: Path, given: Mapping[str, Any]) -> None:
    from anatogen.downstream.inpainting import load_inpainting_quality

    print(f"pre-trained network: {weights}")
    quality = load_inpainting_quality(given["run"])
    if quality is not None:
        print(f"it {quality}")
        if not quality.learned:
            like = given["like"]
            or_else = "" if like is None else f", or scans that are more like those of {like}"
            print(f"no better than copying: give it more steps{or_else}")


def _show_predicted(left_out: "Sequence[LeftOut]", given: Mapping[str, Any]) -> None:
    for scan in left_out:
        print(f"left out: {scan.name}: {scan.reason}")
    print(f"masks: {given['out']}")


def _show_measured(measured: "Mapping[str, CaseMetrics]", given: Mapping[str, Any]) -> None:
    from anatogen.downstream.metrics import METRIC_TITLES, METRICS

    for metric in METRICS:
        values = [value for case in measured.values() if (value := case.mean(metric)) is not None]
        mean = f"{sum(values) / len(values):.3f}" if values else "undefined"
        print(f"{METRIC_TITLES[metric]}: mean {mean} of {len(values)} of {len(measured)} scans")


group = Group(
    "downstream", help="What synthetic scans are worth: pre-train on them, segment with few labels, compare."
)
group.derive("pretrain", api.pretrain, _show_pretrained, _pretrain_keys)
group.derive("finetune", api.finetune, lambda folder, given: print(f"segmenter: {folder}"), _finetune_keys)
group.derive("predict", api.predict, _show_predicted)
group.derive("measure", api.measure_segmenter, _show_measured)
group.derive("experiment", api.run_experiment, lambda page, given: print(f"page: {page}"), _experiment_keys)

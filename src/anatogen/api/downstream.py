"""What synthetic scans are worth: pre-train on them, segment with few labels, compare."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anatogen.core.extras import require_extra

if TYPE_CHECKING:
    from anatogen.dataset.discover import LeftOut
    from anatogen.downstream.metrics import CaseMetrics
    from anatogen.downstream.settings import FinetuneConfig, PretrainConfig


def pretrain(
    scans: Path | str,
    run: Path | str,
    settings: "PretrainConfig | None" = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    also: Sequence[Path | str] = (),
    like: Path | str | None = None,
    config: Path | str | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "auto",
    devices: int = 1,
) -> Path:
    """Teaches Swin UNETR to fill in what is hidden of scans without labels, or goes on with it.

    Args:
        scans: Scans to pre-train on: folder, prepared dataset, or one split of it such as DATASET:train. They
            lie beside RUN while it is trained, 2 bytes a voxel.
        run: Folder of the run; the same call again resumes it.
        settings: Settings, in place of the defaults.
        overrides: Settings that differ, e.g. network.feature_size=12, in Python {"network":
            {"feature_size": 12}}.
        also: More scans, on the same grid.
        like: Prepared dataset that is to be segmented: scans must have its grid and, for CT, its window, and
            none of its validation and test scans may be among them.
        config: YAML file of settings.
        minutes: Budget in minutes, over all resumptions.
        steps: Budget in steps.
        device: auto, cpu, cuda or cuda:1; auto is a GPU where there is one.
        devices: Number of GPUs, or of processes on a CPU.

    Returns:
        The file of the weights, which `finetune` takes.

    Raises:
        UserError: If scans and settings don't fit each other or the run.
    """
    require_extra("downstream")
    from anatogen.config.presets import budget
    from anatogen.config.resolving import merged, resolve
    from anatogen.downstream.pretrain import pretrain as run_pretraining
    from anatogen.downstream.settings import PretrainConfig

    given = merged(budget(("inpainter",), minutes, steps), overrides or {})
    chosen = resolve(PretrainConfig, settings, config, given)
    return run_pretraining([scans, *also], run, chosen, like=like, device=device, devices=devices)


def finetune(
    data: Path | str,
    run: Path | str,
    settings: "FinetuneConfig | None" = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    init: Path | str | None = None,
    fraction: float | None = None,
    config: Path | str | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "auto",
    devices: int = 1,
) -> Path:
    """Teaches Swin UNETR to segment labelled scans, or a fraction of them, or goes on with it.

    Args:
        data: Prepared dataset with masks.
        run: Folder of the run; the same call again resumes it.
        settings: Settings, in place of the defaults.
        overrides: Settings that differ, e.g. network.feature_size=12, in Python {"network":
            {"feature_size": 12}}.
        init: Run or weights of `pretrain`; without it from scratch.
        fraction: Fraction of the training patients whose labels are used, e.g. 0.05.
        config: YAML file of settings.
        minutes: Budget in minutes, over all resumptions.
        steps: Budget in steps.
        device: auto, cpu, cuda or cuda:1; auto is a GPU where there is one.
        devices: Number of GPUs, or of processes on a CPU.

    Returns:
        The folder of the segmenter, which `predict` takes.

    Raises:
        UserError: If masks, settings and pre-trained weights don't fit each other or the run.
    """
    require_extra("downstream")
    from anatogen.config.presets import budget
    from anatogen.config.resolving import merged, resolve
    from anatogen.downstream.finetune import finetune as run_finetuning
    from anatogen.downstream.settings import FinetuneConfig

    given = merged(budget(("segmenter",), minutes, steps), overrides or {})
    if fraction is not None:
        given.setdefault("fraction", fraction)
    chosen = resolve(FinetuneConfig, settings, config, given)
    return run_finetuning(data, run, chosen, init=init, device=device, devices=devices)


def predict(
    scans: Path | str, segmenter: Path | str, out: Path | str, *, device: str = "auto"
) -> "list[LeftOut]":
    """Writes a mask for every scan of a folder, as NIfTI in the scan's own voxels.

    Masks that are there are kept, so a stopped call goes on where it was.

    Args:
        scans: Folder of scans in any format.
        segmenter: Run or segmenter of `finetune`.
        out: Folder of the masks; a/b.nrrd becomes a/b.nii.gz, a DICOM series SERIES.nii.gz.
        device: auto, cpu, cuda or cuda:1; auto is a GPU where there is one.

    Returns:
        The scans that could not be read or are none, with the reasons.

    Raises:
        UserError: If the segmenter, the scans or the device are missing, or masks would come among the scans
            or among those of another segmenter.
    """
    require_extra("downstream")
    from anatogen.downstream.predict import predict as run_prediction

    return run_prediction(scans, segmenter, out, device=device)


def measure_segmenter(
    data: Path | str, segmenter: Path | str, *, tolerance_mm: float = 1.0, device: str = "auto"
) -> "dict[str, CaseMetrics]":
    """Measures a segmenter on the test scans of a dataset with masks.

    The segmenter may have learned from another dataset: of synthetic scans with masks, say.

    Args:
        data: Prepared dataset with masks.
        segmenter: Run or segmenter of `finetune`.
        tolerance_mm: Distance between surfaces that counts as agreement.
        device: auto, cpu, cuda or cuda:1; auto is a GPU where there is one.

    Returns:
        The metrics of each test case, by its id.

    Raises:
        UserError: If there are no test cases with masks, they differ from what the segmenter learned from,
            or there is no such device.
    """
    require_extra("downstream")
    from anatogen.downstream.measure import measure_on_test_split

    return measure_on_test_split(data, segmenter, tolerance_mm=tolerance_mm, device=device)


def run_experiment(
    plan: Path | str,
    out: Path | str,
    *,
    overrides: Mapping[str, Any] | None = None,
    processes: int = 1,
) -> Path:
    """Compares ways to begin, fraction by fraction, seed by seed; the page says whether any of them helps.

    Args:
        plan: YAML file: data, arms, fractions, seeds, settings.
        out: Folder of the experiment; the same call again goes on.
        overrides: Settings of the plan that differ, e.g. fractions=[0.05,0.1].
        processes: Number of trials that are made at a time; they share the machine's cores.

    Returns:
        The page, `OUT/experiment.html`.

    Raises:
        UserError: If the plan does not fit the data or the folder, or a trial fails.
    """
    require_extra("downstream")
    from anatogen.config.resolving import resolve
    from anatogen.downstream.experiment.plan import ExperimentPlan
    from anatogen.downstream.experiment.run import run_experiment as make_trials

    chosen = resolve(ExperimentPlan, file=plan, overrides=overrides)
    return make_trials(chosen, out, processes=processes)

"""From a folder of scans: doctor, plan, prepare, and the whole way in one call."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anatogen.dataset.prepare import PrepareSummary
    from anatogen.dataset.prepare_config import PrepareConfig
    from anatogen.doctor.diagnosis import Diagnosis
    from anatogen.planning.plan import Plan


def doctor(
    scans: Path | str,
    out: Path | str | None = None,
    settings: "PrepareConfig | None" = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    config: Path | str | None = None,
    headers_only: bool = False,
    records: Path | str | None = None,
    progress: bool = True,
) -> "Diagnosis":
    """Finds out what is wrong with a folder of scans, and what to do about it.

    Args:
        scans: Folder, .zip or .tar of NIfTI, NRRD, MetaImage, NPY files and DICOM series.
        out: Folder for doctor.html and doctor.json, which name files; without it nothing is written.
        settings: Settings of `prepare`, in place of the recipe's.
        overrides: Settings of `prepare` that differ, e.g. exclude=labelsTr/*.
        recipe: Name of the recipe that the folder is meant for.
        config: YAML file of settings of `prepare`.
        headers_only: Read no voxels: quick, and blind to copies and damage.
        records: Folder of records of scans that an earlier doctor, plan or prepare left, to be completed;
            default OUT/.examined.
        progress: Show progress bars on the terminal.

    Returns:
        Facts and findings, each with what to do.

    Raises:
        UserError: If settings or folders are wrong.
    """
    from anatogen.dataset.prepare_config import prepare_settings
    from anatogen.doctor.examine import examine
    from anatogen.doctor.page import RECORDS_NAME, check_out, write_doctor_page
    from anatogen.io.archives import scans_folder

    chosen = prepare_settings(overrides, settings=settings, config=config, recipe=recipe)
    out = None if out is None else Path(out)
    if out is not None:
        check_out(Path(scans), out)
    if records is None and out is not None:
        records = out / RECORDS_NAME
    with scans_folder(Path(scans), progress=progress) as folder:
        diagnosis = examine(
            folder,
            chosen,
            headers_only=headers_only,
            records=None if records is None else Path(records),
            progress=progress,
        )
        if out is not None:
            write_doctor_page(diagnosis, out)
    return diagnosis


def plan(
    scans: Path | str,
    out: Path | str | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    memory_gb: float | None = None,
    hours: float = 24.0,
    recipe: str | None = None,
    preset: str = "default",
    device: str = "auto",
    records: Path | str | None = None,
    progress: bool = True,
) -> "Plan":
    """Looks at scans and this machine, and decides how to prepare and train; each decision with its reason.

    Args:
        scans: Folder, .zip or .tar of NIfTI, NRRD, MetaImage, NPY files and DICOM series.
        out: Folder for the plan: prepare.yaml, train.yaml, plan.json.
        overrides: Settings of `prepare` or `train` that the plan keeps, e.g. spacing_mm=1.
        memory_gb: Memory of the GPU, or of the machine without one, in 10^9 bytes; default what this one has.
        hours: Time on this machine, nine tenths of it for training, the rest for preparing, previews and
            sampling, about.
        recipe: Name of a recipe, whose settings the plan keeps.
        preset: Preset that decides what no rule does.
        device: auto, cpu, cuda or cuda:1; auto is a GPU where there is one.
        records: Folder of records of scans that an earlier doctor, plan or prepare left, to be completed;
            with it all scans are looked at, else 200.
        progress: Show progress bars on the terminal.

    Returns:
        Both configurations, each decision with its reason, warnings, and what it will take.

    Raises:
        UserError: If settings are wrong, or scans or budget can't give a generator.
    """
    from anatogen.planning.plan import make_plan

    made = make_plan(
        Path(scans),
        memory_gb=memory_gb,
        hours=hours,
        recipe=recipe,
        overrides=overrides,
        preset=preset,
        device=device,
        records=None if records is None else Path(records),
        progress=progress,
    )
    if out is not None:
        made.save(Path(out))
    return made


def prepare(
    scans: Path | str,
    out: Path | str,
    settings: "PrepareConfig | None" = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    limit: int | None = None,
    config: Path | str | None = None,
    strict: bool = False,
    records: Path | str | None = None,
    progress: bool = True,
) -> "PrepareSummary":
    """Checks scans, brings them to one grid and intensity range, and splits them by patient.

    Args:
        scans: Folder, .zip or .tar of NIfTI, NRRD, MetaImage, NPY files and DICOM series.
        out: Folder of the prepared dataset.
        settings: Settings, in place of the recipe's.
        overrides: Settings that differ, e.g. spacing_mm=1; docs/data.md lists them all.
        recipe: Name of a recipe, for a known download or layout; `anatogen recipes` lists them.
        limit: Number of scans to take, the first ones, to try.
        config: YAML file of settings.
        strict: Make a scan that can't be used an error.
        records: Folder of records of scans that an earlier doctor, plan or prepare left, to be completed;
            default a part of OUT that is removed at the end.
        progress: Show progress bars on the terminal.

    Returns:
        What was decided, prepared and left out.

    Raises:
        UserError: If settings or folders are wrong, or no scan is left.
    """
    from anatogen.dataset.prepare import prepare as prepare_scans
    from anatogen.dataset.prepare_config import prepare_settings

    chosen = prepare_settings(overrides, settings=settings, config=config, recipe=recipe, limit=limit)
    return prepare_scans(
        Path(scans),
        Path(out),
        chosen,
        strict=strict,
        records=None if records is None else Path(records),
        progress=progress,
    )


def recipes() -> dict[str, str]:
    """Lists the recipes of `prepare`: known downloads and layouts.

    Returns:
        What each is for, by name.
    """
    from anatogen.dataset.recipes import RECIPES

    return {recipe.name: recipe.summary for recipe in RECIPES.values()}


def run(
    scans: Path | str,
    out: Path | str,
    *,
    overrides: Mapping[str, Any] | None = None,
    hours: float = 24.0,
    memory_gb: float | None = None,
    num_samples: int = 100,
    seed: int = 0,
    recipe: str | None = None,
    preset: str = "default",
    device: str = "auto",
    workers: int | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> Path | None:
    """Goes the whole way, or goes on with it: doctor, plan, prepare, train, sample, evaluate.

    Args:
        scans: Folder, .zip or .tar of NIfTI, NRRD, MetaImage, NPY files and DICOM series.
        out: Folder of everything; the same call again goes on.
        overrides: Settings of `prepare` or `train` that differ, e.g. spacing_mm=1.
        hours: Time on this machine, nine tenths of it for training, the rest for preparing, previews and
            sampling, about; the doctor and evaluating come on top.
        memory_gb: Memory of the GPU, or of the machine without one, in 10^9 bytes; default what this one has.
        num_samples: Number of synthetic scans.
        seed: Random seed of the set of synthetic scans.
        recipe: Name of a recipe, for a known download or layout.
        preset: Preset that decides what the plan does not.
        device: auto, cpu, cuda or cuda:1; auto is a GPU where there is one.
        workers: Number of processes that look at scans and sample; default one per core.
        dry_run: Stop when the plan is shown.
        progress: Show progress bars on the terminal.

    Returns:
        The page `OUT/index.html`; None for a dry run.

    Raises:
        UserError: If settings or folders are wrong, or a stage can't be done.
    """
    from anatogen.workflow.request import RunRequest
    from anatogen.workflow.run import run as run_stages

    request = RunRequest(
        Path(scans),
        Path(out),
        overrides=overrides or {},
        hours=hours,
        memory_gb=memory_gb,
        num_samples=num_samples,
        seed=seed,
        recipe=recipe,
        preset=preset,
        device=device,
        workers=workers,
        progress=progress,
    )
    return run_stages(request, dry_run=dry_run)


def demo(out: Path | str, *, minutes: float = 10.0) -> Path:
    """Goes the whole way on embedded data: brains made from the MNI152 template.

    Args:
        out: Folder for everything; the page is OUT/index.html.
        minutes: Time that it may take, about.

    Returns:
        The page.

    Raises:
        UserError: If the template is not installed, or minutes can't be.
    """
    from anatogen.workflow.demo import run_demo

    return run_demo(Path(out), minutes)

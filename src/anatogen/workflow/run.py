"""`anatogen run`: doctor, plan, prepare, train, sample and evaluate, one after the other, in one folder.

Each stage makes one folder below OUT from named inputs. `OUT/run.json` says, for each one that is finished,
the hash of its inputs and the sizes of its files: where both are as they were, the stage is skipped. A stage
that was stopped goes on by its own means: records of scans, checkpoints, synthetic scans that are there.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from anatogen.config.presets import split_overrides, training_settings
from anatogen.config.resolving import resolve
from anatogen.core.errors import StorageError, UserError
from anatogen.core.files import sha256_file, sha256_json, write_json, write_text
from anatogen.dataset.manifest import load_manifest
from anatogen.dataset.prepare_config import PrepareConfig, prepare_settings
from anatogen.dataset.recipes.tables import tables_beside
from anatogen.generators.description import DESCRIPTION_NAME
from anatogen.io.archives import is_archive, scans_folder
from anatogen.workflow.page import write_index
from anatogen.workflow.request import INDEX_NAME, NOT_EVALUATED_NAME, RunRequest

STATE_NAME = "run.json"
_UNPACKED_NAME = ".unpacked"
# What is learned of each scan, for doctor, plan and prepare.
_RECORDS_NAME = ".records"


@dataclass(frozen=True)
class Stage:
    """A step of the way.

    Attributes:
        name: As in `FOLDERS`, and as its own command is called.
        work: Makes its result, or what is missing of it.
        inputs: Gives all that decides its result, once the stages before it are finished.
    """

    name: str
    work: Callable[[RunRequest], None]
    inputs: Callable[[], Any]


def run(request: RunRequest, *, dry_run: bool = False) -> Path | None:
    """Goes the whole way from a folder of scans to evaluated synthetic ones, or goes on where it was stopped.

    Args:
        request: What was asked for.
        dry_run: Stops when the plan is shown.

    Returns:
        `OUT/index.html`, or None for a dry run.

    Raises:
        UserError: If settings or folders are wrong, nothing can be prepared, or a stage can't be done.
    """
    way = stages(request)
    finished = _open(request, way)
    try:
        for stage in way:
            if dry_run and stage.name == "prepare":
                return None
            folder = request.folder(stage.name)
            if _is_finished(request, stage, finished.get(stage.name)):
                print(f"{stage.name}: finished before, in {folder}", flush=True)
            else:
                print(f"{stage.name}: into {folder}", flush=True)
                _remove_damaged(request, stage, finished.get(stage.name))
                started = time.perf_counter()
                stage.work(request)
                finished[stage.name] = {
                    "inputs": _hash(stage.inputs()),
                    "files": _sizes(request, stage.name),
                    "seconds": round(time.perf_counter() - started, 2),
                }
                write_json(request.out / STATE_NAME, {"stages": finished})
                write_index(request, finished)
            if stage.name == "plan":
                print((folder / "plan.txt").read_text(encoding="utf-8"), flush=True)
            if stage.name == "prepare":
                # Nothing after this stage looks at scans.
                _remove_unpacked(request)
    finally:
        _remove_unpacked(request)
    write_index(request, finished)
    return request.out / INDEX_NAME


def stages(request: RunRequest) -> list[Stage]:
    """The way, in order."""
    sources = _sources(request)
    plan, data = request.folder("plan"), request.folder("prepare")
    bundle = request.folder("train") / "bundle" / DESCRIPTION_NAME

    def dataset() -> str:
        return load_manifest(data).sha256()

    def samples() -> list[Any]:
        # The bundle's description holds the hashes of its weights.
        return [sha256_file(bundle), request.seed, request.num_samples]

    budget = [request.hours, request.memory_gb, request.device]
    return [
        Stage("doctor", _doctor, lambda: [sources, request.prepare_overrides, request.recipe]),
        Stage("plan", _plan, lambda: [sources, request.overrides, request.recipe, budget, request.preset]),
        Stage("prepare", _prepare, lambda: [sources, sha256_file(plan / "prepare.yaml")]),
        Stage("train", _train, lambda: [dataset(), sha256_file(request.training_file)]),
        Stage("sample", _sample, samples),
        Stage("evaluate", _evaluate, lambda: [dataset(), *samples()]),
    ]


def _is_finished(request: RunRequest, stage: Stage, record: Mapping[str, Any] | None) -> bool:
    """Whether a stage was made from the inputs that it would have now, and its files are whole."""
    return (
        record is not None
        and record["inputs"] == _hash(stage.inputs())
        and record["files"].items() <= _sizes(request, stage.name).items()
    )


def _remove_damaged(request: RunRequest, stage: Stage, record: Mapping[str, Any] | None) -> None:
    """Removes files that are not as long as the stage made them: it would take them for whole."""
    if record is not None and record["inputs"] == _hash(stage.inputs()):
        for name, size in _sizes(request, stage.name).items():
            if record["files"].get(name, size) != size:
                print(f"  {name} was changed or is damaged: it is made anew", flush=True)
                (request.out / name).unlink()


def _hash(inputs: Any) -> str:
    """Hash of a stage's inputs; paths among the overrides count as texts."""
    return sha256_json(json.loads(json.dumps(inputs, default=str)))


def _sizes(request: RunRequest, stage: str) -> dict[str, int]:
    """Sizes of the files that a stage made, by their paths below OUT; of a training those of the bundle."""
    folder = request.folder(stage) / ("bundle" if stage == "train" else "")
    names = {path: path.relative_to(request.out) for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path.stat().st_size
        for path, name in names.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def _sources(request: RunRequest) -> list[Any]:
    """Hash of the scans, and names, sizes and times of the tables that tell of them."""
    settings = prepare_settings(request.prepare_overrides, recipe=request.recipe)
    fingerprint = scans_fingerprint(request.scans)
    tables = [] if settings.patient_csv is None else [settings.patient_csv]
    if settings.recipe != "folder":
        tables += tables_beside(request.scans)
    try:
        return [fingerprint, *(_stamp(path, path.name) for path in tables)]
    except OSError as error:
        raise UserError(f"the patient table {error.filename} can't be read ({error.strerror})") from error


def scans_fingerprint(scans: Path) -> str:
    """Hash of the relative paths, sizes and times of all files below a folder, or of an archive.

    Raises:
        UserError: If it is neither.
    """
    if is_archive(scans):
        return sha256_json(_stamp(scans, scans.name))
    if not scans.is_dir():
        raise UserError(f"{scans} is no folder and no archive of scans: name one")
    found, seen = [], set()
    # Links are followed, as `discover` does, but not in circles.
    for name, folders, files in os.walk(scans, followlinks=True):
        folder = Path(name)
        if (here := folder.resolve()) in seen:
            folders.clear()
            continue
        seen.add(here)
        paths = [folder / file for file in files]
        found += [_stamp(path, path.relative_to(scans).as_posix()) for path in paths if path.is_file()]
    return sha256_json(sorted(found))


def _stamp(path: Path, name: str) -> list[Any]:
    """What changes when a file does, without reading it."""
    stat = path.stat()
    return [name, stat.st_size, stat.st_mtime_ns]


def _open(request: RunRequest, way: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """What is finished in the folder, if it may be used; `stages` has looked at what concerns `prepare`."""
    out, scans = request.out, request.scans
    if request.num_samples < 1:
        raise UserError(f"num_samples is {request.num_samples}: it must be at least 1")
    if request.seed < 0:
        raise UserError(f"seed is {request.seed}: it must be at least 0")
    if not 0 < request.hours < math.inf:
        raise UserError(f"hours is {request.hours:g}: it must be above 0, and finite")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for the run")
    if out.resolve().is_relative_to(scans.resolve()) or scans.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out} and {scans} lie inside one another: choose another folder for the run")
    state = out / STATE_NAME
    finished: dict[str, dict[str, Any]] = {}
    if state.is_file():
        try:
            finished = json.loads(state.read_text(encoding="utf-8"))["stages"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{state} is not of a run: choose another folder") from error
    elif out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no run: choose another folder")
    (plan,) = (stage for stage in way if stage.name == "plan")
    if not _is_finished(request, plan, finished.get("plan")):
        # A plan that is there was checked when it was made, maybe when the preset was of another family.
        training_settings(request.preset, split_overrides(request.overrides)[1])
    # Claims the folder: a run that is stopped in its first stage is found again.
    write_json(state, {"stages": finished})
    return finished


def _unpacked(request: RunRequest) -> AbstractContextManager[Path]:
    """The folder of scans; an archive is unpacked once for all stages that look at them."""
    return scans_folder(request.scans, request.out / _UNPACKED_NAME, progress=request.progress)


def _remove_unpacked(request: RunRequest) -> None:
    shutil.rmtree(request.out / _UNPACKED_NAME, ignore_errors=True)


def _doctor(request: RunRequest) -> None:
    from anatogen.doctor.examine import examine
    from anatogen.doctor.page import write_doctor_page
    from anatogen.doctor.table import print_diagnosis

    out = request.folder("doctor")
    settings = prepare_settings(request.prepare_overrides, recipe=request.recipe)
    with _unpacked(request) as folder:
        diagnosis = examine(
            folder,
            settings,
            records=request.out / _RECORDS_NAME,
            workers=request.workers,
            progress=request.progress,
        )
    write_doctor_page(diagnosis, out)
    print_diagnosis(diagnosis, out)
    if not diagnosis.is_usable:
        raise UserError(f"nothing in {request.scans} can be prepared: {out / 'doctor.html'} says why")


def _plan(request: RunRequest) -> None:
    from anatogen.planning.plan import make_plan

    with _unpacked(request) as scans:
        plan = make_plan(
            scans,
            memory_gb=request.memory_gb,
            hours=request.hours,
            recipe=request.recipe,
            overrides=request.overrides,
            preset=request.preset,
            device=request.device,
            records=request.out / _RECORDS_NAME,
            workers=request.workers,
            progress=request.progress,
        )
    folder = request.folder("plan")
    plan.save(folder)
    write_text(folder / "plan.txt", plan.text() + "\n")


def _prepare(request: RunRequest) -> None:
    from anatogen.dataset.prepare import prepare

    settings = resolve(PrepareConfig, file=request.folder("plan") / "prepare.yaml")
    with _unpacked(request) as scans:
        summary = prepare(
            scans,
            request.folder("prepare"),
            settings,
            records=request.out / _RECORDS_NAME,
            workers=request.workers,
            progress=request.progress,
        )
    counts = ", ".join(f"{count} {split}" for split, count in summary.num_cases.items())
    print(f"  {counts}, {len(summary.left_out)} left out", flush=True)


def _train(request: RunRequest) -> None:
    from anatogen.training.run_folder import claim_run
    from anatogen.training.train import train

    settings = training_settings(config=request.training_file)
    data, model = request.folder("prepare"), request.folder("train")
    try:
        claim_run(model, load_manifest(data).sha256(), settings, settings.training.seed)
    except StorageError:
        raise
    except UserError:
        # Hours of training are not thrown away because a scan was added.
        aside = next(
            path for number in range(1, 10_000) if not (path := model.with_name(f"model_{number}")).exists()
        )
        print(f"  a model of other scans or settings is there: it is kept as {aside}", flush=True)
        model.rename(aside)
    train(data, model, settings, device=request.device)


def _sample(request: RunRequest) -> None:
    from anatogen.generators.loading import load_bundle
    from anatogen.generators.sampling import OtherSetError

    out = request.folder("sample")
    write = partial(
        load_bundle(request.folder("train") / "bundle").write,
        out,
        num_samples=request.num_samples,
        seed=request.seed,
        device=request.device,
        processes=request.workers,
    )
    try:
        write()
    except OtherSetError:
        # What can be made again in minutes is not kept.
        shutil.rmtree(out)
        write()
    for path in out.glob("synthetic_*"):
        if int(path.name.removeprefix("synthetic_").partition(".")[0]) >= request.num_samples:
            path.unlink()


def _evaluate(request: RunRequest) -> None:
    from anatogen.evaluation.evaluate import TooFewScansError, describe_roles, evaluate
    from anatogen.evaluation.report import clear_report, open_report_folder
    from anatogen.report.progress import shown_progress

    data, out = request.folder("prepare"), request.folder("evaluate")
    # Without test scans there is no audit, which the bundle is for.
    bundle = request.folder("train") / "bundle" if describe_roles(data) else None
    (out / NOT_EVALUATED_NAME).unlink(missing_ok=True)
    try:
        with shown_progress(request.progress) as progress:
            evaluation = evaluate(
                data,
                request.folder("sample"),
                out,
                bundle=bundle,
                seed=request.seed,
                device=request.device,
                progress=progress,
            )
    except TooFewScansError as error:
        # They are made all the same; the page says that they were not judged.
        print(f"  not evaluated: {error}", flush=True)
        open_report_folder(out)
        clear_report(out)
        write_text(out / NOT_EVALUATED_NAME, f"{error}\n")
        return
    for answer in evaluation.answers:
        print(f"  {answer.question} {answer.headline}", flush=True)

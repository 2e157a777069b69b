"""`anatogen run`: doctor, plan, prepare, train, sample and evaluate, one after the other, in one folder.

Each stage is a function that makes one folder below OUT from named inputs. `OUT/run.json` says, for each one
that is finished, the hash of its inputs and the sizes of its files: where both are as they were, the stage is
skipped. A stage that was stopped goes on by its own means: records of prepared scans, checkpoints, synthetic
scans that are there already.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from anatogen.config.presets import preset_named, split_overrides
from anatogen.config.resolving import resolve
from anatogen.config.settings import Settings
from anatogen.core.errors import UserError
from anatogen.core.files import sha256_file, sha256_json, write_json, write_text
from anatogen.dataset.manifest import MANIFEST_NAME, load_manifest
from anatogen.dataset.prepare_config import PrepareConfig, prepare_settings
from anatogen.dataset.prepared_folder import array_names
from anatogen.dataset.recipes.tables import tables_beside
from anatogen.generators.description import DESCRIPTION_NAME
from anatogen.io.archives import is_archive, scans_folder
from anatogen.workflow.page import write_index
from anatogen.workflow.request import FOLDERS, INDEX_NAME, NOT_EVALUATED_NAME, RunRequest

STATE_NAME = "run.json"
_UNPACKED_NAME = ".unpacked"
# What is learned of each scan, for doctor, plan and prepare.
_RECORDS_NAME = ".records"
# Says which model and seed the synthetic scans are of.
SET_NAME = ".set"


@dataclass(frozen=True)
class Stage:
    """A step of the way.

    Attributes:
        name: As in `FOLDERS`, and as its own command is called.
        inputs: Gives all that decides its output, by name, as JSON has it.
        work: Makes its output, or what is missing of it.
        outputs: Gives the files that it made, once it has.
    """

    name: str
    inputs: Callable[[], Mapping[str, Any]]
    work: Callable[[], None]
    outputs: Callable[[], Iterable[Path]]


@dataclass
class State:
    """What is finished, as `run.json` keeps it; it holds nothing of patients.

    Attributes:
        path: The file.
        finished: For each finished stage the hash of its inputs, the sizes of its files by their paths below
            OUT, and its seconds.
    """

    path: Path
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)

    def is_finished(self, stage: Stage) -> bool:
        """Whether a stage was made from the inputs that it would have now, and its files are whole."""
        record = self.finished.get(stage.name)
        return (
            record is not None
            and record["inputs"] == sha256_json(stage.inputs())
            and record["files"] == self._sizes(record["files"])
        )

    def finish(self, stage: Stage, seconds: float) -> None:
        """Records that a stage is finished, atomically."""
        names = [path.relative_to(self.path.parent).as_posix() for path in stage.outputs()]
        before = self.finished.get(stage.name, {}).get("seconds", 0.0)
        self.finished[stage.name] = {
            "inputs": sha256_json(stage.inputs()),
            "files": self._sizes(names),
            "seconds": round(seconds if seconds > 1 else max(seconds, before), 2),
        }
        write_json(self.path, {"stages": self.finished})

    def _sizes(self, names: Iterable[str]) -> dict[str, int]:
        files = {name: self.path.parent / name for name in names}
        return {name: file.stat().st_size for name, file in files.items() if file.is_file()}


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
    state = _open(request)
    try:
        return _go(request, way, state, dry_run)
    finally:
        _remove_unpacked(request)


def _go(request: RunRequest, way: Iterable[Stage], state: State, dry_run: bool) -> Path | None:
    for stage in way:
        if dry_run and stage.name == "prepare":
            return None
        if state.is_finished(stage):
            print(f"{stage.name}: finished before, in {request.folder(stage.name)}", flush=True)
        else:
            print(f"{stage.name}: into {request.folder(stage.name)}", flush=True)
            started = time.perf_counter()
            stage.work()
            state.finish(stage, time.perf_counter() - started)
            write_index(request, state.finished)
        if stage.name == "prepare":
            # Nothing after this stage looks at scans.
            _remove_unpacked(request)
        if stage.name == "plan":
            print((request.folder("plan") / "plan.txt").read_text(encoding="utf-8"), flush=True)
    write_index(request, state.finished)
    return request.out / INDEX_NAME


def stages(request: RunRequest) -> list[Stage]:
    """The way, in order. A stage's inputs can be told once those before it are finished."""
    # Tables are sources, too.
    scans = [scans_fingerprint(request.scans), *_tables(request)]
    overrides = _as_json(request.overrides)
    doctor, plan, data, model, synthetic, report = (request.folder(name) for name in FOLDERS)
    bundle = model / "bundle"
    of_set = partial(_set_of_samples, request)
    return [
        Stage(
            "doctor",
            lambda: {"scans": scans, "settings": [_as_json(request.prepare_overrides), request.recipe]},
            lambda: _doctor(request),
            lambda: [doctor / "doctor.html", doctor / "doctor.json"],
        ),
        Stage(
            "plan",
            lambda: {
                "overrides": overrides,
                "recipe": request.recipe,
                "scans": scans,
                "budget": [request.hours, request.memory_gb, request.device],
                "preset": request.preset,
            },
            lambda: _plan(request),
            lambda: [plan / name for name in ("prepare.yaml", "train.yaml", "plan.json", "plan.txt")],
        ),
        Stage(
            "prepare",
            lambda: {"scans": scans, "settings": sha256_file(plan / "prepare.yaml")},
            lambda: _prepare(request),
            lambda: [data / MANIFEST_NAME, *(data / name for name in array_names(load_manifest(data)))],
        ),
        Stage(
            "train",
            lambda: {
                "data": load_manifest(data).sha256(),
                "settings": sha256_file(plan / "train.yaml"),
            },
            lambda: _train(request),
            lambda: _files(bundle),
        ),
        Stage(
            "sample",
            lambda: of_set() | {"num_samples": request.num_samples},
            lambda: _sample(request),
            lambda: _files(synthetic),
        ),
        Stage(
            "evaluate",
            lambda: of_set() | {"data": load_manifest(data).sha256(), "num_samples": request.num_samples},
            lambda: _evaluate(request),
            lambda: [path for path in _files(report) if path.parent == report],
        ),
    ]


def _as_json(overrides: Mapping[str, Any]) -> Any:
    """Overrides as JSON has them, paths as texts."""
    return json.loads(json.dumps(overrides, default=str))


def scans_fingerprint(scans: Path) -> str:
    """Hash of the relative paths, sizes and times of all files below a folder, or of an archive.

    Raises:
        UserError: If it is neither.
    """
    if is_archive(scans):
        stat = scans.stat()
        return sha256_json([scans.name, stat.st_size, stat.st_mtime_ns])
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
        for path in (folder / file for file in files):
            if path.is_file():
                stat = path.stat()
                found.append([path.relative_to(scans).as_posix(), stat.st_size, stat.st_mtime_ns])
    return sha256_json(sorted(found))


def _tables(request: RunRequest) -> list[Any]:
    """Hash of the table of patients, and names, sizes and times of the tables that a recipe may read."""
    settings = prepare_settings(request.prepare_overrides, recipe=request.recipe)
    table = settings.patient_csv
    try:
        given = None if table is None else sha256_file(table)
    except OSError as error:
        raise UserError(f"the patient table {table} can't be read ({error.strerror})") from error
    if settings.recipe == "folder":
        return [given]
    stats = [(path.name, path.stat()) for path in tables_beside(request.scans)]
    return [given, *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]


def _open(request: RunRequest) -> State:
    """The state of what was done in the folder, if it may be used."""
    out, scans = request.out, request.scans
    if request.num_samples < 1:
        raise UserError(f"num_samples is {request.num_samples}: it must be at least 1")
    if not request.hours > 0:
        raise UserError(f"hours is {request.hours:g}: it must be above 0")
    # Mistakes in settings are told before anything is made; `stages` has looked at those of `prepare`.
    resolve(Settings, preset_named(request.preset), overrides=split_overrides(request.overrides)[1])
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for the run")
    if out.resolve().is_relative_to(scans.resolve()) or scans.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out} and {scans} lie inside one another: choose another folder for the run")
    state = State(out / STATE_NAME)
    if state.path.is_file():
        try:
            state.finished = json.loads(state.path.read_text(encoding="utf-8"))["stages"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{state.path} is not of a run: choose another folder") from error
    elif out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no run: choose another folder")
    # Claims the folder: a run that is stopped in its first stage is found again.
    write_json(state.path, {"stages": state.finished})
    return state


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
    from anatogen.training.latent_diffusion import train
    from anatogen.training.run_folder import claim_run

    settings = resolve(Settings, file=request.folder("plan") / "train.yaml")
    data, model = request.folder("prepare"), request.folder("train")
    try:
        claim_run(model, load_manifest(data).sha256(), settings, settings.training.seed)
    except UserError:
        # Hours of training are not thrown away because a scan was added.
        aside = next(
            path for number in range(1, 10_000) if not (path := model.with_name(f"model_{number}")).exists()
        )
        print(f"  a model of other scans or settings is there: it is kept as {aside}", flush=True)
        model.rename(aside)
    train(data, model, settings, device=request.device)


def _set_of_samples(request: RunRequest) -> dict[str, Any]:
    """What all synthetic scans of a set share; the bundle's description holds the hashes of its weights."""
    description = request.folder("train") / "bundle" / DESCRIPTION_NAME
    return {"bundle": sha256_file(description), "seed": request.seed}


def _sample(request: RunRequest) -> None:
    from anatogen.generators.loading import load_bundle

    out, bundle = request.folder("sample"), request.folder("train") / "bundle"
    of_set = sha256_json(_set_of_samples(request))
    marker = out / SET_NAME
    if not marker.is_file() or marker.read_text(encoding="utf-8") != of_set:
        # Of another model: what can be made again in minutes is not kept.
        shutil.rmtree(out, ignore_errors=True)
        write_text(marker, of_set)
    for path in out.glob("synthetic_*"):
        if int(path.name.removeprefix("synthetic_").partition(".")[0]) >= request.num_samples:
            path.unlink()
    load_bundle(bundle).write(
        out,
        num_samples=request.num_samples,
        seed=request.seed,
        device=request.device,
        processes=request.workers,
    )


def _evaluate(request: RunRequest) -> None:

    from anatogen.evaluation.evaluate import describe_roles, evaluate
    from anatogen.evaluation.report import clear_report, open_report_folder
    from anatogen.report.progress import shown_progress

    data, out = request.folder("prepare"), request.folder("evaluate")
    # Without test scans there is no audit, which the bundle is for.
    bundle = request.folder("train") / "bundle" if describe_roles(data) else None
    (out / NOT_EVALUATED_NAME).unlink(missing_ok=True)
    try:
        with shown_progress(request.progress) as progress:
            evaluation = evaluate(
                data, request.folder("sample"), out, bundle=bundle, seed=request.seed, progress=progress
            )
    except UserError as error:
        # Scans that are too few to be judged are made all the same; the page says that they were not.
        print(f"  not evaluated: {error}", flush=True)
        open_report_folder(out)
        clear_report(out)
        write_text(out / NOT_EVALUATED_NAME, f"{error}\n")
        return
    for answer in evaluation.answers:
        print(f"  {answer.question} {answer.headline}", flush=True)


def _files(folder: Path) -> list[Path]:
    """The files below a folder that are not hidden, in order."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )

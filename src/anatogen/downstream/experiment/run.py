"""The whole experiment: pre-trainings and trials that any number of processes share and resume.

Each is a folder, finished when its last file is there; a lock that dies with its process keeps two from
making the same one. So the same command, started again or several times at once, on one machine or on
several with one disk, repeats nothing.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from anatogen.config.resolving import resolve, save_yaml
from anatogen.core.devices import device_named
from anatogen.core.errors import UserError
from anatogen.core.files import write_text
from anatogen.core.processes import SPAWN
from anatogen.dataset.manifest import Manifest, load_manifest
from anatogen.dataset.scan_sets import folder_and_split
from anatogen.dataset.workers import available_cores, end_with_parent
from anatogen.downstream.experiment.page import NUM_PICTURES, PAGE_NAME, write_experiment_page
from anatogen.downstream.experiment.plan import ExperimentPlan
from anatogen.downstream.experiment.results import ResultRow, rows_text, write_results
from anatogen.downstream.experiment.shapes import random_shapes
from anatogen.downstream.experiment.trials import RESULTS_NAME, Job, Pretraining, Trial, pretrainings, trials
from anatogen.downstream.finetune import finetune
from anatogen.downstream.labelled import LabelledSplits, labelled_subset, load_labelled
from anatogen.downstream.measure import measure_cases
from anatogen.downstream.pretrain import pretrain
from anatogen.downstream.segmenter import load_segmenter
from anatogen.downstream.settings import PRETRAINING
from anatogen.io.npy import write_array, write_npy
from anatogen.io.volume import Volume
from anatogen.training.loop import CHECKPOINT_NAME

PLAN_NAME = "plan.yaml"
_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_BETWEEN_PAGES = 60.0


def run_experiment(plan: ExperimentPlan, out: Path | str, *, processes: int = 1) -> Path:
    """Does every pre-training and trial that is not done yet, and writes results and page.

    See `anatogen.run_experiment`. Arms, fractions and seeds may be added to a plan, other settings need
    another folder. Beside the page is `results.jsonl`, a row for each test scan of each trial.
    """
    out = Path(out)
    if processes < 1:
        raise UserError(f"processes is {processes}: it must be at least 1")
    splits = load_labelled(plan.data)
    for fraction in plan.fractions:
        labelled_subset(splits.train.cases, fraction, seed=0)
    for name, arm in plan.arms.items():
        for folder in arm.scans:
            if not folder_and_split(folder)[0].is_dir():
                raise UserError(f"arm {name}: {folder} is not a folder: name a folder of scans or a dataset")
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".claim.lock"):
        _claim(plan, out)
        _write_shapes(plan, splits.manifest, out)
    if processes == 1:
        failed = _work(plan, out)
    else:
        threads = max(1, available_cores() // processes)
        workers = [
            SPAWN.Process(target=_work_in_process, args=(plan, out, threads)) for _ in range(processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        failed = any(worker.exitcode for worker in workers)
    page = write_experiment_page(plan, splits, write_results(plan, out), out)
    if failed:
        raise UserError(f"jobs of {out} failed, see above: mend that, then the same command does them")
    return page


def _work_in_process(plan: ExperimentPlan, out: Path, threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    sys.exit(1 if _work(plan, out) else 0)


def _work(plan: ExperimentPlan, out: Path) -> bool:
    """Does jobs until none is left to do; returns whether one failed, which keeps no other from it."""
    jobs: list[Job] = [*pretrainings(plan), *trials(plan)]
    splits = load_labelled(plan.data)
    failed: set[Job] = set()
    while unfinished := [job for job in jobs if not job.is_done(out)]:
        possible = [job for job in unfinished if not failed & {job, Pretraining(job.arm)}]
        if not possible:
            break
        for job in possible:
            if isinstance(job, Trial) and Pretraining(job.arm) in unfinished:
                continue
            job.folder(out).mkdir(parents=True, exist_ok=True)
            lock = FileLock(job.folder(out).with_suffix(".lock"))
            try:
                with lock.acquire(timeout=0):
                    if not job.is_done(out):
                        print(f"{job}: {len(unfinished)} of {len(jobs)} jobs left", flush=True)
                        _do(job, plan, out)
                        _draw_old_page(plan, splits, write_results(plan, out), out)
                        break
            except Timeout:
                continue
            except (UserError, torch.OutOfMemoryError) as error:
                print(f"{job} failed: {error}", file=sys.stderr, flush=True)
                failed.add(job)
                torch.cuda.empty_cache()
                break
        else:
            # What is left is being done by others, or waits for what they do.
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return bool(failed)


def _draw_old_page(
    plan: ExperimentPlan, splits: LabelledSplits, rows: Sequence[ResultRow], out: Path
) -> None:
    """For those who look on; not after each job, for it takes seconds in which a GPU could learn."""
    page = out / PAGE_NAME
    with suppress(Timeout), FileLock(out / ".page.lock").acquire(timeout=0):
        if not page.exists() or time.time() - page.stat().st_mtime > _SECONDS_BETWEEN_PAGES:
            write_experiment_page(plan, splits, rows, out)


def _do(job: Job, plan: ExperimentPlan, out: Path) -> None:
    if isinstance(job, Pretraining):
        _pretrain(job, plan, out)
    else:
        _try(job, plan, out)


def _pretrain(job: Pretraining, plan: ExperimentPlan, out: Path) -> None:
    folder, arm = job.folder(out), plan.arms[job.arm]
    scans = [*arm.scans, *([_shapes_folder(out, arm.shapes)] if arm.shapes else [])]
    pretrain(scans, folder, plan.pretraining, like=plan.data)
    (folder / PRETRAINING / CHECKPOINT_NAME).unlink(missing_ok=True)


def _try(trial: Trial, plan: ExperimentPlan, out: Path) -> None:
    folder, splits = trial.folder(out), load_labelled(plan.data)
    training = plan.finetuning.training.model_copy(update={"seed": trial.seed})
    config = plan.finetuning.model_copy(update={"fraction": trial.fraction, "training": training})
    init = Pretraining(trial.arm).folder(out) if plan.arms[trial.arm].is_pretrained else None
    segmenter = finetune(plan.data, folder, config, init=init)
    found = load_segmenter(segmenter)
    found.network.to(device_named("auto"))
    number = len(labelled_subset(splits.train.cases, trial.fraction, trial.seed))
    rows = []
    for case, prediction, metrics in measure_cases(found, splits.test, plan.tolerance_mm):
        rows.append(
            ResultRow(
                **asdict(trial),
                num_training_scans=number,
                case=case.id,
                patient=case.patient,
                **asdict(metrics),
            )
        )
        if len(rows) <= NUM_PICTURES:
            write_array(prediction, folder / "predictions" / f"{case.id}.npy")
    write_text(folder / RESULTS_NAME, rows_text(rows))
    (segmenter / CHECKPOINT_NAME).unlink(missing_ok=True)


def _claim(plan: ExperimentPlan, out: Path) -> None:
    """Makes the folder this plan's, or checks that what is finished there was made by the same settings."""
    saved, digest = out / PLAN_NAME, out / "dataset.sha256"
    dataset = load_manifest(plan.data).sha256()
    if saved.exists():
        before = resolve(ExperimentPlan, file=saved)
        changed = [
            name
            for name in ("tolerance_mm", "pretraining", "finetuning")
            if getattr(before, name) != getattr(plan, name)
        ]
        changed += [
            f"arm {name}"
            for name, arm in plan.arms.items()
            if name in before.arms and before.arms[name].resolved() != arm.resolved()
        ]
        # Those that this plan leaves out were made all the same, and may come back.
        plan = plan.model_copy(update={"arms": before.arms | plan.arms})
        if digest.read_text(encoding="utf-8").strip() != dataset:
            changed.append("the data")
        if changed:
            listing = ", ".join(changed)
            raise UserError(
                f"{out} holds an experiment with other settings ({listing} changed): choose another folder"
            )
    elif not all(entry.name == digest.name or entry.name.startswith(".") for entry in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no experiment: choose another folder")
    write_text(digest, dataset + "\n")
    save_yaml(plan, saved)


def _shapes_folder(out: Path, number: int) -> Path:
    return out / f"shapes_{number}"


def _write_shapes(plan: ExperimentPlan, manifest: Manifest, out: Path) -> None:
    # In the unit of the scans, for that is how they are read.
    intensity, shape = manifest.intensity, manifest.grid.shape
    for number in {arm.shapes for arm in plan.arms.values() if arm.shapes}:
        for index in range(number):
            path = _shapes_folder(out, number) / f"shapes_{index:05d}.npy"
            if not path.exists():
                write_npy(Volume(intensity.restore(random_shapes(shape, 0, index)), np.eye(4)), path)

"""What every training loop shares: budget, finite check, checkpoints, logs, previews, progress."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful

from anatogen.config.settings import LoopSettings, OptimiserSettings
from anatogen.core.errors import UserError
from anatogen.core.extras import missing_modules
from anatogen.core.files import atomic_path, is_utf8, remove_parts, write_text
from anatogen.dataset.manifest import Grid
from anatogen.report.progress import shown_progress
from anatogen.report.volume_figures import planes_figure

if TYPE_CHECKING:
    from anatogen.generators.bundle import Bundle

CHECKPOINT_NAME = "checkpoint.pt"
LOG_NAME = "log.jsonl"
# Scans of a preview picture.
NUM_PREVIEWS = 4
_SECONDS_PER_RECORD = 1.0
_NOT_LOSSES = ("step", "minutes", "scans_per_second", "learning_rate")


class NonFiniteLossError(UserError):
    """A loss became infinite or not a number; raised before the weights are touched."""


class Loop:
    """Counts the steps of one stage, from its last checkpoint to the end of its budget.

    Use: ``for step in loop.steps(): ...``; inside, call `require_finite` before any optimiser steps and
    `record` once.

    Args:
        fabric: Devices and processes.
        folder: Where checkpoint, logs and previews go.
        settings: Budget, batch size and learning rate.
        training: Intervals.
        state: Networks and optimisers to checkpoint, by name; the learning rate of the optimisers is set.
        num_cases: Scans in an epoch.
        preview: Scans that show the present state by label, float (B, D, H, W) or (B, 1, D, H, W) in [-1, 1]
            on the CPU.
        grid: Grid of those scans.
        batches_per_step: Batches of scans that a step learns from.
    """

    def __init__(
        self,
        fabric: Fabric,
        folder: Path,
        settings: OptimiserSettings,
        training: LoopSettings,
        state: Mapping[str, Stateful],
        num_cases: int,
        preview: Callable[[], Mapping[str, Tensor]],
        grid: Grid,
        batches_per_step: int = 1,
    ) -> None:
        self.fabric = fabric
        self.folder = folder
        self.settings = settings
        self.training = training
        self.state = state
        self.optimisers = [part for part in state.values() if isinstance(part, torch.optim.Optimizer)]
        self.num_cases = num_cases
        self.preview = preview
        self.grid = grid
        self.scans_per_step = batches_per_step * settings.batch_size
        self.step = 0
        self._is_stopped = False
        self._seconds_before = 0.0
        self._started = time.perf_counter()
        self._window: list[dict[str, Tensor | float]] = []
        self._window_started = self._started

    @property
    def seconds(self) -> float:
        """Seconds spent on this stage, over all resumptions."""
        return self._seconds_before + time.perf_counter() - self._started

    def steps(self) -> Iterator[int]:
        """Yields the number of each step until the budget is used up; logs and checkpoints in between."""
        checkpoint = self.folder / CHECKPOINT_NAME
        self.folder.mkdir(parents=True, exist_ok=True)
        if checkpoint.exists():
            counters = load_checkpoint(checkpoint, self.state)
            self.step, self._seconds_before = int(counters["step"]), counters["seconds"]
            self._is_stopped = bool(counters.get("is_stopped"))
        is_writer = self.fabric.is_global_zero
        if is_writer:
            remove_parts(self.folder)
            _forget_records_after(self.folder / LOG_NAME, self.step)
        # TensorBoard takes a second to import, and only the writer needs it.
        board = _tensorboard(self.folder, self.step) if is_writer else None
        last_checkpoint = last_preview = time.perf_counter()
        progress = self._progress()
        resumed_at = self.step
        with shown_progress(is_writer) as display:
            while progress < 1:
                self._set_learning_rate(progress)
                yield self.step
                self.step += 1
                progress = self._progress()
                now = time.perf_counter()
                if not is_writer:
                    continue
                if now - self._window_started >= _SECONDS_PER_RECORD or progress >= 1:
                    record = self._close_window(now)
                    with (self.folder / LOG_NAME).open("a", encoding="utf-8") as log:
                        log.write(json.dumps(record) + "\n")
                    if board is not None:
                        for name, value in record.items():
                            board.add_scalar(name, value, self.step)
                    display(self.folder.name, min(progress, 1.0), 1.0, self._shown(record))
                if progress >= 1 or now - last_checkpoint >= 60 * self.training.checkpoint_minutes:
                    self._require_finite_weights()
                    counters = {"step": float(self.step), "seconds": self.seconds}
                    if self._is_stopped:
                        counters["is_stopped"] = 1.0
                    save_checkpoint(checkpoint, self.state, counters)
                    last_checkpoint = time.perf_counter()
                if progress < 1 and now - last_preview >= 60 * self.training.preview_minutes:
                    self._write_preview()
                    last_preview = time.perf_counter()
        if is_writer and self.step > resumed_at:
            self._write_preview()
        if board is not None:
            board.close()
        self.fabric.barrier()

    def stop(self) -> None:
        """Makes this step the last one, for resumed trainings too; call it on all ranks alike."""
        self._is_stopped = True

    def require_finite(self, losses: Mapping[str, Tensor]) -> None:
        """Stops the training if any loss is not finite.

        Raises:
            NonFiniteLossError: Naming the losses and what to change; on all ranks alike.
        """
        values = torch.stack([value.detach().float() for value in losses.values()])
        values = self._summed(values)
        if bool(torch.isfinite(values).all()):
            return
        names = [name for name, value in zip(losses, values, strict=True) if not math.isfinite(value)]
        raise NonFiniteLossError(
            f"step {self.step}: the loss {', '.join(names)} is not finite. The weights were not touched and "
            f"the last checkpoint is kept. {self._remedy()}"
        )

    def record(self, values: Mapping[str, Tensor | float]) -> None:
        """Records the losses of one step; their means are logged about once a second."""
        if not self.fabric.is_global_zero:
            # Only the writer empties the window.
            return
        self._window.append(
            {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}
        )

    def _require_finite_weights(self) -> None:
        """Refuses weights that a step overflowed though its loss was finite: the good checkpoint is kept."""
        for name, part in self.state.items():
            if isinstance(part, nn.Module) and not all(bool(w.isfinite().all()) for w in part.parameters()):
                raise NonFiniteLossError(
                    f"step {self.step}: the weights of the {name} are not finite any more. The last "
                    f"checkpoint is kept. {self._remedy()}"
                )

    def _remedy(self) -> str:
        stage, rate = f"{self.folder.name}_training", self.settings.learning_rate
        clip = f", or set {stage}.gradient_clip=1," if self.settings.gradient_clip is None else ""
        return f"Lower the learning rate ({stage}.learning_rate={rate / 3:.0e}){clip} and start a new run."

    def _progress(self) -> float:
        """Share of the budget that is used up; at least 1 ends the stage."""
        if self._is_stopped:
            return 1.0
        shares = []
        if self.settings.steps is not None:
            shares.append(self.step / self.settings.steps)
        if self.settings.minutes is not None:
            # The mean over all ranks, for they must stop at the same step.
            seconds = float(self._summed(torch.tensor(self.seconds))) / self.fabric.world_size
            shares.append(seconds / (60 * self.settings.minutes))
        return max(shares)

    def _summed(self, values: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return values
        total = self.fabric.all_reduce(values, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _set_learning_rate(self, progress: float) -> None:
        factor = min(1.0, (self.step + 1) / (self.settings.warmup_steps + 1))
        if self.settings.decay == "cosine":
            factor *= (1 + math.cos(math.pi * progress)) / 2
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.settings.learning_rate * factor

    def _close_window(self, now: float) -> dict[str, float]:
        # A loss that starts later, or a count made once an epoch, is not in every step of the window.
        names = dict.fromkeys(name for values in self._window for name in values)
        record: dict[str, float] = {"step": self.step, "minutes": round(self.seconds / 60, 4)}
        for name in names:
            found = [float(values[name]) for values in self._window if name in values]
            record[name] = sum(found) / len(found)
        scans = len(self._window) * self.scans_per_step
        record["scans_per_second"] = scans / max(now - self._window_started, 1e-9)
        record["learning_rate"] = self.optimisers[0].param_groups[0]["lr"]
        self._window.clear()
        self._window_started = now
        return record

    def _shown(self, record: Mapping[str, float]) -> str:
        losses = " ".join(f"{name} {value:.4g}" for name, value in record.items() if name not in _NOT_LOSSES)
        epoch = self.step * self.scans_per_step // self.num_cases
        speed = f"{record['scans_per_second']:.1f} scans/s"
        return f"step {record['step']:.0f} · epoch {epoch} · {losses} · {speed}"

    def _write_preview(self) -> None:
        """Draws the middle planes of a row of scans for each label."""
        planes_figure(
            [(label, list(scans.flatten(0, -4).numpy())) for label, scans in self.preview().items()],
            self.folder / "previews" / f"step_{self.step:07d}.png",
            spacing_mm=self.grid.spacing_mm,
            axis_codes=self.grid.axis_codes,
        )


def previewed(bundle: "Bundle", seed: int, **options: Any) -> Tensor:
    """The first synthetic scans, float32 (N, D, H, W) in [-1, 1] on the CPU.

    One by one: a preview must not need more memory than a step, which was counted.

    Args:
        bundle: The generator as it is now.
        seed: Random seed of the scans.
        **options: Of `Bundle.generate`.
    """
    return torch.cat([bundle.generate([index], seed=seed, **options) for index in range(NUM_PREVIEWS)])


def save_checkpoint(path: Path, state: Mapping[str, Stateful], counters: Mapping[str, float]) -> None:
    """Writes the state of networks and optimisers and the counters, atomically.

    Nothing random is in it: all randomness is a function of seed and step (`anatogen.core.seeding`).
    """
    content = {
        "counters": dict(counters),
        "parts": {name: part.state_dict() for name, part in state.items()},
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path, state: Mapping[str, Stateful]) -> dict[str, float]:
    """Restores networks and optimisers in place and returns the counters.

    Raises:
        UserError: If the file is damaged or of other networks.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in state.items():
            part.load_state_dict(content["parts"][name])
        return dict(content["counters"])
    except Exception as error:
        # torch reports damage as RuntimeError, UnpicklingError, EOFError or KeyError by where it is.
        raise UserError(
            f"the checkpoint {path} can't be used ({type(error).__name__}): delete it to start anew."
        ) from error


def read_log(folder: Path) -> list[dict[str, float]]:
    """The records of a stage's log, oldest first; a line that a kill cut short is left out."""
    path = folder / LOG_NAME
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def still_falling(records: list[dict[str, float]]) -> bool:
    """Whether the loss fell by more than 2% from the third to the last quarter of the log."""
    values = [record["loss"] for record in records]
    quarter = len(values) // 4
    if quarter == 0:
        return True
    before, after = values[-2 * quarter : -quarter], values[-quarter:]
    return sum(after) < 0.98 * sum(before)


def report_trend(folder: Path) -> None:
    """Prints a note if a stage's loss was still falling when its budget ended."""
    if still_falling(read_log(folder)):
        print(
            f"{folder.name}: the loss was still falling when the budget ended; the same command with a "
            "larger --minutes or --steps goes on from here",
            flush=True,
        )


def _forget_records_after(path: Path, step: int) -> None:
    """Drops what a killed run logged after its last checkpoint: the steps will be made again."""
    if path.exists():
        kept = [record for record in read_log(path.parent) if record["step"] <= step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def _tensorboard(folder: Path, step: int):  # type: ignore[no-untyped-def]
    if missing_modules("tensorboard"):
        print(
            f"{folder.name}: no curves for TensorBoard, which is not installed (pip install "
            f"'anatogen[tensorboard]'); {LOG_NAME} has the numbers",
            flush=True,
        )
        return None
    if not is_utf8(folder):
        print(
            f"{folder.name}: no curves for TensorBoard, which needs a path that is UTF-8; {LOG_NAME} has the "
            "numbers",
            flush=True,
        )
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

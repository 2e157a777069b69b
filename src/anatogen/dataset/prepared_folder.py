"""The folder of a prepared dataset: whose it is, whether it is up to date, and how it is published whole."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from anatogen.core.errors import UserError
from anatogen.core.files import remove_parts, sha256_json, write_json
from anatogen.core.reasons import Refusal
from anatogen.core.version import __version__
from anatogen.dataset.discover import HIDDEN, LeftOut, Source
from anatogen.dataset.manifest import MANIFEST_NAME, Manifest, Split, load_manifest
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.recipes.recipe import Selection
from anatogen.io.archives import is_archive

VOLUMES_FOLDER = "volumes"
MASKS_FOLDER = "masks"
WORK_FOLDER = ".work"
LEFT_OUT_NAME = "left_out.json"
RUN_NAME = "prepare.json"


@dataclass(frozen=True)
class PrepareSummary:
    """Result of a preparation.

    Attributes:
        folder: The prepared dataset.
        manifest: Its content.
        left_out: Scans that did not get in, with reasons, in order of name.
        ignored: How many files were no scans, or are not wanted, by why; see `discover`.
        decisions: What was chosen from the data, one line each.
        was_complete: Whether the dataset was there already, of the same scans and configuration.
    """

    folder: Path
    manifest: Manifest
    left_out: tuple[LeftOut, ...]
    ignored: Mapping[str, int]
    decisions: tuple[str, ...]
    was_complete: bool = False

    @property
    def num_ignored(self) -> int:
        """How many files that are not hidden were no scans, or are not wanted."""
        return sum(num for why, num in self.ignored.items() if why != HIDDEN)

    @property
    def num_cases(self) -> dict[str, int]:
        """How many cases each split has."""
        return {str(split): len(self.manifest.split(split)) for split in Split}


def check_folders(scans: Path, out: Path) -> None:
    """Checks that a folder is new, empty, or made by `prepare`, whole or not.

    Raises:
        UserError: If `out` holds anything else or lies inside `scans`, or `scans` is no folder or archive.
    """
    if not scans.is_dir() and not is_archive(scans):
        raise UserError(f"{scans} is not a folder: name the folder (or .zip, .tar) that holds the scans")
    if out.resolve().is_relative_to(scans.resolve()):
        raise UserError(
            f"{out} lies inside {scans}, so its own files would be taken for scans: choose another"
        )
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for the prepared dataset")
    ours = {MANIFEST_NAME, LEFT_OUT_NAME, RUN_NAME, VOLUMES_FOLDER, MASKS_FOLDER}
    foreign = [
        entry.name for entry in out.iterdir() if entry.name not in ours and not entry.name.startswith(".")
    ]
    arrays = [name for name in (VOLUMES_FOLDER, MASKS_FOLDER) if (out / name).exists()]
    foreign += [
        f"{name}/{entry.name}"
        for name in arrays
        if (out / name).is_dir()
        for entry in (out / name).iterdir()
        if not re.fullmatch(r"case_\d{5,}\.npy|\..*", entry.name)
    ]
    if not foreign and not any((out / name).exists() for name in (RUN_NAME, WORK_FOLDER)):
        foreign = arrays
    if foreign:
        raise UserError(
            f"{out} holds files that are not of a prepared dataset ({', '.join(sorted(foreign)[:3])}): "
            "choose a new folder"
        )


def fingerprint(
    folder: Path, selection: Selection, left_out: Sequence[LeftOut], config: PrepareConfig
) -> str:
    """Hash of what can change the result, cheap enough to compare each time: sizes and times, not bytes.

    Args:
        folder: The folder of scans.
        selection: What was chosen of it, with all that its tables say.
        left_out: What was found in it that can't be used.
        config: How scans are prepared.
    """
    scans = [
        [scan.patient, scan.split, dict(scan.conditions)]
        + [_files(source, folder) for source in (scan.source, scan.mask) if source is not None]
        for scan in selection.scans
    ]
    labels = sorted(selection.labels.items())
    reasons = [asdict(scan) for scan in left_out]
    return sha256_json([__version__, scans, labels, selection.notes, reasons, config.portable()])


def _files(source: Source, folder: Path) -> list[tuple[str, int, int]]:
    stats = [(file.relative_to(folder).as_posix(), file.stat()) for file in source.files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def completed(out: Path, inputs: str) -> PrepareSummary | None:
    """The summary of the dataset in the folder if it is whole and of these inputs, else None.

    Args:
        out: Folder of the dataset.
        inputs: `fingerprint` of what it should be made of.
    """
    if not (out / MANIFEST_NAME).is_file():
        return None
    try:
        run = json.loads((out / RUN_NAME).read_text(encoding="utf-8"))
        entries = json.loads((out / LEFT_OUT_NAME).read_text(encoding="utf-8"))
        manifest = load_manifest(out)
        left_out = tuple(LeftOut(entry["file"], Refusal.from_json(entry)) for entry in entries)
        same = run["inputs"] == inputs
        decisions = tuple(run["decisions"])
        ignored = {str(why): int(num) for why, num in run["ignored"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not same or not all((out / name).is_file() for name in array_names(manifest)):
        return None
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return PrepareSummary(out, manifest, left_out, ignored, decisions, was_complete=True)


def array_names(manifest: Manifest) -> set[str]:
    """Paths of all arrays of a dataset, relative to its folder."""
    return {name for case in manifest.cases for name in (case.file, case.mask) if name is not None}


def publish(summary: PrepareSummary, inputs: str) -> None:
    """Makes the folder a whole dataset: removes what is not of it, and writes `dataset.json` last.

    Args:
        summary: The result; its arrays are in the folder already.
        inputs: `fingerprint` of what it was made of.
    """
    out = summary.folder
    known = array_names(summary.manifest)
    for folder in (out / VOLUMES_FOLDER, out / MASKS_FOLDER):
        for entry in folder.iterdir() if folder.is_dir() else ():
            # Of an older, larger dataset, or half-written by a run that was killed.
            if f"{folder.name}/{entry.name}" not in known:
                entry.unlink()
    if not any(case.mask for case in summary.manifest.cases) and (out / MASKS_FOLDER).is_dir():
        (out / MASKS_FOLDER).rmdir()
    remove_parts(out)
    write_json(
        out / LEFT_OUT_NAME,
        [{"file": scan.name, **scan.refusal.as_json()} for scan in summary.left_out],
    )
    write_json(
        out / RUN_NAME,
        {"inputs": inputs, "decisions": list(summary.decisions), "ignored": dict(summary.ignored)},
    )
    summary.manifest.save(out)
    shutil.rmtree(out / WORK_FOLDER)

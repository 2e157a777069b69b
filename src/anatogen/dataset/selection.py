"""Which scans of a download are prepared, whose they are, and where the provider wants them.

discover -> the recipe's own choice -> what the user narrows it to
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from anatogen.core.errors import UserError
from anatogen.core.reasons import Reason
from anatogen.dataset.discover import NO_SCANS, LeftOut, Source
from anatogen.dataset.manifest import Split
from anatogen.dataset.patients import identify
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.recipes import recipe_named
from anatogen.dataset.recipes.recipe import Selection

# Of a patient in several splits only the scans in one are kept: what is held back must stay unseen.
_MOST_HELD_BACK = (Split.TEST, Split.VALIDATION, Split.TRAIN)
# HIPAA, 45 CFR 164.514(b)(2)(i)(C): ages over 89 may identify, and go into one category of 90 or older.
_OLDEST_AGE = 90.0


def select_scans(folder: Path, sources: Sequence[Source], config: PrepareConfig) -> Selection:
    """What the recipe chooses, with the user's patients, conditions and limit.

    Args:
        folder: The download.
        sources: What was discovered in it.
        config: Names the recipe; `patient_csv`, `patient_pattern`, `where` and `limit` change its choice.

    Raises:
        UserError: If the recipe is unknown, finds that this is not its download or takes nothing of it,
            `where` names no condition or none has it, or the patient table can't be read.
    """
    selection = recipe_named(config.recipe).select(folder, sources)
    if sources and not (selection.scans or selection.left_out):
        raise UserError(f"the recipe {config.recipe} takes none of the {len(sources)} scans in {folder}")
    scans = tuple(
        replace(scan, conditions={key: _safe(key, value) for key, value in scan.conditions.items()})
        for scan in sorted(selection.scans, key=lambda scan: scan.source.name)
    )
    selection = replace(selection, scans=scans)
    if config.patient_pattern is not None or config.patient_csv is not None:
        selection = _with_told_patients(selection, folder, config)
    selection = _where(selection, config.where)
    selection = _in_one_split(selection)
    num_scans = len(selection.scans)
    if config.limit is None or num_scans <= config.limit:
        return selection
    note = f"limit: the first {config.limit} of {num_scans} scans are taken"
    return replace(selection, scans=selection.scans[: config.limit], notes=(*selection.notes, note))


def _with_told_patients(selection: Selection, folder: Path, config: PrepareConfig) -> Selection:
    sources = [scan.source for scan in selection.scans]
    patients, unknown = identify(sources, folder, config.patient_pattern, config.patient_csv)
    scans = tuple(
        replace(scan, patient=patients[scan.source.name])
        for scan in selection.scans
        if scan.source.name in patients
    )
    return replace(selection, scans=scans, left_out=(*selection.left_out, *unknown))


def _where(selection: Selection, wanted: Mapping[str, tuple[str | float, ...] | None]) -> Selection:
    for key, values in wanted.items():
        if values is None or not selection.scans:
            continue
        known = sorted({name for scan in selection.scans for name in scan.conditions})
        if key not in known:
            there = f"their conditions are {', '.join(known)}" if known else "they have no conditions"
            raise UserError(
                f"where.{key} can't be told of these scans: {there}; where.{key}=null takes all of them"
            )
        kept = tuple(scan for scan in selection.scans if scan.conditions.get(key) in values)
        text = " or ".join(str(value) for value in values)
        counts = Counter(
            str(scan.conditions.get(key, "unknown"))
            for scan in selection.scans
            if scan.conditions.get(key) not in values
        )
        others = ", ".join(f"{count} {value}" for value, count in sorted(counts.items()))
        if not kept:
            raise UserError(f"no scan has {key} {text}, but {others}; where.{key}=null takes all of them")
        note = f"{len(kept)} of {len(selection.scans)} scans have {key} {text}"
        if others:
            note += f"; the others: {others}"
        selection = replace(selection, scans=kept, notes=(*selection.notes, note))
    return selection


def _in_one_split(selection: Selection) -> Selection:
    given: dict[str, set[Split]] = {}
    for scan in selection.scans:
        if scan.split is not None:
            given.setdefault(scan.patient, set()).add(scan.split)
    keeps = {
        patient: next(split for split in _MOST_HELD_BACK if split in splits)
        for patient, splits in given.items()
    }
    scans, left_out = [], []
    for scan in selection.scans:
        kept = keeps.get(scan.patient)
        if scan.split is None or scan.split is kept:
            scans.append(replace(scan, split=kept))
        else:
            refusal = Reason.OTHER_SPLIT(split=str(scan.split), kept=str(kept))
            left_out.append(LeftOut(scan.source.name, refusal))
    return replace(selection, scans=tuple(scans), left_out=(*selection.left_out, *left_out))


def _safe(key: str, value: str | float) -> str | float:
    """The value of a condition, or the oldest category for an age that may identify."""
    if not re.search(r"(^|_)age(_|$)", key.lower()):
        return value
    years = re.match(r"\s*(\d+(\.\d+)?)", str(value))
    return _OLDEST_AGE if years and float(years.group(1)) > _OLDEST_AGE - 1 else value


def require_scans(
    accepted: Sequence[object], left_out: Sequence[LeftOut], scans: Path, narrowed: bool
) -> None:
    """Checks that some scan of a folder can be used.

    Args:
        accepted: The scans that can.
        left_out: Those that can't.
        scans: The folder or archive, for the message.
        narrowed: Whether include or exclude keep scans out.

    Raises:
        UserError: If there is none, with the first reason.
    """
    if accepted:
        return
    if left_out:
        raise UserError(
            f"none of the {len(left_out)} scans in {scans} can be used; the first: "
            f"{left_out[0].name}: {left_out[0].reason}"
        )
    passed = " that include and exclude let pass" if narrowed else ""
    raise UserError(f"{scans} holds no scans{passed}: {NO_SCANS}")

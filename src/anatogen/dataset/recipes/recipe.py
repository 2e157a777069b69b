"""What a recipe is: the settings that a known dataset is prepared with, and what its tables and folders say.

discover -> recipe.select (which scans, whose, with what labels) -> the common way of `prepare`
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anatogen.dataset.discover import LeftOut, Source
from anatogen.dataset.manifest import Split

# What a table says of a scan, such as {"diagnosis": "CN", "age": 71.0}.
Conditions = Mapping[str, str | float]


@dataclass(frozen=True)
class Scan:
    """A scan that a recipe chose. Names the patient, so it lives in memory only.

    Attributes:
        source: Where it lies.
        patient: What identifies the patient.
        split: The provider's own split; None to deal patients as `prepare` does.
        conditions: Labels that are kept with the case. None of them may identify the patient.
        mask: Label map on the scan's grid, if there is one.
    """

    source: Source
    patient: str
    split: Split | None = None
    conditions: Conditions = field(default_factory=dict)
    mask: Source | None = None


@dataclass(frozen=True)
class Selection:
    """Scans that a recipe chose from a download.

    Attributes:
        scans: In order of name.
        left_out: Scans that can't be used, each with its reason; `--strict` makes an error of them. What is
            of no interest, as other planes and sequences, is in neither, and counted in a note.
        notes: What was found out or assumed, one line each, for the user.
        labels: Name of each value that masks may hold, where the source tells; other values are refused.
    """

    scans: tuple[Scan, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    labels: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How one dataset is prepared.

    Attributes:
        name: For `--recipe`.
        summary: One line: organ, modality, origin.
        defaults: Nested values of `PrepareConfig` that a user's own settings override.
        select: Chooses among what was discovered below the download's folder.
    """

    name: str
    summary: str
    defaults: Mapping[str, Any]
    select: Callable[[Path, Sequence[Source]], Selection]

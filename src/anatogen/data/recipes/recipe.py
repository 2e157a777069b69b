"""What a recipe is: the settings that a known dataset is prepared with, and what its tables and folders say.

discover -> recipe.select (which scans, whose, with what labels) -> the common way of `prepare`
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anatogen.data.discover import LeftOut, Source
from anatogen.data.manifest import Split

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
    """What a recipe makes of a download.

    Attributes:
        scans: In order of name.
        left_out: Scans that are not wanted or can't be used, each with its reason.
        notes: What was found out or assumed, one line each, for the user.
    """

    scans: tuple[Scan, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


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

"""What the rules of a family of generators add to those that all families share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anatogen.dataset.manifest import Grid
from anatogen.planning.decisions import Decision, Why
from anatogen.planning.fingerprint import Fingerprint

# With fewer scans, copies must be expected.
FEW_SCANS = 500


@dataclass(frozen=True)
class FamilyRules:
    """The rules of a family; what they are given as settings is of the family.

    Attributes:
        reference: Preset whose steps tell how fast a machine is.
        min_steps: Steps of each stage below which scans are not worth their while.
        smaller_batches: Batches of the stages that are tried where the preset's do not fit; the last are 1.
        too_short: What is said of a stage of fewer steps than those.
        networks: From the grid to the settings that depend on it alone.
        against_copies: From the fingerprint and the nested values of `PrepareConfig` and of the generator
            that are settled, to what few scans call for.
        most_steps: From the number of training scans and the settings, to the steps of stages after which
            copies were seen: only users plan more.
        copies: From the number of training scans, the steps of each stage, the settings, and whether scans
            are held out for validation, to warnings of copies.
        sample_seconds: From the settings and what else the last stage does (`DryRun.others`), in seconds, to
            the time of a sampled scan.
    """

    reference: str
    min_steps: Mapping[str, int]
    smaller_batches: Sequence[tuple[int, ...]]
    too_short: Why
    networks: Callable[[Grid], list[Decision]]
    against_copies: Callable[[Fingerprint, Mapping[str, Any], Mapping[str, Any]], list[Decision]]
    most_steps: Callable[[int, Any], Mapping[str, int]]
    copies: Callable[[int, Mapping[str, int], Any, bool], list[Decision]]
    sample_seconds: Callable[[Any, Mapping[str, float]], float]


def holds_out(prepare: Mapping[str, Any]) -> bool:
    """Whether these nested values of `PrepareConfig` leave scans for validation."""
    return float(prepare.get("split", {}).get("validation", 0.1)) > 0

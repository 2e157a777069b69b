"""The rules of a wavelet flow: levels of the pyramid, and what keeps it from storing its scans."""

import math
from collections.abc import Mapping
from typing import Any

from anatogen.config.settings import WaveletFlowSettings
from anatogen.dataset.manifest import Grid
from anatogen.models.pyramid import WaveletPyramid
from anatogen.planning.decisions import Decision, Why
from anatogen.planning.family_rules import FEW_SCANS, FamilyRules, holds_out
from anatogen.planning.fingerprint import Fingerprint
from anatogen.report.numbers import times

# The coarse image is learned as a whole, and its coarsest cells attend to one another.
MAX_COARSE_CELLS = 2_048
# As many as `PyramidSettings` takes.
_MOST_LEVELS = 5


def choose_pyramid(grid: Grid) -> list[Decision]:
    """Chooses as many halvings of the grid as leave few enough cells, or as it has."""
    possible = WaveletPyramid(grid.shape, grid.spacing_mm, _MOST_LEVELS).num_halvings
    levels, coarse = 1, _coarse_shape(grid, 1)
    while math.prod(coarse) > MAX_COARSE_CELLS and levels < possible:
        levels += 1
        coarse = _coarse_shape(grid, levels)
    is_small = math.prod(coarse) <= MAX_COARSE_CELLS
    limit = f"at most {MAX_COARSE_CELLS:,}" if is_small else "for no more halvings can be"
    facts = {"levels": levels, "coarse": times(coarse), "cells": math.prod(coarse), "limit": limit}
    return [Decision(Why.PYRAMID, facts, {"pyramid": {"num_levels": levels}})]


def _coarse_shape(grid: Grid, levels: int) -> tuple[int, int, int]:
    return WaveletPyramid(grid.shape, grid.spacing_mm, levels).shapes[-1]


def _against_copies(
    fingerprint: Fingerprint, given: Mapping[str, Any], given_training: Mapping[str, Any]
) -> list[Decision]:
    stop = given_training.get("training", {}).get("stop", "held_out")
    if fingerprint.num_scans >= FEW_SCANS or stop != "held_out" or not holds_out(given):
        return []
    return [Decision(Why.HELD_OUT, {"num_scans": fingerprint.num_scans})]


def _copies(
    scans: int, steps: Mapping[str, int], settings: WaveletFlowSettings, are_held_out: bool
) -> list[Decision]:
    if settings.training.stop != "held_out" or not are_held_out:
        return [Decision(Why.MAY_STORE_UNSTOPPED, {"scans": scans})]
    return [Decision(Why.MAY_STORE_SOME, {"scans": scans})] if scans < FEW_SCANS else []


WAVELET_FLOW = FamilyRules(
    reference="default",
    # Scans of shorter trainings were not looked at.
    min_steps={"flow": 1_000},
    smaller_batches=((2,), (1,)),
    too_short=Why.TOO_SHORT_TO_KNOW,
    networks=choose_pyramid,
    against_copies=_against_copies,
    # Held-out scans stop it.
    most_steps=lambda scans, settings: {},
    copies=_copies,
    sample_seconds=lambda settings, others: others["denoise"] * settings.flow.sampling_steps,
)

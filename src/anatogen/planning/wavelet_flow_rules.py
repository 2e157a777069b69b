"""The rules of a wavelet flow: levels of the pyramid, and what keeps it from storing its scans."""

import math
from collections.abc import Mapping
from typing import Any

from anatogen.config.settings import PyramidSettings, WaveletFlowSettings
from anatogen.dataset.manifest import Grid
from anatogen.models.pyramid import MAX_COARSE_CELLS, build_pyramid
from anatogen.planning.decisions import Decision, Why
from anatogen.planning.family_rules import FEW_SCANS, FamilyRules, holds_out
from anatogen.planning.fingerprint import Fingerprint
from anatogen.report.numbers import times


def choose_pyramid(grid: Grid) -> list[Decision]:
    """Says how many halvings of the grid leave few enough cells, or that it has no more."""
    pyramid = build_pyramid(PyramidSettings(), grid.shape, grid.spacing_mm)
    coarse = pyramid.shapes[-1]
    cells = math.prod(coarse)
    limit = f"at most {MAX_COARSE_CELLS:,}" if cells <= MAX_COARSE_CELLS else "for no more halvings can be"
    facts = {"levels": pyramid.num_levels, "coarse": times(coarse), "cells": cells, "limit": limit}
    return [Decision(Why.PYRAMID, facts, {"pyramid": {"num_levels": pyramid.num_levels}})]


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
    # Brains of 32^3 are still speckled after 1,300 steps, and smaller than most grids.
    min_steps={"flow": 3_000},
    smaller_batches=((2,), (1,)),
    too_short=Why.TOO_SHORT_FOR_DETAIL,
    networks=choose_pyramid,
    against_copies=_against_copies,
    # Held-out scans stop it.
    most_steps=lambda scans, settings: {},
    copies=_copies,
    sample_seconds=lambda settings, others: others["denoise"] * settings.flow.sampling_steps,
)

"""The rules of a latent diffusion model: it is the paper's, so hardly anything follows from the scans."""

import math
from collections.abc import Mapping

from anatogen.config.settings import LatentDiffusionSettings
from anatogen.planning.decisions import Decision, Why
from anatogen.planning.family_rules import FEW_SCANS, FamilyRules

# After so many passes, copies must be expected.
_PASSES_THAT_COPIED = 187


def _most_steps(scans: int, settings: LatentDiffusionSettings) -> dict[str, int]:
    # The last one whose passes are fewer.
    return {
        "diffusion": max(
            1, math.ceil(_PASSES_THAT_COPIED * scans / settings.diffusion_training.scans_per_step) - 1
        )
    }


def _copies(
    scans: int, steps: Mapping[str, int], settings: LatentDiffusionSettings, are_held_out: bool
) -> list[Decision]:
    passes = steps["diffusion"] * settings.diffusion_training.scans_per_step / scans
    if passes < _PASSES_THAT_COPIED:
        return [Decision(Why.MAY_STORE_SOME, {"scans": scans})] if scans < FEW_SCANS else []
    facts = {"scans": scans, "passes": passes, "copied": _PASSES_THAT_COPIED}
    return [Decision(Why.MAY_STORE, facts)]


def _sample_seconds(settings: LatentDiffusionSettings, others: Mapping[str, float]) -> float:
    return others["denoise"] * settings.diffusion.sampling_steps + others["decode"]


LATENT_DIFFUSION = FamilyRules(
    reference="paper",
    # Below these numbers of steps no training was seen to give anatomy.
    min_steps={"autoencoder": 2_000, "diffusion": 4_000},
    smaller_batches=((2, 2), (1, 2), (1, 1)),
    too_short=Why.TOO_SHORT,
    networks=lambda grid: [Decision(Why.PAPER)],
    against_copies=lambda fingerprint, given, given_training: [],
    most_steps=_most_steps,
    copies=_copies,
    sample_seconds=_sample_seconds,
)

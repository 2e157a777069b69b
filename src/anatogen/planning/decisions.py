"""The decisions of a plan: what each sets, and the line that tells why, in one table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import Any


@unique
class Why(Enum):
    """Why a setting is what it is: the line of the plan, with places for the facts of a decision."""

    ORIENTATION = "orientation {orientation}: the slice plane of most scans"
    PERCENTILES = "each MR scan's own percentiles become -1 and +1: its unit is arbitrary"
    PERCENTILES_DIFFER = (
        "each MR scan's own percentiles become -1 and +1: its unit is arbitrary (here tissue differs up to "
        "{spread:,.0f}-fold)"
    )
    WINDOW_SETTLED = "window {low:g} to {high:g} HU: as settled"
    WINDOW = "window {low:g} to {high:g} HU: air to bone; one for all, so that synthetic scans have HU"
    FLIP_SETTLED = "flip {flip}, as settled"
    NO_FLIP = (
        "no flips, for left and right differ: correlation of two scans {straight:.2f}, with one mirrored "
        "{mirrored:.2f}"
    )
    FLIP = (
        "half of the scans are mirrored, for left and right are alike: correlation of two scans "
        "{straight:.2f}, with one mirrored {mirrored:.2f}"
    )
    HELD_OUT = (
        "each level is kept as it was when its loss of held-out scans was lowest: trained on, it would store "
        "{num_scans} scans"
    )
    SPLIT = "{test:.0%} of the patients for the test and 10% for validation"
    SPLIT_FOR_AUDIT = (
        "{test:.0%} of the patients for the test and 10% for validation: the audit for copies wants about "
        "{wanted} unseen ones"
    )

    GRID_SETTLED = "grid {shape} voxels of {spacing} mm, as settled"
    SPACING_SETTLED = "spacing {spacing} mm: as settled"
    SPACING = "spacing {spacing} mm: the scans' median; {axes}"
    SPACING_COARSER = "spacing {spacing} mm: coarser than the scans' {native} mm to fit {limits}; {axes}"
    GRID_OF_FIELD = (
        "grid {shape} voxels: the scans' median field of view, rounded up to multiples of {multiple}"
    )
    GRID_OF_FOREGROUND = (
        "grid {shape} voxels: what is not air in 95% of the scans, with a margin; {air:.0%} of the field of "
        "view is left away, rounded up to multiples of {multiple}"
    )

    PAPER = "networks of the paper; the denoiser is as wide as the latents' plane has cells"
    PYRAMID = "pyramid of {levels} halvings: the coarse image has {coarse} cells, {cells:,}, {limit}"

    BATCHES_FIT = "the preset's batches: they fit"
    BATCHES_LESS = "batches of {batches}: more do not fit into {memory:.3g} GB"
    BFLOAT16 = "bfloat16 where it is safe: the GPU has it"
    NO_BFLOAT16 = "full precision: the GPU has no bfloat16"
    CPU_PRECISION = "full precision: on most CPUs bfloat16 convolutions are hundreds of times slower"
    STEPS_SETTLED = "{stage}: {steps:,} steps of {seconds:.2g} s, as settled"
    STEPS_OF_HOURS = "{stage}: {steps:,} steps of {seconds:.2g} s, what {hours:.2g} hours hold"
    STEPS_OF_PRESET = "{stage}: {steps:,} steps of {seconds:.2g} s, the preset's"
    STEPS_OF_SCANS = (
        "{stage}: {steps:,} steps of {seconds:.2g} s, {passes:,.0f} passes over {scans} training scans: "
        "after more, copies were seen; {left:.2g} of {hours:.2g} hours are left over"
    )

    # What may go wrong.
    MAY_STORE = (
        "it may store its {scans} training scans: stage two sees each {passes:,.0f} times, and with 108 "
        "scans {copied} times were too many; release nothing before `anatogen evaluate` has looked for copies"
    )
    MAY_STORE_SOME = (
        "it may store some of its {scans} training scans all the same: release nothing before `anatogen "
        "evaluate` has looked for copies"
    )
    MAY_STORE_UNSTOPPED = (
        "it may store its {scans} training scans, for no loss of held-out scans stops it; release nothing "
        "before `anatogen evaluate` has looked for copies"
    )
    TOO_SHORT = (
        "{hours:g} hours hold {steps:,} steps of stage {stage}; with less than {least:,} no anatomy was ever "
        "seen: give more --hours, or a coarser grid"
    )
    TOO_SHORT_FOR_DETAIL = (
        "{hours:g} hours hold {steps:,} steps of stage {stage}; scans of less than {least:,} are still "
        "speckled: give more --hours, or a coarser grid"
    )
    TOO_FEW_FOR_STEPS = (
        "{scans} training scans bear {steps:,} steps of stage {stage} before copies must be expected; with "
        "less than {least:,} no anatomy was ever seen: bring more scans, or take preset default, which "
        "held-out scans stop"
    )
    PATIENTS_UNKNOWN = (
        "each scan counts as a patient: if one has several, set patient_pattern or patient_csv, or they leak "
        "from training into the test"
    )
    LEFT_OUT = "{left_out} scans of {looked_at} that were looked at can't be used: `anatogen doctor` says why"


@dataclass(frozen=True)
class Decision:
    """What a rule sets, and why.

    Attributes:
        why: The reason.
        facts: What its line tells, by name.
        values: Nested values of a configuration; empty where the rule only remarks.
    """

    why: Why
    facts: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.why.value.format(**self.facts)

"""Labelled scans for fine-tuning: which classes there are, and which patients a fraction is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from anatogen.core.errors import UserError
from anatogen.core.seeding import derived_generator
from anatogen.dataset.manifest import Case, Manifest, Split
from anatogen.dataset.prepare_config import stored_settings
from anatogen.dataset.volumes import LabelledDataset


@dataclass(frozen=True)
class LabelledSplits:
    """A prepared dataset with masks.

    Attributes:
        train: Its training cases.
        validation: Those that tell when to stop.
        test: Those that are measured.
        labels: Value of each class, the background's 0 first.
    """

    train: LabelledDataset
    validation: LabelledDataset
    test: LabelledDataset
    labels: tuple[int, ...]

    @property
    def manifest(self) -> Manifest:
        """The dataset's description."""
        return self.train.manifest


def load_labelled(data: Path) -> LabelledSplits:
    """Reads which classes a prepared dataset's masks hold, and checks that they can be learned.

    Raises:
        UserError: If a case lacks its mask, a split is empty, a mask holds a label that the dataset does not
            name or that no training mask holds, even if only the test split does: it would be measured and
            can't be learned; a named label is in no mask; or masks decided where scans were cut.
    """
    parts = {split: LabelledDataset(data, split) for split in Split}
    for split, part in parts.items():
        if not len(part):
            raise UserError(f"{data} has no {split} cases: prepare it with other split fractions")
    if stored_settings(parts[Split.TRAIN].manifest.config).region == "breasts_by_mask":
        raise UserError(
            f"{data} was cut by its masks (region=breasts_by_mask), which a new scan does not have: prepare "
            "it with region=breasts"
        )
    held = {split: labels_in(part, range(len(part))) for split, part in parts.items()}
    train = parts[Split.TRAIN]
    _check_labels(data, held, train.manifest.labels)
    labels = tuple(sorted({0, *held[Split.TRAIN]}))
    return LabelledSplits(train, parts[Split.VALIDATION], parts[Split.TEST], labels)


def _check_labels(data: Path, held: Mapping[Split, Mapping[int, str]], names: Mapping[str, str]) -> None:
    learned = held[Split.TRAIN].keys() - {0}
    if not learned:
        raise UserError(f"{data}: the training masks are empty: there is nothing to learn")
    named = {int(label) for label in names} - {0}
    known = ", ".join(map(str, sorted(named)))
    for split, found in held.items():
        for label in sorted(found.keys() - {0}):
            mask = f"{data}: the mask of {found[label]} ({split}) holds the label {_shown(label, names)}"
            if named and label not in named:
                raise UserError(
                    f"{mask}, which the dataset does not name (it names {known}): name it "
                    "in the masks' list of labels, or take it out of the mask, and prepare again"
                )
            if label not in learned:
                raise UserError(
                    f"{mask}, and no training mask does, so it can't be learned: prepare with another seed "
                    "or smaller splits, or take the label out of the masks"
                )
    if missing := named - learned:
        raise UserError(
            f"{data}: no training mask holds the label {_shown(min(missing), names)}: it can't be learned; "
            "leave it out of the masks' list of labels, or add scans that show it"
        )


def _shown(label: int, names: Mapping[str, str]) -> str:
    name = names.get(str(label))
    return f"{label} ({name})" if name else str(label)


def labels_in(dataset: LabelledDataset, indices: Iterable[int]) -> dict[int, str]:
    """Labels that masks of a split hold, the background's 0 too, each with the id of the first case.

    Args:
        dataset: A split with masks.
        indices: Its cases to look at; a mask at a time is in memory.
    """
    found: dict[int, str] = {}
    for index in indices:
        mask = dataset.masks([index])[0, 0].numpy()
        # By slices: `bincount` makes int64 of what it counts.
        counts = sum(np.bincount(part.ravel(), minlength=256) for part in mask)
        for label in np.flatnonzero(counts).tolist():
            found.setdefault(label, dataset.cases[index].id)
    return found


def labelled_subset(cases: Sequence[Case], fraction: float, seed: int) -> list[int]:
    """Indices of the cases of a fraction of the patients; smaller fractions lie within larger ones.

    Args:
        cases: Cases of the training split.
        fraction: Fraction of its patients, in (0, 1]; rounded to whole patients.
        seed: Decides their order.

    Raises:
        UserError: If the fraction is less than half a patient.
    """
    patients = sorted({case.patient for case in cases})
    number = round(fraction * len(patients))
    if number == 0:
        least = 0.5 / len(patients)
        raise UserError(
            f"fraction {fraction:g} of {len(patients)} training patients is none: use more than {least:.2g}"
        )
    order = torch.randperm(len(patients), generator=derived_generator(seed, "labelled patients")).tolist()
    chosen = {patients[index] for index in order[:number]}
    return [index for index, case in enumerate(cases) if case.patient in chosen]

"""Whether anything but the picture tells the sources of a study's scans apart.

Measured on the files that a reader gets. Two tests against relabelled scans: of each feature alone, by the
greatest distance between distribution functions (Kolmogorov-Smirnov, maximum over features as in Westfall and
Young 1993, so that many features don't cause false alarms), and of all together, by a cross-validated linear
classifier (Ojala and Garriga 2010): least squares, which classifies under all relabellings at once.

Features of storage must tell nothing. Features of the picture (brightness, contrast, sharpness) may: a reader
is to see them. They are reported, for who writes the study up.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from anatogen.study.blinding import background, padded_borders

SIGNIFICANCE = 0.01
# What may be a difference is mended where it can be, before it is tested.
SUSPICION = 0.1
_NUM_RELABELLED = 999
_NUM_FOLDS = 5
_RIDGE = 1e-3
# With fewer scans of a source not even a certain give-away is significant.
LEAST_SCANS = 5

Features = dict[str, float]
Table = Mapping[str, npt.NDArray[np.float64]]


class BlindingStatus(StrEnum):
    """Whether a study's scans were made alike, as far as was tested."""

    PASSED = "passed"
    FAILED = "failed"
    UNTESTED = "untested"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class DifferingFeature:
    """A feature by which sources differ.

    Attributes:
        feature: Name of the feature, in words.
        p_value: Probability that relabelled scans differ as much in any feature.
        medians: Median of each source.
    """

    feature: str
    p_value: float
    medians: dict[str, float]

    def __str__(self) -> str:
        listed = ", ".join(f"{source} {median:.4g}" for source, median in self.medians.items())
        return f"{self.feature} ({listed})"


@dataclass(frozen=True)
class LeakCheck:
    """What tells the sources apart.

    Attributes:
        num_scans: Number of scans of each source.
        leaks: Features of storage by which sources differ, the worst first; must be none.
        accuracy: Balanced accuracy of the classifier of features of storage.
        chance: Balanced accuracy of guessing.
        p_value: Probability that the classifier does as well on relabelled scans.
        visible: Features of the picture by which sources differ.
    """

    num_scans: dict[str, int]
    leaks: tuple[DifferingFeature, ...]
    accuracy: float
    chance: float
    p_value: float
    visible: tuple[DifferingFeature, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.leaks and self.p_value > SIGNIFICANCE

    @property
    def status(self) -> BlindingStatus:
        """Whether scans are alike, as far as there are enough of them to tell."""
        return blinding_status(self.num_scans, self.passed)

    @property
    def finding(self) -> str:
        """The features that leak, in words."""
        if self.leaks:
            return "; ".join(map(str, self.leaks))
        return (
            f"features of storage together (sources told apart with {self.accuracy:.0%} balanced accuracy, "
            f"chance is {self.chance:.0%})"
        )


def blinding_status(num_scans: Mapping[str, int], passed: bool) -> BlindingStatus:
    """Whether scans were made alike; what is found in few scans counts, but that nothing is found does not.

    Args:
        num_scans: Number of scans of each source.
        passed: Whether nothing was found that tells sources apart.
    """
    if not passed:
        return BlindingStatus.FAILED
    return BlindingStatus.PASSED if _are_enough(num_scans) else BlindingStatus.UNTESTED


def features(array: npt.NDArray[np.int16], *, at_percentiles: bool) -> tuple[Features, Features]:
    """Simple statistics of a blinded scan: those that must not depend on its source, and those that may.

    Args:
        array: int16 (D, H, W).
        at_percentiles: Whether the scans are clipped at percentiles of their own. How many voxels are black
            and white is then of storage; else it tells how much air or bone there is in the picture.
    """
    low, high = array.min(), array.max()
    ends = {
        "share of black voxels": float(np.mean(array == low)),
        "share of white voxels": float(np.mean(array == high)),
    }
    if at_percentiles:
        return _storage_features(array) | ends, _picture_features(array)
    # All of the dark surroundings is black where it was padded or masked with one value.
    dark = array[background(array)]
    black = {"share of black in the background": float(np.mean(dark == low)) if dark.size else 1.0}
    return _storage_features(array) | black, _picture_features(array) | ends


def _storage_features(array: npt.NDArray[np.int16]) -> Features:
    low = int(array.min())
    counts = np.bincount((array - low).ravel())
    levels = np.flatnonzero(counts)
    # How many levels there are in all, and in the tails, is by what is in the picture.
    before = counts[levels].cumsum() / array.size
    middle = levels[(before > 0.05) & (before <= 0.95)]
    steps = np.diff(middle)
    return {
        "lowest value": float(low),
        "highest value": float(low + levels[-1]),
        "share of grey levels in use": len(middle) / float(np.ptp(middle) + 1) if len(middle) else 0.0,
        "commonest step between grey levels": float(np.bincount(steps).argmax()) if len(steps) else 0.0,
        "border planes of padding": float(padded_borders(array).sum()),
    }


def _picture_features(array: npt.NDArray[np.int16]) -> Features:
    values = array.astype(np.float64)
    spread = max(float(values.std()), 1e-6)
    steps = [np.abs(np.diff(values, axis=axis)).mean() for axis in range(3)]
    return {
        "brightness": float(values.mean()),
        "contrast": spread,
        "sharpness": float(np.mean(steps)) / spread,
    }


def table_of(rows: Sequence[Features]) -> Table:
    """The features of several scans as one array (N,) each."""
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def read_voxels(path: Path) -> npt.NDArray[np.int16]:
    """The stored voxels of a study's volume, int16 (D, H, W)."""
    return np.asarray(nib.load(path, mmap=False).dataobj.get_unscaled(), dtype=np.int16).T


def file_features(path: Path) -> Features:
    """Size, time and every number in the header of a NIfTI file."""
    status = path.stat()
    found = {"file size": float(status.st_size), "file time": float(status.st_mtime)}
    header = nib.load(path).header
    for name in header.keys():  # noqa: SIM118  nibabel's headers don't iterate
        value = np.atleast_1d(header[name])
        if value.dtype.kind in "SU":
            # Texts as numbers: any difference counts.
            found[f"header field {name}"] = float(
                sum(byte << (i % 32) for i, byte in enumerate(value.tobytes()))
            )
            continue
        for index, number in enumerate(value.ravel()):
            label = name if value.size == 1 else f"{name}[{index}]"
            found[f"header field {label}"] = float(np.nan_to_num(number, nan=-1e30))
    return found


def check(storage: Table, picture: Table, sources: Sequence[str], seed: int) -> LeakCheck:
    """Tests whether features tell sources apart.

    Args:
        storage: Features by name, each float64 (N,), that must not.
        picture: Features that may.
        sources: Source of each of the N scans.
        seed: Random seed of the relabelling.
    """
    counts = dict(Counter(sorted(sources)))
    chance = 1 / len(counts)
    if not _are_enough(counts):
        return LeakCheck(counts, (), chance, chance, 1.0, ())
    generator = np.random.default_rng(seed)
    leaks = differing(storage, sources, generator, SIGNIFICANCE)
    accuracy, p_value = _classified(storage, sources, generator)
    return LeakCheck(
        counts, leaks, accuracy, chance, p_value, differing(picture, sources, generator, SIGNIFICANCE)
    )


def differing(
    table: Table, sources: Sequence[str], generator: np.random.Generator, significance: float
) -> tuple[DifferingFeature, ...]:
    """The features in which sources differ, the worst first; none where scans are too few to tell.

    Args:
        table: Features by name, each float64 (N,).
        sources: Source of each of the N scans.
        generator: Generator of the relabelling.
        significance: Greatest p-value of a difference.
    """
    names, labels = np.unique(sources, return_inverse=True)
    varied = {name: values for name, values in table.items() if np.ptp(values) > 0}
    if not varied or not _are_enough(Counter(sources)):
        return ()
    relabelled = np.stack([labels] + [generator.permutation(labels) for _ in range(_NUM_RELABELLED)])
    found = {name: _distances(values, relabelled) for name, values in varied.items()}
    greatest = np.max(list(found.values()), axis=0)
    differences = []
    for name, distances in sorted(found.items(), key=lambda each: -each[1][0]):
        p_value = float(np.mean(greatest >= distances[0] - 1e-9))
        if p_value <= significance:
            medians = {
                str(source): float(np.median(varied[name][labels == number]))
                for number, source in enumerate(names)
            }
            differences.append(DifferingFeature(name, p_value, medians))
    return tuple(differences)


def _are_enough(num_scans: Mapping[str, int]) -> bool:
    return len(num_scans) > 1 and min(num_scans.values()) >= LEAST_SCANS


def _distances(values: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Greatest distance between two sources' distribution functions, of each row of labels (P, N)."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    ends = np.append(ordered[1:] > ordered[:-1], True)
    shares = []
    for number in range(labels.max() + 1):
        members = labels[:, order] == number
        shares.append(members.cumsum(axis=1)[:, ends] / members.sum(axis=1, keepdims=True))
    return np.max([np.abs(a - b).max(axis=1) for a, b in combinations(shares, 2)], axis=0)


def _classified(table: Table, sources: Sequence[str], generator: np.random.Generator) -> tuple[float, float]:
    """Balanced accuracy of a linear classifier of ranks and their squares, and its p-value."""
    names, labels = np.unique(sources, return_inverse=True)
    num_sources = len(names)
    columns = [rankdata(values) / len(values) - 0.5 for values in table.values() if np.ptp(values) > 0]
    if not columns:
        return 1 / num_sources, 1.0
    x = np.stack([np.ones(len(labels)), *columns, *(2 * column**2 for column in columns)], axis=1)
    relabelled = np.stack([labels, *(generator.permutation(labels) for _ in range(_NUM_RELABELLED))])
    targets = np.eye(num_sources)[relabelled.T]  # (N, P, K)
    folds = generator.permutation(len(labels)) % _NUM_FOLDS
    predicted = np.empty(targets.shape[:2], dtype=np.int64)
    for fold in range(_NUM_FOLDS):
        train, test = x[folds != fold], x[folds == fold]
        inverse = np.linalg.inv(train.T @ train + _RIDGE * len(train) * np.eye(x.shape[1]))
        scores = np.tensordot(test @ inverse @ train.T, targets[folds != fold], axes=1)
        predicted[folds == fold] = scores.argmax(axis=2)
    right = predicted == relabelled.T
    accuracies = np.mean(
        [
            (right & (number == relabelled.T)).sum(axis=0) / (labels == number).sum()
            for number in range(num_sources)
        ],
        axis=0,
    )
    return float(accuracies[0]), float(np.mean(accuracies >= accuracies[0] - 1e-9))

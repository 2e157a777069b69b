"""Which files of a folder are label or probability maps, beside what their values tell: `io.label_values`.

Names, sidecars and headers alone never make a scan of a map, nor a map of a scan: where they say map and the
values say scan, the file is in doubt, and left out until `include` or `exclude` names it.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from anatogen.dataset.discover import Source, matches
from anatogen.io.formats import SCAN_ENDINGS, ending

# Words that are maps wherever they stand in a name.
_ANYWHERE = frozenset([
    "aparc", "aseg", "atlas", "brainmask", "dseg", "groundtruth", "labelmap", "labelmaps", "labels",
    "lesionmask", "multilabel", "parc", "parcellation", "parcellations", "probabilities", "probability",
    "probabilitymap", "probmap", "probseg", "pveseg", "segmentation", "segmentations", "signmask",
    "tpm", "wmparc",
])  # fmt: skip
# And words that are at the start or the end of one: inside they may tell of a sequence or of a study.
_AT_ENDS = frozenset(["label", "mask", "masks", "prob", "probs", "pve", "roi", "rois", "seg", "segs"])
_AT_THE_END = frozenset(["gt"])
# Folders are called by these alone, or by these and a part of the set; the nearest of either kind counts.
_FOLDERS = frozenset([
    "annotations", "groundtruth", "gt", "label", "labelmaps", "labels", "labelstr", "labelsts", "mask",
    "masks", "parcellations", "probmaps", "probseg", "roi", "rois", "seg", "segmentation",
    "segmentations", "segs",
])  # fmt: skip
_FOLDERS_OF_SCANS = frozenset([
    "anat", "image", "images", "imagestr", "imagests", "img", "raw", "scans", "volumes",
])  # fmt: skip
_PARTS = frozenset(["final", "test", "tr", "train", "training", "ts", "va", "val", "validation"])
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# Tables of labels that lie beside a map under its name: BIDS, 3D Slicer, ITK-SNAP.
_TABLES = (".tsv", ".ctbl", ".label")
# Keys of JSON files beside maps: of BIDS derivatives (Type: Brain, Lesion, ...), of dcmqi and of others.
_KEYS = frozenset(["LabelMap", "labels", "Labels", "label_names", "segmentAttributes", "segments"])
_TYPES = frozenset(["brain", "lesion", "face", "roi"])
_LARGEST_SIDECAR = 1 << 20
# A folder of one patient holds no more scans and maps than this.
_MOST_OF_PATIENT = 20


def word_of_map(name: str) -> str | None:
    """The word of a relative path by which it names a map; None where there is none.

    Args:
        name: With "/" between folders.
    """
    path = PurePosixPath(name)
    words = _words(_stem(path.name))
    at_ends = [word for word in (*words[:1], *words[-1:]) if word in _AT_ENDS]
    at_the_end = [word for word in words[-1:] if word in _AT_THE_END]
    for word in (*(word for word in words if word in _ANYWHERE), *at_ends, *at_the_end):
        return word
    for folder in reversed(path.parent.parts):
        first, *others = _words(folder) or [""]
        if set(others) <= _PARTS and first in _FOLDERS | _FOLDERS_OF_SCANS:
            return first if first in _FOLDERS else None
    return None


def has_label_sidecar(source: Source) -> bool:
    """Whether a table of labels, or JSON that tells of labels, lies beside a file under its name."""
    file = source.files[0]
    stem = file.parent / _stem(file.name)
    if any(stem.with_name(stem.name + table).is_file() for table in _TABLES):
        return True
    path = stem.with_name(f"{stem.name}.json")
    try:
        if path.stat().st_size > _LARGEST_SIDECAR:
            return False
        told = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):  # none is there, or it tells nothing
        return False
    return isinstance(told, dict) and (
        not _KEYS.isdisjoint(told) or str(told.get("Type", "")).lower() in _TYPES
    )


def beside(source: Source, sources: Iterable[Source]) -> list[Source]:
    """What may be the scan that a map was made of: by its name, or in the same folder of one patient.

    Args:
        source: The map.
        sources: All scans of the folder.
    """
    here = PurePosixPath(source.name)
    stem = _stem(here.name)
    of_name, of_folder, alike, elsewhere = [], [], [], False
    for other in sources:
        path = PurePosixPath(other.name)
        if other.name == source.name:
            continue
        is_here = path.parent == here.parent
        elsewhere = elsewhere or not is_here
        start = _stem(path.name)
        goes_on = stem.startswith(start) and not stem[len(start) :][:1].isalnum()
        if is_here:
            of_folder.append(other)
            of_name += [other] * goes_on
        elif goes_on and path.parent.parent == here.parent.parent:
            alike.append(other)
    is_of_patient = not of_name and elsewhere and len(of_folder) < _MOST_OF_PATIENT
    return [*(of_folder if is_of_patient else of_name), *alike]


def is_named(source: Source, folder: Path, include: Sequence[str], word: str | None) -> bool:
    """Whether the user named a file as a scan: by a pattern that says more than a format or a folder.

    Args:
        source: The file.
        folder: Folder of the scans.
        include: Patterns of scans that count.
        word: The word of its name that is a map's; the pattern has to hold it.
    """
    telling = [
        pattern
        for pattern in include
        if (
            word in pattern.lower()
            if word
            else re.search(r"\w", PurePosixPath(pattern).name.partition(".")[0])
        )
    ]
    return matches(source, folder, telling)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(name)]


def _stem(name: str) -> str:
    kind = ending(Path(name))
    return name[: -len(kind)] if kind in SCAN_ENDINGS else name

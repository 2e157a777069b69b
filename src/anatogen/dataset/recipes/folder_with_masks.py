"""Images with a mask each, for segmentation: the layouts in which such sets are shared.

    dataset.json, imagesTr/X.nii.gz, labelsTr/X.nii.gz          Medical Segmentation Decathlon (Antonelli et
                                                                al., Nature Communications 2022)
    dataset.json, imagesTr/X_0000.nii.gz, labelsTr/X.nii.gz     nnU-Net raw, 1 and 2 (Isensee et al., Nature
                                                                Methods 2021); _0000 is the channel
    sub-1/anat/sub-1_T1w.nii.gz, derivatives/P/sub-1/anat/      BIDS (Gorgolewski et al., Scientific Data
        sub-1_dseg.nii.gz or sub-1_mask.nii.gz                  2016)
    images/X.nii.gz, labels/X.nii.gz (or masks/)                plain folders
    X.nii.gz, X_seg.nii.gz (or _mask, _label)                   side by side

`imagesTs` with `labelsTs` is the provider's test split; without, its images have nothing to learn a mask
from and are not used. To train a generator on images alone, leave the recipe out.
"""

import glob
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from anatogen.core.errors import UserError
from anatogen.core.reasons import Reason
from anatogen.dataset.discover import LeftOut, Source
from anatogen.dataset.manifest import Split
from anatogen.dataset.patients import own_patient
from anatogen.dataset.recipes.recipe import Recipe, Scan, Selection
from anatogen.io.formats import SCAN_ENDINGS, ending

# Names of folders, in lower case: whether masks lie in it, and the provider's split.
_FOLDERS: Mapping[str, tuple[bool, Split | None]] = {
    "imagestr": (False, Split.TRAIN),
    "labelstr": (True, Split.TRAIN),
    "imagests": (False, Split.TEST),
    "labelsts": (True, Split.TEST),
    "images": (False, None),
    "labels": (True, None),
    "masks": (True, None),
}
_MASK_STEM = re.compile(
    r"(.+)(?P<marked>[_-](?:d?seg|segmentation|mask|labels?|labelmap|roi|gt))", re.IGNORECASE
)
_CHANNEL_STEM = re.compile(r"(.+)_(\d{4})")
_BIDS = re.compile(r"(?:.*/)?sub-[^/]+/(?:ses-[^/]+/)?anat/(?P<entities>sub-[^/]+)_(?P<suffix>[A-Za-z0-9]+)")
_BIDS_MASKS = ("dseg", "mask")
# What a derivative's name may say beside what its image's does; another space is another grid.
_BIDS_DERIVED = re.compile(r"(?:desc|label|seg|atlas|res|den)-.+|space-(?:orig|individual|T1w)")

# (place, stem): what an image and its mask share; the place is empty, or the folder above theirs.
_Key = tuple[str, str]


@dataclass
class _Case:
    """What belongs together: one image and one mask, where nothing is missing or unclear."""

    images: list[Source] = field(default_factory=list)
    masks: list[Source] = field(default_factory=list)
    split: Split | None = None


def select(download: Path, sources: Sequence[Source]) -> Selection:
    """Every image that has a mask; the patient is DICOM's PatientID, a BIDS subject, or the file.

    Args:
        download: The folder of the set.
        sources: What was discovered in it.

    Raises:
        UserError: If no image has a mask in one of the layouts, or `dataset.json` can't be read.
    """
    is_bids = any(_is_bids_mask(source.name) for source in sources)
    cases, notes = _bids_cases(sources) if is_bids else _folder_cases(sources)
    has_test = any(case.split is Split.TEST and case.masks for case in cases)
    scans, left_out, num_unlabelled = [], [], 0
    for case in cases:
        if not case.images:
            left_out += [LeftOut(source.name, Reason.NO_IMAGE()) for source in case.masks]
        elif len(case.images) > 1 or len(case.masks) > 1:
            several = ", ".join(
                source.name for source in (case.masks if len(case.masks) > 1 else case.images)
            )
            left_out += [LeftOut(source.name, Reason.UNCLEAR_PAIR(names=several)) for source in case.images]
        elif case.masks:
            (image,), (mask,) = case.images, case.masks
            scans.append(Scan(image, own_patient(image), case.split if has_test else None, mask=mask))
        elif case.split is Split.TEST:
            num_unlabelled += 1
        else:
            left_out.append(LeftOut(case.images[0].name, Reason.NO_MASK()))
    if not scans:
        raise UserError(
            f"{download} holds no images with masks in a layout that is known: imagesTr and labelsTr, images "
            "and labels (or masks), X and X_seg (or _mask, _label) side by side, or BIDS with derivatives"
        )
    if num_unlabelled:
        notes.append(f"{num_unlabelled} images of imagesTs have no masks and are not used")
    labels = _labels(download, scans) if not is_bids else {}
    if labels:
        notes.append("labels: " + ", ".join(f"{value} {name}" for value, name in sorted(labels.items())))
    return Selection(tuple(scans), tuple(left_out), tuple(notes), labels)


def _folder_cases(sources: Iterable[Source]) -> tuple[list[_Case], list[str]]:
    placed = [(source, *_place(source.name)) for source in sources]
    mask_keys = {key for _, key, is_mask, _ in placed if is_mask}
    cases: defaultdict[_Key, _Case] = defaultdict(_Case)
    channels: dict[_Key, dict[int, Source]] = {}
    for source, key, is_mask, split in placed:
        if is_mask:
            cases[key].masks.append(source)
            continue
        channel = _CHANNEL_STEM.fullmatch(key[1])
        shared = (key[0], channel.group(1)) if channel else key
        if channel and key not in mask_keys and shared in mask_keys:
            key = shared
            channels.setdefault(key, {})[int(channel.group(2))] = source
        else:
            cases[key].images.append(source)
        cases[key].split = split
    for key, of_case in channels.items():
        cases[key].images.append(of_case[min(of_case)])
    notes = []
    if any(len(of_case) > 1 for of_case in channels.values()):
        used = Counter(min(of_case) for of_case in channels.values())
        text = ", ".join(f"{channel:04d} of {count} cases" for channel, count in sorted(used.items()))
        notes.append(
            f"images have several channels, and the first is used: {text}; for another one: "
            """'include=["*_0001.*", "labels*"]'"""
        )
    return list(cases.values()), notes


def is_mask(name: str) -> bool:
    """Whether a relative path is that of a mask, in any of the layouts."""
    return _place(name)[1] or _is_bids_mask(name)


def mask_pattern(name: str) -> str:
    """A glob pattern for a mask and those that are named alike, e.g. "labelsTr/*" or "*_seg.nii.gz"."""
    parts = PurePosixPath(name).parts
    for number, part in enumerate(parts[:-1]):
        if _FOLDERS.get(part.lower(), (False, None))[0]:
            # Whatever the folders above are called: one pattern for all patients.
            return f"{part}/*" if number == 0 else f"*/{part}/*"
    stem = _stem(parts[-1])
    marked = _MASK_STEM.fullmatch(stem)
    return f"*{marked['marked']}{parts[-1][len(stem) :]}" if marked else glob.escape(name)


def _place(name: str) -> tuple[_Key, bool, Split | None]:
    """Key that a file shares with its partner, whether it is a mask, and the provider's split."""
    path = PurePosixPath(name)
    stem = _stem(path.name)
    marked = _MASK_STEM.fullmatch(stem)
    shared = marked.group(1) if marked else stem
    folders = list(path.parent.parts)
    for depth in reversed(range(len(folders))):
        if folders[depth].lower() in _FOLDERS:
            is_mask, split = _FOLDERS[folders[depth].lower()]
            place = "/".join([*folders[:depth], "Ts" if split is Split.TEST else "", *folders[depth + 1 :]])
            return (place, shared), is_mask or marked is not None, split
    return ("/".join(folders), shared), marked is not None, None


def _stem(name: str) -> str:
    """A path without the ending of a format; a DICOM series' folder has none."""
    kind = ending(Path(name))
    return name[: -len(kind)] if kind in SCAN_ENDINGS else name


def _is_bids_mask(name: str) -> bool:
    match = _BIDS.fullmatch(_stem(name))
    return match is not None and "derivatives/" in name and match["suffix"] in _BIDS_MASKS


def _bids_cases(sources: Sequence[Source]) -> tuple[list[_Case], list[str]]:
    named = [(source, _BIDS.fullmatch(_stem(source.name))) for source in sources]
    masks: dict[str, list[tuple[Source, re.Match[str]]]] = {}
    raw = []
    for source, match in named:
        if match is None:
            continue
        if "derivatives/" not in source.name:
            raw.append((source, match))
        elif match["suffix"] in _BIDS_MASKS:
            masks.setdefault(match["entities"].split("_")[0], []).append((source, match))
    suffixes = Counter(match["suffix"] for _, match in raw)
    suffix = (
        "T1w" if "T1w" in suffixes else max(sorted(suffixes), key=lambda name: suffixes[name], default="")
    )
    others = ", ".join(f"{count} {name}" for name, count in sorted(suffixes.items()) if name != suffix)
    notes = [f"{suffix} images are used" + (f", not {others}" if others else "")]
    cases: defaultdict[_Key, _Case] = defaultdict(_Case)
    for image, match in raw:
        if match["suffix"] != suffix:
            continue
        case = cases[str(PurePosixPath(image.name).parent), match["entities"]]
        case.images.append(image)
        of_image = [
            (mask, told)
            for mask, told in masks.get(match["entities"].split("_")[0], [])
            if _describes(told["entities"], match["entities"])
        ]
        # Labels of several parts say more than one part does.
        for kind in _BIDS_MASKS:
            case.masks = case.masks or [mask for mask, told in of_image if told["suffix"] == kind]
    return list(cases.values()), notes


def _describes(mask: str, image: str) -> bool:
    """Whether a mask's entities are the image's, and nothing more than how and of what it was made."""
    more = mask.removeprefix(f"{image}_").split("_") if mask != image else []
    return all(_BIDS_DERIVED.fullmatch(entity) for entity in more)


def _labels(download: Path, scans: Sequence[Scan]) -> dict[int, str]:
    """Names of the masks' values that `dataset.json` beside `imagesTr` tells; none where there is none."""
    images = PurePosixPath(scans[0].source.name)
    places = [part for part in images.parents if part.name.lower() in ("imagestr", "imagests")]
    path = download / (places[0].parent if places else "") / "dataset.json"
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8-sig")).get("labels", {})
        return _named_labels(told)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} can't be read as a description of masks ({error})") from error


def _named_labels(told: Mapping[str, Any]) -> dict[int, str]:
    """{"1": "tumour"} (Decathlon, nnU-Net 1), {"tumour": 1} or {"tumour": [1, 2]} (nnU-Net 2) by value."""
    names: dict[int, list[str]] = {}
    for key, value in told.items():
        if isinstance(value, str):
            names.setdefault(int(key), []).append(value)
        else:
            for label in value if isinstance(value, list) else [value]:
                names.setdefault(int(label), []).append(key)
    return {label: " and ".join(parts) for label, parts in sorted(names.items())}


RECIPE = Recipe(
    name="folder_with_masks",
    summary="images with masks: Decathlon, nnU-Net raw, BIDS derivatives, images/ and labels/, X and X_seg",
    defaults={},
    select=select,
)

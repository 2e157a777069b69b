"""Which files of a folder are masks, and of which images, by the names that providers give them.

Medical Segmentation Decathlon and nnU-Net (`imagesTr`, `labelsTr`, `_0000` for channels), a folder of images
beside one of labels, and `_seg` or `_mask` beside the image (BraTS, BIDS derivatives).
"""

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anatogen.io.formats import ending

_MASK_FOLDER = re.compile(r"(labels?|masks?|segmentations?|segs?|annotations?|gt)(tr|ts|val)?", re.I)
_IMAGE_FOLDER = re.compile(r"(images?|imgs?|scans?|volumes?)(tr|ts|val)?", re.I)
_MASK_ENDING = re.compile(r"(?:^|[-_.])(?:d?seg|segmentation|mask|labels?|labelmap|roi|gt)$", re.I)
_CHANNEL = re.compile(r"_\d{4}$")


@dataclass(frozen=True)
class MaskNames:
    """What names tell.

    Attributes:
        pairs: Each mask with one of its images; an image with several channels has several.
        masks: All that are masks by their names.
        images_without: Images that lack a mask, though others in the same place have one.
        masks_without: Masks without an image.
    """

    pairs: tuple[tuple[str, str], ...]
    masks: frozenset[str]
    images_without: tuple[str, ...]
    masks_without: tuple[str, ...]


def stem(name: str) -> str:
    """The last part of a relative path without the ending of its format."""
    last = PurePosixPath(name).name
    return last[: len(last) - len(ending(Path(last)))] or last


def match_masks(names: Iterable[str], known_masks: Iterable[str] = ()) -> MaskNames:
    """Pairs masks and images by their relative paths.

    Args:
        names: Of all scans and masks.
        known_masks: Those whose voxels are labels, whatever their names.
    """
    everything = sorted(set(names))
    known = set(known_masks)
    masks = [name for name in everything if name in known or _is_mask(name)]
    images: dict[str, dict[str, list[str]]] = {}
    for name in everything:
        if name not in set(masks):
            images.setdefault(_place(name), {}).setdefault(_image_stem(name), []).append(name)
    pairs, masks_without, places = [], [], set()
    for mask in masks:
        here = images.get(_place(mask), {})
        key = _MASK_ENDING.sub("", stem(mask))
        found = here.get(key, [])
        if not found:
            # `case_seg` beside `case_t1` and `case_flair`, or a plain `mask` beside them.
            found = [name for other in here if not key or other.startswith(f"{key}_") for name in here[other]]
        if found:
            places.add(_place(mask))
            pairs += [(image, mask) for image in found]
        else:
            masks_without.append(mask)
    paired = {image for image, _ in pairs}
    images_without = [
        name
        for place in sorted(places)
        for group in images.get(place, {}).values()
        for name in group
        if name not in paired
    ]
    return MaskNames(tuple(pairs), frozenset(masks), tuple(sorted(images_without)), tuple(masks_without))


def _is_mask(name: str) -> bool:
    folders = PurePosixPath(name).parts[:-1]
    return any(_MASK_FOLDER.fullmatch(part) for part in folders) or bool(_MASK_ENDING.search(stem(name)))


def _image_stem(name: str) -> str:
    in_split = any(re.fullmatch(r"images(tr|ts|val)", part, re.I) for part in PurePosixPath(name).parts[:-1])
    return _CHANNEL.sub("", stem(name)) if in_split else stem(name)


def _place(name: str) -> str:
    """The folder, where those of images and of labels count as one."""
    parts = []
    for part in PurePosixPath(name).parts[:-1]:
        special = _MASK_FOLDER.fullmatch(part) or _IMAGE_FOLDER.fullmatch(part)
        parts.append(f"*{(special.group(2) or '').lower()}" if special else part)
    return "/".join(parts)


def mask_pattern(name: str) -> str:
    """A glob pattern for a mask and those that are named alike, e.g. "labelsTr/*" or "*_seg.nii.gz"."""
    parts = PurePosixPath(name).parts
    for number, part in enumerate(parts[:-1]):
        if _MASK_FOLDER.fullmatch(part):
            # Whatever the folders above are called: one pattern for all patients.
            return f"{part}/*" if number == 0 else f"*/{part}/*"
    marked = _MASK_ENDING.search(stem(name))
    last = parts[-1]
    return f"*{marked.group(0)}{last[len(stem(name)) :]}" if marked else glob.escape(name)

"""Rules about masks: beside images, missing, on another grid, or taken for images."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from anatogen.dataset.mask_names import mask_pattern
from anatogen.doctor.diagnosis import (
    Facts,
    Finding,
    ScanFacts,
    Severity,
    exclude,
    exclude_patterns,
    scans_are,
)
from anatogen.report.numbers import count_of

# In voxels: farther apart than this, a mask marks another place than its image shows.
_MOST_APART = 0.1
_KEEP = "--recipe folder_with_masks"


def label_maps(facts: Facts) -> Iterator[Finding]:
    """Label maps among the scans, with or without an image."""
    names = tuple(sorted(facts.masks.masks))
    if not names or facts.told_masks is not None:  # a recipe knows what to do with its masks
        return
    patterns = exclude_patterns(facts, sorted({mask_pattern(name) for name in names}))
    paired = {mask for _, mask in facts.masks.pairs}
    if paired:
        yield Finding(
            "masks",
            Severity.NOTE,
            f"{count_of(len(names), 'mask')} beside the images, {len(paired)} with an image of the same name",
            len(names),
            names,
            "Prepare leaves label maps out. Keep each with its image by the first command; to generate "
            "images alone, exclude the masks.",
            _KEEP,
            patterns,
        )
    else:
        yield Finding(
            "label_maps",
            Severity.WARNING,
            f"{scans_are(names)} label maps by their values or names, and no image is named like them",
            len(names),
            names,
            "Exclude them, or rename them so that each is called as its image is.",
            patterns,
        )
    taken = [name for name in names if (found := facts.by_name[name].look) and found.inspection is not None]
    if taken:
        yield Finding(
            "masks_as_images",
            Severity.WARNING,
            f"{scans_are(taken)} named as a mask, and would be prepared as images: their values are no "
            "labels",
            len(taken),
            tuple(taken),
            "Exclude them if they are masks or probability maps.",
            exclude_patterns(facts, sorted({mask_pattern(name) for name in taken})) or exclude(facts, taken),
        )


def unpaired(facts: Facts) -> Iterator[Finding]:
    """Images without a mask, and masks without an image."""
    names = facts.masks.images_without
    if names:
        yield Finding(
            "images_without_mask",
            Severity.WARNING,
            f"{count_of(len(names), 'image')} without a mask, though others in the same place have one",
            len(names),
            names,
            f"With {_KEEP} they are left out; without it masks do not matter.",
        )
    alone = facts.masks.masks_without
    if alone and facts.masks.pairs:
        yield Finding(
            "masks_without_image",
            Severity.WARNING,
            f"{count_of(len(alone), 'mask')} without an image of the same name",
            len(alone),
            alone,
            "Put the image beside them, rename one of the two, or exclude them.",
            exclude(facts, alone),
        )


def mismatched(facts: Facts) -> Iterator[Finding]:
    """Masks on another grid than their image, and empty ones."""
    wrong, empty = [], []
    for image, mask in facts.masks.pairs:
        # Masks of breasts only tell where to cut.
        if facts.config.region != "breasts" and not _same_grid(facts.by_name[image], facts.by_name[mask]):
            wrong += [image, mask]
        look = facts.by_name[mask].look
        if look is not None and look.num_labels == 1:
            empty.append(mask)
    if wrong:
        yield Finding(
            "mask_grid",
            Severity.WARNING,
            f"{count_of(len(wrong) // 2, 'mask')} not on the image's grid (other size, or more than 0.1 "
            "voxel away)",
            len(wrong) // 2,
            tuple(wrong),
            f"With {_KEEP} these pairs are left out: export the mask on the grid of its image.",
            exclude(facts, wrong[::2]),
        )
    if empty:
        yield Finding(
            "empty_masks",
            Severity.NOTE,
            f"{count_of(len(empty), 'mask')} with nothing marked",
            len(empty),
            tuple(dict.fromkeys(empty)),
            "That is right where there is nothing to mark; if not, exclude their images.",
        )


def _same_grid(image: ScanFacts, mask: ScanFacts) -> bool:
    """Whether both have the same voxels at the same places, as far as both could be read."""
    if image.look is None or mask.look is None:
        return image.header.shape == mask.header.shape or None in (image.header.shape, mask.header.shape)
    if image.look.shape is None or mask.look.shape is None:
        return True
    if image.look.shape != mask.look.shape:
        return False
    shape = np.array(image.look.shape)
    first, second = np.array(image.look.affine), np.array(mask.look.affine)
    corners = _corners(shape)
    apart = np.abs((first - second) @ corners)[:3].max()
    return bool(apart <= _MOST_APART * np.linalg.norm(first[:3, :3], axis=0).min())


def _corners(shape: npt.NDArray[np.int_]) -> npt.NDArray[np.float64]:
    """Voxel coordinates (4, 8) of a grid's corners; an affine map is farthest off at one of them."""
    return np.vstack([np.indices((2, 2, 2)).reshape(3, -1) * (shape - 1)[:, None], np.ones(8)])

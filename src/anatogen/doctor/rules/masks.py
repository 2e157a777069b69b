"""Rules about masks: beside images, missing, on another grid, or taken for images."""

from collections.abc import Iterator

from anatogen.dataset.masks import grid_refusal
from anatogen.dataset.recipes.folder_with_masks import mask_pattern
from anatogen.doctor.diagnosis import (
    Facts,
    Finding,
    ScanFacts,
    Severity,
    exclude,
    exclude_patterns,
    of_scans,
    scans_are,
)
from anatogen.report.numbers import count_of

_KEEP = "--recipe folder_with_masks"


def label_maps(facts: Facts) -> Iterator[Finding]:
    """Label maps among the scans, with or without an image."""
    names = tuple(sorted(facts.masks.masks))
    if not names or facts.config.recipe != "folder":  # a recipe knows what to do with its masks
        return
    patterns = exclude_patterns(facts, sorted({mask_pattern(name) for name in names}))
    paired = {mask for _, mask in facts.masks.pairs}
    if paired:
        yield of_scans(
            "masks",
            Severity.NOTE,
            f"{count_of(len(names), 'mask')} beside the images, {len(paired)} with an image of the same name",
            names,
            "Prepare leaves label maps out. Keep each with its image by the first command; to generate "
            "images alone, exclude the masks.",
            _KEEP,
            patterns,
        )
    else:
        yield of_scans(
            "label_maps",
            Severity.WARNING,
            f"{scans_are(names)} label maps by their values or names, and no image is named like them",
            names,
            "Exclude them, or rename them so that each is called as its image is.",
            patterns,
        )


def unpaired(facts: Facts) -> Iterator[Finding]:
    """Images without a mask, and masks without an image."""
    names = facts.masks.images_without
    if names:
        yield of_scans(
            "images_without_mask",
            Severity.WARNING,
            f"{count_of(len(names), 'image')} without a mask, though others have one",
            names,
            f"With {_KEEP} they are left out; without it masks do not matter.",
        )
    alone = facts.masks.masks_without
    if alone and facts.masks.pairs:
        yield of_scans(
            "masks_without_image",
            Severity.WARNING,
            f"{count_of(len(alone), 'mask')} without an image of the same name",
            alone,
            "Put the image beside them, rename one of the two, or exclude them.",
            exclude(facts, alone),
        )


def mismatched(facts: Facts) -> Iterator[Finding]:
    """Masks on another grid than their image, and empty ones."""
    wrong, empty = [], []
    for image, mask in facts.masks.pairs:
        # Masks of breasts only tell where to cut.
        only_cuts = facts.config.region == "breasts_by_mask"
        if not only_cuts and not _same_grid(facts.by_name[image], facts.by_name[mask]):
            wrong += [image, mask]
        if facts.by_name[mask].num_labels == 1:
            empty.append(mask)
    if wrong:
        yield Finding(
            "mask_grid",
            Severity.WARNING,
            f"{count_of(len(wrong) // 2, 'mask')} not on the image's grid (other size, or more than 0.1 "
            "mm away)",
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
    if image.shape is None or mask.shape is None:
        return True
    if image.affine is None or mask.affine is None:
        return image.shape == mask.shape
    return grid_refusal((image.shape, image.affine), (mask.shape, mask.affine)) is None

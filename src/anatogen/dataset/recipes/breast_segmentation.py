"""Breast MR with masks of the breasts, for the paper's downstream task: segmentation after pre-training.

Khader et al., Scientific Reports 2023, DOI 10.1038/s41598-023-34341-2, fine-tune a segmenter on breasts of
200 scans of their own, which are not public. Any set in a layout of `folder_with_masks` takes their place,
e.g. the Duke scans of which Lew et al., Scientific Reports 14 (2024), DOI 10.1038/s41598-024-54048-2, publish
masks. Whatever is not 0 in a mask counts as breast; both breasts must be in it.

The geometry is that of the recipe `duke`, so that what was pre-trained on its halves fits: cut to each
breast, 256 x 256 x 32 voxels. The cut comes from the body's outline, never from the mask: that is what a
segmenter has to find, and a new scan has none.
"""

from anatogen.dataset.recipes import folder_with_masks
from anatogen.dataset.recipes.recipe import Recipe

RECIPE = Recipe(
    name="breast_segmentation",
    summary="breast MR with masks in a layout of folder_with_masks, each breast 32 x 256 x 256 voxels",
    defaults={
        "modality": "MR",
        "orientation": "SPL",
        "region": "breasts",
        "fit": "resize",
        "shape": (32, 256, 256),
    },
    select=folder_with_masks.select,
)

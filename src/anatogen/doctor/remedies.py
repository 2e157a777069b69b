"""What to do about a scan that is left out, by the reason that a reader or a recipe gave."""

import re

# (pattern of the reason, advice, what to type); the first that matches counts. What quotes paths, patterns or
# other reasons comes first.
_CURES = (
    (r"is damaged: ", "Get the damaged file again, or remove it with its series.", ""),
    (r"belong together", "Keep one image and one mask of each name: exclude the others.", ""),
    (
        r"^its (breast )?mask",
        "Export the mask again: whole numbers from 0 to 255, on the grid of its image.",
        "",
    ),
    (r"^patient_csv", "Add a line with its path and its patient to the table.", ""),
    (r"^patient_pattern", "Widen the pattern, so that it matches the path of every scan.", ""),
    (r"no T1 series", "Get the missing series, or name the right one in the mapping sheet.", ""),
    (r"names a patient|ADNI subject", "Keep the provider's names of folders, which tell the patient.", ""),
    (r"^it has no mask", "Put its mask beside it, named as the others are; or generate images alone.", ""),
    (r"no image for this mask", "Put its image beside it, or leave it out.", ""),
    (r"its patient has scans in", "Nothing needs to be done: what is held back stays unseen.", ""),
    (r"MRNet's scans", "Get the file again from the provider: it is no scan of MRNet as it is.", ""),
    (r"DICOM modality is|do not look like", "Leave it out, or name the modality of all.", ""),
    (r"same scan as", "Nothing needs to be done: one of the two is kept.", ""),
    (r"tilt|sheared", "Have it resampled to upright slices.", "allow_tilt=true"),
    (r"missing inside", "Get the missing slices from the archive; a stack with gaps can't be stacked.", ""),
    (r"concatenation", "Get the missing parts from the archive: all of them make one scan.", ""),
    (r"lie where another", "Export one image per position: one echo, one b-value, one phase.", ""),
    (
        r"several volumes|time points|echoes|\d dimensions",
        "Split it into 3D volumes and keep one of each, such as the first time point.",
        "",
    ),
    (r"localiser", "It is a scout of a few slices for planning: leave it out.", ""),
    (r"mixed orientations|differ in|DICOM series, expected", "Export each stack as a series of its own.", ""),
    (r"unevenly|in line", "Get the original series: its slices are no even stack as they are.", ""),
    (r"pixels are compressed", "Export it uncompressed, or decompress it, as with gdcmconv --raw.", ""),
    (r"several files", "Write it as one file that holds header and voxels, such as .nrrd or .mha.", ""),
    (r"data file", "Put the header and its data file back together, below the folder of scans.", ""),
    (r"several values|values per voxel", "Export the grey values: colour is of no use here.", ""),
    (r"complex|of type|lookup table|unusual bits", "Export it with plain numbers as grey values.", ""),
    (r"NaN", "Replace the bad voxels by the background's value, or export the scan again.", ""),
    (r"constant|it is empty", "It is empty: leave it out, or export it again.", ""),
    (r"Rescale|others have none", "Export it with its rescale slope and intercept.", ""),
    (r"only .* (slices|voxels)", "It is too thin: put its slices together as one series.", ""),
    (r"label map", "Exclude it, or keep it with its image by --recipe folder_with_masks.", ""),
    (
        r"place (in the patient|of each frame)|a slice's|affine| mm can't be right",
        "Export it again with its geometry: the place, direction and spacing of its slices.",
        "",
    ),
    (
        r"foreground|no body|two breasts",
        "Look at it: the part to cut out is not found. Leave it out, or keep whole scans by region=scan.",
        "",
    ),
    (r"no DICOM", "Remove it from the series, or get it again: its name promises a slice.", ""),
    (r"archive of arrays|unknown format", "Save it as .nii.gz, .nrrd, .mha or a single .npy.", ""),
    (r"it can't be read|no such file", "Check that the file is there and that you may read it.", ""),
    (
        r"truncated|damaged|no pixel data|contradicts|longer than",
        "Copy or export it again: the file is not whole, or not what its header says.",
        "",
    ),
)
FALLBACK = "Look at it, and export it again; prepare leaves it out."


def cure(reason: str) -> tuple[str, str]:
    """What to do about a scan that is left out.

    Args:
        reason: Of a `ScanError` or a `LeftOut`.

    Returns:
        Advice, and the option of `prepare` that follows it or "".
    """
    for pattern, advice, option in _CURES:
        if re.search(pattern, reason):
            return advice, option
    return FALLBACK, ""

"""MRNet: MR of 1,250 knees from Stanford, as the archive MRNet-v1.0 unpacks.

Data descriptor: Bien et al., "Deep-learning-assisted diagnosis for knee magnetic resonance imaging:
development and retrospective validation of MRNet", PLoS Medicine 15 (2018) e1002699, DOI
10.1371/journal.pmed.1002699. Prepared as by Khader et al., Scientific Reports 2023, DOI
10.1038/s41598-023-34341-2: the sagittal T2 scans with fat saturation, each from its minimum to its maximum,
cut or padded to 256 x 256 x 32 voxels. Intensities were standardised by the provider.

    MRNet-v1.0/train/sagittal/0000.npy ... 1129.npy     uint8 (slices, 256, 256); beside: axial, coronal
    MRNet-v1.0/valid/sagittal/1130.npy ... 1249.npy
    MRNet-v1.0/train-acl.csv, train-abnormal.csv, train-meniscus.csv, valid-...     lines such as 0000,1

The provider's `valid` becomes the test split: no patient of it is in `train`. Validation is taken from
`train`, whose 1,130 studies are of 1,088 patients that the files don't tell apart.

The arrays have no geometry. That rows go towards the feet and columns towards the back is how the slices
show upright with the kneecap on the left. Whether slices run from the inner to the outer side or back
depends on left and right knees, which are not told apart, and spacing is assumed: what is said in
millimetres, or of left and right, does not hold here.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anatogen.core.errors import UserError
from anatogen.core.reasons import Reason, Refusal
from anatogen.dataset.discover import LeftOut, Source
from anatogen.dataset.manifest import Split
from anatogen.dataset.recipes.recipe import Recipe, Scan, Selection

_SCAN = re.compile(
    r"(?P<root>(?:.*/)?)(?P<split>train|valid)/(?P<plane>axial|coronal|sagittal)/(?P<number>\d+)\.npy"
)
_SPLITS = {"train": Split.TRAIN, "valid": Split.TEST}
_PLANE = "sagittal"
_TASKS = ("abnormal", "acl", "meniscus")
_ROWS_AND_COLUMNS = (256, 256)
# A field of view of 15 cm, usual for a knee, in 256 columns; a knee of 11 to 12 cm in the mean 30 slices.
_ASSUMED_SPACING_MM = (4.0, 0.6, 0.6)


def select(download: Path, sources: Sequence[Source]) -> Selection:
    """The sagittal scans, each study a patient, with what the three tables say of them.

    Args:
        download: The folder that holds `MRNet-v1.0`, or it itself.
        sources: What was discovered in it.

    Raises:
        UserError: If there is no sagittal scan where MRNet has them.
    """
    named = [(source, _SCAN.fullmatch(source.name)) for source in sources if "__MACOSX" not in source.name]
    found = [(source, match) for source, match in named if match is not None]
    wanted = [(source, match) for source, match in found if match["plane"] == _PLANE]
    if not wanted:
        raise UserError(
            f"{download} holds no MRNet scans: expected files such as MRNet-v1.0/train/sagittal/0000.npy"
        )
    tables = {
        (match["root"], match["split"], task): _read_table(
            download / match["root"] / f"{match['split']}-{task}.csv"
        )
        for _, match in wanted
        for task in _TASKS
    }
    scans, left_out, unlabelled = [], [], Counter[str]()
    for source, match in wanted:
        refusal = _wrong_array(source.files[0])
        if refusal is not None:
            left_out.append(LeftOut(source.name, refusal))
            continue
        conditions = {}
        for task in _TASKS:
            label = (tables[match["root"], match["split"], task] or {}).get(int(match["number"]))
            if label is None:
                unlabelled[f"{match['split']}-{task}.csv"] += 1
            else:
                conditions[task] = label
        scans.append(Scan(source, str(int(match["number"])), _SPLITS[match["split"]], conditions))
    notes = [
        f"{len(found) - len(wanted)} scans of other planes than {_PLANE} are not used",
        "test is MRNet's valid, of other patients; validation is taken from its train, where some patients "
        "have two studies that the files don't tell apart",
        "the files hold no geometry: spacing is assumed, and left and right knees are not told apart",
    ]
    missing = {f"{split}-{task}.csv" for (_, split, task), table in tables.items() if table is None}
    notes += [f"there is no {name}, so its scans have no such condition" for name in sorted(missing)]
    notes += [
        f"{count} scans have no usable line in {name}, and so no such condition"
        for name, count in sorted(unlabelled.items())
        if name not in missing
    ]
    return Selection(tuple(scans), tuple(left_out), tuple(notes))


def _wrong_array(path: Path) -> Refusal | None:
    """Why a file is no scan of MRNet; None also for what can't be read, which `prepare` names."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if array.ndim == 3 and array.shape[1:] == _ROWS_AND_COLUMNS and array.dtype == np.uint8:
        return None
    return Reason.MRNET_ARRAY(dtype=str(array.dtype), shape=array.shape)


def _read_table(path: Path) -> dict[int, float] | None:
    """1 or 0 by the number of the study; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the table {path} can't be read ({error})") from error
    # A table that went through a spreadsheet has lost its leading zeros.
    matches = (re.fullmatch(r'\s*"?(\d+)"?\s*[,;]\s*"?([01])(?:\.0)?"?\s*', line) for line in lines)
    return {int(match[1]): float(match[2]) for match in matches if match is not None}


RECIPE = Recipe(
    name="mrnet",
    summary="sagittal T2 knees of MRNet-v1.0 (Stanford), 32 x 256 x 256 voxels",
    defaults={
        "modality": "MR",
        "npy_orientation": "RIP",
        "npy_spacing_mm": _ASSUMED_SPACING_MM,
        "orientation": "RIP",
        "spacing_mm": _ASSUMED_SPACING_MM,
        "shape": (32, 256, 256),
        "percentiles": (0, 100),
    },
    select=select,
)

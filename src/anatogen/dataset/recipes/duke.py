"""Duke-Breast-Cancer-MRI: breast MR of 922 patients, as The Cancer Imaging Archive delivers it.

Data descriptor: Saha et al., "A machine learning approach to radiogenomics of breast cancer: a study of 922
subjects and 529 DCE-MRI features", British Journal of Cancer 119 (2018) 508-516, DOI
10.1038/s41416-018-0185-8; collection: DOI 10.7937/TCIA.e3sv-re93; breast masks of 100 patients: Lew et al.,
Scientific Reports 14 (2024), DOI 10.1038/s41598-024-54048-2. Prepared as by Khader et al., Scientific
Reports 2023, DOI 10.1038/s41598-023-34341-2: the T1 series without fat saturation, cut to the breasts,
halved, 256 x 256 x 32 voxels.

    Duke-Breast-Cancer-MRI/
      Breast_MRI_001/01-01-1990-NA-MRI BREAST BILATERAL WWO-97538/3.000000-ax t1-41554/1-001.dcm
      Breast_MRI_001/<StudyInstanceUID>/<SeriesInstanceUID>/1-001.dcm      ("classic directory names")
    Breast-Cancer-MRI-filepath_filename-mapping.xlsx    which series is what
    Clinical_and_Other_Features.xlsx                    three rows of headings, then a row for each patient
    Segmentation_Breast_MRI_002_Breast.seg.nrrd         breast masks, where there are any

Each half is interpolated once, from the scan's grid to the final one: the paper's 0.66 x 0.66 x 3 mm in
between would only blur it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom

from anatogen.core.errors import UserError
from anatogen.core.reasons import Reason
from anatogen.dataset.discover import LeftOut, Source
from anatogen.dataset.recipes.recipe import Recipe, Scan, Selection
from anatogen.dataset.recipes.tables import find_tables, number, read_sheet
from anatogen.io.checks import quiet_libraries
from anatogen.io.formats import ending

_PATIENT = re.compile(r"Breast_MRI_\d{3}", re.IGNORECASE)
_BREAST_MASK = re.compile(r"_Breast\.seg\.nrrd$", re.IGNORECASE)
_T1 = re.compile(r"(?<!pos)t1(?!\d)", re.IGNORECASE)
# Dynamic series are T1-weighted too, and fat-saturated; subtractions and projections are computed from them.
_DYNAMIC = re.compile(
    r"\bdyn|\bph\d|phase|vibrant|pass\b|\bsub|\bmip\b|\bmpr\b|\bloc|scout|survey|\bt2|stir",
    re.IGNORECASE,
)
_FAT_SATURATED = re.compile(r"\bfs\b|fat ?-?sat|\bspair\b|\bspir\b|\bwfs\b|water", re.IGNORECASE)
_NOT_FAT_SATURATED = re.compile(r"non?[ -]?(fs|fat)|w/?o[ -]?(fs|fat)|without fat", re.IGNORECASE)
_CONTRAST = re.compile(r"\bc\b|\+ ?c\b|\bgad|\bgd\b|post", re.IGNORECASE)
_SUBTYPES = ("luminal", "luminal_her2", "her2", "triple_negative")


@dataclass(frozen=True)
class _Series:
    source: Source
    uid: str
    folder: str
    description: str
    fat_saturated: bool
    contrast: bool

    @property
    def is_candidate(self) -> bool:
        text = self.description
        return bool(_T1.search(text)) and not _DYNAMIC.search(text) and not self.fat_saturated


def select(download: Path, sources: Sequence[Source]) -> Selection:
    """The T1 series without fat saturation of each patient, with its breast mask where there is one.

    Which it is, the mapping sheet tells (its "T1"). Without the sheet it is told by the series' description
    (T1, and neither dynamic nor fat-saturated) and ScanOptions; one before contrast is preferred. A patient
    of whom no series fits is left out with the descriptions that there are.

    Args:
        download: The folder that holds `Duke-Breast-Cancer-MRI`, or it itself.
        sources: What was discovered in it.

    Raises:
        UserError: If there are no scans of it, or a sheet can't be read.
    """
    masks: dict[str, Source] = {}
    patients: dict[str, list[_Series]] = {}
    left_out = []
    num_others = 0
    for source in sources:
        named = _PATIENT.search(source.patient or "") or _PATIENT.search(f"{download.name}/{source.name}")
        kind = ending(source.files[0])
        if named is None:
            left_out.append(LeftOut(source.name, Reason.NO_PATIENT(example="Breast_MRI_001")))
        elif kind == ".nrrd" and _BREAST_MASK.search(source.name):
            masks[_patient(named)] = source
        elif source.modality == "SEG" or source.name.lower().endswith(".seg.nrrd"):
            num_others += 1
        else:
            patients.setdefault(_patient(named), []).append(_series(source))
    if not patients:
        raise UserError(
            f"{download} holds no scans of Duke-Breast-Cancer-MRI: expected DICOM series such as "
            "Duke-Breast-Cancer-MRI/Breast_MRI_001/..."
        )
    mapped, notes = _mapped_series(download)
    clinical, clinical_notes = _clinical(download)
    scans = []
    num_mapped = 0
    for patient, series in patients.items():
        told = [one for one in series if (patient, one.uid) in mapped or (patient, one.folder) in mapped]
        num_mapped += bool(told)
        candidates = told or [one for one in series if one.is_candidate]
        best = min(candidates, key=lambda one: (one.contrast, one.source.name), default=None)
        if best is None:
            there = ", ".join(sorted({one.description or "unnamed" for one in series}))
            name = min(one.source.name for one in series)
            left_out.append(LeftOut(name, Reason.NO_T1(series=there)))
            continue
        num_others += len(series) - 1
        conditions = clinical.get(patient, {})
        scans.append(Scan(best.source, patient, conditions=conditions, mask=masks.get(patient)))
    if num_others:
        notes.append(f"passed over: {num_others} other series and segmentations of the same patients")
    if mapped:
        notes.append(f"the mapping sheet tells the T1 series of {num_mapped} of {len(patients)} patients")
    if scans:
        num_masks = sum(scan.mask is not None for scan in scans)
        notes.append(
            f"breasts are found by a mask in {num_masks} of {len(scans)} scans, else by the body's outline"
        )
    scans.sort(key=lambda scan: scan.source.name)
    return Selection(tuple(scans), tuple(left_out), (*notes, *clinical_notes))


def _patient(named: re.Match[str]) -> str:
    return f"Breast_MRI_{named.group()[-3:]}"


def _series(source: Source) -> _Series:
    folder = source.files[0].parent.name
    if not source.is_dicom:
        description = source.files[0].name.split(".")[0].replace("_", " ")
        return _Series(source, "", folder, description, _is_fat_saturated(description, ""), False)
    told = _header(source.files[0])
    # "3.000000-ax t1-41554" tells it where the header does not.
    in_folder = re.fullmatch(r"[\d.]+-(.*)-\d+", folder)
    description = told["SeriesDescription"] or (in_folder.group(1) if in_folder else "")
    description = " ".join(description.replace("_", " ").split())
    fat_saturated = _is_fat_saturated(description, told["ScanOptions"])
    contrast = bool(_CONTRAST.search(description)) or bool(told["ContrastBolusAgent"])
    return _Series(source, told["SeriesInstanceUID"], folder, description, fat_saturated, contrast)


def _header(file: Path) -> dict[str, str]:
    """Elements that describe the series of a slice; empty where it is damaged, which `prepare` tells."""
    keywords = ["SeriesInstanceUID", "SeriesDescription", "ScanOptions", "ContrastBolusAgent"]
    with quiet_libraries():
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=keywords)
            values = {keyword: header.get(keyword) or "" for keyword in keywords}
            return {
                keyword: value if isinstance(value, str) else " ".join(value)
                for keyword, value in values.items()
            }
        except MemoryError:
            raise
        except Exception:  # damaged headers can raise nearly anything
            return dict.fromkeys(keywords, "")


def _is_fat_saturated(description: str, options: str) -> bool:
    if _NOT_FAT_SATURATED.search(description):
        return False
    # "FS" of the standard; General Electric also writes "FAST_GEMS\\FS", Siemens "PFP\\FS".
    told = any(option.strip().upper() == "FS" for option in re.split(r"[\\ ]", options))
    return told or bool(_FAT_SATURATED.search(description))


def _mapped_series(download: Path) -> tuple[set[tuple[str, str]], list[str]]:
    """(patient, folder) of each series that the mapping sheet calls T1, in both ways to name folders."""
    paths = find_tables(download, r".*filepath_filename-mapping.*\.xlsx")
    if not paths:
        return set(), [
            "no mapping sheet tells which series is T1 without fat saturation: told by description"
        ]
    mapped = set()
    columns = ("original_path_and_filename", "classic_path", "descriptive_path")
    for row in read_sheet(paths[0], columns):
        # DICOM_Images/Breast_MRI_211/T1/Breast_MRI_211_T1_005.dcm; others are pre, post_1, ...
        parts = str(row[columns[0]] or "").split("/")
        if len(parts) < 3 or parts[-2].upper() != "T1":
            continue
        for column in columns[1:]:
            folders = [part for part in str(row[column] or "").split("/") if part]
            if len(folders) >= 2:
                mapped.add((parts[-3], folders[-2]))
    return mapped, []


def _clinical(download: Path) -> tuple[dict[str, dict[str, str | float]], list[str]]:
    """Side of the tumour, its molecular subtype and the age in years of each patient."""
    paths = find_tables(download, r"Clinical_and_Other_Features.*\.xlsx")
    if not paths:
        return {}, ["no Clinical_and_Other_Features.xlsx, so scans get no conditions"]
    columns = ("patient id", "tumor location", "bilateral information", "mol subtype", "date of birth (days)")
    found: dict[str, dict[str, str | float]] = {}
    for row in read_sheet(paths[0], columns):
        patient = _PATIENT.fullmatch(str(row["patient id"] or ""))
        if patient is None:
            continue  # the row that explains the codes
        conditions: dict[str, str | float] = {}
        side = {"L": "left", "R": "right"}.get(str(row["tumor location"]).upper())
        if number(row["bilateral information"]) == 1:
            side = "both"
        if side is not None:
            conditions["tumor_side"] = side
        subtype = number(row["mol subtype"])
        if subtype in (0, 1, 2, 3):
            conditions["subtype"] = _SUBTYPES[int(subtype)]
        # Days from the diagnosis back to the birth, negative.
        days = number(row["date of birth (days)"])
        if days is not None:
            conditions["age"] = float(int(abs(days) / 365.25))
        found[_patient(patient)] = conditions
    told = Counter(name for conditions in found.values() for name in conditions)
    names = ", ".join(f"{name} of {count}" for name, count in sorted(told.items())) or "nothing"
    return found, [f"the clinical sheet has {len(found)} patients and tells {names}"]


RECIPE = Recipe(
    name="duke",
    summary="T1 without fat saturation of Duke-Breast-Cancer-MRI (TCIA), each breast 256 x 256 x 32 voxels",
    defaults={
        "modality": "MR",
        "orientation": "SPL",
        "region": "breasts_by_mask",
        "fit": "resize",
        "shape": (32, 256, 256),
        # The paper maps each half from its minimum to its maximum.
        "percentiles": (0, 100),
    },
    select=select,
)

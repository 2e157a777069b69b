"""ADNI: MP-RAGE of the brain, as the Image and Data Archive (IDA) of LONI delivers it, NIfTI or DICOM.

Data descriptor: Jack et al., "The Alzheimer's Disease Neuroimaging Initiative (ADNI): MRI methods", Journal
of Magnetic Resonance Imaging 27 (2008) 685-691, DOI 10.1002/jmri.21049. Prepared as by Khader et al.,
Scientific Reports 2023, DOI 10.1038/s41598-023-34341-2: skull-stripped scans of cognitively normal people,
the border that is not brain cut off, padded to a cube, resized to 64 x 64 x 64.

    ADNI/002_S_0295/MPR__GradWarp__B1_Correction__N3__Scaled/2006-04-18_08_20_30.0/I45107/ADNI_002_S_0295_..._I45107.nii
    ADNI/002_S_0295/MP-RAGE/2006-04-18_08_20_30.0/S13408/ADNI_002_S_0295_..._S13408_I13722.dcm, ...

The folder of an image is named by the image (I45107) or, in older downloads, by the series that it was made
of (S13408), so the image's number is taken from the file's name first. The table of the collection or of
the search (CSV, "Image Data ID", "Subject", "Group", "Sex", "Age", ...) gives diagnosis, age and sex.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from anatogen.core.errors import ScanError, UserError
from anatogen.core.reasons import Reason
from anatogen.dataset.discover import LeftOut, Source
from anatogen.dataset.reading import read_source
from anatogen.dataset.recipes.recipe import Recipe, Scan, Selection
from anatogen.dataset.recipes.tables import find_tables, number, read_csv
from anatogen.io.volume import Volume

_SUBJECT = re.compile(r"\d{3}_S_\d{4,5}")
_IMAGE = re.compile(r"_I(\d+)(?=\.|$)", re.IGNORECASE)
_SERIES = re.compile(r"_S(\d+)_I\d+", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
# MP-RAGE under the names of its makers (IR-SPGR is General Electric's), and what ADNI made of it.
_MP_RAGE = re.compile(r"mp[- ]?rage|\bmpr\b|\bmt1\b|\bir-?f?spgr\b|masked and n3", re.IGNORECASE)
# Brain and hippocampus masks are named after what they were drawn on.
_MASK = re.compile(r"mask(?!ed)", re.IGNORECASE)
# What ADNI's processing writes into the name of the sequence; skull-stripping outweighs the rest.
_STEPS = {"gradwarp": 1, "b1 correction": 1, "n3": 1, "scaled": 1, "masked": 10}
_REPEAT = re.compile(r"\bmpr-r\b|repeat", re.IGNORECASE)
# Of the collection's table, then of the advanced search's.
_IMAGE_COLUMNS = ("image data id", "image id")
_SUBJECT_COLUMNS = ("subject", "subject id")
_GROUP_COLUMNS = ("group", "research group")
_OLD_GROUPS = {"NORMAL": "CN", "NL": "CN"}

# Scans that are looked into to tell whether their skulls are stripped.
_NUM_SAMPLED = 12
# A brain with its fluid has 0.9 to 2 litres, a head 3 and more.
_MAX_BRAIN_LITRES = 2.3


@dataclass(frozen=True)
class _Image:
    source: Source
    subject: str
    sequence: str
    session: str
    number: str | None

    @property
    def is_mp_rage(self) -> bool:
        return bool(_MP_RAGE.search(self.sequence)) and not _MASK.search(self.sequence)

    @property
    def rank(self) -> tuple[int, bool, str]:
        """Higher for more processing, then for the first of two scans of a session."""
        num_steps = sum(_STEPS[step] for step in self._steps)
        return num_steps, not _REPEAT.search(self.sequence), self.source.name

    @property
    def processing(self) -> str:
        """For the user. Names no folder, which someone may have named after a patient."""
        return f"with {', '.join(self._steps)}" if self._steps else "as scanned"

    @property
    def _steps(self) -> list[str]:
        return [step for step in _STEPS if step in self.sequence.lower()]


def select(download: Path, sources: Sequence[Source]) -> Selection:
    """One MP-RAGE of each session: the most processed version, the first where the scan was repeated.

    Args:
        download: The folder that holds `ADNI`, or it itself.
        sources: What was discovered in it.

    Raises:
        UserError: If there is none, or a table can't be read.
    """
    left_out = []
    sessions: dict[tuple[str, str], list[_Image]] = {}
    num_images = num_others = 0
    for source in sources:
        image = _image(source)
        if image is None:
            left_out.append(LeftOut(source.name, Reason.NO_PATIENT(example="002_S_0295")))
        elif image.is_mp_rage:
            num_images += 1
            sessions.setdefault((image.subject, image.session), []).append(image)
        else:
            num_others += 1
    if not sessions:
        raise UserError(
            f"{download} holds no MP-RAGE of ADNI: expected such as ADNI/002_S_0295/MPRAGE/<date>/I45107/..."
        )
    chosen = [max(session, key=lambda image: image.rank) for session in sessions.values()]
    chosen.sort(key=lambda image: image.source.name)
    versions = Counter(image.processing for image in chosen)
    notes = [
        f"{num_images} MP-RAGE images of {len(chosen)} sessions, one taken of each: "
        + "; ".join(f"{count} {name}" for name, count in versions.most_common())
    ]
    if num_others:
        notes.append(
            f"passed over: {num_others} scans that are no MP-RAGE (localisers, masks, other sequences)"
        )
    rows, note = _rows_by_subject(download)
    notes.append(note)
    scans = [
        Scan(image.source, image.subject, conditions=_conditions(image.number, rows.get(image.subject, [])))
        for image in chosen
    ]
    num_known = sum("diagnosis" in scan.conditions for scan in scans)
    if rows and num_known < len(scans):
        notes.append(f"the table tells the diagnosis of {num_known} of {len(scans)} scans")
    notes.append(_stripping_note(scans))
    return Selection(tuple(scans), tuple(left_out), tuple(notes))


def _image(source: Source) -> _Image | None:
    """Reads a source's path; None where it names no subject."""
    file = source.files[0]
    path = PurePosixPath(source.name)
    # The name of a DICOM series is its folder where it is alone in there.
    folders = list((path.parent if path.name == file.name else path).parts)
    place = next((index for index, part in enumerate(folders) if _SUBJECT.fullmatch(part)), None)
    named = _SUBJECT.search(file.name)
    if place is not None:
        subject = folders[place]
    elif named is not None:
        subject = named.group()
    else:
        return None
    below = folders[place + 1 :] if place is not None else []
    # ADNI_002_S_0295_MR_MPR__GradWarp_Br_2008..._S13408_I118671.nii tells it too, where the folders are gone.
    sequence = below[0] if below else re.sub(r".*_MR_|_+br_.*|\.nii.*", "", file.name, flags=re.IGNORECASE)
    number_in_name = _IMAGE.search(file.name)
    folder = re.fullmatch(r"I(\d+)", below[-1]) if below else None
    image = number_in_name or folder
    date = next((match.group() for part in below if (match := _DATE.match(part))), None)
    series = _SERIES.search(file.name)
    session = date or (series.group(1) if series else source.name)
    words = " ".join(sequence.replace("_", " ").split())
    return _Image(source, subject, words, session, image.group(1) if image else None)


def _rows_by_subject(download: Path) -> tuple[dict[str, list[dict[str, str]]], str]:
    """Rows of all tables in or beside the download by subject, and a note on them. Keep them in memory."""
    tables = [
        rows
        for path in find_tables(download, r".*\.csv")
        if (rows := read_csv(path, _SUBJECT_COLUMNS, _GROUP_COLUMNS))
    ]
    subjects: dict[str, list[dict[str, str]]] = {}
    for row in itertools.chain.from_iterable(tables):
        subjects.setdefault(_first(row, _SUBJECT_COLUMNS), []).append(row)
    if not tables:
        return {}, (
            "no table tells diagnosis, age and sex: save the collection's CSV from the IDA into the download"
        )
    return subjects, f"tables with diagnosis, age and sex in or beside the download: {len(tables)}"


def _conditions(image: str | None, rows: Sequence[dict[str, str]]) -> dict[str, str | float]:
    """What its own row tells; else what all rows of its subject agree on, which an age at one visit is not.

    Args:
        image: Number of the image, if it is known.
        rows: Of its subject.
    """
    own = [row for row in rows if _first(row, _IMAGE_COLUMNS).upper().removeprefix("I") == image][-1:]
    conditions: dict[str, str | float] = {}
    groups = {_first(row, _GROUP_COLUMNS).upper() for row in own or rows} - {""}
    sexes = {row.get("sex", "").upper()[:1] for row in own or rows} - {""}
    if len(groups) == 1:
        group = groups.pop()
        conditions["diagnosis"] = _OLD_GROUPS.get(group, group)
    if len(sexes) == 1:
        conditions["sex"] = sexes.pop()
    age = number(own[0].get("age")) if own else None
    if age is not None:
        conditions["age"] = float(int(age))
    return conditions


def _first(row: dict[str, str], names: Iterable[str]) -> str:
    return next((row[name] for name in names if row.get(name)), "")


def _stripping_note(scans: Sequence[Scan]) -> str:
    places = np.unique(np.linspace(0, len(scans) - 1, _NUM_SAMPLED).round().astype(int))
    stripped = []
    for place in places:
        with suppress(ScanError):  # `prepare` names what can't be read
            stripped.append(is_skull_stripped(read_source(scans[place].source)))
    if not stripped:
        return "none of the scans looked into can be read"
    if all(stripped):
        return f"skull-stripped, as all {len(stripped)} scans looked into are: cut to the brain"
    if not any(stripped):
        return (
            f"not skull-stripped, as none of {len(stripped)} scans looked into is: cut to the head; the "
            "paper's are stripped: do that first (e.g. with SynthStrip) to compare with it"
        )
    return (
        f"{sum(stripped)} of {len(stripped)} scans looked into are skull-stripped and the rest are not: "
        "strip all or none, or brains and heads will be of one size"
    )


def is_skull_stripped(volume: Volume) -> bool:
    """Whether a scan shows the brain alone: much of it exactly zero, and the rest no larger than a brain.

    Raw scans have noise around the head; a head whose surroundings were set to zero has 3 litres and more.
    """
    inside = int(np.count_nonzero(volume.array))
    litres = inside * abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1e6
    return inside < 0.7 * volume.array.size and litres < _MAX_BRAIN_LITRES


RECIPE = Recipe(
    name="adni",
    summary="MP-RAGE of cognitively normal brains of ADNI (IDA), cubes of 64 x 64 x 64 voxels",
    defaults={
        "modality": "MR",
        "orientation": "SPL",
        "region": "foreground",
        "cube": True,
        "fit": "resize",
        "shape": (64, 64, 64),
        # The paper maps each scan from its minimum to its maximum.
        "percentiles": (0, 100),
        "where": {"diagnosis": "CN"},
    },
    select=select,
)

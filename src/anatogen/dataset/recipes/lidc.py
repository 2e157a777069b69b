"""LIDC-IDRI: CT of the chest, 1,018 scans of 1,010 patients, as The Cancer Imaging Archive delivers it.

Data descriptor: Armato et al., "The Lung Image Database Consortium (LIDC) and Image Database Resource
Initiative (IDRI): a completed reference database of lung nodules on CT scans", Medical Physics 38 (2011)
915-931, DOI 10.1118/1.3528204; collection: DOI 10.7937/K9/TCIA.2015.LO9QL9SX. Prepared as by Khader et al.,
Scientific Reports 2023, DOI 10.1038/s41598-023-34341-2: Hounsfield units, voxels of 1 mm, the central 320 x
320 x 320 of them, resized to 128 x 128 x 128.

    LIDC-IDRI/LIDC-IDRI-0001/01-01-2000-NA-NA-30178/3000566.000000-NA-03192/1-001.dcm ... 1-133.dcm, 069.xml
    LIDC-IDRI/LIDC-IDRI-0001/<StudyInstanceUID>/<SeriesInstanceUID>/...      ("classic directory names")

Radiographs (DX, CR), segmentations (SEG) and reports (SR) lie beside the CT. The split is by patient: eight
patients have two scans.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from anatogen.core.errors import UserError
from anatogen.core.reasons import Reason
from anatogen.dataset.discover import LeftOut, Source
from anatogen.dataset.recipes.recipe import Recipe, Scan, Selection

_PATIENT = re.compile(r"LIDC-IDRI-\d{4}", re.IGNORECASE)


def select(download: Path, sources: Sequence[Source]) -> Selection:
    """Every CT series, with the patient that its header or its path names.

    Args:
        download: The folder that holds `LIDC-IDRI`, or it itself.
        sources: What was discovered in it.

    Raises:
        UserError: If there is none.
    """
    scans, left_out = [], []
    others: Counter[str] = Counter()
    for source in sources:
        named = _PATIENT.search(f"{download.name}/{source.name}")
        patient = source.patient or (named.group().upper() if named else None)
        if source.is_dicom and source.modality != "CT":
            others[source.modality or "unknown modality"] += 1
        elif patient is None:
            left_out.append(LeftOut(source.name, Reason.NO_PATIENT(example="LIDC-IDRI-0001")))
        else:
            scans.append(Scan(source, patient))
    if not scans:
        raise UserError(
            f"{download} holds no CT of LIDC-IDRI: expected DICOM series such as LIDC-IDRI/LIDC-IDRI-0001/..."
        )
    notes = [
        "voxels of 2.5 mm at once: the field of view of 1 mm, the central 320 and a resize to 128, but "
        "interpolated once",
    ]
    if others:
        told = ", ".join(f"{count} {modality}" for modality, count in sorted(others.items()))
        notes.append(f"passed over beside the CT: {told}")
    repeated = sum(count > 1 for count in Counter(scan.patient for scan in scans).values())
    if repeated:
        notes.append(f"patients with several scans, which share a split: {repeated}")
    return Selection(tuple(scans), tuple(left_out), tuple(notes))


RECIPE = Recipe(
    name="lidc",
    summary="chest CT of LIDC-IDRI (TCIA), 128 x 128 x 128 voxels of 2.5 mm, Hounsfield units",
    defaults={
        "modality": "CT",
        "orientation": "SPL",
        # 1 mm, 320 voxels, resized to 128: 320 / 128 = 2.5 mm.
        "spacing_mm": 2.5,
        "shape": (128, 128, 128),
        # The paper takes each scan's own extremes, which a metal implant or the -2000 or -3024 outside the
        # field of view moves, so that tissue gets another grey in every scan. From air to dense bone is one
        # scale for all.
        "window_hu": (-1000, 1000),
    },
    select=select,
)

"""Any folder of scans: all of them count, and each says itself whose it is. What `prepare` does untold."""

from collections.abc import Sequence
from pathlib import Path

from anatogen.dataset.discover import Source
from anatogen.dataset.patients import own_patient
from anatogen.dataset.recipes.recipe import Recipe, Scan, Selection


def select(_download: Path, sources: Sequence[Source]) -> Selection:
    """All scans; the patient is DICOM's PatientID, a BIDS subject, or the file."""
    return Selection(tuple(Scan(source, own_patient(source)) for source in sources))


RECIPE = Recipe(
    name="folder",
    summary="any folder of scans, the default: grid and range are chosen from what is there",
    defaults={},
    select=select,
)

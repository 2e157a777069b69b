"""The study's folder: which files it has, and study.yaml, which says what the organiser asked for.

STUDY/study.yaml          this module's `StudySpec`; nothing that tells a case's source
STUDY/key.json            the answer key, which no reader may see; a reader's copy has none
STUDY/volumes/CASE.nii    blinded scans, CASE being 16 random hex digits
STUDY/study.sqlite        readers, their items and answers
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from anatogen.config.resolving import Section, resolve
from anatogen.core.errors import ConfigError, UserError
from anatogen.study.questions import Protocol

SPEC_NAME = "study.yaml"
KEY_NAME = "key.json"
LEAKS_NAME = "leaks.json"
VOLUMES = "volumes"
DATABASE_NAME = "study.sqlite"
# The time that every volume's file bears: 2000-01-01, UTC.
VOLUME_TIME = 946_684_800

Source = Literal["real", "reconstructed", "synthetic"]
CASE_PATTERN = r"^[0-9a-f]{16}$"


class StudySpec(Section):
    """What study.yaml holds.

    Attributes:
        format_version: Version of this file's format.
        id: 16 hex digits, by which copies of one study know each other.
        title: Title that readers see.
        protocols: Protocols in the order in which readers go through them; texts may be changed until there
            are answers.
        readers: Names of the readers; a reader's copy has only this reader's.
        modality: "CT" or "MR".
        shape: Shape of every volume, (D, H, W) in voxels.
        spacing_mm: Distance between voxels along (D, H, W).
        window: Values shown as black and white at first; HU for CT.
        num_cases: Number of cases of each source; a reader's copy does not say.
        repeat: Fraction of cases that are shown twice; a reader's copy does not say.
        seed: Random seed of choice and orders; a reader's copy does not say, as it tells the key.
    """

    format_version: Literal[1] = 1
    id: str = Field(pattern=CASE_PATTERN)
    title: str = Field(min_length=1)
    protocols: tuple[Protocol, ...] = Field(min_length=1)
    readers: tuple[str, ...] = Field(min_length=1)
    modality: Literal["CT", "MR"]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    window: tuple[float, float]
    num_cases: dict[Source, int] | None = None
    repeat: float | None = None
    seed: int | None = None

    def protocol(self, name: str) -> Protocol:
        """The protocol of this id.

        Raises:
            UserError: If the study has none.
        """
        for protocol in self.protocols:
            if protocol.id == name:
                return protocol
        raise UserError(f"the study has no protocol {name!r}")


def load_spec(folder: Path) -> StudySpec:
    """Reads a study's study.yaml.

    Raises:
        UserError: If the folder is no study, or the file is wrong.
    """
    path = folder / SPEC_NAME
    if not path.is_file():
        raise UserError(f"{folder} is no study: it has no {SPEC_NAME}; make one with `anatogen study new`")
    try:
        return resolve(StudySpec, file=path)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def volume_path(folder: Path, case: str) -> Path:
    """The blinded scan of a case of the study in the folder."""
    return folder / VOLUMES / f"{case}.nii"

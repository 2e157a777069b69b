"""dataset.json: what a prepared dataset holds, and how to undo its geometry and intensities."""

from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from anatogen.core.described import read_description_file
from anatogen.core.files import sha256_json, write_json
from anatogen.io.geometry import axis_codes, centred_affine
from anatogen.report.numbers import times

MANIFEST_NAME = "dataset.json"
FORMAT_VERSION = 1


class Split(StrEnum):
    """Which part of the training a case may serve; a patient is in one split only."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Intensity(_Record):
    """The linear map between the scan's own unit and the [-1, 1] that networks see.

    Attributes:
        modality: "CT" (Hounsfield units, a fixed window) or "MR" (arbitrary unit, percentiles of each scan).
        low: The value in the scan's unit that becomes -1. For MR datasets the median over training scans.
        high: The value that becomes +1.
    """

    modality: str = Field(pattern="^(CT|MR)$")
    low: float
    high: float

    def normalise(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Maps [low, high] to [-1, 1] and clips what lies outside. Any shape, float32."""
        scaled = (array - np.float32(self.low)) * np.float32(2.0 / (self.high - self.low)) - 1
        return np.clip(scaled, -1, 1).astype(np.float32, copy=False)

    def restore(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Maps [-1, 1] back to the scan's own unit (HU for CT). Any shape, float32."""
        scaled = (np.clip(array, -1, 1) + 1) * np.float32((self.high - self.low) / 2) + np.float32(self.low)
        return scaled.astype(np.float32, copy=False)


class Grid(_Record):
    """The voxel grid that all prepared volumes share.

    Attributes:
        shape: (D, H, W) in voxels.
        spacing_mm: Distance between voxels along (D, H, W).
        affine: 4 x 4, voxel indices (d, h, w, 1) to RAS+ millimetres; origin chosen so that the grid's
            centre is at 0.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: list[list[float]]

    @classmethod
    def centred(
        cls, codes: str, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
    ) -> "Grid":
        """The grid whose (D, H, W) grow in the directions of the codes, e.g. "SPL"."""
        affine = centred_affine(codes, shape, spacing_mm)
        return cls(shape=shape, spacing_mm=spacing_mm, affine=affine.tolist())

    @property
    def axis_codes(self) -> tuple[str, str, str]:
        """Where the body goes as (D, H, W) indices rise: out of "RL", "AP" and "SI"."""
        codes = axis_codes(np.asarray(self.affine))
        return codes[0], codes[1], codes[2]

    def fits(self, other: "Grid") -> bool:
        """Whether shape, spacing and orientation are those of another grid."""
        return (
            self.shape == other.shape
            and np.allclose(self.spacing_mm, other.spacing_mm, rtol=1e-3)
            and self.axis_codes == other.axis_codes
        )

    def text(self) -> str:
        """Shape, spacing and orientation for people, e.g. "48 x 64 x 64 voxels of 1 x 1 x 1 mm, ..."."""
        shape, spacing = times(self.shape), times(self.spacing_mm)
        return f"{shape} voxels of {spacing} mm, orientation {''.join(self.axis_codes)}"


class Case(_Record):
    """One prepared scan. Names nothing of the patient: `id` and `patient` are serial numbers.

    Attributes:
        id: Serial name, e.g. "case_00017".
        file: Path of the (D, H, W) float16 array, relative to the dataset's folder.
        split: Where the case may be used.
        patient: Serial name, e.g. "patient_00003"; equal for scans of one patient.
        source_sha256: Hash of the source's bytes (for a DICOM series, of its sorted files' hashes).
        intensity: This scan's own map to [-1, 1].
        source_affine: 4 x 4 of the scan as it was read, voxel (d, h, w, 1) to RAS+ mm.
        source_shape: (D, H, W) of the scan as it was read.
        affine: 4 x 4 of the prepared volume in the patient's space, voxel (d, h, w, 1) to RAS+ mm.
        conditions: What a table of the source says of the scan, e.g. {"diagnosis": "CN", "age": 71.0}.
        mask: Path of the (D, H, W) uint8 label map on the volume's grid, relative to the dataset's folder.
    """

    id: str
    file: str
    split: Split
    patient: str
    source_sha256: str
    intensity: Intensity
    source_affine: list[list[float]]
    source_shape: tuple[int, int, int]
    affine: list[list[float]]
    conditions: dict[str, str | FiniteFloat] = {}
    mask: str | None = None


class Manifest(_Record):
    """A prepared dataset's description; `dataset.json` on disk.

    Attributes:
        format_version: Version of this description's format.
        anatogen_version: Version of the program that made it.
        recipe: Name of the recipe that chose the scans.
        grid: The grid that all volumes share.
        intensity: Intensities of synthetic scans: the CT window, or the median of the training scans.
        config: `PrepareConfig.portable` of what it was made with.
        labels: Name by value in the masks, where the source tells.
        cases: In order of id.
    """

    format_version: int = FORMAT_VERSION
    anatogen_version: str
    recipe: str = "folder"
    grid: Grid
    intensity: Intensity
    config: dict[str, object]
    labels: dict[str, str] = {}
    cases: list[Case]

    def split(self, split: Split) -> list[Case]:
        """The cases of one split, in order of id."""
        return [case for case in self.cases if case.split is split]

    def sha256(self) -> str:
        """Hash of everything that decides the prepared arrays; equal content gives an equal hash."""
        # Without what is empty: datasets keep their hash, and runs on them go on, when fields are added.
        content = self.model_dump(mode="json", exclude_defaults=True)
        return sha256_json({**content, "format_version": self.format_version})

    def save(self, folder: Path) -> None:
        """Writes `dataset.json` into the folder, atomically."""
        write_json(folder / MANIFEST_NAME, self.model_dump(mode="json"))


def load_manifest(folder: Path) -> Manifest:
    """Reads `dataset.json` of a prepared dataset.

    Raises:
        UserError: If the folder is no prepared dataset, a damaged one, or one of another format version.
    """
    return read_description_file(
        folder / MANIFEST_NAME,
        Manifest.model_validate,
        version=FORMAT_VERSION,
        missing=f"{folder} is not a prepared dataset: it has no {MANIFEST_NAME}. "
        f"Make one with `anatogen prepare SCANS {folder}`.",
        mend="prepare the scans again",
    )

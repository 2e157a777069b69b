"""Volume: the one in-memory form of a scan, between file formats and everything else."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason

# DICOM and ITK place voxels in millimetres towards left, posterior and superior (LPS). Its own inverse.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Volume:
    """A 3D scan with its place in the patient.

    Attributes:
        array: float32, shape (D, H, W): slice axis first, then the rows and columns of the slice plane.
        affine: float64, shape (4, 4): maps voxel indices (d, h, w, 1) to RAS+ millimetres.
        rounded_mm: What its file's positions of slices are rounded to, where their distances are even only to
            within that, so that the affine holds their mean; else 0.
    """

    array: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    rounded_mm: float = 0

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise ScanError(Reason.NOT_3D(num=self.array.ndim, shape=self.array.shape))
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise ScanError(Reason.SINGULAR_AFFINE())
        if abs(np.linalg.det(self.affine[:3, :3])) < 1e-12:
            raise ScanError(Reason.SINGULAR_AFFINE())

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in millimetres between neighbouring voxels along (D, H, W)."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    @classmethod
    def load(cls, path: Path | str) -> "Volume":
        """Reads a scan of any known format; see `anatogen.io.formats.read_scan`.

        Args:
            path: A .nii, .nii.gz, .hdr (beside .img), .mgz, .mgh, .nrrd, .nhdr, .mha, .mhd or .npy file, a
                DICOM file, or a folder that holds one DICOM series.

        Raises:
            ScanError: If it can't be read or can't be right.
        """
        # The formats make volumes themselves.
        from anatogen.io.formats import read_scan

        return read_scan(Path(path))

    def save(self, path: Path | str) -> None:
        """Writes the scan, float32, atomically, in the format of the path's ending.

        A DICOM series needs more than a path: see `anatogen.io.dicom.writing.write_dicom`.

        Args:
            path: Ends in .nii, .nii.gz, .nrrd or .mha, or in .npy, which holds no affine.

        Raises:
            UserError: If it has another ending.
        """
        from anatogen.io.formats import write_scan

        write_scan(self, Path(path))

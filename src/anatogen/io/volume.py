"""Volume: the one in-memory form of a scan, between `formats` and everything else."""

from dataclasses import dataclass

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
    """

    array: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise ScanError(Reason.NOT_3D(num=self.array.ndim, shape=self.array.shape))
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise ScanError(Reason.AFFINE_NOT_FINITE())
        if abs(np.linalg.det(self.affine[:3, :3])) < 1e-12:
            raise ScanError(Reason.AFFINE_SINGULAR())

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in millimetres between neighbouring voxels along (D, H, W)."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

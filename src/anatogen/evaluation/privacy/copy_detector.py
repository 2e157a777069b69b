"""Which scans are too close to a training scan: what an audit leaves behind for sampling."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from anatogen.core.described import check_hashes, read_description_file
from anatogen.core.errors import UserError
from anatogen.core.files import atomic_path, sha256_file, sha256_json, utf8_name
from anatogen.core.weights import load_weights, save_weights
from anatogen.dataset.manifest import Grid
from anatogen.evaluation.privacy.contrastive import ContrastiveSettings, Encoder, embeddings

AUDIT_NAME = "audit.json"
FORMAT_VERSION = 1
_MEND = "make the audit again"
_ENCODER = "encoder.safetensors"
_EMBEDDINGS = "embeddings.safetensors"


@dataclass(frozen=True)
class CopyDetector:
    """Correlates scans with the training scans, and flags those above the audit's threshold.

    Attributes:
        encoder: Trained on the training scans.
        train: float32 (N, K), embeddings of the training scans. They are patient data.
        threshold: Scans whose nearest training scan correlates more than this are flagged.
        grid: Grid of the scans.
    """

    encoder: Encoder
    train: npt.NDArray[np.float32]
    threshold: float
    grid: Grid

    def nearest(self, arrays: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Correlation (M,) of scans, float32 (M, D, H, W) in [-1, 1], with their nearest training scan."""
        correlations: npt.NDArray[np.float32] = embeddings(self.encoder, arrays) @ self.train.T
        return correlations.max(axis=1)

    def num_flagged(self, arrays: npt.NDArray[np.float32]) -> int:
        """Number of these scans that are flagged."""
        return int((self.nearest(arrays) > self.threshold).sum())

    def save(self, folder: Path) -> dict[str, object]:
        """Writes weights and embeddings, and returns what `audit.json` says of them."""
        save_weights(self.encoder, folder / _ENCODER)
        with atomic_path(folder / _EMBEDDINGS) as temporary:
            save_file({"train": self.train}, temporary)
        return {
            "settings": asdict(self.encoder.settings),
            "threshold": self.threshold,
            "grid": self.grid.model_dump(mode="json"),
            "files": {name: sha256_file(folder / name) for name in (_ENCODER, _EMBEDDINGS)},
        }


def read_audit(folder: Path) -> dict[str, Any]:
    """The content of `audit.json`.

    Raises:
        UserError: If the folder holds no audit, or a damaged one.
    """
    return read_description_file(
        folder / AUDIT_NAME,
        dict,
        version=FORMAT_VERSION,
        missing=f"{folder} is not a privacy audit: it has no {AUDIT_NAME}. `anatogen evaluate` writes "
        "REPORT/audit.",
        mend=_MEND,
    )


def load_detector(folder: Path) -> CopyDetector:
    """Reads the detector of an audit and checks its files against their hashes.

    Raises:
        UserError: If the folder holds no audit, or a damaged one.
    """
    content = read_audit(folder)
    try:
        about = content["detector"]
        check_hashes(folder, {name: about["files"][name] for name in (_ENCODER, _EMBEDDINGS)}, mend=_MEND)
        widths = tuple(about["settings"]["widths"])
        settings = ContrastiveSettings(**(about["settings"] | {"widths": widths}))
        with utf8_name(folder / _EMBEDDINGS) as name:
            embeddings = load_file(name)["train"]
        return CopyDetector(
            load_weights(Encoder(settings), folder / _ENCODER),
            embeddings,
            float(about["threshold"]),
            Grid.model_validate(about["grid"]),
        )
    except (KeyError, TypeError, ValidationError, SafetensorError) as error:
        raise UserError(f"{folder / AUDIT_NAME} is damaged ({type(error).__name__}): {_MEND}") from error


@dataclass(frozen=True)
class AuditFilter:
    """Tells copies by a privacy audit: the `CopyFilter` of `anatogen sample --reject-copies`.

    Attributes:
        folder: Folder of the audit.
    """

    folder: Path

    def __str__(self) -> str:
        return f"the audit {self.folder}"

    @property
    def sha256(self) -> str:
        """Hash of what decides which scans are flagged."""
        return sha256_json(read_audit(self.folder).get("detector"))

    def load(self, grid: Grid, device: torch.device) -> Callable[[npt.NDArray[np.float32]], float | None]:
        """What gives a scan's correlation with the training scan that it copies, or None if it is no copy.

        Raises:
            UserError: If the folder holds no audit, a damaged one, or one of scans on another grid.
        """
        detector = load_detector(self.folder)
        if not detector.grid.fits(grid):
            raise UserError(
                f"the audit was made on scans of {detector.grid.text()}, the bundle makes {grid.text()}: "
                "audit scans of this bundle"
            )
        detector.encoder.to(device)

        def find_copy(array: npt.NDArray[np.float32]) -> float | None:
            correlation = float(detector.nearest(array[None])[0])
            return correlation if correlation > detector.threshold else None

        return find_copy

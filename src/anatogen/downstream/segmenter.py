"""A trained segmentation network on disk: weights, and JSON that says what they need and mean."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anatogen.config.resolving import Section
from anatogen.core.described import check_hashes, read_description_file
from anatogen.core.files import sha256_file, write_json
from anatogen.core.weights import WEIGHTS_NAME, load_weights, save_weights
from anatogen.dataset.conversion import Placement
from anatogen.dataset.manifest import Intensity
from anatogen.dataset.regions import RegionKind
from anatogen.downstream.network import PaddedSwinUNETR
from anatogen.downstream.settings import FINETUNING, PatchShape, SwinUNETRSettings
from anatogen.io.formats import Reading

DESCRIPTION_NAME = "segmenter.json"
FORMAT_VERSION = 1
_MEND = "fine-tune anew"
# Share of a window that its neighbours see too.
_OVERLAP = 0.25


class SegmenterDescription(Section):
    """What `segmenter.json` holds.

    Attributes:
        format_version: Version of this description.
        network: Its size.
        labels: Value in the masks of each class, the background's 0 first.
        names: Name by label, where the dataset told.
        patch_shape: (D, H, W) that it learned from; None for whole scans.
        region: The part of each scan that it learned from.
        placement: Way of that part to the common grid.
        intensity: "CT" with its window, or "MR", where each scan has its own.
        told_modality: True where `PrepareConfig.modality` named it, so that values say nothing.
        percentiles: Percentiles of MR scans' own windows, as `PrepareConfig.percentiles`.
        reading: Way in which scans are read.
        weights_sha256: Hash of the weights' file.
    """

    format_version: int = FORMAT_VERSION
    network: SwinUNETRSettings
    labels: tuple[int, ...]
    names: dict[str, str]
    patch_shape: PatchShape | None
    region: RegionKind
    placement: Placement
    intensity: Intensity
    told_modality: bool = False
    percentiles: tuple[float, float]
    reading: Reading
    weights_sha256: str = ""


@dataclass(frozen=True)
class Segmenter:
    """A network that labels scans on one grid.

    Attributes:
        description: Needs and meaning of the network.
        network: Gives float (B, number of labels, D, H, W).
    """

    description: SegmenterDescription
    network: PaddedSwinUNETR

    def probabilities(self, x: Tensor) -> Tensor:
        """How probable each class is at each voxel, by a sliding window where it learned from patches.

        Args:
            x: float32 (B, 1, D, H, W) in [-1, 1], on the network's device.

        Returns:
            float32 (B, number of labels, D, H, W) in [0, 1]; sums to 1 over the classes.
        """
        from monai.inferers import sliding_window_inference

        window = self.description.patch_shape or tuple(x.shape[2:])
        was_training = self.network.training
        self.network.eval()
        with torch.no_grad():
            logits = sliding_window_inference(x, window, 1, self.network, overlap=_OVERLAP, mode="gaussian")
        self.network.train(was_training)
        assert isinstance(logits, Tensor)
        return logits.float().softmax(dim=1)

    def segment(self, x: Tensor) -> Tensor:
        """The most probable label at each voxel: uint8 (B, 1, D, H, W) on the CPU; x as above."""
        classes = self.probabilities(x).argmax(dim=1, keepdim=True).cpu()
        return torch.tensor(self.description.labels, dtype=torch.uint8)[classes]

    def save(self, folder: Path) -> None:
        """Writes weights, then the description, each atomically."""
        save_weights(self.network, folder / WEIGHTS_NAME)
        digest = sha256_file(folder / WEIGHTS_NAME)
        description = self.description.model_copy(update={"weights_sha256": digest})
        write_json(folder / DESCRIPTION_NAME, description.model_dump(mode="json"))


def load_segmenter(folder: Path) -> Segmenter:
    """Reads a segmenter: the folder itself, or a run of `finetune` that holds it.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    places = [folder / DESCRIPTION_NAME, folder / FINETUNING / DESCRIPTION_NAME]
    path = next((place for place in places if place.is_file()), places[0])
    missing = (
        f"{folder} holds no finished segmenter: make one with `anatogen downstream finetune DATA {folder}`"
    )
    description = read_description_file(
        path, SegmenterDescription.model_validate, version=FORMAT_VERSION, missing=missing, mend=_MEND
    )
    check_hashes(path.parent, {WEIGHTS_NAME: description.weights_sha256}, mend=_MEND)
    network = PaddedSwinUNETR(description.network, len(description.labels))
    return Segmenter(description, load_weights(network, path.parent / WEIGHTS_NAME))

"""The model bundle, the one protocol of all families: a folder that holds all it takes to make new scans.

`bundle.json` says what the networks are, how their output is undone to the scans' unit, and where voxels lie
in space; the weights lie beside it as safetensors. Sampling needs neither the training data nor the internet.
A family of generators is a subclass, a file of its own, and a line in `loading.FAMILIES`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from anatogen.core.choices import Sampler
from anatogen.core.errors import UserError
from anatogen.core.files import sha256_file, write_json
from anatogen.core.weights import load_weights, save_weights
from anatogen.dataset.manifest import Grid, Intensity
from anatogen.generators.description import DESCRIPTION_NAME, Description
from anatogen.generators.sampling import write_scans
from anatogen.io.volume import Volume
from anatogen.models.vqgan import VQGAN

if TYPE_CHECKING:
    from anatogen.dataset.scan_sets import ScanSet


class Bundle(ABC):
    """A trained generator of scans.

    Args:
        description: Content of `bundle.json`.
        networks: With their weights, in the order of the description's `weights_names`.

    Attributes:
        description: Content of `bundle.json`.
        device: Where the networks are.
        folder: Where the bundle lies on disk; None for one that was never saved.
        family: Name of the family in messages.
        has_loss: Whether `loss` can be asked for, from which membership in the training set is inferred.
        autoencoder: Gives scans back as far as the generator can; None in a family without one.
    """

    family: ClassVar[str]
    has_loss: ClassVar[bool] = False
    autoencoder: VQGAN | None = None

    def __init__(self, description: Description, *networks: nn.Module) -> None:
        self.description = description
        self.device = torch.device("cpu")
        self.folder: Path | None = None
        self._networks = dict(zip(description.weights_names, networks, strict=True))

    @classmethod
    @abstractmethod
    def build(cls, description: Any) -> Self:
        """The bundle that a description of this family's own type tells of, with untrained networks."""

    @classmethod
    def load(cls, folder: Path, description: Description) -> Self:
        """The bundle in a folder, whose description has been read and checked.

        Raises:
            UserError: If the weights are of other networks.
        """
        bundle = cls.build(description)
        for name, network in bundle._networks.items():
            load_weights(network, folder / name)
        bundle.folder = folder
        return bundle

    @property
    def sha256(self) -> str:
        """Hash of the description, which holds the hashes of the weights."""
        return self.description.sha256

    @property
    def grid(self) -> Grid:
        """Shape, spacing and orientation of the scans."""
        return self.description.grid

    @property
    def intensity(self) -> Intensity:
        """The map from [-1, 1] to the scans' unit."""
        return self.description.intensity

    @property
    def num_parameters(self) -> int:
        """Weights of all networks."""
        return sum(weight.numel() for network in self._networks.values() for weight in network.parameters())

    def describe(self) -> str:
        """What the bundle makes, as text for people."""
        return self.description.text()

    def require_fit(self, scans: "ScanSet") -> None:
        """Checks that scans are such as the bundle makes.

        Raises:
            UserError: If they lie on another grid, are of another modality or, CT, in another window.
        """
        name = "the bundle" if self.folder is None else str(self.folder)
        if not self.grid.fits(scans.grid):
            raise UserError(
                f"{name} is for scans of {self.grid.text()}, and the {scans.role} scans are "
                f"{scans.grid.text()}: give scans on the bundle's grid"
            )
        own = self.intensity
        if own.modality != scans.modality or (own.modality == "CT" and own != scans.intensity):
            raise UserError(
                f"{name} is for {own.modality} from {own.low:g} to {own.high:g}, and the {scans.role} scans "
                f"are {scans.modality} from {scans.intensity.low:g} to {scans.intensity.high:g}: prepare "
                "them alike"
            )

    def to(self, device: str | torch.device) -> Self:
        """Moves the networks to a device, and returns the bundle."""
        self.device = torch.device(device)
        for network in self._networks.values():
            network.to(self.device)
        return self

    @abstractmethod
    def sampling_options(self, sampler: Sampler | None, steps: int | None) -> dict[str, str | int]:
        """Options of `sample` that are in force if these are asked for: what makes two sets of scans differ.

        Raises:
            UserError: If the family does not have such an option.
        """

    def sample(
        self,
        num_samples: int = 1,
        *,
        seed: int = 0,
        first: int = 0,
        sampler: Sampler | None = None,
        steps: int | None = None,
        batch_size: int = 4,
    ) -> Iterator[Volume]:
        """Makes new scans, one after another.

        Scan k depends on (seed, k) alone: to the bit on a CPU with the same number of threads, else up to
        rounding.

        Args:
            num_samples: Number of scans.
            seed: Random seed of the whole set.
            first: Number k of the first scan.
            sampler: Default the bundle's own; a family without samplers refuses any.
            steps: Number of sampling steps; default the bundle's own; as `sampler`.
            batch_size: Number of scans made at once on a GPU; on a CPU one is made after the other.

        Yields:
            Volumes, float32 (D, H, W) in the unit of the training scans (HU for CT), with spacing and
            orientation of the prepared data.

        Raises:
            ValueError: If steps or sampler can't be.
        """
        for start in range(first, first + num_samples, batch_size):
            indices = range(start, min(start + batch_size, first + num_samples))
            for x in self.generate(indices, seed=seed, sampler=sampler, steps=steps):
                yield self.volume(x)

    write = write_scans

    @torch.inference_mode()
    def generate(
        self,
        indices: Sequence[int],
        *,
        seed: int = 0,
        sampler: Sampler | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """The scans of these numbers as they come from the networks, in one batch.

        Args:
            indices: Numbers k of the scans.
            seed: Random seed of the whole set.
            sampler: As `sample`.
            steps: As `sample`.

        Returns:
            float32 (B, D, H, W) in [-1, 1], on the CPU.

        Raises:
            ValueError: If steps or sampler can't be.
        """
        options = self.sampling_options(sampler, steps)
        # One by one on a CPU: sums are then rounded alike in every batch, and little speed is lost.
        batches = [[index] for index in indices] if self.device.type == "cpu" else [indices]
        return torch.cat([self._generate(batch, seed, options)[:, 0].float().cpu() for batch in batches])

    @abstractmethod
    def _generate(self, indices: Sequence[int], seed: int, options: dict[str, Any]) -> Tensor:
        """One batch of scans, float (B, 1, D, H, W) in [-1, 1]; options as `sampling_options` gives them."""

    def volume(self, x: Tensor) -> Volume:
        """The scan that an output of `generate`, float32 (D, H, W) in [-1, 1], stands for."""
        return Volume(self.intensity.restore(x.numpy()), np.asarray(self.grid.affine))

    def loss(self, x: Tensor, *, seed: int) -> float:
        """The training loss of one scan, by the same draws for every scan; where `has_loss` is true.

        Args:
            x: float32 (1, 1, D, H, W) in [-1, 1], on any device.
            seed: Random seed of the draws.
        """
        raise NotImplementedError(f"a {self.family} has no loss of a scan")

    def save(self, folder: Path, *, half: bool = False) -> None:
        """Writes the bundle; `bundle.json`, which makes it one, comes last.

        Args:
            folder: Folder of the bundle.
            half: Writes weights as float16, in half the space.

        Raises:
            ValueError: If a weight is too large for float16.
        """
        for name, network in self._networks.items():
            save_weights(network, folder / name, half=half)
        content = self.description.model_dump(mode="json")
        content["files"] = {name: sha256_file(folder / name) for name in self._networks}
        self.description = type(self.description).model_validate(content)
        write_json(folder / DESCRIPTION_NAME, content)
        self.folder = folder

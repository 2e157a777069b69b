"""The bundle of a WGAN-GP: made, saved and sampled like that of a diffusion model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from anatogen.core.files import sha256_file, write_json
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import load_weights, save_weights
from anatogen.generators.description import DESCRIPTION_NAME, GANBundleDescription
from anatogen.io.volume import Volume
from anatogen.models.wgan_gp import Generator

(_GENERATOR,) = GANBundleDescription.weights_names


class GANBundle:
    """A trained WGAN-GP.

    Args:
        description: What it is.
        generator: With its weights and running statistics; in evaluation mode.
    """

    def __init__(self, description: GANBundleDescription, generator: Generator) -> None:
        self.description = description
        self.generator = generator
        self.device = torch.device("cpu")

    @property
    def sha256(self) -> str:
        """Hash of the description, which holds the hash of the weights."""
        return self.description.sha256

    def to(self, device: str | torch.device) -> Self:
        """Moves the generator to a device, and returns the bundle."""
        self.device = torch.device(device)
        self.generator.to(self.device)
        return self

    def sampling_options(self, sampler: str | None, steps: int | None) -> dict[str, str | int]:
        """No options: a GAN makes a scan in one pass.

        Raises:
            ValueError: If a sampler or a number of steps is asked for.
        """
        for name, value in (("sampler", sampler), ("steps", steps)):
            if value is not None:
                raise ValueError(
                    f"{name} is {value}, but this bundle is a GAN, which makes a scan in one pass: "
                    f"leave out {name}"
                )
        return {}

    def sample(
        self, number: int = 1, *, seed: int = 0, first: int = 0, batch_size: int = 4
    ) -> Iterator[Volume]:
        """Makes new scans, one after another; as `Bundle.sample` does, without its sampler and steps.

        Args:
            number: How many.
            seed: Of the whole set.
            first: Number k of the first scan.
            batch_size: Scans made at once on a GPU; on a CPU one is made after the other.

        Yields:
            Volumes, float32 (D, H, W) in the unit of the training scans (HU for CT), with spacing and
            orientation of the prepared data.
        """
        grid = self.description.grid
        for start in range(first, first + number, batch_size):
            indices = range(start, min(start + batch_size, first + number))
            for array in self.generate(indices, seed=seed).numpy():
                yield Volume(self.description.intensity.restore(array), np.asarray(grid.affine))

    @torch.inference_mode()
    def generate(self, indices: Sequence[int], *, seed: int = 0) -> Tensor:
        """The scans of these numbers as they come from the generator, in one batch.

        Args:
            indices: Numbers k of the scans.
            seed: Of the whole set.

        Returns:
            float32 (B, D, H, W) in [-1, 1], on the CPU.
        """
        if self.device.type == "cpu" and len(indices) > 1:
            # One by one: sums are then rounded alike in every batch, and little speed is lost.
            return torch.cat([self.generate([index], seed=seed) for index in indices])
        draws = [
            torch.randn(self.generator.latent_dim, generator=derived_generator(seed, "scan", index))
            for index in indices
        ]
        return self.generator(torch.stack(draws).to(self.device))[:, 0].float().cpu()

    def save(self, folder: Path) -> None:
        """Writes the bundle; `bundle.json`, which makes it one, comes last."""
        save_weights(self.generator, folder / _GENERATOR)
        files = {_GENERATOR: sha256_file(folder / _GENERATOR)}
        content = self.description.model_dump(mode="json") | {"files": files}
        self.description = GANBundleDescription.model_validate(content)
        write_json(folder / DESCRIPTION_NAME, content)


def load_gan_bundle(folder: Path, description: GANBundleDescription) -> GANBundle:
    """The bundle in a folder whose description was read and checked already."""
    generator = Generator(description.gan, description.grid.shape)
    load_weights(generator, folder / _GENERATOR)
    return GANBundle(description, generator.requires_grad_(False).eval())

"""The family of WGAN-GP: a scan in one pass of the generator."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from anatogen.core.errors import UserError
from anatogen.core.seeding import derived_generator
from anatogen.generators.bundle import Bundle
from anatogen.generators.description import WGANGPDescription
from anatogen.models.wgan_gp import Generator


class WGANGPBundle(Bundle):
    """A trained WGAN-GP.

    Args:
        description: Content of `bundle.json`.
        generator: With its weights and running statistics; in evaluation mode.
    """

    family = "GAN"
    description: WGANGPDescription

    def __init__(self, description: WGANGPDescription, generator: Generator) -> None:
        super().__init__(description, generator)
        self.generator = generator

    @classmethod
    def build(cls, description: WGANGPDescription) -> Self:
        """The bundle of this description, with an untrained generator."""
        return cls(description, Generator(description.gan, description.grid.shape))

    def sampling_options(self, sampler: str | None, steps: int | None) -> dict[str, str | int]:
        """No options: a GAN makes a scan in one pass.

        Raises:
            UserError: If a sampler or a number of steps is asked for.
        """
        for name, value in (("sampler", sampler), ("steps", steps)):
            if value is not None:
                raise UserError(
                    f"{name} is {value}, but this bundle is a GAN, which makes a scan in one pass: "
                    f"leave out {name}"
                )
        return {}

    def _generate(self, indices: Sequence[int], seed: int, options: dict[str, Any]) -> Tensor:
        draws = [
            torch.randn(self.generator.latent_dim, generator=derived_generator(seed, "scan", index))
            for index in indices
        ]
        x: Tensor = self.generator(torch.stack(draws).to(self.device))
        return x

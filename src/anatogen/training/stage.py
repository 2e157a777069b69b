"""The description of a training stage, which training, costs and planning share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anatogen.config.resolving import Section
from anatogen.config.settings import OptimiserSettings
from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Grid, Manifest, Split, load_manifest
from anatogen.training.devices import build_fabric, check_stages

ConfigT = TypeVar("ConfigT", bound=Section)


@dataclass(frozen=True)
class DryRun:
    """A stage on made-up scans: for `cost.memory` to count its bytes and for `cost.probe` to time it.

    Attributes:
        networks: What is trained, by name.
        step: One training step with all that the stage ever does in one, given its number.
        others: What else the stage does with its networks by name, one call each: "preview" of some scans,
            "encode" of a batch, one "denoise" step and "decode" of a sample.
    """

    networks: Mapping[str, nn.Module]
    step: Callable[[int], object]
    others: Mapping[str, Callable[[], object]] = field(default_factory=dict)

    @property
    def num_parameters(self) -> dict[str, int]:
        """Trained parameters by network."""
        return {
            name: sum(parameter.numel() for parameter in network.parameters())
            for name, network in self.networks.items()
        }


@dataclass(frozen=True)
class Stage(Generic[ConfigT]):
    """One stage of a generator's training, built by the same code for training and for its costs.

    Attributes:
        name: Its folder in the run; `{name}_training` is its section of the configuration.
        config: The configuration that it is trained with, whole.
        dry_run: Builds it on one device that has the whole batch.
        work: What the time of a step is in proportion to, about: voxels or latent cells of a step.
        check: Raises a UserError for batches that the networks can't take, given the number of devices.
        batches_per_step: Batches of scans that a step learns from.
        mixed_precision: Whether GPUs that have bfloat16 may use it.
        broadcast_buffers: See `build_fabric`.
    """

    name: str
    config: type[ConfigT]
    dry_run: Callable[[Fabric, ConfigT, Grid], DryRun]
    work: Callable[[ConfigT, Grid], float]
    check: Callable[[ConfigT, Grid, int], None] = lambda settings, grid, devices: None
    batches_per_step: Callable[[ConfigT], int] = lambda settings: 1
    mixed_precision: bool = True
    broadcast_buffers: bool = True

    def optimisation(self, settings: ConfigT) -> OptimiserSettings:
        """Its budget, batches and optimiser."""
        found: OptimiserSettings = getattr(settings, f"{self.name}_training")
        return found

    def build_fabric(self, device: str, devices: int = 1) -> Fabric:
        """Its devices and processes, yet to be launched; see `devices.build_fabric`."""
        return build_fabric(
            device,
            devices,
            mixed_precision=self.mixed_precision,
            broadcast_buffers=self.broadcast_buffers,
        )


def check_training(
    data: Path, settings: ConfigT, stages: Sequence[Stage[ConfigT]], device: str = "auto", devices: int = 1
) -> Manifest:
    """Checks that stages can be trained on a prepared dataset, before anything is written.

    Args:
        data: A prepared dataset.
        settings: The whole configuration.
        stages: The stages to train.
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.
        devices: Number of GPUs, or of processes on a CPU.

    Returns:
        The manifest of the dataset.

    Raises:
        UserError: If there is no such dataset or device, a stage has no budget, no scan is there to learn
            from, or a batch can't be shared by the devices or taken by the networks.
    """
    manifest = load_manifest(data)
    check_stages(settings, [stage.name for stage in stages], device, devices)
    if not manifest.split(Split.TRAIN):
        raise UserError(f"{data} has no training scans: prepare it with other split fractions")
    for stage in stages:
        stage.check(settings, manifest.grid, devices)
    return manifest


def made_up_scans(number: int, grid: Grid, fabric: Fabric) -> Tensor:
    """Uniform noise float32 (number, 1, D, H, W) in [-1, 1] on the device."""
    return torch.rand(number, 1, *grid.shape, device=fabric.device) * 2 - 1


def accept_losses(losses: Mapping[str, Tensor]) -> None:
    """Stands in for `Loop.require_finite`: made-up scans may give any loss."""

"""The one stage of a wavelet flow: all levels learn in the same steps, each kept as it was at its best."""

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful

from anatogen.config.settings import WaveletFlowSettings
from anatogen.core.errors import UserError
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME, save_weights
from anatogen.dataset.manifest import Grid, Intensity, Split
from anatogen.dataset.volumes import VolumeDataset, prefetched
from anatogen.generators.description import FlowStatistics, WaveletFlowDescription
from anatogen.generators.wavelet_flow import (
    FlowLevels,
    FlowNetworks,
    LevelBatch,
    WaveletFlowBundle,
    noised,
)
from anatogen.models.flow_network import FlowNetwork
from anatogen.models.pyramid import build_pyramid
from anatogen.training.batches import scans_of_step
from anatogen.training.flow_batches import crop_shape, level_batches
from anatogen.training.loop import Loop, previewed, report_trend
from anatogen.training.optimisation import ExponentialMovingAverage, Muon, local_slice, take_step
from anatogen.training.stage import DryRun, Stage, accept_losses

# Scans on which the loss is looked at, of either split, and times at which.
_NUM_CHECKED = 8
_CHECKED_TIMES = (0.3, 0.7)
# Looks at the loss of held-out scans without a new lowest one, after which a level will not get better.
_PATIENCE = 12


def train_levels(
    fabric: Fabric,
    data: Path,
    folder: Path,
    settings: WaveletFlowSettings,
    description: WaveletFlowDescription,
) -> None:
    """Trains the networks until the budget is used up, from the last checkpoint if there is one.

    Args:
        fabric: Devices and processes; launched.
        data: A prepared dataset.
        folder: Where checkpoint, logs, previews and at the end `weights.safetensors` go.
        settings: The whole configuration.
        description: Description of the bundle that is trained.

    Raises:
        NonFiniteLossError: If a loss is not finite.
    """
    seed, batch_size, training = settings.training.seed, settings.flow_training.batch_size, settings.training
    dataset, held_out = VolumeDataset(data, Split.TRAIN), VolumeDataset(data, Split.VALIDATION)
    mine = local_slice(fabric, batch_size)
    positions = list(range(batch_size))[mine]
    train_step = FlowStep(fabric, settings, description)
    levels = train_step.levels
    bundle = WaveletFlowBundle(description, train_step.ema.shadow).to(fabric.device)
    best = BestWeights(train_step.ema.shadow)
    checks_held_out = training.stop == "held_out" and len(held_out) > 0

    def load(step: int) -> list[tuple[Tensor, ...]]:
        scans = scans_of_step(dataset, training, step, batch_size, positions)
        generators = [derived_generator(seed, "levels", step, position) for position in positions]
        return [tuple(batch) for batch in level_batches(levels, settings, scans, step, generators)]

    def check(steps: int) -> dict[str, float]:
        found: list[list[float]] = [[], []]
        if fabric.is_global_zero:
            found = [checked_losses(bundle, scans) for scans in (dataset, held_out)]
        # The first process's numbers, for all must keep the same weights and stop together.
        known, unknown = fabric.broadcast(found)
        best.update(train_step.ema.shadow, unknown, steps)
        names = level_names(levels.num_levels)
        named = {"train": known, "held_out": unknown}
        return {
            f"{split}_{name}": value
            for split, values in named.items()
            for name, value in zip(names, values, strict=True)
        }

    def preview() -> dict[str, Tensor]:
        return {"synthetic": previewed(bundle, seed)}

    loop = Loop(
        fabric,
        folder,
        settings.flow_training,
        training,
        train_step.state | {"best": best},
        len(dataset),
        preview,
        description.grid,
    )
    for step, batches in prefetched(loop.steps(), load):
        on_device = [LevelBatch(*(part.to(fabric.device) for part in batch)) for batch in batches]
        generator = derived_generator(seed, "flow", step)
        values: dict[str, Tensor | float] = dict(train_step(on_device, step, generator, loop.require_finite))
        if checks_held_out and (step + 1) % training.check_steps == 0:
            values |= check(step + 1)
            if best.is_over:
                loop.stop()
        loop.record(values)

    if fabric.is_global_zero:
        if checks_held_out:
            best.update(train_step.ema.shadow, checked_losses(bundle, held_out), loop.step)
            print(f"flow: {best.restore(train_step.ema.shadow)}", flush=True)
        save_weights(train_step.ema.shadow, folder / WEIGHTS_NAME)
        if not best.is_over:
            report_trend(folder)
    fabric.barrier()


class FlowStep:
    """The networks of all levels with their optimiser and moving average, and what one batch does to them.

    Args:
        fabric: Devices and processes; launched.
        settings: The whole configuration; its seed decides the initial weights.
        description: Description of the bundle that is trained.

    Attributes:
        levels: The levels.
        ema: Moving average of the networks.
        networks: What is trained, by name.
        state: All that a checkpoint holds, by name.
    """

    def __init__(
        self, fabric: Fabric, settings: WaveletFlowSettings, description: WaveletFlowDescription
    ) -> None:
        self._fabric = fabric
        self._optimisation = settings.flow_training
        self.levels = FlowLevels(description)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.training.seed)
            network = FlowNetworks(self.levels)
        optimisers = dict[str, Stateful]()
        # Each level has an optimiser of its own, which steps before the next level's activations are made.
        self._levels = []
        for name, level in zip(level_names(self.levels.num_levels), network.levels, strict=True):
            assert isinstance(level, FlowNetwork)
            prepared, optimiser = fabric.setup(level, self._optimiser(level))
            self._levels.append((prepared, optimiser))
            optimisers[f"optimiser_{name}"] = optimiser
        self.networks: dict[str, nn.Module] = {"networks": network}
        # Of the networks on the device.
        self.ema = ExponentialMovingAverage(network, settings.flow.ema_decay)
        self.state = {"networks": network, "ema": self.ema.shadow} | optimisers

    def __call__(
        self,
        batches: list[LevelBatch],
        step: int,
        generator: torch.Generator,
        require_finite: Callable[[Mapping[str, Tensor]], None],
    ) -> dict[str, Tensor]:
        """Learns from one batch of scans.

        Args:
            batches: This process's part of what `level_batches` makes of them, on the device.
            step: Batches before this one.
            generator: Decides times and noise of the whole batch; alike on all ranks.
            require_finite: Raises if a loss is not finite; called before that loss changes weights.

        Returns:
            The loss of each level by its name, and their sum "loss"; 0-d.
        """
        batch_size = self._optimisation.batch_size
        mine = local_slice(self._fabric, batch_size)
        losses: dict[str, Tensor] = {}
        for level, (name, batch) in enumerate(zip(level_names(self.levels.num_levels), batches, strict=True)):
            network, optimiser = self._levels[level]
            # Drawn for the whole batch on every process, so that their number changes nothing.
            t = self.levels.schedule(level).draw_times(batch_size, generator)
            eps = torch.randn(batch_size, *batch.x_0.shape[1:], generator=generator)
            given, velocity = noised(batch, t[mine].to(batch.x_0), eps[mine].to(batch.x_0))
            loss = (network(*given) - velocity).square().mean()
            require_finite({name: loss})
            take_step(self._fabric, loss, network, optimiser, self._optimisation)
            losses[name] = loss.detach()
        self.ema.update(self.networks["networks"], step)
        return {"loss": torch.stack([*losses.values()]).sum()} | losses

    def _optimiser(self, network: FlowNetwork) -> Muon:
        matrices, settings = network.matrix_names(), self._optimisation
        weights = dict(network.named_parameters())
        return Muon(
            [weight for name, weight in weights.items() if name in matrices],
            [weight for name, weight in weights.items() if name not in matrices],
            settings.learning_rate,
            settings.betas,
            settings.weight_decay,
        )


class BestWeights(nn.Module):
    """Each level's weights as they were when its loss of held-out scans was lowest.

    After Bonnaire et al. 2025, "Why diffusion models don't memorize": generalisation comes first, and the
    loss of held-out scans tells when storing begins.

    Args:
        networks: The networks that are followed.

    Attributes:
        lowest: float32 (levels,), the lowest losses.
        steps: int64 (levels,), steps made until then.
        age: int64 (levels,), looks since then.
    """

    lowest: Tensor
    steps: Tensor
    age: Tensor

    def __init__(self, networks: FlowNetworks) -> None:
        super().__init__()
        self.networks = copy.deepcopy(networks).requires_grad_(False)
        self.register_buffer("lowest", torch.full((len(networks.levels),), math.inf))
        self.register_buffer("steps", torch.zeros(len(networks.levels), dtype=torch.int64))
        self.register_buffer("age", torch.zeros(len(networks.levels), dtype=torch.int64))

    @property
    def is_over(self) -> bool:
        """Whether no level has become better for long."""
        return bool((self.age >= _PATIENCE).all())

    def update(self, networks: FlowNetworks, losses: list[float], steps: int) -> None:
        """Looks at the losses that the networks' levels have after so many steps."""
        for level, loss in enumerate(losses):
            self.age[level] += 1
            if loss < self.lowest[level]:
                self.lowest[level], self.steps[level], self.age[level] = loss, steps, 0
                self.networks.levels[level].load_state_dict(networks.levels[level].state_dict())

    def restore(self, networks: FlowNetworks) -> str:
        """Gives networks these weights, and says in a line which they are."""
        networks.load_state_dict(self.networks.state_dict())
        names = level_names(len(networks.levels) - 1)
        kept = (f"{name} of step {steps:,}" for name, steps in zip(names, self.steps.tolist(), strict=True))
        return f"kept where the loss of held-out scans was lowest: {', '.join(kept)}"


def level_names(num_levels: int) -> list[str]:
    """Names of the levels in logs, finest first."""
    return [f"details_{level}" for level in range(num_levels)] + ["coarse"]


def checked_losses(bundle: WaveletFlowBundle, scans: VolumeDataset) -> list[float]:
    """The loss of each level, finest first, of some scans of a split, by the same draws at every call."""
    chosen = range(min(_NUM_CHECKED, len(scans)))
    t = torch.tensor(_CHECKED_TIMES)
    with torch.inference_mode():
        found = [
            bundle.losses(scans.batch([index]).to(bundle.device), t, derived_generator("checked", index))
            for index in chosen
        ]
    return [float(torch.stack(values).mean()) for values in zip(*found, strict=True)]


def described(
    settings: WaveletFlowSettings, grid: Grid, intensity: Intensity, statistics: FlowStatistics
) -> WaveletFlowDescription:
    """The description of an untrained bundle."""
    levels = build_pyramid(settings.pyramid, grid.shape, grid.spacing_mm).num_levels
    return WaveletFlowDescription(
        pyramid=settings.pyramid.model_copy(update={"num_levels": levels}),
        coarse=settings.coarse,
        details=settings.details,
        flow=settings.flow,
        statistics=statistics,
        grid=grid,
        intensity=intensity,
    )


def _check_levels(settings: WaveletFlowSettings, grid: Grid, devices: int) -> None:
    """Refuses more halvings than the grid has."""
    pyramid = build_pyramid(settings.pyramid, grid.shape, grid.spacing_mm)
    most = pyramid.num_halvings
    if most == 0:
        raise UserError(
            f"a grid of {grid.shape} voxels can't be halved: prepare one with at least 4 voxels along an axis"
        )
    if most < pyramid.num_levels:
        raise UserError(
            f"pyramid.num_levels is {pyramid.num_levels}, but a grid of {grid.shape} voxels can be "
            f"halved {most} times: set pyramid.num_levels={most}"
        )


def _dry_run(fabric: Fabric, settings: WaveletFlowSettings, grid: Grid) -> DryRun:
    pyramid = build_pyramid(settings.pyramid, grid.shape, grid.spacing_mm)
    numbers = range(pyramid.num_levels)
    statistics = FlowStatistics(
        image_shift=[0.0, 0.0],
        image_scale=[1.0, 1.0],
        band_scales=[[1.0] * (2 * pyramid.num_bands(level)) for level in numbers],
        texture_shift=[0.0 for _ in numbers],
        texture_scale=[1.0 for _ in numbers],
        texture_correlation=[[float(one == other) for other in numbers] for one in numbers],
    )
    description = described(settings, grid, Intensity(modality="MR", low=0, high=1), statistics)
    train_step = FlowStep(fabric, settings, description)
    levels, batch_size = train_step.levels, settings.flow_training.batch_size
    generator = torch.Generator().manual_seed(0)

    def made_up(level: int, number: int, side: int | None) -> LevelBatch:
        """Values of whole scans, or of crops of a side."""
        channels, *cells = levels.shape(level)
        shape = crop_shape(cells, side) if side else cells
        told, conditions = levels.num_told(level), levels.num_conditions(level)
        sizes = [(number, channels, *shape), (number, told, *shape), (number, conditions)]
        return LevelBatch(*(torch.zeros(size, device=fabric.device) for size in sizes))

    crop = settings.pyramid.crop
    batches = [made_up(level, batch_size, crop) for level in range(levels.num_levels)]
    batches.append(made_up(levels.num_levels, batch_size, None))
    whole = [made_up(level, 1, None) for level in range(levels.num_levels + 1)]

    def step(number: int) -> object:
        return train_step(batches, number, generator, accept_losses)

    @torch.no_grad()
    def denoise() -> object:
        for network, batch in zip(train_step.ema.shadow.levels, whole, strict=True):
            given, _ = noised(batch, batch.conditions[:, 0], batch.x_0)
            network(*given)
        return None

    return DryRun(train_step.networks, step, {"denoise": denoise})


def _work(settings: WaveletFlowSettings, grid: Grid) -> float:
    pyramid = build_pyramid(settings.pyramid, grid.shape, grid.spacing_mm)
    cells = math.prod(pyramid.shapes[-1])
    for shape in pyramid.shapes[1:]:
        cells += math.prod(crop_shape(shape, settings.pyramid.crop))
    return float(cells * settings.flow_training.batch_size)


FLOW = Stage("flow", WaveletFlowSettings, _dry_run, _work, check=_check_levels)

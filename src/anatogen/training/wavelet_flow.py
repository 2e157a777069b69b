"""`anatogen train` of a wavelet flow: all levels in the same steps, from prepared dataset to bundle."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful

from anatogen.config.settings import WaveletFlowSettings
from anatogen.core.errors import UserError
from anatogen.core.files import sha256_file
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME, load_weights, save_weights
from anatogen.dataset.manifest import Grid, Intensity, Manifest, Split
from anatogen.dataset.volumes import VolumeDataset, prefetched
from anatogen.diffusion.latents import standard_scaling
from anatogen.generators.description import FlowStatistics, WaveletFlowDescription
from anatogen.generators.wavelet_flow import (
    NUM_POSITIONS,
    SCHEDULE,
    FlowLevels,
    FlowNetworks,
    LevelBatch,
    WaveletFlowBundle,
    noised,
    raw_texture,
)
from anatogen.models.pyramid import BACKGROUND, WaveletPyramid, foreground, with_foreground
from anatogen.training.batches import scans_of_step
from anatogen.training.deformation import deformed
from anatogen.training.devices import launch
from anatogen.training.loop import NUM_PREVIEWS, Loop, read_log, report_trend
from anatogen.training.optimisation import ExponentialMovingAverage, Muon, local_slice, take_step
from anatogen.training.run_folder import claim_run
from anatogen.training.stage import DryRun, Stage, accept_losses, check_training

# Scans with less background than this share have none that must be exact.
_LEAST_BACKGROUND = 0.01
# Scans on which the loss is looked at, of either split, and times at which.
_NUM_CHECKED = 16
_CHECKED_TIMES = (0.3, 0.7)
# Looks at the loss of held-out scans without a new lowest one, after which a level will not get better.
_PATIENCE = 12
_MAX_STATISTICS_SCANS = 200
# Of values that don't differ, such as details of a foreground that fills the grid.
_LEAST_SCALE = 1e-4


def train_flow(
    data: Path | str,
    run: Path | str,
    settings: WaveletFlowSettings,
    *,
    device: str = "auto",
    devices: int = 1,
) -> Path:
    """Trains a wavelet flow, or goes on with a training that was stopped; a finished one is left as it is.

    The arguments are those of `anatogen.train`, which explains them.

    Raises:
        UserError: If data and settings don't fit the run.
        NonFiniteLossError: If a loss is not finite.
    """
    data, run = Path(data), Path(run)
    manifest = check_training(data, settings, [FLOW], device, devices)
    claim_run(run, manifest.sha256(), settings, settings.training.seed)
    description = _describe(settings, manifest, VolumeDataset(data, Split.TRAIN))
    launch(
        FLOW.build_fabric(device, devices),
        partial(train_levels, data=data, folder=run / "flow", settings=settings, description=description),
    )
    return _write_bundle(run, description)


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
        return [tuple(batch) for batch in level_batches(levels, settings, scans, generators)]

    def check() -> dict[str, float]:
        found = [checked_losses(bundle, scans) for scans in (dataset, held_out)]
        # The first process's numbers, for all must keep the same weights and stop together.
        known, unknown = fabric.broadcast(found)
        best.update(train_step.ema.shadow, unknown)
        names = level_names(levels.num_levels)
        named = {"train": known, "held_out": unknown}
        return {
            f"{split}_{name}": value
            for split, values in named.items()
            for name, value in zip(names, values, strict=True)
        }

    def preview() -> dict[str, Tensor]:
        return {"synthetic": bundle.generate(range(NUM_PREVIEWS), seed=seed)}

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
            values |= check()
            if best.is_over:
                loop.stop()
        loop.record(values)

    if fabric.is_global_zero:
        if checks_held_out:
            best.update(train_step.ema.shadow, checked_losses(bundle, held_out))
            best.restore(train_step.ema.shadow)
        save_weights(train_step.ema.shadow, folder / WEIGHTS_NAME)
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
        matrices = network.matrix_names()
        weights = dict(network.named_parameters())
        optimiser = Muon(
            [weight for name, weight in weights.items() if name in matrices],
            [weight for name, weight in weights.items() if name not in matrices],
            self._optimisation.learning_rate,
            self._optimisation.betas,
        )
        self._networks, self._optimiser = fabric.setup(network, optimiser)
        self.networks: dict[str, nn.Module] = {"networks": network}
        self.ema = ExponentialMovingAverage(network, settings.flow.ema_decay)
        self.state: dict[str, Stateful] = {
            "networks": network,
            "optimiser": optimiser,
            "ema": self.ema.shadow,
        }

    def __call__(
        self,
        batches: list[LevelBatch],
        step: int,
        generator: torch.Generator,
        require_finite: Callable[[Mapping[str, Tensor]], None],
    ) -> dict[str, Tensor]:
        """Learns from one batch.

        Args:
            batches: This process's part of the batch at each level, finest first, on the device.
            step: Batches before this one.
            generator: Decides times and noise of the whole batch; alike on all ranks.
            require_finite: Raises if a loss is not finite; called before any weight changes.

        Returns:
            The loss of each level by its name, and their sum "loss"; 0-d.
        """
        batch_size = self._optimisation.batch_size
        mine = local_slice(self._fabric, batch_size)
        inputs, wanted = [], []
        for batch in batches:
            # Drawn for the whole batch on every process, so that their number changes nothing.
            t = SCHEDULE.draw_times(batch_size, generator)
            eps = torch.randn(batch_size, *batch.x_0.shape[1:], generator=generator)
            given, velocity = noised(batch, t[mine].to(batch.x_0), eps[mine].to(batch.x_0))
            inputs.append(given)
            wanted.append(velocity)
        found = [
            (output - velocity).square().mean()
            for output, velocity in zip(self._networks(inputs), wanted, strict=True)
        ]
        losses = dict(zip(level_names(self.levels.num_levels), found, strict=True))
        require_finite(losses)
        total = torch.stack(found).sum()
        take_step(self._fabric, total, self._networks, self._optimiser, self._optimisation)
        self.ema.update(self.networks["networks"], step)
        return {"loss": total.detach()} | {name: value.detach() for name, value in losses.items()}


class BestWeights(nn.Module):
    """Each level's weights as they were when its loss of held-out scans was lowest.

    After Bonnaire et al. 2025, "Why diffusion models don't memorize": generalisation comes first, and the
    loss of held-out scans tells when storing begins.

    Args:
        networks: The networks that are followed.

    Attributes:
        lowest: float32 (levels,), the lowest losses.
        age: int64 (levels,), looks since then.
    """

    lowest: Tensor
    age: Tensor

    def __init__(self, networks: FlowNetworks) -> None:
        super().__init__()
        self.networks = copy.deepcopy(networks).requires_grad_(False)
        self.register_buffer("lowest", torch.full((len(networks.levels),), math.inf))
        self.register_buffer("age", torch.zeros(len(networks.levels), dtype=torch.int64))

    @property
    def is_over(self) -> bool:
        """Whether no level has become better for long."""
        return bool((self.age >= _PATIENCE).all())

    def update(self, networks: FlowNetworks, losses: list[float]) -> None:
        """Looks at the losses that the networks' levels have now."""
        for level, loss in enumerate(losses):
            self.age[level] += 1
            if loss < self.lowest[level]:
                self.lowest[level], self.age[level] = loss, 0
                self.networks.levels[level].load_state_dict(networks.levels[level].state_dict())

    def restore(self, networks: FlowNetworks) -> None:
        """Gives networks these weights."""
        networks.load_state_dict(self.networks.state_dict())


def level_names(num_levels: int) -> list[str]:
    """Names of the levels in logs, finest first."""
    return [f"details_{level}" for level in range(num_levels)] + ["coarse"]


def level_batches(
    levels: FlowLevels,
    settings: WaveletFlowSettings,
    scans: Tensor,
    generators: Sequence[torch.Generator],
) -> list[LevelBatch]:
    """What each level learns from some scans: shifted by less than a coarse cell, a crop of the finer levels.

    Args:
        levels: The levels.
        settings: The whole configuration.
        scans: float32 (B, 1, D, H, W) in [-1, 1].
        generators: Source of each scan's draws.
    """
    chosen = [
        _batches_of_scan(levels, settings, scan, generator)
        for scan, generator in zip(scans.split(1), generators, strict=True)
    ]
    return [
        LevelBatch(*(torch.cat(parts) for parts in zip(*at_level, strict=True)))
        for at_level in zip(*chosen, strict=True)
    ]


def _batches_of_scan(
    levels: FlowLevels, settings: WaveletFlowSettings, scan: Tensor, generator: torch.Generator
) -> list[LevelBatch]:
    pyramid = levels.pyramid
    offset = [_draw(step, generator) for step in pyramid.stride(levels.num_levels)]
    d, h, w = offset

    def analysed(x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return pyramid.analyse(levels.channels_of(x[:, :, d:, h:, w:]))

    images, bands = analysed(scan)
    texture = levels.texture(images, bands)
    batches = []
    for level in range(levels.num_levels):
        image = images[level + 1]
        noise = torch.randn(image.shape, generator=generator)
        strength = settings.flow.told_noise * torch.rand(1, generator=generator)
        whole = levels.details(level, image, bands[level], texture, offset, noise, strength)
        batches.append(_cropped(whole, settings.pyramid.crop, generator))
    is_deformed = bool(torch.rand((), generator=generator) < settings.flow.deformed)
    if is_deformed:
        images, _ = analysed(deformed(scan[0, 0], generator)[None, None])
    return [*batches, levels.coarse(images, texture, offset, is_deformed)]


def _cropped(batch: LevelBatch, side: int, generator: torch.Generator) -> LevelBatch:
    box = [slice(None), slice(None)]
    for size in batch.x_0.shape[2:]:
        start = _draw(max(size - side, 0) + 1, generator)
        box.append(slice(start, start + side))
    return LevelBatch(batch.x_0[tuple(box)], batch.told[tuple(box)], batch.conditions)


def _draw(number: int, generator: torch.Generator) -> int:
    return int(torch.randint(number, (), generator=generator))


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


def fit_statistics(pyramid: WaveletPyramid, scans: Sequence[Tensor]) -> FlowStatistics:
    """Scales of the levels' values, so that each is of about unit size.

    Args:
        pyramid: The levels.
        scans: float32 (1, 1, D, H, W) in [-1, 1] each, of the training set.
    """
    background = torch.stack([1 - foreground(x).mean() for x in scans]).mean()
    coarse, squares, textures = [], [], []
    for x in scans:
        padded = pyramid.pad(x, BACKGROUND)
        volume = with_foreground(padded) if background >= _LEAST_BACKGROUND else padded
        images, bands = pyramid.analyse(volume)
        coarse.append(images[-1])
        squares.append([band.square().mean(dim=(0, 2, 3, 4)) for band in bands])
        textures.append(raw_texture(volume.shape[1], images, bands)[0])
    image = standard_scaling(coarse)
    texture = torch.stack(textures)
    return FlowStatistics(
        image_shift=image.shift.tolist(),
        image_scale=image.scale.clamp(min=_LEAST_SCALE).tolist(),
        band_scales=[
            torch.stack(at_level).mean(dim=0).sqrt().clamp(min=_LEAST_SCALE).tolist()
            for at_level in zip(*squares, strict=True)
        ],
        texture_shift=texture.mean(dim=0).tolist(),
        texture_scale=texture.std(dim=0, correction=0).clamp(min=_LEAST_SCALE).tolist(),
    )


def _describe(
    settings: WaveletFlowSettings, manifest: Manifest, dataset: VolumeDataset
) -> WaveletFlowDescription:
    grid = manifest.grid
    pyramid = WaveletPyramid(grid.shape, grid.spacing_mm, settings.pyramid.num_levels)
    number = min(_MAX_STATISTICS_SCANS, len(dataset))
    chosen = [index * len(dataset) // number for index in range(number)]
    statistics = fit_statistics(pyramid, [dataset.batch([index]) for index in chosen])
    description = _described(settings, grid, manifest.intensity, statistics)
    return description.model_copy(update={"training": {"dataset_sha256": manifest.sha256()}})


def _described(
    settings: WaveletFlowSettings, grid: Grid, intensity: Intensity, statistics: FlowStatistics
) -> WaveletFlowDescription:
    return WaveletFlowDescription(
        pyramid=settings.pyramid,
        coarse=settings.coarse,
        details=settings.details,
        flow=settings.flow,
        statistics=statistics,
        grid=grid,
        intensity=intensity,
    )


def _write_bundle(run: Path, description: WaveletFlowDescription) -> Path:
    weights = run / "flow" / WEIGHTS_NAME
    records = read_log(run / "flow")
    training = description.training | {
        "flow_steps": float(records[-1]["step"]) if records else 0.0,
        "networks_sha256": sha256_file(weights),
    }
    networks = load_weights(FlowNetworks(FlowLevels(description)), weights)
    WaveletFlowBundle(description.model_copy(update={"training": training}), networks).save(run / "bundle")
    return run / "bundle"


def _check_levels(settings: WaveletFlowSettings, grid: Grid, devices: int) -> None:
    """Refuses more halvings than the grid has."""
    pyramid = WaveletPyramid(grid.shape, grid.spacing_mm, settings.pyramid.num_levels)
    if not all(pyramid.axes):
        most = sum(bool(axes) for axes in pyramid.axes)
        raise UserError(
            f"pyramid.num_levels is {settings.pyramid.num_levels}, but a grid of {grid.shape} voxels can be "
            f"halved {most} times: set pyramid.num_levels={most}"
        )


def _dry_run(fabric: Fabric, settings: WaveletFlowSettings, grid: Grid) -> DryRun:
    pyramid = WaveletPyramid(grid.shape, grid.spacing_mm, settings.pyramid.num_levels)
    zeros, ones = [0.0] * pyramid.num_levels, [1.0] * pyramid.num_levels
    statistics = FlowStatistics(
        image_shift=[0.0, 0.0],
        image_scale=[1.0, 1.0],
        band_scales=[[1.0] * (2 * pyramid.num_bands(level)) for level in range(pyramid.num_levels)],
        texture_shift=zeros,
        texture_scale=ones,
    )
    description = _described(settings, grid, Intensity(modality="MR", low=0, high=1), statistics)
    train_step = FlowStep(fabric, settings, description)
    levels, batch_size = train_step.levels, settings.flow_training.batch_size
    generator = torch.Generator().manual_seed(0)

    def made_up(level: int, number: int, side: int | None) -> LevelBatch:
        """Values of whole scans, or of crops of a side."""
        channels, *cells = levels.shape(level)
        shape = [min(size, side) if side else size for size in cells]
        told = NUM_POSITIONS + (0 if level == levels.num_levels else levels.num_channels)
        conditions = 1 if level == levels.num_levels else 1 + levels.num_levels
        sizes = [(number, channels, *shape), (number, told, *shape), (number, conditions)]
        return LevelBatch(*(torch.zeros(size, device=fabric.device) for size in sizes))

    crop = settings.pyramid.crop
    batches = [
        made_up(level, batch_size, None if level == levels.num_levels else crop)
        for level in range(levels.num_levels + 1)
    ]
    # As `Bundle.generate` makes previews: one by one on a CPU.
    number = 1 if fabric.device.type == "cpu" else NUM_PREVIEWS
    whole = [made_up(level, number, None) for level in range(levels.num_levels + 1)]

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
    pyramid = WaveletPyramid(grid.shape, grid.spacing_mm, settings.pyramid.num_levels)
    cells = math.prod(pyramid.shapes[-1])
    for shape in pyramid.shapes[1:]:
        cells += math.prod(min(size, settings.pyramid.crop) for size in shape)
    return float(cells * settings.flow_training.batch_size)


FLOW = Stage("flow", WaveletFlowSettings, _dry_run, _work, check=_check_levels)

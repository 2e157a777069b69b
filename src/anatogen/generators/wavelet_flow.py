"""The family of wavelet flows: a coarse image and its foreground, then the details of each finer level.

Every level is a flow of its own (Lipman et al. 2023) on the values of `models.pyramid`, told what the coarser
ones hold: Guth et al. 2022, "Wavelet score-based generative modeling"; with noise on what it is told, as in
Ho et al. 2022, "Cascaded diffusion models". No autoencoder limits what a scan can show, and the finest
levels, which hold most of a scan's voxels, learn from crops.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from anatogen.core.choices import Sampler
from anatogen.core.seeding import derived_generator
from anatogen.diffusion.process import add_noise, x_0_predictor
from anatogen.diffusion.schedule import LinearFlowSchedule
from anatogen.generators.bundle import Bundle
from anatogen.generators.description import WaveletFlowDescription
from anatogen.generators.solving import LOSS_TIMES, options_in_force, solve
from anatogen.models.flow_network import FlowNetwork
from anatogen.models.pyramid import (
    WaveletPyramid,
    build_pyramid,
    halving_strides,
    with_foreground,
    without_foreground,
)

_NUM_POSITIONS = 3
# Standard deviation of the noise on the texture that the coarse level is told: exact numbers could tell it
# whose scan it learns from.
_TEXTURE_NOISE = 0.5


class LevelBatch(NamedTuple):
    """What the network of a level learns from, or samples with.

    Attributes:
        x_0: float32 (B, C, d, h, w), the clean values, scaled to about unit size.
        told: float32 (B, G, d, h, w), what they depend on, cell by cell.
        conditions: float32 (B, N), what they depend on as a whole.
    """

    x_0: Tensor
    told: Tensor
    conditions: Tensor


class FlowLevels:
    """The levels of a wavelet flow: from scans to what each network sees, and back.

    Level k < `num_levels` are the details that bring the image at level k + 1 to level k; level `num_levels`
    is the coarse image. All are told the logarithms of the details' strength, "texture", which hold for whole
    scans and are drawn first.

    Args:
        description: Content of `bundle.json`.
    """

    def __init__(self, description: WaveletFlowDescription) -> None:
        self._description = description
        self._statistics = description.statistics
        grid = description.grid
        self.pyramid = build_pyramid(description.pyramid, grid.shape, grid.spacing_mm)
        self.num_levels = self.pyramid.num_levels
        # Of a scan: the image and, if scans have a background, the foreground.
        self.num_channels = len(description.statistics.image_shift)

    @property
    def has_background(self) -> bool:
        """Whether scans have a background that must be exact."""
        return self.num_channels == 2

    def shape(self, level: int) -> tuple[int, int, int, int]:
        """(C, d, h, w) of the clean values of a whole scan at a level."""
        if level == self.num_levels:
            return (self.num_channels, *self.pyramid.shapes[level])
        channels = self.pyramid.num_bands(level) * self.num_channels
        return (channels, *self.pyramid.shapes[level + 1])

    def num_told(self, level: int) -> int:
        """Channels of `LevelBatch.told`: positions and, of details, the image."""
        return _NUM_POSITIONS + (0 if level == self.num_levels else self.num_channels)

    def num_conditions(self, level: int) -> int:
        """Numbers of `LevelBatch.conditions`: the deformed flag, or of details the noise; and the texture."""
        return 1 + self.num_levels

    def schedule(self, level: int) -> LinearFlowSchedule:
        """Noise of a level's process."""
        shift = self._description.flow.coarse_shift if level == self.num_levels else 1.0
        return LinearFlowSchedule(shift=shift)

    def build_network(self, level: int) -> FlowNetwork:
        """The untrained network of a level."""
        settings = self._description.coarse if level == self.num_levels else self._description.details
        channels, *cells = self.shape(level)
        stride = self.pyramid.stride(min(level + 1, self.num_levels))
        spacing = [mm * step for mm, step in zip(self._description.grid.spacing_mm, stride, strict=True)]
        strides = halving_strides(cells, spacing, len(settings.multipliers) - 1)
        told, conditions = self.num_told(level), self.num_conditions(level)
        return FlowNetwork(settings, channels + told, channels, conditions, strides)

    def channels_of(self, x: Tensor) -> Tensor:
        """Scans (B, 1, D, H, W) in [-1, 1] as level 0 of the pyramid, (B, `num_channels`, ...)."""
        return volume_of(self.pyramid, x, self.has_background)

    def coarse(
        self, image: Tensor, texture: Tensor, offset: Sequence[int], noise: Tensor, deformed: bool
    ) -> LevelBatch:
        """The coarse level of scans; the other arguments are those of `told_coarse`.

        Args:
            image: (B, num_channels, d, h, w), the coarsest of `pyramid.analyse`.
            texture: float32 (B, num_levels) of `texture`.
            offset: Voxels along (D, H, W) by which the scans were shifted towards the origin.
            noise: Standard normal noise of the texture's shape.
            deformed: Whether the scans were deformed.
        """
        return LevelBatch(self._scaled(image), *self.told_coarse(texture, offset, noise, deformed))

    def told_coarse(
        self, texture: Tensor, offset: Sequence[int], noise: Tensor, deformed: bool
    ) -> tuple[Tensor, Tensor]:
        """What the coarse level depends on, cell by cell and as a whole, as in `LevelBatch`.

        Args:
            texture: float32 (B, num_levels) of `texture`.
            offset: Voxels along (D, H, W) by which the scans were shifted towards the origin.
            noise: Standard normal noise of the texture's shape.
            deformed: Whether the scans were deformed.
        """
        flag = texture.new_full((len(texture), 1), float(deformed))
        conditions = torch.cat((flag, texture + _TEXTURE_NOISE * noise), dim=1)
        return self._positions(self.num_levels, offset, texture), conditions

    def details(
        self,
        level: int,
        image: Tensor,
        bands: Tensor,
        texture: Tensor,
        offset: Sequence[int],
        noise: Tensor,
        level_of_noise: Tensor,
    ) -> LevelBatch:
        """A level of details of scans; the other arguments are those of `told`.

        Args:
            level: Number of the level.
            image: (B, num_channels, d, h, w) at level + 1.
            bands: (B, C, d, h, w) of `pyramid.analyse`.
            texture: float32 (B, num_levels) of `texture`.
            offset: As `coarse`.
            noise: Standard normal noise of the image's shape.
            level_of_noise: float32 (B,), its standard deviation.
        """
        told, conditions = self.told(level, image, texture, offset, noise, level_of_noise)
        return LevelBatch(bands / self._band_scales(level, bands), told, conditions)

    def told(
        self,
        level: int,
        image: Tensor,
        texture: Tensor,
        offset: Sequence[int],
        noise: Tensor,
        level_of_noise: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What a level of details depends on, cell by cell and as a whole, as in `LevelBatch`.

        Args:
            level: Number of the level.
            image: (B, num_channels, d, h, w) at level + 1.
            texture: float32 (B, num_levels) of `texture`.
            offset: As `coarse`.
            noise: Standard normal noise of the image's shape.
            level_of_noise: float32 (B,), its standard deviation.
        """
        told_image = self._scaled(image) + level_of_noise[:, None, None, None, None] * noise
        largest = self._description.flow.told_noise or 1.0
        conditions = torch.cat((level_of_noise[:, None] / largest, texture), dim=1)
        return torch.cat((told_image, self._positions(level + 1, offset, image)), dim=1), conditions

    def texture(self, images: list[Tensor], bands: list[Tensor]) -> Tensor:
        """How strong the image's details are at each level, in standard deviations from the mean scan."""
        values = raw_texture(images, bands)
        shift, scale = self._statistics.texture_shift, self._statistics.texture_scale
        return (values - torch.tensor(shift).to(values)) / torch.tensor(scale).to(values)

    def texture_of(self, noise: Tensor) -> Tensor:
        """A texture like those of scans, of standard normal noise; both float32 (B, num_levels)."""
        correlation = torch.tensor(self._statistics.texture_correlation).to(noise)
        return noise @ torch.linalg.cholesky(correlation).T

    def positions(self, level: int, offset: Sequence[int]) -> Tensor:
        """Where the cells of a level lie in the grid, -1 to 1 along each axis: float32 (1, 3, d, h, w)."""
        axes = []
        for cells, step, size, start in zip(
            self.pyramid.shapes[level],
            self.pyramid.stride(level),
            self.pyramid.shapes[0],
            offset,
            strict=True,
        ):
            axes.append(((torch.arange(cells) + 0.5) * step + start) / size * 2 - 1)
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]

    def image_of(self, x_0: Tensor) -> Tensor:
        """The coarse image (B, num_channels, d, h, w) of sampled values."""
        shift, scale = self._image_scaling(x_0)
        return x_0 * scale + shift

    def bands_of(self, level: int, x_0: Tensor) -> Tensor:
        """Details, as `pyramid.refine` takes them, of sampled values."""
        return x_0 * self._band_scales(level, x_0)

    def scans_of(self, x: Tensor) -> Tensor:
        """Undoes `channels_of`: (B, 1, D, H, W) in [-1, 1]."""
        scans = without_foreground(x) if self.has_background else x.clamp(-1, 1)
        return self.pyramid.crop(scans)

    def _positions(self, level: int, offset: Sequence[int], like: Tensor) -> Tensor:
        return self.positions(level, offset).to(like).expand(len(like), -1, -1, -1, -1)

    def _band_scales(self, level: int, like: Tensor) -> Tensor:
        return torch.tensor(self._statistics.band_scales[level]).to(like)[:, None, None, None]

    def _scaled(self, image: Tensor) -> Tensor:
        shift, scale = self._image_scaling(image)
        return (image - shift) / scale

    def _image_scaling(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self._statistics.image_shift, self._statistics.image_scale
        spread = (slice(None), None, None, None)
        return torch.tensor(shift).to(like)[spread], torch.tensor(scale).to(like)[spread]


class FlowNetworks(nn.Module):
    """The networks of all levels, finest first, as one module, whose weights are one file."""

    def __init__(self, levels: FlowLevels) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels.build_network(level) for level in range(levels.num_levels + 1))


class WaveletFlowBundle(Bundle):
    """A trained wavelet flow.

    Args:
        description: Content of `bundle.json`.
        networks: With their weights.
    """

    family = "wavelet flow"
    has_loss = True
    description: WaveletFlowDescription

    def __init__(self, description: WaveletFlowDescription, networks: FlowNetworks) -> None:
        super().__init__(description, networks)
        self.networks = networks
        self.levels = FlowLevels(description)

    @classmethod
    def build(cls, description: WaveletFlowDescription) -> Self:
        """The bundle of this description, with untrained networks."""
        return cls(description, FlowNetworks(FlowLevels(description)).eval())

    def sampling_options(self, sampler: Sampler | None, steps: int | None) -> dict[str, str | int]:
        """Sampler and number of steps at each level; where not asked for, the bundle's own."""
        return options_in_force(self.description.flow, sampler, steps)

    def _generate(self, indices: Sequence[int], seed: int, options: dict[str, Any]) -> Tensor:
        levels = self.levels
        generators = [derived_generator(seed, "scan", index) for index in indices]
        no_offset = (0, 0, 0)

        def noise(shape: Sequence[int]) -> Tensor:
            return torch.stack([torch.randn(*shape, generator=g) for g in generators]).to(self.device)

        def sampled(level: int, told: Tensor, conditions: Tensor) -> Tensor:
            network, schedule = self.networks.levels[level], levels.schedule(level)

            def velocity(x: Tensor, t: Tensor) -> Tensor:
                out: Tensor = network(torch.cat((x, told), dim=1), t, conditions)
                return out

            predict = x_0_predictor(velocity, schedule, "velocity")
            return solve(
                options["sampler"], predict, lambda: noise(levels.shape(level)), schedule, options["steps"]
            )

        texture = levels.texture_of(noise((levels.num_levels,)))
        told = levels.told_coarse(texture, no_offset, noise((levels.num_levels,)), deformed=False)
        image = levels.image_of(sampled(levels.num_levels, *told))
        told_noise = image.new_full((len(indices),), self.description.flow.sampled_noise)
        for level in reversed(range(levels.num_levels)):
            depends_on = levels.told(level, image, texture, no_offset, noise(image.shape[1:]), told_noise)
            bands = levels.bands_of(level, sampled(level, *depends_on))
            image = levels.pyramid.refine(level, image, bands)
        return levels.scans_of(image)

    @torch.inference_mode()
    def loss(self, x: Tensor, *, seed: int) -> float:
        """Sum over levels of the flow's loss of a scan, at the same times and noises for every scan.

        Args:
            x: float32 (1, 1, D, H, W) in [-1, 1], on any device.
            seed: Random seed of the noises.
        """
        generator = derived_generator(seed, "membership")
        t = torch.tensor(LOSS_TIMES)
        return sum(float(value) for value in self.losses(x.to(self.device), t, generator))

    def losses(self, x: Tensor, t: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The loss of each level, finest first, of whole scans as they are: 0-d each.

        Args:
            x: float32 (1, 1, D, H, W) in [-1, 1], on the bundle's device.
            t: float32 (T,), the times, before a level's `schedule` shifts them.
            generator: Source of the noises.
        """
        levels = self.levels
        images, bands = levels.pyramid.analyse(levels.channels_of(x))
        texture = levels.texture(images, bands)
        told_noise = x.new_full((1,), self.description.flow.sampled_noise)
        batches = []
        for level in range(levels.num_levels):
            image = images[level + 1]
            noise = torch.randn(image.shape, generator=generator).to(x)
            batches.append(levels.details(level, image, bands[level], texture, (0, 0, 0), noise, told_noise))
        noise = torch.randn(texture.shape, generator=generator).to(x)
        batches.append(levels.coarse(images[-1], texture, (0, 0, 0), noise, deformed=False))
        return [self._level_loss(level, batch, t, generator) for level, batch in enumerate(batches)]

    def _level_loss(self, level: int, batch: LevelBatch, t: Tensor, generator: torch.Generator) -> Tensor:
        # One time after the other: all at once, the finest level would take as much memory as training.
        found = []
        for time in self.levels.schedule(level).shifted(t).split(1):
            eps = torch.randn(batch.x_0.shape, generator=generator).to(batch.x_0)
            given, velocity = noised(batch, time.to(eps), eps)
            found.append((self.networks.levels[level](*given) - velocity).square().mean())
        return torch.stack(found).mean()


def noised(batch: LevelBatch, t: Tensor, eps: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """What a network is given at some times, and the velocity eps - x_0 it is to say (Lipman et al. 2023).

    Args:
        batch: Values of a level.
        t: float32 (B,), the times.
        eps: float32 (B, C, d, h, w), standard normal noise.

    Returns:
        Arguments of `FlowNetwork`; and float32 (B, C, d, h, w).
    """
    # A shift moves times; what x_t is at a time is the same for all levels.
    x_t = add_noise(batch.x_0, eps, t, LinearFlowSchedule())
    return (torch.cat((x_t, batch.told), dim=1), t, batch.conditions), eps - batch.x_0


def volume_of(pyramid: WaveletPyramid, x: Tensor, has_background: bool) -> Tensor:
    """Scans as level 0 of a pyramid.

    Args:
        pyramid: The levels.
        x: float (B, 1, D, H, W) in [-1, 1]; smaller by a shift where they are shifted.
        has_background: Whether they get a channel of their foreground.

    Returns:
        float (B, 1 or 2, ...).
    """
    padded = pyramid.pad(x)
    return with_foreground(padded) if has_background else padded


def raw_texture(images: list[Tensor], bands: list[Tensor]) -> Tensor:
    """Logarithm of the root mean square of the image's details at each level, in the foreground.

    Args:
        images: Images of `pyramid.analyse`, of 2 channels if there is a foreground.
        bands: Bands of it.

    Returns:
        float32 (B, num_levels).
    """
    found = []
    for image, details in zip(images[1:], bands, strict=True):
        squares = details[:, :: image.shape[1]].square().mean(dim=1, keepdim=True)
        # Cells that lie in the foreground as a whole; all, where there are none.
        inside = (image[:, 1:] > 1 - 1e-4) if image.shape[1] == 2 else torch.ones_like(squares)
        inside = inside.to(squares)
        inside = torch.where(inside.sum(dim=(1, 2, 3, 4), keepdim=True) > 0, inside, 1.0)
        power = (squares * inside).sum(dim=(1, 2, 3, 4)) / inside.sum(dim=(1, 2, 3, 4))
        found.append(power.clamp(min=1e-12).log() / 2)
    return torch.stack(found, dim=1)

"""`anatogen train` of a wavelet flow: from a prepared dataset to a bundle, resumed where it stopped."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from anatogen.config.settings import WaveletFlowSettings
from anatogen.core.devices import device_named
from anatogen.core.files import sha256_file, write_json
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME, load_weights
from anatogen.dataset.manifest import Split
from anatogen.dataset.volumes import VolumeDataset
from anatogen.diffusion.latents import standard_scaling
from anatogen.generators.description import FlowStatistics, WaveletFlowDescription, bundled_weights
from anatogen.generators.membership import membership_auc
from anatogen.generators.wavelet_flow import (
    FlowLevels,
    FlowNetworks,
    WaveletFlowBundle,
    raw_texture,
    volume_of,
)
from anatogen.models.pyramid import WaveletPyramid, build_pyramid, foreground
from anatogen.training.devices import launch
from anatogen.training.flow import FLOW, described, train_levels
from anatogen.training.flow_batches import drawn_offset
from anatogen.training.loop import read_log
from anatogen.training.run_folder import claim_run
from anatogen.training.stage import check_training

_STATISTICS_NAME = "statistics.json"
# Scans with less background than this share have none that must be exact.
_LEAST_BACKGROUND = 0.01
# Scans of either split whose membership is inferred at the end.
_NUM_MEMBERS = 24
# Looks at scans, each shifted at random as in training, for the scales of the levels' values.
_MIN_LOOKS, _MAX_LOOKS = 32, 200
# Of values that don't differ, such as details of a foreground that fills the grid.
_LEAST_SCALE = 1e-4
# Details of the foreground are 0 but for a few cells at its border. Brought to unit size they would be dozens
# of standard deviations there, and the image is learned more slowly beside them.
_FOREGROUND_SCALE = 1.0
# In logarithms, of textures: those of one scan, or of a few alike, don't tell how much others differ.
_LEAST_TEXTURE_SCALE = 0.1


def train_flow(
    data: Path | str,
    run: Path | str,
    settings: WaveletFlowSettings,
    *,
    device: str,
    devices: int,
) -> Path:
    """`training.train` of this family.

    Raises:
        UserError: If data and settings don't fit the run.
        NonFiniteLossError: If a loss is not finite.
    """
    data, run = Path(data), Path(run)
    manifest = check_training(data, settings, [FLOW], device, devices)
    claim_run(run, manifest.sha256(), settings, settings.training.seed)
    statistics = _kept_statistics(run / "flow" / _STATISTICS_NAME, settings, data)
    description = described(settings, manifest.grid, manifest.intensity, statistics)
    description = description.model_copy(update={"training": {"dataset_sha256": manifest.sha256()}})
    launch(
        FLOW.build_fabric(device, devices),
        partial(train_levels, data=data, folder=run / "flow", settings=settings, description=description),
    )
    return _write_bundle(run, description, data, device)


def fit_statistics(pyramid: WaveletPyramid, dataset: VolumeDataset) -> FlowStatistics:
    """Scales of the levels' values, so that each is of about unit size.

    Args:
        pyramid: The levels.
        dataset: The training set, of which up to 200 scans are looked at, one at a time.
    """
    number = min(_MAX_LOOKS, max(_MIN_LOOKS, len(dataset)))
    chosen = [index * len(dataset) // number for index in range(number)]
    background = torch.stack([1 - foreground(dataset.batch([i])).mean() for i in sorted({*chosen})]).mean()
    has_background = bool(background >= _LEAST_BACKGROUND)
    coarse, squares, textures = [], [], []
    for look, index in enumerate(chosen):
        # Details of edges that lie alike in all scans, such as a border's, depend on where the cells begin.
        d, h, w = drawn_offset(pyramid, derived_generator("statistics", look))
        scan = dataset.batch([index])[:, :, d:, h:, w:]
        images, bands = pyramid.analyse(volume_of(pyramid, scan, has_background))
        coarse.append(images[-1])
        squares.append([band.square().mean(dim=(0, 2, 3, 4)) for band in bands])
        textures.append(raw_texture(images, bands)[0])
    image = standard_scaling(coarse)
    texture = torch.stack(textures)
    return FlowStatistics(
        image_shift=image.shift.tolist(),
        image_scale=image.scale.clamp(min=_LEAST_SCALE).tolist(),
        band_scales=[
            _band_scales(torch.stack(at_level), has_background) for at_level in zip(*squares, strict=True)
        ],
        texture_shift=texture.mean(dim=0).tolist(),
        texture_scale=texture.std(dim=0, correction=0).clamp(min=_LEAST_TEXTURE_SCALE).tolist(),
        texture_correlation=_correlation(texture).tolist(),
    )


def _band_scales(squares: Tensor, has_background: bool) -> list[float]:
    """Scales of a level's bands (N,), of the mean squares (M, N) in M scans."""
    scales = squares.mean(dim=0).sqrt().clamp(min=_LEAST_SCALE)
    if has_background:
        scales[1::2] = _FOREGROUND_SCALE
    return scales.tolist()


def _correlation(x: Tensor) -> Tensor:
    """Correlations (N, N) of the columns of x (M, N), 0 where one does not vary; positive definite."""
    centred = (x - x.mean(dim=0)).double()
    scaled = centred / centred.square().mean(dim=0).sqrt().clamp(min=_LEAST_SCALE)
    found = (1 - _LEAST_SCALE) * scaled.T @ scaled / len(x)
    return found.fill_diagonal_(1.0)


def _kept_statistics(path: Path, settings: WaveletFlowSettings, data: Path) -> FlowStatistics:
    """Those that a run began with: networks that have learned with some scales mustn't go on with others."""
    if path.exists():
        return FlowStatistics.model_validate_json(path.read_text(encoding="utf-8"))
    dataset = VolumeDataset(data, Split.TRAIN)
    grid = dataset.manifest.grid
    statistics = fit_statistics(build_pyramid(settings.pyramid, grid.shape, grid.spacing_mm), dataset)
    path.parent.mkdir(exist_ok=True)
    write_json(path, statistics.model_dump(mode="json"))
    return statistics


def _write_bundle(run: Path, description: WaveletFlowDescription, data: Path, device: str) -> Path:
    weights = run / "flow" / WEIGHTS_NAME
    sha256 = sha256_file(weights)
    if bundled_weights(run / "bundle", "networks_sha256") == sha256:
        # Written anew it could differ in a digit, and its hash is what sets of synthetic scans are known by.
        return run / "bundle"
    networks = load_weights(FlowNetworks(FlowLevels(description)), weights)
    bundle = WaveletFlowBundle(description, networks).to(device_named(device))
    records = read_log(run / "flow")
    known, held_out = VolumeDataset(data, Split.TRAIN), VolumeDataset(data, Split.VALIDATION)
    training = description.training | {
        "flow_steps": float(records[-1]["step"]) if records else 0.0,
        "networks_sha256": sha256,
    }
    if len(held_out) > 1:
        number = min(len(known), len(held_out), _NUM_MEMBERS)
        members, others = ([scans.batch([i]) for i in range(number)] for scans in (known, held_out))
        training["membership_auc"] = round(membership_auc(bundle, members, others), 3)
        print(
            f"flow: by its loss, training scans are told from held-out ones with AUC "
            f"{training['membership_auc']:.2f} (0.5: not at all; {number} of each)",
            flush=True,
        )
    bundle.description = description.model_copy(update={"training": training})
    bundle.save(run / "bundle")
    return run / "bundle"

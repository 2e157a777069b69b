"""Self-supervised pre-training: Swin UNETR learns to fill in what is hidden of unlabelled scans."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from anatogen.core.files import write_json
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME, save_weights
from anatogen.dataset.manifest import Split
from anatogen.dataset.scan_sets import count_scans, load_scans
from anatogen.dataset.volumes import prefetched, shuffled_indices
from anatogen.downstream.inpainting import (
    check_masking,
    hide,
    inpaint,
    inpainting_quality,
    random_masks,
    save_inpainting_quality,
)
from anatogen.downstream.network import seeded_network
from anatogen.downstream.patches import check_patch, crop, drawn_mirror, mirror_axes, random_corner
from anatogen.downstream.settings import PRETRAINING, PretrainConfig
from anatogen.downstream.unlabelled import StoredScans, store_scans
from anatogen.training.cuda_graph import set_up
from anatogen.training.devices import build_fabric, check_stages, launch
from anatogen.training.loop import NUM_PREVIEWS, Loop
from anatogen.training.optimisation import adam, local_slice, take_step
from anatogen.training.run_folder import claim_run

NUM_SCANS_NAME = "scans.json"
_NUM_JUDGED = 16


def pretrain(
    scans: Sequence[Path | str],
    run: Path | str,
    config: PretrainConfig,
    *,
    like: Path | str | None = None,
    device: str = "auto",
    devices: int = 1,
) -> Path:
    """Pre-trains Swin UNETR on scans without labels, or goes on with a run that was stopped.

    The arguments are those of `anatogen.pretrain`, which explains them. How well the network fills in scans
    is measured on the training scans of `like`, else on those that it learns from. MR scans get a window
    each.

    Raises:
        UserError: If scans and settings don't fit each other or the run.
        NonFiniteLossError: If a loss is not finite.
    """
    # Beside it lie the scans, so that it must have a name: "." has none.
    run = Path(run).resolve()
    check_stages(config, (PRETRAINING,), device, devices)
    kept = run.with_name(f".{run.name}-scans")
    try:
        stored = store_scans(list(map(Path, scans)), None if like is None else Path(like), kept / "scans.npy")
        check_patch(config.patch_shape, stored.grid.shape)
        check_masking(config.masking, config.patch_shape or stored.grid.shape)
        claim_run(run, stored.sha256, config, config.training.seed)
        judged = (
            stored.arrays()[:_NUM_JUDGED].astype(np.float32) if like is None else _training_scans(Path(like))
        )
        write_json(run / NUM_SCANS_NAME, {"num_scans": stored.num_scans})
        fabric = build_fabric(device, devices)
        launch(fabric, partial(_stage, stored=stored, judged=judged, run=run, config=config))
    finally:
        # Only for this call: the scans are where they were.
        shutil.rmtree(kept, ignore_errors=True)
    return run / PRETRAINING / WEIGHTS_NAME


def _training_scans(dataset: Path) -> np.ndarray:
    """The first of them, float32 (N, D, H, W) in [-1, 1]."""
    path = Path(f"{dataset}:{Split.TRAIN}")
    number = min(_NUM_JUDGED, count_scans(path, "target"))
    return load_scans(path, "target", indices=range(number)).arrays


def _stage(
    fabric: Fabric, stored: StoredScans, judged: np.ndarray, run: Path, config: PretrainConfig
) -> None:
    folder, grid = run / PRETRAINING, stored.grid
    seed, batch_size = config.training.seed, config.inpainter_training.batch_size
    volumes = torch.from_numpy(stored.arrays())[:, None]
    axes = mirror_axes(config.training.flip, grid.affine)
    shape = config.patch_shape or grid.shape
    mine = local_slice(fabric, batch_size)
    network = seeded_network(config.network, 1, seed)
    optimiser = adam(network, config.inpainter_training)
    wrapped, learner = set_up(fabric, network, optimiser, (batch_size, 1, *shape))

    def load(step: int) -> tuple[Tensor, Tensor]:
        draws = derived_generator(seed, "inpainting", step)
        indices = shuffled_indices(len(volumes), seed, step * batch_size, batch_size)
        patches = []
        for index in indices:
            x = crop(volumes[index], random_corner(grid.shape, shape, draws), shape).float()
            patches.append(x.flip(drawn_mirror(axes, draws)))
        mask = random_masks(batch_size, shape, config.masking, draws)
        return torch.stack(patches)[mine], mask[mine]

    def preview() -> dict[str, Tensor]:
        x = torch.stack([crop(volume, (0, 0, 0), shape).float() for volume in volumes[:NUM_PREVIEWS]])
        mask = random_masks(len(x), shape, config.masking, derived_generator(seed, "preview"))
        with torch.no_grad():
            guess = network(hide(x, mask).to(fabric.device)).float().cpu()
        return {"scan": x, "seen": hide(x, mask), "filled in": torch.where(mask, guess, x)}

    loop = Loop(
        fabric,
        folder,
        config.inpainter_training,
        config.training,
        {"network": network, "optimiser": optimiser},
        len(volumes),
        preview,
        grid,
    )
    for _, (x, mask) in prefetched(loop.steps(), load):
        x, mask = x.to(fabric.device), mask.to(fabric.device)
        losses = inpaint(wrapped, x, mask)
        loop.require_finite(losses)
        take_step(fabric, losses["loss"], wrapped, learner, config.inpainter_training)
        loop.record(losses)
    if fabric.is_global_zero:
        quality = inpainting_quality(
            network, torch.from_numpy(judged)[:, None], config.patch_shape, config.masking
        )
        save_inpainting_quality(quality, run)
        save_weights(network, folder / WEIGHTS_NAME)
    fabric.barrier()

"""Fine-tuning: Swin UNETR learns to segment a fraction of the labelled scans, from scratch or pre-trained."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from anatogen.core.errors import UserError
from anatogen.core.files import sha256_file, sha256_json, write_json
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME
from anatogen.dataset.cases import placement_on
from anatogen.dataset.prepare_config import stored_settings
from anatogen.dataset.volumes import LabelledDataset, prefetched, shuffled_indices
from anatogen.downstream.augmentation import augmented
from anatogen.downstream.early_stopping import EarlyStopping
from anatogen.downstream.labelled import LabelledSplits, labelled_subset, labels_in, load_labelled
from anatogen.downstream.metrics import dice
from anatogen.downstream.network import seeded_network, transfer_weights
from anatogen.downstream.patches import (
    check_patch,
    corner_around,
    crop,
    drawn_mirror,
    mirror_axes,
    random_corner,
)
from anatogen.downstream.segmenter import Segmenter, SegmenterDescription
from anatogen.downstream.settings import FINETUNING, PRETRAINING, FinetuneConfig
from anatogen.training.cuda_graph import set_up
from anatogen.training.devices import build_fabric, check_stages, launch, loading_processes
from anatogen.training.loop import NUM_PREVIEWS, Loop
from anatogen.training.optimisation import adam, local_slice, take_step
from anatogen.training.run_folder import claim_run


def finetune(
    data: Path | str,
    run: Path | str,
    config: FinetuneConfig,
    *,
    init: Path | str | None = None,
    device: str = "auto",
    devices: int = 1,
) -> Path:
    """Trains Swin UNETR to segment, or goes on with a run that was stopped.

    The arguments are those of `anatogen.finetune`, which explains them.

    Raises:
        UserError: If masks, settings and pre-trained weights don't fit each other or the run.
        NonFiniteLossError: If a loss is not finite.
    """
    data, run = Path(data), Path(run)
    check_stages(config, (FINETUNING,), device, devices)
    splits = load_labelled(data)
    check_patch(config.patch_shape, splits.manifest.grid.shape)
    labelled_subset(splits.train.cases, config.fraction, config.training.seed)
    weights = None if init is None else pretrained_weights(Path(init))
    if weights is not None:
        # Here first, so that a wrong file does not claim the run's folder.
        transfer_weights(_start(splits, config).network, weights, config.transfer)
    inputs = [splits.manifest.sha256(), None if weights is None else sha256_file(weights)]
    claim_run(run, sha256_json(inputs), config, config.training.seed)
    folder = run / FINETUNING
    fabric = build_fabric(device, devices)
    launch(fabric, partial(_stage, data=data, folder=folder, config=config, weights=weights))
    return folder


def pretrained_weights(path: Path) -> Path:
    """The file of weights of a run of `pretrain`, or the file itself.

    Raises:
        UserError: If there is none.
    """
    places = [path, path / WEIGHTS_NAME, path / PRETRAINING / WEIGHTS_NAME]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f"{path} holds no finished pre-training: make one with "
            f"`anatogen downstream pretrain SCANS {path}`"
        )
    return found


def _stage(fabric: Fabric, data: Path, folder: Path, config: FinetuneConfig, weights: Path | None) -> None:
    from monai.losses import DiceCELoss

    splits = load_labelled(data)
    grid, seed, batch_size = splits.manifest.grid, config.training.seed, config.segmenter_training.batch_size
    subset = labelled_subset(splits.train.cases, config.fraction, seed)
    mine = local_slice(fabric, batch_size)
    segmenter = _start(splits, config)
    network = segmenter.network
    if weights is not None:
        loaded = transfer_weights(network, weights, config.transfer)
        if fabric.is_global_zero:
            total = len(network.state_dict())
            print(f"{FINETUNING}: {len(loaded)} of {total} tensors from the pre-trained network")
            write_json(folder / "transfer.json", {"loaded": loaded})
    if fabric.is_global_zero:
        _say_what_is_missing(splits, subset)
    optimiser = adam(network, config.segmenter_training)
    shape = config.patch_shape or grid.shape
    wrapped, learner = set_up(fabric, network, optimiser, (batch_size, 1, *shape))
    stopping = EarlyStopping(network, config.patience)
    class_of = _class_of_label(splits.labels)
    batches = _Batches(splits.train, subset, config)
    measure = DiceCELoss(to_onehot_y=True, softmax=True)

    def preview() -> dict[str, Tensor]:
        x, truth = (splits.validation.batch, splits.validation.masks)
        shown = range(min(NUM_PREVIEWS, len(splits.validation)))
        labels = segmenter.segment(x(shown).to(fabric.device))
        scale = 2 / max(splits.labels)
        return {"scan": x(shown), "truth": truth(shown) * scale - 1, "prediction": labels * scale - 1}

    loop = Loop(
        fabric,
        folder,
        config.segmenter_training,
        config.training,
        {"network": network, "optimiser": optimiser, "stopping": stopping},
        len(subset),
        preview,
        grid,
    )

    def judge() -> float:
        # By one process for all: a last bit that differs would let them stop at different steps.
        score = _mean_dice(segmenter, splits.validation) if fabric.is_global_zero else 0.0
        stopping.judge(score := fabric.broadcast(score), network)
        if stopping.is_over:
            loop.stop()
        return score

    load = partial(batches.load, mine=mine)
    for step, (x, labels) in prefetched(loop.steps(), load, loading_processes(fabric)):
        if stopping.is_over:
            # Killed after its last step: the checkpoint holds the end.
            break
        x, classes = x.to(fabric.device), class_of[labels.long()].to(fabric.device)
        loss = measure(wrapped(x).float(), classes)
        loop.require_finite({"loss": loss})
        take_step(fabric, loss, wrapped, learner, config.segmenter_training)
        record: dict[str, Tensor | float] = {"loss": loss}
        if (step + 1) % config.validate_every == 0:
            record["validation_dice"] = judge()
        loop.record(record)
    if not stopping.has_judged:
        judge()
    if fabric.is_global_zero:
        stopping.restore_best(network)
        segmenter.save(folder)
    fabric.barrier()


def _start(splits: LabelledSplits, config: FinetuneConfig) -> Segmenter:
    manifest = splits.manifest
    prepared = stored_settings(manifest.config)
    description = SegmenterDescription(
        network=config.network,
        labels=splits.labels,
        names=manifest.labels,
        patch_shape=config.patch_shape,
        region=prepared.region,
        placement=placement_on(manifest.grid, prepared),
        intensity=manifest.intensity,
        told_modality=prepared.modality != "auto",
        percentiles=prepared.percentiles,
        reading=prepared.reading,
    )
    return Segmenter(description, seeded_network(config.network, len(splits.labels), config.training.seed))


def _say_what_is_missing(splits: LabelledSplits, subset: Sequence[int]) -> None:
    missing = sorted(set(splits.labels) - set(labels_in(splits.train, subset)))
    if missing:
        print(
            f"{FINETUNING}: none of the {len(subset)} scans that are learned from shows the label "
            f"{', '.join(map(str, missing))}: it will not be found"
        )


def _class_of_label(labels: tuple[int, ...]) -> Tensor:
    """int64 (256,): the class of each label."""
    classes = torch.zeros(256, dtype=torch.long)
    classes[list(labels)] = torch.arange(len(labels))
    return classes


def _mean_dice(segmenter: Segmenter, dataset: LabelledDataset) -> float:
    """Mean over cases and labels; a label that neither truth nor prediction shows does not count."""
    device = next(segmenter.network.parameters()).device
    scores = []
    for index in range(len(dataset)):
        predicted = segmenter.segment(dataset.batch([index]).to(device)).numpy()
        truth = dataset.masks([index]).numpy()
        scores += [dice(predicted == label, truth == label) for label in segmenter.description.labels[1:]]
    defined = [score for score in scores if score is not None]
    return sum(defined) / len(defined) if defined else 0.0


class _Batches:
    """Augmented crops of labelled scans; a pure function of the step."""

    def __init__(self, dataset: LabelledDataset, subset: Sequence[int], config: FinetuneConfig) -> None:
        self._dataset = dataset
        self._subset = subset
        self._config = config
        self._shape = config.patch_shape or dataset.shape
        self._axes = mirror_axes(config.training.flip, dataset.manifest.grid.affine)

    def load(self, step: int, mine: slice) -> tuple[Tensor, Tensor]:
        """float32 and uint8 (B, 1, *patch): this process's part of the step's batch."""
        size = self._config.segmenter_training.batch_size
        positions = shuffled_indices(len(self._subset), self._config.training.seed, step * size, size)
        pairs = [self._example(step, slot, self._subset[positions[slot]]) for slot in range(size)[mine]]
        return torch.stack([x for x, _ in pairs]), torch.stack([labels for _, labels in pairs])

    def _example(self, step: int, slot: int, index: int) -> tuple[Tensor, Tensor]:
        draws = derived_generator(self._config.training.seed, "augmentation", step, slot)
        x, labels = self._dataset.batch([index])[0], self._dataset.masks([index])[0]
        spacing_mm = self._dataset.manifest.grid.spacing_mm
        x, labels = augmented(x, labels, spacing_mm, self._config.augmentation, draws)
        mirror = drawn_mirror(self._axes, draws)
        x, labels = x.flip(mirror), labels.flip(mirror)
        # Half of the crops show something that is labelled.
        if bool(torch.rand((), generator=draws) < 0.5):
            corner = corner_around(labels[0], self._shape, draws)
        else:
            corner = random_corner(self._dataset.shape, self._shape, draws)
        return crop(x, corner, self._shape), crop(labels, corner, self._shape)

"""``python -m benchmarks.downstream``: a fine-tuning step against bare MONAI's, and what its parts cost.

The rows alternate, so that a drift of the machine hits all alike; a row is the median of its repetitions.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from monai.losses import DiceCELoss
from monai.networks.nets import SwinUNETR

from anatogen.core.seeding import derived_generator
from anatogen.downstream.augmentation import augmented
from anatogen.downstream.inpainting import hide, inpainting_losses, random_masks
from anatogen.downstream.network import PaddedSwinUNETR
from anatogen.downstream.settings import (
    AugmentationSettings,
    DownstreamOptimiserSettings,
    MaskingSettings,
    SwinUNETRSettings,
)
from anatogen.training.optimisation import adam, take_step

_NUM_CLASSES = 3


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=64, help="voxels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = _rows(arguments.side)
    times: dict[str, list[float]] = {name: [] for name in rows}
    for repetition in range(arguments.repeats + 1):
        for name, call in rows.items():
            started = time.perf_counter()
            call()
            if repetition:  # the first one warms up
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians["MONAI's SwinUNETR, bare step"]
    print("| row | seconds | of MONAI's |\n| --- | --- | --- |")
    for name, median in medians.items():
        reach = f"{min(times[name]):.4f}..{max(times[name]):.4f}"
        print(f"| {name} | {median:.4f} ({reach}) | {median / base:.3f} |")


def _rows(side: int) -> dict[str, Callable[[], object]]:
    shape = (side, side, side)
    x = torch.rand(1, 1, *shape) * 2 - 1
    labels = torch.randint(_NUM_CLASSES, (1, 1, *shape))
    measure = DiceCELoss(to_onehot_y=True, softmax=True)
    settings = DownstreamOptimiserSettings(batch_size=1)
    fabric = Fabric(accelerator="cpu", devices=1)

    def bare(*, flash: bool) -> Callable[[], object]:
        torch.manual_seed(0)
        network = SwinUNETR(
            in_channels=1, out_channels=_NUM_CLASSES, feature_size=12, use_flash_attention=flash
        )
        optimiser = adam(network, settings)

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            measure(network(x), labels).backward()
            optimiser.step()

        return step

    def ours(out_channels: int) -> Callable[[], object]:
        network = PaddedSwinUNETR(SwinUNETRSettings(feature_size=12), out_channels)
        wrapped, learner = fabric.setup(network, adam(network, settings))

        def finetuning() -> None:
            loss = measure(wrapped(x).float(), labels)
            assert bool(loss.isfinite())
            take_step(fabric, loss, wrapped, learner, settings)

        def pretraining() -> None:
            mask = random_masks(1, shape, MaskingSettings(), derived_generator(0))
            losses = inpainting_losses(wrapped(hide(x, mask)).float(), x)
            assert bool(losses["loss"].isfinite())
            take_step(fabric, losses["loss"], wrapped, learner, settings)

        return pretraining if out_channels == 1 else finetuning

    guess = x.clone().requires_grad_()
    return {
        "MONAI's SwinUNETR, bare step": bare(flash=True),
        "the same without flash attention": bare(flash=False),
        "fine-tuning step": ours(_NUM_CLASSES),
        "pre-training step": ours(1),
        "its loss, L1 and MS-SSIM, with gradient": lambda: inpainting_losses(guess, x)["loss"].backward(),
        "augmentation of one scan": lambda: augmented(
            x[0], labels[0].to(torch.uint8), (1, 1, 1), AugmentationSettings(), derived_generator(0)
        ),
    }


if __name__ == "__main__":
    main()

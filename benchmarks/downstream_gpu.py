"""``python -m benchmarks.downstream_gpu``: fine-tuning steps a second, of one process or of several at once.

Each process learns from augmented batches, first by the network's own passes, then by recorded ones. All
begin each row together. Without a GPU both rows are the same.
"""

import argparse
import multiprocessing
import time
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import Tensor

from anatogen.core.seeding import derived_generator
from anatogen.dataset.volumes import prefetched
from anatogen.downstream.augmentation import augmented
from anatogen.downstream.network import PaddedSwinUNETR
from anatogen.downstream.patches import crop
from anatogen.downstream.settings import AugmentationSettings, DownstreamOptimiserSettings, SwinUNETRSettings
from anatogen.training.cuda_graph import set_up
from anatogen.training.devices import build_fabric
from anatogen.training.optimisation import adam, take_step

_GRID, _PATCH = (40, 56, 40), (32, 56, 32)
_NUM_CLASSES = 3
# More than loading processes have loaded while they waited.
_WARM_UP = 20


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--loading-processes", type=int, default=0, help="of each; 0 for a thread")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(arguments.processes), context.Queue()
    workers = [
        context.Process(target=_work, args=(number, arguments, barrier, results))
        for number in range(arguments.processes)
    ]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    print("| passes | steps a second, all processes |\n| --- | --- |")
    for name in found[0]:
        print(f"| {name} | {sum(rates[name] for rates in found):.1f} |")


def _work(number: int, arguments: argparse.Namespace, barrier: Barrier, results: Any) -> None:
    torch.set_num_threads(1)
    measure = DiceCELoss(to_onehot_y=True, softmax=True)
    settings = DownstreamOptimiserSettings(batch_size=arguments.batch_size)
    shape = (arguments.batch_size, 1, *_PATCH)
    load = partial(_batch, number=number, size=arguments.batch_size)
    rates = {}
    for name in ("the network's own", "recorded"):
        fabric = build_fabric("auto", 1)
        network = PaddedSwinUNETR(SwinUNETRSettings(feature_size=12), _NUM_CLASSES)
        optimiser = adam(network, settings)
        if name == "recorded":
            wrapped, learner = set_up(fabric, network, optimiser, shape)
        else:
            wrapped, learner = fabric.setup(network, optimiser)
        started = 0.0
        for step, (x, labels) in prefetched(range(10**9), load, arguments.loading_processes):
            if step == _WARM_UP:
                barrier.wait()
                started = time.perf_counter()
            loss = measure(wrapped(x.to(fabric.device)).float(), labels.to(fabric.device))
            # Read, as training does, so that no step is counted before it is done.
            assert bool(loss.isfinite())
            take_step(fabric, loss, wrapped, learner, settings)
            seconds = time.perf_counter() - started
            if started and seconds > arguments.seconds:
                break
        rates[name] = (step - _WARM_UP + 1) / seconds
    results.put(rates)


def _batch(step: int, number: int, size: int) -> tuple[Tensor, Tensor]:
    draws = derived_generator("benchmark", step, number)
    x = torch.rand(1, *_GRID, generator=draws) * 2 - 1
    labels = torch.randint(_NUM_CLASSES, (1, *_GRID), generator=draws).to(torch.uint8)
    pairs = [augmented(x, labels, (1, 1, 1), AugmentationSettings(), draws) for _ in range(size)]
    return (
        torch.stack([crop(scan, (0, 0, 0), _PATCH) for scan, _ in pairs]),
        torch.stack([crop(truth, (0, 0, 0), _PATCH) for _, truth in pairs]),
    )


if __name__ == "__main__":
    main()

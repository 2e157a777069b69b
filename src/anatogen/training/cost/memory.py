"""How much memory a stage will take, counted without taking it.

The stage's own training step runs on tensors that have shapes and no contents; every storage that lives is
counted, from the weights to the temporaries of the backward pass. What a process needs beside its tensors was
measured (docs/planning.md).
"""

import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

# PyTorch has no public names for tensors that have a device but no contents, nor for seeing the operations of
# a backward pass; it documents both under these ("Fake tensor", "Extending PyTorch"). Nothing else here is
# private, and a test counts by hand what they must count.
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from anatogen.dataset.manifest import Grid
from anatogen.models.vqgan import VQGAN
from anatogen.training.stage import ConfigT, Stage

# Python, torch, and what a training imports; oneDNN's kernels, which are made at run time, included.
_PROCESS_BYTES_CPU = 420e6
# CUDA's context and its kernels; 0.6 GB is usual, and was not measured.
_PROCESS_BYTES_GPU = 600e6
# What is held beyond tensors that come and go: copies that convolutions make, and freed pieces of memory
# that can't be given back because their neighbours are in use. glibc maps blocks of 32 MB or more one by one,
# which leaves no pieces.
_OVERHEAD = 1.1
_OVERHEAD_OF_PIECES = 1.7
_PIECE_BYTES = 32 * 2**20


def peak_memory_gb(
    stage: Stage[ConfigT], settings: ConfigT, grid: Grid, *, on_gpu: bool = False, bf16: bool = False
) -> float:
    """Largest memory of the process that trains a stage, in 10^9 bytes: of the GPU, or resident in RAM.

    Scans that are read memory-mapped don't count: the system takes their pages back when it needs them.

    Args:
        stage: The stage to count.
        settings: The whole configuration.
        grid: Grid of the scans.
        on_gpu: Whether it runs on a GPU.
        bf16: Whether it runs in mixed precision.
    """
    base = _PROCESS_BYTES_GPU if on_gpu else _PROCESS_BYTES_CPU
    counter = LiveBytes(pieces=_OVERHEAD if on_gpu else _OVERHEAD_OF_PIECES)
    with warnings.catch_warnings():
        # Of switches that concern other hardware.
        warnings.simplefilter("ignore")
        # oneDNN's own layouts have no shapes to go by.
        with torch.backends.mkldnn.flags(enabled=False), FakeTensorMode(allow_non_fake_inputs=True), counter:
            fabric = _StillFabric(accelerator="cpu", precision="bf16-mixed" if bf16 else "32-true")
            trial = stage.dry_run(fabric, _without_clipping(stage, settings), grid)
            autoencoder = trial.networks.get("autoencoder")
            if isinstance(autoencoder, VQGAN):
                # Moving the codes depends on values, and is small beside the step before it.
                autoencoder.codebook.update = lambda *_: None  # type: ignore[method-assign]
            # From the second step on the optimiser's state is there throughout, as are the weights.
            trial.step(0)
            counter.settle()
            trial.step(1)
            for other in trial.others.values():
                other()
    return (base + counter.peak) / 1e9


class _StillFabric(Fabric):
    """A Fabric that leaves networks where they are: tensors without contents can't be moved."""

    def to_device(self, obj: nn.Module | Tensor | Any) -> Any:
        return obj


class LiveBytes(TorchDispatchMode):
    """Counts the storages that exist, each once however many views it has, and what each costs.

    Args:
        pieces: Factor of those below 32 MB that come and go.
    """

    def __init__(self, pieces: float) -> None:
        super().__init__()
        self.peak = 0.0
        self._pieces = pieces
        self._now = 0.0
        self._bytes: dict[int, float] = {}
        self._sizes: dict[int, float] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            self._add(tensor.untyped_storage())
        return out

    def settle(self) -> None:
        """Counts what lives now as permanent: it costs no more than itself."""
        self._sizes = dict(self._bytes)
        self.peak = self._now = float(sum(self._sizes.values()))

    def _add(self, storage: torch.UntypedStorage) -> None:
        # A storage is one Python object for as long as a tensor uses it.
        key = id(storage)
        if key in self._sizes:
            return
        self._bytes[key] = size = float(storage.nbytes())
        self._sizes[key] = size * (self._pieces if size < _PIECE_BYTES else _OVERHEAD)
        self._now += self._sizes[key]
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        del self._bytes[key]
        self._now -= self._sizes.pop(key)


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors of an operation's result, which may be a list or a tuple of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _without_clipping(stage: Stage[ConfigT], settings: ConfigT) -> ConfigT:
    """The settings without clipping, which looks at the gradient's norm and takes no memory."""
    optimisation = stage.optimisation(settings).model_copy(update={"gradient_clip": None})
    return settings.model_copy(update={f"{stage.name}_training": optimisation})

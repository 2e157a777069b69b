"""The device that a name means; imports little: sampling starts at once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from anatogen.core.errors import UserError


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute with one thread on a CPU.

    Sums are split over threads, and so rounded otherwise with other numbers of them. And threads wait for one
    another after each small operation: where others want the processor, that costs more than all the rest.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_named(name: str, number: int = 0) -> torch.device:
    """The device of this name.

    Args:
        name: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.
        number: Number of the process, each of which takes the next GPU.

    Raises:
        UserError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is unknown: use cpu, cuda, cuda:0 or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: this machine has no usable GPU; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs")
    if name == "cuda":
        return torch.device("cuda", number % torch.cuda.device_count())
    return device

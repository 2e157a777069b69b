"""Weights that others published, as PyTorch's own files; nothing on the way to a scan reads one."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from anatogen.core.errors import UserError


def read_torch_file(path: Path, role: str) -> Any:
    """Content of a weights file that others wrote with `torch.save`; nothing in it is executed.

    Args:
        path: The file.
        role: What the weights are for, which begins the errors.

    Raises:
        UserError: If there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise UserError(f"{role}: there is no file {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError, ValueError, KeyError) as error:
        raise UserError(f"{role}: {path} holds no weights or is damaged ({type(error).__name__})") from error

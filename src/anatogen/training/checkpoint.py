"""Checkpoints: everything that a killed training needs to go on as if nothing had happened."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint.stateful import Stateful

from anatogen.core.errors import UserError
from anatogen.core.files import atomic_path


def save_checkpoint(path: Path, state: Mapping[str, Stateful], counters: Mapping[str, float]) -> None:
    """Writes the state of networks and optimisers and the counters, atomically.

    Nothing random is in it: all randomness is a function of seed and step (`anatogen.core.seeding`).
    """
    content = {
        "counters": dict(counters),
        "parts": {name: part.state_dict() for name, part in state.items()},
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path, state: Mapping[str, Stateful]) -> dict[str, float]:
    """Restores networks and optimisers in place and returns the counters.

    Raises:
        UserError: If the file is damaged or of other networks.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in state.items():
            part.load_state_dict(content["parts"][name])
        return dict(content["counters"])
    except Exception as error:
        # torch reports damage as RuntimeError, UnpicklingError, EOFError or KeyError by where it is.
        raise UserError(
            f"the checkpoint {path} can't be used ({type(error).__name__}): delete it to start anew."
        ) from error

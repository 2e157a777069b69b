"""Randomness as a function of where it is used, so that nothing random needs to be saved or kept in step."""

import hashlib

import torch


def derived_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator that depends on the parts alone, e.g. (seed, "noise", step).

    Equal parts give equal draws on every machine, in every process and after every resumption.
    """
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

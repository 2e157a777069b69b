"""The best weights so far, by their Dice on validation scans, and when to stop looking for better ones."""

from copy import deepcopy
from typing import Any

from torch import nn


class EarlyStopping:
    """Part of a checkpoint: a resumed training stops where an uninterrupted one does.

    Args:
        network: Network whose weights are kept.
        patience: Validations without a better score that end the training; None for never.
    """

    def __init__(self, network: nn.Module, patience: int | None) -> None:
        self._patience = patience
        self._best_score = -1.0
        self._looks_since = 0
        self._best = deepcopy(network.state_dict())

    @property
    def has_judged(self) -> bool:
        """Whether there is a best score."""
        return self._best_score >= 0

    @property
    def is_over(self) -> bool:
        """Whether the last validations were all in vain."""
        return self._patience is not None and self._looks_since >= self._patience

    def judge(self, score: float, network: nn.Module) -> None:
        """Notes a score, and keeps the weights if it is better than all before.

        Args:
            score: From 0 up.
            network: Network that was scored.
        """
        if score > self._best_score:
            self._best_score, self._looks_since = score, 0
            self._best = deepcopy(network.state_dict())
        else:
            self._looks_since += 1

    def restore_best(self, network: nn.Module) -> None:
        """Gives the network the best weights so far."""
        network.load_state_dict(self._best)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"best_score": self._best_score, "looks_since": self._looks_since, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the state of a checkpoint."""
        self._best_score, self._looks_since = state_dict["best_score"], state_dict["looks_since"]
        self._best = state_dict["best"]

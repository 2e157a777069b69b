"""Processes that share a training, started the fast way."""

import pytest
from lightning_fabric.strategies import DDPStrategy


@pytest.fixture
def forked_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks processes that share a training, which need not import everything anew then."""

    def forking(start_method: str, **options) -> DDPStrategy:
        return DDPStrategy(start_method="fork", **options)

    monkeypatch.setattr("anatogen.training.devices.DDPStrategy", forking)

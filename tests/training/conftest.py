"""What trainings in tests share: processes started the fast way, and less at the end of each run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning_fabric.strategies import DDPStrategy


@pytest.fixture
def forked_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks processes that share a training, which need not import everything anew then."""

    def forking(start_method: str, **options) -> DDPStrategy:
        return DDPStrategy(start_method="fork", **options)

    monkeypatch.setattr("anatogen.training.devices.DDPStrategy", forking)


@pytest.fixture(scope="module", autouse=True)
def few_variance_times() -> Iterator[None]:
    """Measures the variance of x_0 at a few times in place of 32, which would take a sixth of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anatogen.training.latent_diffusion._NUM_VARIANCE_TIMES", 4)
        yield


@pytest.fixture(autouse=True)
def blank_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves previews empty, which take a quarter of a tiny run; those of fixtures are drawn."""

    def blank(rows: object, path: Path, **options: object) -> None:
        path.parent.mkdir(exist_ok=True)
        path.touch()

    monkeypatch.setattr("anatogen.training.loop.planes_figure", blank)

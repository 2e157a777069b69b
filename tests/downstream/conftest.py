"""What the tests of the downstream tasks share."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from labelled_dataset import write_labelled
from small_network import SmallUNETR

from anatogen.downstream import network


@pytest.fixture(scope="module")
def small_network() -> Iterator[None]:
    """Puts a small network in the place of Swin UNETR, which takes a second a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "_swin_unetr", SmallUNETR)
        yield


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Path:
    """A prepared dataset with masks, of 4 training, 2 validation and 2 test scans; not to be changed."""
    return write_labelled(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(autouse=True)
def no_collections(monkeypatch) -> None:
    """Spares the collection of garbage in statsmodels' corrections, most of a comparison's time."""
    monkeypatch.setattr(gc, "collect", lambda generation=2: 0)

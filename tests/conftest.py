"""What all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each start a thread per core would wait for one another's threads most of the time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real scans for development; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ANATOGEN_TEST_DATA", default))
    if not (folder / "hippocampus" / "images").is_dir():
        pytest.skip(f"no real scans at {folder}; set ANATOGEN_TEST_DATA to a folder that holds them")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The order of sums, and so the last bits, depends on the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

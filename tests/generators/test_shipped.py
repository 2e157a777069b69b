"""Models that come with the package: listed, sampled by name, and made from bundles in half precision."""

import json
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from synthetic_dataset import tiny_settings, write_dataset

from anatogen import sample
from anatogen.cli.app import main
from anatogen.core.errors import UserError
from anatogen.core.files import sha256_json
from anatogen.core.weights import load_weights, save_weights
from anatogen.generators import shipped
from anatogen.generators.loading import load_bundle, load_latent_diffusion
from anatogen.generators.shipped import CARD_NAME, bundle_folder, describe_models, shipped_models
from anatogen.training.train import train

ROOT = Path(__file__).parents[2]

from ship_model import read_release, ship  # noqa: E402

CARD = """---
name: blobs-ct
summary: blobs of noise
licence: CC-BY-SA-4.0
attribution: after Gauss
metrics:
  PSNR: "30.1 dB"
---

# blobs-ct

Blobs.
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shipped")
    data = write_dataset(folder / "data")
    settings = tiny_settings("autoencoder_training.steps=2", "diffusion_training.steps=2")
    return train(data, folder / "run", settings, device="cpu")


@pytest.fixture(scope="module")
def models(bundle: Path, tmp_path_factory) -> Path:
    """A folder of shipped models with one in it."""
    folder = tmp_path_factory.mktemp("package") / "shipped_models"
    card = folder.parent / "card.md"
    card.write_text(CARD)
    ship(bundle, folder / "blobs-ct", card, number=2)
    return folder


@pytest.fixture
def installed(models: Path, monkeypatch) -> Path:
    monkeypatch.setattr(shipped, "_FOLDER", models)
    return models


def test_half_precision_halves_the_files_and_comes_back_as_float32(bundle, models):
    shipped_folder = models / "blobs-ct"
    assert {path.name for path in shipped_folder.iterdir()} == {
        "autoencoder.safetensors",
        "bundle.json",
        "denoiser.safetensors",
        CARD_NAME,
    }
    full, half = load_latent_diffusion(bundle), load_latent_diffusion(shipped_folder)
    for network in ("autoencoder", "denoiser"):
        stored = load_file(shipped_folder / f"{network}.safetensors")
        assert torch.float32 not in {tensor.dtype for tensor in stored.values()}
        before, after = (getattr(model, network).state_dict() for model in (full, half))
        for name, wanted in before.items():
            assert after[name].dtype == wanted.dtype
            # Half precision has 11 significant bits; below 2^-14 it has a fixed step of 2^-24.
            assert torch.allclose(after[name].double(), wanted.double(), rtol=2**-11, atol=2**-25), name


def test_a_number_too_large_for_half_precision_is_refused(tmp_path):
    network = torch.nn.Linear(2, 2)
    with torch.no_grad():
        network.bias[0] = 1e6
    with pytest.raises(ValueError, match=r"bias holds 1e\+06, too large for half"):
        save_weights(network, tmp_path / "weights.safetensors", half=True)
    save_weights(network, tmp_path / "weights.safetensors")
    load_weights(network, tmp_path / "weights.safetensors")
    assert network.bias[0] == 1e6


def test_models_are_listed_with_what_one_must_know(installed):
    (folder,) = shipped_models()
    assert folder.name == "blobs-ct" and (folder / CARD_NAME).read_text() == CARD
    text = describe_models()
    for wanted in (
        "blobs-ct: blobs of noise",
        "CT, 16 x 16 x 16 voxels of 2 x 1 x 1.5 mm",
        "MB",
        "CC-BY-SA-4.0",
        "after Gauss",
        "PSNR: 30.1 dB",
        str(folder / CARD_NAME),
    ):
        assert wanted in text


def test_no_models_are_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "none")
    assert shipped_models() == {} and describe_models() == "no models come with this installation"
    with pytest.raises(UserError, match=r"come with anatogen are: none$"):
        bundle_folder("blobs-ct")


def test_a_name_stands_for_the_model_and_scans_say_their_licence(installed, tmp_path):
    paths = sample("blobs-ct", tmp_path / "out", num_samples=2, file_format="npy", processes=1)
    assert len(paths) == 2
    about = json.loads((tmp_path / "out" / "synthetic_000001.json").read_text())
    assert about["model"] == "blobs-ct"
    assert about["licence"] == "CC-BY-SA-4.0" and about["attribution"] == "after Gauss"
    assert about["bundle_sha256"] == load_bundle("blobs-ct").sha256


def test_scans_of_one_s_own_bundle_claim_no_licence(bundle, tmp_path):
    sample(bundle, tmp_path, file_format="npy", processes=1)
    about = json.loads((tmp_path / "synthetic_000000.json").read_text())
    assert not {"model", "licence", "attribution"} & set(about)


def test_a_folder_of_that_name_wins(installed, bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bundle_folder("blobs-ct") == installed / "blobs-ct"
    (tmp_path / "blobs-ct").symlink_to(bundle)
    assert bundle_folder("blobs-ct") == Path("blobs-ct")
    assert load_bundle("blobs-ct").sha256 == load_bundle(bundle).sha256


@pytest.mark.parametrize("name", ["blobs", "Blobs-CT", ".."])
def test_an_unknown_name_is_told_the_known_ones(installed, name, tmp_path):
    with pytest.raises(
        UserError, match=r"(models that come with anatogen are: blobs-ct$|is not a model bundle)"
    ):
        load_bundle(name)
    with pytest.raises(UserError, match=r"has no bundle\.json"):
        load_bundle(tmp_path / "run" / "bundle")


def test_a_damaged_or_misplaced_model_is_named(models, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    (tmp_path / "other").symlink_to(models / "blobs-ct")
    with pytest.raises(UserError, match="does not name the model other"):
        shipped_models()


def test_the_command_line_lists_and_samples_offline(installed, tmp_path, monkeypatch, capsys):
    """With every way to the network closed."""

    def closed(*_, **__):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", closed)
    monkeypatch.setattr(socket, "getaddrinfo", closed)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["anatogen", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert run("models") == 0 and "blobs-ct: blobs of noise" in capsys.readouterr().out
    assert run("sample", "blobs-ct", str(tmp_path / "out"), "-n", "2", "--processes", "1") == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
    capsys.readouterr()
    assert run("sample", "blob", str(tmp_path / "none")) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "are: blobs-ct" in told
    assert not (tmp_path / "none").exists()


def test_a_model_is_shipped_only_with_a_whole_card_under_its_name(bundle, models, tmp_path):
    card = tmp_path / "card.md"
    card.write_text(CARD.replace("30.1", "{{psnr}}"))
    with pytest.raises(UserError, match=r"gaps left: fill \{\{psnr\}\}"):
        ship(bundle, tmp_path / "blobs-ct", card)
    card.write_text(CARD.replace("licence: CC-BY-SA-4.0\n", ""))
    with pytest.raises(UserError, match="licence"):
        ship(bundle, tmp_path / "blobs-ct", card)
    card.write_text("# no head\n")
    with pytest.raises(UserError, match="fields of a Release"):
        ship(bundle, tmp_path / "blobs-ct", card)
    card.write_text(CARD)
    with pytest.raises(UserError, match="must have the name of the model: blobs-ct"):
        ship(bundle, tmp_path / "blobs", card)
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]
    (tmp_path / "blobs-ct" / "thesis").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no model"):
        ship(bundle, tmp_path / "blobs-ct", card)
    assert (tmp_path / "blobs-ct" / "thesis").exists()


def test_a_model_whose_scans_change_in_half_precision_is_not_shipped(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("ship_model.compare", lambda *_: [45.0, 12.0])
    card = tmp_path / "card.md"
    card.write_text(CARD)
    with pytest.raises(UserError, match=r"12\.0 dB PSNR"):
        ship(bundle, tmp_path / "blobs-ct", card)
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]


def test_the_card_s_template_only_lacks_what_is_measured():
    text = (ROOT / "experiments" / "model_card.md").read_text()
    filled = text.replace("{{", "").replace("}}", "")
    release = read_release(filled, Path("model_card.md"))
    assert release.name == "hippocampus-mr" and release.licence == "CC-BY-SA-4.0"
    with pytest.raises(UserError, match="gaps left"):
        read_release(text, Path("model_card.md"))


def test_all_models_of_this_package_are_whole():
    for folder, description in shipped_models().items():
        card = folder / CARD_NAME
        assert description.release == read_release(card.read_text(), card)
        assert all(path.stat().st_size < 30e6 for path in folder.iterdir())
        # Of all that is said, also by keys that were taken out since: sets of scans are known by it.
        assert description.sha256 == sha256_json(json.loads((folder / "bundle.json").read_text()))

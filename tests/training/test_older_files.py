"""Bundles, runs and weights of older versions: read as before, or refused by what was taken out since."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from synthetic_dataset import tiny_settings, write_dataset

from anatogen.config.presets import training_settings
from anatogen.config.resolving import parse_overrides
from anatogen.config.settings import LatentDiffusionSettings
from anatogen.core.errors import ConfigError, UserError
from anatogen.core.files import sha256_json
from anatogen.core.weights import WEIGHTS_NAME, load_weights, save_weights
from anatogen.generators.loading import load_latent_diffusion
from anatogen.models.vqgan import VQGAN
from anatogen.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

OVERRIDES = ("autoencoder_training.decay=none", "diffusion_training.steps=2")
# What files said of the choice of quantisers while there was one.
EMA = {"autoencoder": {"quantiser": "ema", "fsq_levels": []}, "losses": {"codebook": 1.0, "kl": 1e-3}}
OTHERS = [
    {"quantiser": "l2", "fsq_levels": []},
    {"quantiser": "simvq", "fsq_levels": []},
    {"quantiser": "fsq", "fsq_levels": [8, 4]},
    {"quantiser": "none", "fsq_levels": []},
]
REFUSAL = (
    "autoencoder.quantiser '{}' was taken out, only 'ema' is left: anatogen 0.1.0 at commit 402af9f reads"
)
CODEBOOK = {
    "codebook.codes": (32, 2),
    "codebook.ema_count": (32,),
    "codebook.ema_sum": (32, 2),
    "codebook.initialised": (),
    "codebook.usage": (32,),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("older") / "data")


@pytest.fixture(scope="module")
def finished(data: Path, one_thread: None, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("older") / "run"
    train(data, run, _settings(4), device="cpu")
    return run


def _settings(steps: int) -> LatentDiffusionSettings:
    return tiny_settings(*OVERRIDES, f"autoencoder_training.steps={steps}")


def _change_bundle(
    bundle: Path, added: dict[str, object], removed: tuple[str, ...] = ()
) -> dict[str, object]:
    content = json.loads((bundle / "bundle.json").read_text())
    content["autoencoder"] |= added
    for section in ("autoencoder", "diffusion"):
        content[section] = {key: value for key, value in content[section].items() if key not in removed}
    (bundle / "bundle.json").write_text(json.dumps(content))
    return content


def _change_config(path: Path, **added: dict[str, object]) -> None:
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | {name: content[name] | more for name, more in added.items()}))


@pytest.mark.parametrize("added", [{}, EMA["autoencoder"]], ids=["before the choice", "with the choice"])
def test_older_bundles_make_the_same_scans_and_keep_their_hash(finished, tmp_path, added):
    wanted = load_latent_diffusion(finished / "bundle").generate(range(2))
    bundle = Path(shutil.copytree(finished / "bundle", tmp_path / "bundle"))
    content = _change_bundle(bundle, added, removed=("latents",))
    older = load_latent_diffusion(bundle)
    assert torch.equal(older.generate(range(2)), wanted)
    # Sets of scans are known by it.
    assert older.sha256 == sha256_json(content)
    older.save(tmp_path / "copy")
    copy = load_latent_diffusion(tmp_path / "copy")
    assert torch.equal(copy.generate(range(2)), wanted) and copy.sha256 == older.sha256
    assert "quantiser" not in json.loads((tmp_path / "copy" / "bundle.json").read_text())["autoencoder"]


@pytest.mark.parametrize("added", OTHERS, ids=lambda added: added["quantiser"])
def test_a_bundle_of_another_quantiser_is_refused_by_its_name(finished, tmp_path, added):
    bundle = Path(shutil.copytree(finished / "bundle", tmp_path / "bundle"))
    _change_bundle(bundle, added)
    with pytest.raises(UserError, match=REFUSAL.format(added["quantiser"])) as caught:
        load_latent_diffusion(bundle)
    assert str(caught.value).startswith(str(bundle)) and "\n" not in str(caught.value)


def test_an_older_run_goes_on_to_the_same_bits(data, finished, tmp_path):
    train(data, tmp_path, _settings(2), stages=("autoencoder",), device="cpu")
    _change_config(tmp_path / "config.yaml", **EMA)
    train(data, tmp_path, _settings(4), device="cpu")
    for stage in ("autoencoder", "diffusion"):
        weights = [run / stage / WEIGHTS_NAME for run in (tmp_path, finished)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("added", OTHERS, ids=lambda added: added["quantiser"])
def test_a_configuration_of_another_quantiser_is_refused_by_its_name(data, finished, tmp_path, added):
    shutil.copyfile(finished / "config.yaml", tmp_path / "config.yaml")
    _change_config(tmp_path / "config.yaml", autoencoder=added)
    for read in (
        lambda: training_settings(config=tmp_path / "config.yaml"),
        lambda: train(data, tmp_path, _settings(4), device="cpu"),
    ):
        with pytest.raises(ConfigError, match=REFUSAL.format(added["quantiser"])) as caught:
            read()
        assert str(caught.value).startswith(f"{tmp_path / 'config.yaml'}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["autoencoder.quantiser=ema", "losses.kl=1e-3", "losses.codebook=1"])
def test_what_was_taken_out_can_not_be_typed(override):
    with pytest.raises(ConfigError, match=f"{override.split('=')[0]}: unknown key"):
        training_settings("tiny", parse_overrides([override], LatentDiffusionSettings))


def test_older_weights_are_read(tmp_path):
    network = VQGAN(tiny_settings().autoencoder)
    weights = network.state_dict()
    found = {name: tuple(value.shape) for name, value in weights.items() if name.startswith("codebook.")}
    assert found == CODEBOOK
    codes = torch.randn(32, 2)
    old = {name: value.contiguous() for name, value in weights.items()} | {"codebook.codes": codes}
    save_file(old, tmp_path / "old.safetensors")
    load_weights(network, tmp_path / "old.safetensors")
    z = torch.randn(1, 4, 3, 3, 3)
    cells = z.movedim(1, -1).reshape(-1, 2)
    nearest = codes[torch.cdist(cells, codes).argmin(1)].reshape(1, 3, 3, 3, 4).movedim(-1, 1)
    assert torch.equal(network.codebook.quantise(z), nearest)
    save_weights(network, tmp_path / "new.safetensors")
    assert set(load_file(tmp_path / "new.safetensors")) == set(weights)

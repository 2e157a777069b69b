"""Each quantiser from training to samples: resumed to the same bits, bundled, and read from older bundles."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic_dataset import tiny_settings, write_dataset

from anatogen.core.errors import UserError
from anatogen.core.weights import WEIGHTS_NAME, load_weights, save_weights
from anatogen.dataset.manifest import Split
from anatogen.dataset.volumes import VolumeDataset
from anatogen.generators.loading import load_latent_diffusion
from anatogen.models.vqgan import VQGAN
from anatogen.training.latent_cache import cached_latents
from anatogen.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

QUANTISERS = {
    "ema": (),
    "l2": ("autoencoder.quantiser=l2",),
    "simvq": ("autoencoder.quantiser=simvq",),
    "fsq": ("autoencoder.quantiser=fsq", "autoencoder.fsq_levels=[8,4]"),
    "none": ("autoencoder.quantiser=none",),
}
# What the codebook of every autoencoder was before there was a choice.
OLD_CODEBOOK = {
    "codebook.codes": (32, 2),
    "codebook.ema_count": (32,),
    "codebook.ema_sum": (32, 2),
    "codebook.initialised": (),
    "codebook.usage": (32,),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("quantisers") / "data")


def _train(data: Path, run: Path, *overrides: str) -> Path:
    return train(data, run, tiny_settings("diffusion_training.steps=2", *overrides), device="cpu")


@pytest.mark.parametrize("name", QUANTISERS)
def test_training_goes_on_to_the_same_bits_and_its_bundle_makes_scans(name, data, tmp_path):
    constant = (*QUANTISERS[name], "autoencoder_training.decay=none")
    for steps in (2, 4):
        settings = tiny_settings(*constant, f"autoencoder_training.steps={steps}")
        train(data, tmp_path / "resumed", settings, stages=("autoencoder",), device="cpu")
    bundle = _train(data, tmp_path / "whole", *constant, "autoencoder_training.steps=4")
    weights = [tmp_path / run / "autoencoder" / WEIGHTS_NAME for run in ("resumed", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    loaded = load_latent_diffusion(bundle)
    assert loaded.description.autoencoder.quantiser == name
    scans = loaded.generate(range(2))
    assert scans.isfinite().all() and not torch.equal(scans[0], scans[1])
    loaded.save(tmp_path / "copy")
    assert torch.equal(load_latent_diffusion(tmp_path / "copy").generate(range(2)), scans)


@pytest.mark.parametrize("name", QUANTISERS)
def test_learning_makes_reconstructions_better(name, data, tmp_path):
    steps = ("autoencoder_training.steps=40", "autoencoder_training.learning_rate=3e-3")
    train(
        data,
        tmp_path,
        tiny_settings(*QUANTISERS[name], *steps),
        stages=("autoencoder",),
        device="cpu",
    )
    settings = tiny_settings(*QUANTISERS[name])
    x = VolumeDataset(data, Split.VALIDATION).batch([0, 1])
    errors = []
    for trained in (False, True):
        torch.manual_seed(settings.training.seed)
        network = VQGAN(settings.autoencoder).eval()
        if trained:
            load_weights(network, tmp_path / "autoencoder" / WEIGHTS_NAME)
        with torch.no_grad():
            errors.append(float((network(x)[0] - x).abs().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_a_posterior_is_drawn_from_the_step_s_own_noise(data, tmp_path):
    """Another seed of torch's own generator changes nothing: all noise comes from seed and step."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        settings = tiny_settings(*QUANTISERS["none"], "autoencoder_training.steps=2")
        train(data, tmp_path / str(seed), settings, stages=("autoencoder",), device="cpu")
        found.append((tmp_path / str(seed) / "autoencoder" / WEIGHTS_NAME).read_bytes())
    assert found[0] == found[1]


@pytest.mark.usefixtures("forked_processes")
def test_two_processes_draw_what_one_draws(data, tmp_path):
    """Each process takes its part of the noise of the whole batch."""
    wide = ("autoencoder.base_width=16", "autoencoder.decoder_width=16", "autoencoder_training.steps=2")
    found = {}
    for devices in (1, 2):
        run = tmp_path / str(devices)
        settings = tiny_settings(*QUANTISERS["none"], *wide)
        train(data, run, settings, stages=("autoencoder",), device="cpu", devices=devices)
        found[devices] = load_file(run / "autoencoder" / WEIGHTS_NAME)
    for key, one in found[1].items():
        assert torch.allclose(one.double(), found[2][key].double(), atol=3e-4, rtol=1e-3), key


def test_latents_after_quantisation_are_codes_and_are_cached_apart(data, tmp_path):
    bundle = _train(data, tmp_path / "run", "diffusion.latents=post")
    loaded = load_latent_diffusion(bundle)
    network = loaded.autoencoder
    weights, dataset = tmp_path / "run" / "autoencoder" / WEIGHTS_NAME, VolumeDataset(data, Split.TRAIN)

    def latents(stage: str) -> torch.Tensor:
        settings = tiny_settings(f"diffusion.latents={stage}")
        folder = tmp_path / "run" / "latents"
        found = cached_latents(network, weights, dataset, settings, folder, torch.device("cpu"))
        return torch.from_numpy(np.array(found))[:, 0]

    assert len(list((tmp_path / "run" / "latents").glob("*.npy"))) == 1
    post = latents("post")
    assert len(list((tmp_path / "run" / "latents").glob("*.npy"))) == 1, "training cached the same ones"
    pre = latents("pre")
    assert torch.equal(network.codebook.quantise(pre), post) and not torch.equal(pre, post)
    x = dataset.batch(range(2))
    assert torch.allclose(loaded.encode(x), loaded.scaling.apply(post[:2]), atol=1e-4)
    # The scaling is that of what is diffused.
    assert torch.allclose(loaded.scaling.shift, post.movedim(1, 0).flatten(1).mean(1), atol=1e-5)


def test_stage_two_s_scaling_must_fit_another_run_s_autoencoder(data, tmp_path):
    settings = tiny_settings(*QUANTISERS["none"], "autoencoder_training.steps=1")
    train(data, tmp_path / "source", settings, stages=("autoencoder",), device="cpu")
    settings = tiny_settings("diffusion.latent_scaling=codebook_range")
    with pytest.raises(UserError, match="codebook_range needs a codebook"):
        train(
            data,
            tmp_path / "run",
            settings,
            stages=("diffusion",),
            autoencoder_run=tmp_path / "source",
            device="cpu",
        )


def test_bundles_from_before_there_was_a_choice_make_the_same_scans(data, tmp_path):
    bundle = _train(data, tmp_path / "run")
    wanted = load_latent_diffusion(bundle).generate(range(2))
    description = json.loads((bundle / "bundle.json").read_text())
    for section, names in {"autoencoder": ("quantiser", "fsq_levels"), "diffusion": ("latents",)}.items():
        for name in names:
            del description[section][name]
    (bundle / "bundle.json").write_text(json.dumps(description))
    old = load_latent_diffusion(bundle)
    assert torch.equal(old.generate(range(2)), wanted)
    # Its hash, by which sets of scans are known, doesn't count settings that it does not have.
    assert "quantiser" not in old.description.model_dump(exclude_unset=True)["autoencoder"]


def test_weights_from_before_there_was_a_choice_are_read(tmp_path):
    settings = tiny_settings().autoencoder
    network = VQGAN(settings)
    weights = network.state_dict()
    found = {name: tuple(value.shape) for name, value in weights.items() if name.startswith("codebook.")}
    assert found == OLD_CODEBOOK
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

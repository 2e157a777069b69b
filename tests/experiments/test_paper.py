"""`experiments/paper.py`: what it asks of the generators, and what it makes of latents."""

import re

import numpy as np
import paper
import pytest
import race
import torch
from bundles import SHAPE, make_bundle

from anatogen.config.resolving import parse_overrides
from anatogen.config.settings import GANConfig, LatentDiffusionSettings
from anatogen.core.errors import ConfigError, UserError
from anatogen.generators.loading import load_bundle
from anatogen.report.rows import Row


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    # Latents of untrained networks lie where they like.
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    return load_bundle(make_bundle(folder, "CT", "diffusion.clip_x_0=null"))


def test_generators_take_the_settings_that_they_have():
    process = ["diffusion.num_train_steps=20", "diffusion.sampling_steps=20"]
    words = ["training.seed=3", "gan.width=8", *process, "training.flip=none"]
    overrides = parse_overrides(words, LatentDiffusionSettings, GANConfig)
    for compression, entrant in zip((4, 8), paper.DIFFUSION.values(), strict=True):
        found = race.settings_of(entrant, paper.known_to(entrant, overrides), minutes=6)
        assert (found.training.seed, found.diffusion.num_train_steps) == (3, 20)
        assert found.autoencoder.compression == (compression,) * 3
        assert found.autoencoder_training.minutes == found.diffusion_training.minutes == 3
    for kwon, entrant in zip((False, True), paper.GANS.values(), strict=True):
        found = race.settings_of(entrant, paper.known_to(entrant, overrides), steps=7)
        assert (found.training.seed, found.gan.width, found.gan.kwon_compatible) == (3, 8, kwon)
        assert found.gan_training.steps == 7


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("autoencodr.num_codes=4", "autoencodr.num_codes is no setting"),
        ("gan.depth=4", "gan.depth is no setting"),
        ("flow.coarse_shift=1", "flow.coarse_shift is no setting"),
        ("autoencoder.compression=2", "autoencoder.compression is what this page settles"),
        ("training=3", "training is no setting"),
        ("gan.kwon_compatible=true", "gan.kwon_compatible is what this page settles"),
    ],
)
def test_settings_that_would_be_passed_over_are_refused_before_anything_is_trained(
    word, message, tmp_path, monkeypatch
):
    monkeypatch.setattr("sys.argv", ["paper.py", "data", str(tmp_path / "out"), word])
    with pytest.raises(ConfigError, match=message):
        paper.main()
    assert not (tmp_path / "out").exists()


def test_a_folder_is_of_one_set_of_arguments(tmp_path):
    paper._claim(tmp_path, {"minutes": 3.0, "settings": {"losses": {"l1": 1}}})
    paper._claim(tmp_path, {"minutes": 3.0, "settings": {"losses": {"l1": 1}}})
    with pytest.raises(UserError, match="begun with other arguments"):
        paper._claim(tmp_path, {"minutes": 4.0, "settings": {"losses": {"l1": 1}}})


def test_the_page_says_how_long_stages_were_trained_and_what_came_of_it(tmp_path):
    names = (*paper.DIFFUSION, *paper.GANS)
    log = tmp_path / "runs" / "diffusion_8" / "autoencoder" / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 1200, "minutes": 3.25, "loss": 1.0}\n')
    rows = {
        name: {"ms_ssim": Row("diversity", "ms_ssim", "MS-SSIM", 0.9996, reference=0.8095)} for name in names
    }
    text = paper.page(rows, {name: [] for name in paper.DIFFUSION}, tmp_path)
    assert "- `diffusion_8`: autoencoder 1,200 steps in 3.2 minutes\n" in text
    assert "| MS-SSIM | 0.8095 | 0.9996 | 0.9996 | 0.9996 | 0.9996 |" in text
    for picture in re.findall(r"\]\((.*)\)", text):
        assert picture.endswith(".png")


def test_latents_without_noise_are_decoded_as_they_are(bundle):
    scans = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = paper.traced(bundle, scans.numpy(), 0.0)
    given_back = bundle.autoencoder.reconstruct(scans[:, None])[:, 0].detach().numpy()
    np.testing.assert_allclose(made, given_back, atol=1e-5)


def test_latents_with_half_of_the_noise_keep_to_their_scan(bundle, monkeypatch):
    # A denoiser that is right: what it is asked about x_t = alpha x_0 + sigma eps it answers with eps.
    scan = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latent = bundle.encode(scan[:, None])
    schedule = paper.CosineSchedule(bundle.description.diffusion.num_train_steps)

    def knows(x_t, t):
        alpha, sigma = (float(value) for value in schedule.alpha_sigma(t.double())[:2])
        return (x_t - alpha * latent) / sigma

    monkeypatch.setattr(bundle, "denoiser", knows)
    made = paper.traced(bundle, scan.numpy(), 0.5)
    np.testing.assert_allclose(made, paper.traced(bundle, scan.numpy(), 0.0), atol=1e-4)


def test_a_bar_in_a_label_does_not_end_its_cell():
    table = race.markdown_table({"a": {"gap": Row("diversity", "gap", "|x − y|", 0.5)}})
    assert table.splitlines()[-1] == r"| \|x − y\| |  | 0.5 |"

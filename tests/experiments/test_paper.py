"""`experiments/paper.py`: what it asks of the generators, and what it makes of latents."""

import numpy as np
import paper
import pytest
import race
import torch
from bundles import SHAPE, make_bundle

from anatogen.config.presets import gan_settings, training_settings
from anatogen.config.resolving import parse_overrides
from anatogen.config.settings import GANConfig, LatentDiffusionSettings
from anatogen.generators.loading import load_bundle
from anatogen.report.rows import Row


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    # Latents of untrained networks lie where they like.
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    return load_bundle(make_bundle(folder, "CT", "diffusion.clip_x_0=null"))


def test_generators_take_the_settings_that_they_have():
    words = ["training.seed=3", "gan.width=8", "diffusion.num_train_steps=20"]
    overrides = parse_overrides(words, LatentDiffusionSettings, GANConfig)
    for entrant in paper.DIFFUSION.values():
        values = {**entrant.values, **paper.settings_of(entrant, overrides)}
        found = training_settings("paper", values)
        assert (found.training.seed, found.diffusion.num_train_steps) == (3, 20)
    for entrant in paper.GANS.values():
        found = gan_settings(paper.settings_of(entrant, overrides))
        assert (found.training.seed, found.gan.width) == (3, 8)


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

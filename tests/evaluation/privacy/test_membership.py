"""Membership inference: 1/2 where losses tell nothing, 1 where they tell all."""

import numpy as np
import pytest
import torch
from bundles import SHAPE, make_bundle

from anatogen.config.settings import GANSettings
from anatogen.evaluation.privacy.membership import decoded, membership_rows, true_positive_rate
from anatogen.generators.description import WGANGPDescription
from anatogen.generators.loading import load_bundle
from anatogen.generators.membership import auc
from anatogen.generators.wgan_gp import WGANGPBundle


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 6, 20).astype(float), rng.integers(0, 5, 30).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    assert auc(members, others) == pytest.approx(np.mean(pairs))
    assert auc(members, members) == 0.5
    assert auc(members + 100, others) == 1


def test_true_positives_are_counted_above_the_score_of_one_in_a_hundred():
    others = np.arange(200.0)
    # Two of 200 may be above: the threshold is 197.
    assert true_positive_rate(np.array([196.0, 197.0, 197.5, 300.0]), others) == 0.5
    assert true_positive_rate(others, others) == pytest.approx(0.01)
    assert true_positive_rate(np.array([5.0]), np.array([3.0, 4.0])) == 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load_bundle(make_bundle(tmp_path_factory.mktemp("bundle"), "MR"))


def _scans(number: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (number, *SHAPE)).astype(np.float32)


def test_every_scan_is_asked_at_the_same_times_with_the_same_noise(bundle):
    scans = _scans(2, 0)
    x = torch.from_numpy(scans)[:, None]
    losses = [bundle.loss(scan[None], seed=0) for scan in (*x, x[0])]
    assert losses[0] == losses[2] != losses[1]
    assert bundle.loss(x[:1], seed=1) != losses[0]
    assert decoded(bundle.autoencoder, scans[0]).shape == SHAPE


def test_scans_are_not_told_from_themselves(bundle):
    rows = {row.name: row for row in membership_rows(bundle, _scans(12, 0), _scans(12, 0), seed=0)}
    for source in ("denoiser", "autoencoder"):
        row = rows[f"membership_{source}_auc"]
        assert row.low < row.value == 0.5 < row.high
        assert "200 would do" in "; ".join(rows[f"membership_{source}_tpr"].notes)


def test_a_rigged_loss_gives_members_away(bundle, monkeypatch):
    train, holdout = _scans(10, 0), _scans(10, 1)
    known = {scan.tobytes() for scan in train}
    monkeypatch.setattr(bundle, "loss", lambda x, seed: float(x.numpy().tobytes() not in known))
    rows = {row.name: row for row in membership_rows(bundle, train, holdout, seed=0)}
    assert rows["membership_denoiser_auc"].value == rows["membership_denoiser_auc"].low == 1
    assert rows["membership_denoiser_tpr"].value == 1


def test_a_bundle_without_a_loss_gets_rows_that_say_so(bundle):
    description = WGANGPDescription(
        gan=GANSettings(width=2, latent_dim=5), grid=bundle.grid, intensity=bundle.intensity
    )
    rows = membership_rows(WGANGPBundle.build(description), _scans(3, 0), _scans(3, 1), seed=0)
    assert len(rows) == 4 and all(row.value is None and "GAN" in "; ".join(row.notes) for row in rows)

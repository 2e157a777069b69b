"""What is hidden, what the loss sees, and that pre-training resumes to the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from synthetic_dataset import write_dataset
from torch import Tensor, nn

from anatogen.config.resolving import parse_overrides, resolve
from anatogen.core.errors import UserError
from anatogen.core.seeding import derived_generator
from anatogen.dataset.scan_sets import load_scans
from anatogen.downstream.inpainting import (
    HIDDEN,
    InpaintingQuality,
    check_masking,
    copied_from_nearest,
    hide,
    inpaint,
    inpainting_losses,
    inpainting_quality,
    load_inpainting_quality,
    random_masks,
)
from anatogen.downstream.network import PaddedSwinUNETR
from anatogen.downstream.pretrain import pretrain
from anatogen.downstream.settings import MaskingSettings, PretrainConfig
from anatogen.evaluation.diversity import ms_ssim
from anatogen.io.npy import write_npy
from anatogen.io.volume import Volume
from anatogen.training import loop as loop_module
from anatogen.training.loop import read_log

pytestmark = pytest.mark.usefixtures("small_network")


def tiny(*overrides: str, steps: int = 4) -> PretrainConfig:
    base = {
        "network": {"feature_size": 12},
        "masking": {"patch_voxels": 4},
        "inpainter_training": {"batch_size": 1, "steps": steps},
        "training": {"checkpoint_minutes": 0},
    }
    return resolve(PretrainConfig, base, overrides=parse_overrides(overrides, PretrainConfig))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 33, 20)])
def test_the_share_that_is_asked_for_is_hidden(share, shape):
    settings = MaskingSettings(share=share, patch_voxels=4)
    masks = random_masks(60, shape, settings, derived_generator("share"))
    assert masks.shape == (60, 1, *shape)
    # Cut patches at the borders count as whole ones, so a single mask may differ.
    assert float(masks.float().mean()) == pytest.approx(share, abs=0.02)


def test_what_is_hidden_are_whole_patches_of_a_grid():
    side = 4
    mask = random_masks(1, (24, 24, 24), MaskingSettings(patch_voxels=side), derived_generator(3))[0, 0]
    change = [
        np.flatnonzero((mask.numpy() != np.roll(mask.numpy(), 1, axis)).any(axis=(axis - 1, axis - 2)))
        for axis in range(3)
    ]
    for places in change:
        inner = places[places > 0]
        assert len(set(inner % side)) == 1, "patches begin at one place of each axis, modulo their side"


def test_the_network_sees_nothing_of_what_is_hidden_and_the_loss_sees_it():
    x = torch.rand(1, 1, 16, 16, 16) * 2 - 1
    mask = random_masks(1, (16, 16, 16), MaskingSettings(patch_voxels=4), derived_generator(1))
    place = tuple(mask.nonzero()[100].tolist())
    planted = x.clone()
    planted[place] = 0.987 if x[place] < 0 else -0.987
    assert torch.equal(hide(planted, mask), hide(x, mask))
    assert (hide(x, mask)[mask] == HIDDEN).all()
    assert torch.equal(hide(x, mask)[~mask], x[~mask])
    guess = torch.zeros_like(x)
    assert inpainting_losses(guess, planted)["loss"] != inpainting_losses(guess, x)["loss"]
    # A seen voxel is seen.
    seen = x.clone()
    seen[tuple((~mask).nonzero()[100].tolist())] += 0.5
    assert not torch.equal(hide(seen, mask), hide(x, mask))


class Recording(nn.Module):
    """Notes what it is given, and gives it back."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x


def test_training_shows_the_network_only_what_is_not_hidden():
    x = torch.rand(1, 1, 16, 16, 16) * 2 - 1
    mask = random_masks(1, (16, 16, 16), MaskingSettings(patch_voxels=4), derived_generator(2))
    planted = torch.where(mask, -x, x)
    first, second = Recording(), Recording()
    losses = inpaint(first, x, mask)["loss"], inpaint(second, planted, mask)["loss"]
    assert torch.equal(first.seen, second.seen)
    assert not torch.equal(first.seen, x)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (MaskingSettings(share=0.001, patch_voxels=8), r"masking.share 0.001 of 8 cubes hides none"),
        (MaskingSettings(share=0.95, patch_voxels=8), r"masking.share 0.95 of 8 cubes hides all"),
        (MaskingSettings(patch_voxels=9), r"masking.patch_voxels 9 is more than half .*: use at most 8"),
    ],
)
def test_masks_that_hide_nothing_or_everything_are_refused(settings, message):
    check_masking(MaskingSettings(patch_voxels=8), (16, 16, 16))
    with pytest.raises(UserError, match=message):
        check_masking(settings, (16, 16, 16))


def test_the_loss_is_l1_and_what_similarity_lacks_to_one():
    x = torch.rand(2, 1, 24, 24, 24) * 2 - 1
    guess = (x + 0.2 * torch.randn_like(x)).clamp(-1, 1)
    losses = inpainting_losses(guess, x)
    expected = (guess - x).abs().mean() + 1 - ms_ssim(guess[:, 0], x[:, 0], 2.0).mean()
    torch.testing.assert_close(losses["loss"], expected)
    assert inpainting_losses(x, x)["loss"] == pytest.approx(0, abs=1e-6)


def test_the_gradient_is_that_of_finite_differences_and_finite_where_nothing_is_alike():
    x = torch.rand(1, 1, 12, 13, 12, dtype=torch.float64) * 2 - 1
    guess = (x + 0.3 * torch.randn_like(x)).requires_grad_()
    (gradient,) = torch.autograd.grad(inpainting_losses(guess, x)["loss"], guess)
    step = torch.zeros_like(x)
    step[0, 0, 6, 5, 7] = 1e-6
    ahead, behind = (inpainting_losses(guess.detach() + s, x)["loss"] for s in (step, -step))
    assert float((ahead - behind) / 2e-6) == pytest.approx(float(gradient[0, 0, 6, 5, 7]), rel=1e-4)
    opposite = (-x).requires_grad_()
    (gradient,) = torch.autograd.grad(inpainting_losses(opposite, x)["loss"], opposite)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().sum()) > 0


def test_copying_takes_the_value_of_the_nearest_seen_voxel():
    x = torch.rand(2, 1, 9, 10, 11)
    mask = random_masks(2, (9, 10, 11), MaskingSettings(patch_voxels=4), derived_generator(5))
    filled = copied_from_nearest(x, mask)
    assert torch.equal(filled[~mask], x[~mask])
    for volume, hidden, guess in zip(x[:, 0], mask[:, 0], filled[:, 0], strict=True):
        seen = (~hidden).nonzero()
        for place in hidden.nonzero()[::7]:
            distances = (seen - place).square().sum(1)
            nearest = volume[tuple(seen[distances == distances.min()].T)]
            assert guess[tuple(place.tolist())] in nearest


class _Guess(nn.Module):
    """Gives back what it is given, hidden voxels changed by a function of seen ones."""

    def __init__(self, fill):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))
        self.fill = fill

    def forward(self, x):
        return self.fill(x)


def test_a_network_is_judged_beside_copying():
    places = torch.linspace(-1, 1, 16)
    volumes = (places[:, None, None] + places[:, None] / 9 + places / 7).clamp(-1, 1).expand(3, 1, 16, 16, 16)
    masking = MaskingSettings(patch_voxels=4)
    copying = inpainting_quality(
        _Guess(lambda x: copied_from_nearest(x, x == HIDDEN)), volumes, None, masking
    )
    assert copying.network == pytest.approx(copying.copying) and not copying.learned
    perfect = inpainting_quality(_Guess(lambda x: volumes[:1]), volumes, None, masking)
    assert perfect.network == pytest.approx(0, abs=1e-6) and perfect.learned
    assert perfect.copying == copying.copying > 0.01
    # What it makes of seen voxels is not asked for.
    off = inpainting_quality(
        _Guess(lambda x: torch.where(x == HIDDEN, volumes[:1], x + 0.1)), volumes, None, masking
    )
    assert off == perfect
    lazy = inpainting_quality(_Guess(lambda x: x), volumes, (8, 16, 8), masking)
    assert lazy.network > lazy.copying


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("pretrain") / "data", num_train=3)


def test_a_killed_pretraining_goes_on_to_the_same_weights(data, tmp_path, monkeypatch, one_thread):
    settings = tiny("training.flip=left_right", "patch_shape=[16,16,16]")
    whole = pretrain([f"{data}:train"], tmp_path / "whole", settings, device="cpu")
    save, killed = loop_module.save_checkpoint, []

    def killing(path, parts, counters):
        save(path, parts, counters)
        if counters["step"] == 2 and not killed:
            killed.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(loop_module, "save_checkpoint", killing)
    with pytest.raises(KeyboardInterrupt):
        pretrain([f"{data}:train"], tmp_path / "resumed", settings, device="cpu")
    assert not (tmp_path / "resumed" / "inpainter" / "weights.safetensors").exists()
    resumed = pretrain([f"{data}:train"], tmp_path / "resumed", settings, device="cpu")
    expected, found = load_file(whole), load_file(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert read_log(whole.parent)[-1]["step"] == 4
    with pytest.raises(UserError, match="other settings"):
        pretrain([f"{data}:train"], tmp_path / "whole", tiny("masking.share=0.3"), device="cpu")
    with pytest.raises(UserError, match="other data"):
        pretrain([data], tmp_path / "whole", settings, device="cpu")


def test_how_well_a_network_fills_in_is_kept_beside_it_and_judged_on_the_target(data, tmp_path):
    other = write_dataset(tmp_path / "other", num_train=2, seed=5)
    settings = tiny(steps=1)
    pretrain([f"{data}:train"], tmp_path / "own", settings, device="cpu")
    pretrain([f"{data}:train"], tmp_path / "target", settings, like=other, device="cpu")
    own, target = (load_inpainting_quality(tmp_path / name) for name in ("own", "target"))
    network = PaddedSwinUNETR(settings.network, out_channels=1)
    network.load_state_dict(load_file(tmp_path / "target" / "inpainter" / "weights.safetensors"))
    for quality, judged in ((own, data), (target, other)):
        volumes = torch.from_numpy(load_scans(Path(f"{judged}:train"), "train").arrays)[:, None]
        expected = inpainting_quality(network, volumes, None, settings.masking)
        assert quality.network == pytest.approx(expected.network, rel=1e-5)
        assert quality.copying == expected.copying
    assert own.copying != target.copying
    assert str(InpaintingQuality(network=0.4, copying=0.5)) == (
        "fills in hidden voxels with a loss of 0.400 (copying the nearest seen voxel: 0.500)"
    )
    assert load_inpainting_quality(tmp_path) is None


def test_bad_input_is_named(data, tmp_path):
    with pytest.raises(UserError, match=r"patch_shape \(32, 16, 16\) is larger than the scans"):
        pretrain([data], tmp_path / "run", tiny("patch_shape=[32,16,16]"))
    with pytest.raises(UserError, match="no scans to pre-train on"):
        pretrain([], tmp_path / "run", tiny())
    with pytest.raises(UserError, match="is not a folder"):
        pretrain([tmp_path / "nowhere"], tmp_path / "run", tiny())
    other = write_dataset(tmp_path / "other", shape=(16, 24, 16))
    with pytest.raises(UserError, match="16 x 24 x 16"):
        pretrain([data, other], tmp_path / "run", tiny())
    # Its own validation scans are what a network that learned from all of them would be judged by.
    with pytest.raises(UserError, match=r"2 of the 5 scans of .* are validation scans of .*, which must not"):
        pretrain([data], tmp_path / "run", tiny(), like=data)
    # So are they when somebody clipped them and saved them in another unit.
    held_out = load_scans(Path(f"{data}:validation"), "held-out")
    for index, array in enumerate(held_out.arrays):
        clipped = Volume(100 * array.clip(-0.9, 0.5) + 300, np.asarray(held_out.grid.affine))
        write_npy(clipped, tmp_path / "clipped" / f"{index}.npy")
    with pytest.raises(UserError, match=r"2 of the 2 scans of .* are validation scans of .*, which must not"):
        pretrain([tmp_path / "clipped"], tmp_path / "run", tiny(), like=data)
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".*")), "no part is left"

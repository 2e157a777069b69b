"""The WGAN-GP baseline: its losses, its two trainings, and the way from a command to scans."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from synthetic_dataset import AFFINE, tiny_settings, write_dataset
from torch import nn

from anatogen import sample
from anatogen.config.presets import gan_settings
from anatogen.config.resolving import parse_overrides, resolve
from anatogen.config.settings import GANConfig
from anatogen.core.errors import ConfigError, UserError
from anatogen.core.weights import WEIGHTS_NAME
from anatogen.generators.loading import load_bundle, load_latent_diffusion
from anatogen.generators.wgan_gp import WGANGPBundle
from anatogen.training import loop as loop_module
from anatogen.training.cost.estimate import describe_training
from anatogen.training.cost.probe import Measurement
from anatogen.training.devices import build_fabric, launch
from anatogen.training.loop import NonFiniteLossError, read_log
from anatogen.training.train import train
from anatogen.training.wgan_gp import WGANGPStep, gradient_penalty, train_gan

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (8, 16, 20)
TINY = ("gan.width=2", "gan.latent_dim=4", "gan.critic_steps=2", "training.checkpoint_minutes=0")


def tiny(*overrides: str, steps: int = 4) -> GANConfig:
    return gan_settings(parse_overrides([*TINY, *overrides], GANConfig), steps=steps)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("gan") / "data", shape=SHAPE)


@pytest.fixture(scope="module")
def finished(data: Path, one_thread: None, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("gan") / "run"
    train_gan(data, run, tiny("training.flip=left_right"), device="cpu")
    return run


class _Linear(nn.Module):
    """C(x) = <w, x>, whose gradient is w everywhere."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.w).flatten(1).sum(1)


def _volumes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 1, 4, 5, 6), torch.randn(3, 1, 4, 5, 6), torch.rand(3)


def test_the_penalty_of_a_linear_critic_is_that_of_its_weights():
    critic = _Linear(torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(1)))
    norm = critic.w.detach().norm()
    penalty = gradient_penalty(critic, *_volumes())
    assert penalty.item() == pytest.approx((norm.item() - 1) ** 2, rel=1e-5)
    # It leads somewhere: d/dw (|w| - 1)^2 = 2 (|w| - 1) w / |w|.
    penalty.backward()
    assert torch.allclose(critic.w.grad, 2 * (norm - 1) * critic.w.detach() / norm, atol=1e-5)


def test_a_critic_of_slope_one_is_not_penalised_but_by_kwons_norm():
    """|w| = 1 over the volume is what Wasserstein's distance asks for; no voxel then has slope 1."""
    w = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    critic = _Linear(w / w.norm())
    assert gradient_penalty(critic, *_volumes()).item() == pytest.approx(0, abs=1e-10)
    wanted = (critic.w.detach().abs() - 1).square().mean().item()
    assert gradient_penalty(critic, *_volumes(), per_voxel=True).item() == pytest.approx(wanted, rel=1e-5)
    assert wanted > 0.5


def test_the_penalty_is_taken_between_real_and_fake():
    """C(x) = |x|^2 / 2 has gradient x."""
    real, fake, epsilon = _volumes()
    between = epsilon[:, None, None, None, None] * real + (1 - epsilon)[:, None, None, None, None] * fake
    wanted = (between.flatten(1).norm(dim=1) - 1).square().mean()
    found = gradient_penalty(lambda x: x.square().flatten(1).sum(1) / 2, real, fake, epsilon)
    assert torch.allclose(found, wanted)


def test_kwon_compatible_brings_that_codes_settings_and_leaves_what_is_set():
    right, kwon = gan_settings(), gan_settings({"gan": {"kwon_compatible": True}})
    assert (right.gan_training.betas, right.gan.ema_decay, right.gan.updates) == ((0.0, 0.9), 0.999, (5, 1))
    assert (kwon.gan_training.betas, kwon.gan.ema_decay, kwon.gan.updates) == ((0.9, 0.999), 0.0, (1, 5))
    named = gan_settings(
        {"gan": {"kwon_compatible": True, "ema_decay": 0.9}, "gan_training": {"betas": [0.5, 0.9]}}
    )
    assert named.gan_training.betas == (0.5, 0.9) and named.gan.ema_decay == 0.9
    assert resolve(GANConfig, kwon.model_dump()) == kwon
    with pytest.raises(ConfigError, match=r"gan\.widht: unknown key; did you mean gan\.width"):
        gan_settings({"gan": {"widht": 3}})
    with pytest.raises(ConfigError, match=r"gan: Input should be a valid dictionary"):
        gan_settings({"gan": 3})
    with pytest.raises(ConfigError, match=r"gan\.kwon_compatible: Input should be a valid boolean"):
        gan_settings({"gan": {"kwon_compatible": 1}})


@pytest.mark.parametrize("kwon", [False, True])
def test_each_network_learns_as_often_as_the_settings_say(data, tmp_path, monkeypatch, kwon):
    calls: list[str] = []
    for name in ("update_critic", "update_generator"):
        update = getattr(WGANGPStep, name)

        def counted(self, *arguments, update=update, name=name):
            calls.append(name)
            return update(self, *arguments)

        monkeypatch.setattr(WGANGPStep, name, counted)
    config = tiny(f"gan.kwon_compatible={str(kwon).lower()}", "gan.critic_steps=3", steps=2)
    train_gan(data, tmp_path / "run", config, device="cpu")
    one, many = ["update_critic"], ["update_generator"] * 3
    if not kwon:
        one, many = ["update_critic"] * 3, ["update_generator"]
    assert calls == 2 * (one + many)


def test_an_update_changes_one_network_alone(data):
    fabric = build_fabric("cpu", 1)
    train_step = WGANGPStep(fabric, tiny(), SHAPE)
    x, z, epsilon = torch.randn(4, 1, *SHAPE), torch.randn(4, 4), torch.rand(4)

    def weights(network: nn.Module) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in network.parameters()]

    def changed(before: list[torch.Tensor], network: nn.Module) -> bool:
        return any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))

    before = weights(train_step.generator), weights(train_step.critic)
    train_step.update_critic(x, z, epsilon, lambda losses: None)
    assert not changed(before[0], train_step.generator) and changed(before[1], train_step.critic)
    before = weights(train_step.generator), weights(train_step.critic)
    train_step.update_generator(z, lambda losses: None)
    assert changed(before[0], train_step.generator) and not changed(before[1], train_step.critic)
    assert all(parameter.requires_grad for parameter in train_step.critic.parameters())


class _Killed(BaseException):
    """Stands for a SIGKILL: nothing in the program may catch it."""


@pytest.mark.parametrize("deaths", [(1,), (3, 2)])
def test_a_run_killed_and_started_again_ends_with_the_same_bits(data, finished, tmp_path, deaths):
    record = loop_module.Loop.record
    for count in deaths:
        left = [count]

        def dies(self, values, left=left):
            left[0] -= 1
            if left[0] == 0:
                raise _Killed
            record(self, values)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(_Killed):
            patch.setattr(loop_module.Loop, "record", dies)
            train_gan(data, tmp_path / "run", tiny("training.flip=left_right"), device="cpu")
    bundle = train_gan(data, tmp_path / "run", tiny("training.flip=left_right"), device="cpu")
    for name in ("bundle.json", "generator.safetensors"):
        assert (bundle / name).read_bytes() == (finished / "bundle" / name).read_bytes()


def test_a_finished_run_is_left_as_it_is_and_shows_what_it_did(data, finished):
    kept = [
        path for path in finished.rglob("*") if path.suffix in (".safetensors", ".png", ".jsonl", ".yaml")
    ]
    before = {path: path.read_bytes() for path in [*kept, finished / "bundle" / "bundle.json"]}
    written = {path: path.stat().st_mtime_ns for path in before if path.suffix == ".safetensors"}
    train_gan(data, finished, tiny("training.flip=left_right"), device="cpu")
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert {path: path.read_bytes() for path in before} == before
    (record,) = read_log(finished / "gan")[-1:]
    assert record["step"] == 4
    assert {"critic_loss", "gradient_penalty", "wasserstein", "generator_loss"} <= record.keys()
    assert record["critic_loss"] == pytest.approx(10 * record["gradient_penalty"] - record["wasserstein"])
    assert len(list((finished / "gan" / "previews").glob("*.png"))) == 1


@pytest.mark.parametrize("override", ["gan.width=4", "gan_training.learning_rate=1e-3", "training.seed=1"])
def test_a_run_with_other_settings_is_refused(data, finished, override):
    key = override.split("=")[0]
    with pytest.raises(UserError, match=f"other settings.*{key} was "):
        train_gan(data, finished, tiny("training.flip=left_right", override), device="cpu")


def test_a_file_is_no_folder_for_a_run(data, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        train_gan(data, tmp_path / "run", tiny(), device="cpu")


def test_a_batch_too_small_for_batch_normalisation_is_refused(tmp_path):
    data = write_dataset(tmp_path / "data")
    config = tiny("gan_training.batch_size=1")
    message = r"gan_training\.batch_size gives each device 1 scan of .16, 16, 16"
    with pytest.raises(UserError, match=message):
        train_gan(data, tmp_path / "run", config, device="cpu")
    with pytest.raises(UserError, match=message):
        describe_training(data, config, ("gan",))
    assert not (tmp_path / "run").exists()


def test_a_run_of_the_other_kind_is_refused_both_ways(data, finished, tmp_path):
    with pytest.raises(UserError, match="trains another kind of model: choose another folder"):
        train(data, finished, tiny_settings(), device="cpu")
    settings = tiny_settings("autoencoder_training.steps=1")
    train(data, tmp_path, settings, stages=("autoencoder",), device="cpu")
    with pytest.raises(UserError, match="trains another kind of model"):
        train_gan(data, tmp_path, tiny(), device="cpu")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(data, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"not finite.*gan_training\.learning_rate"):
        train_gan(data, tmp_path / "run", tiny("gan_training.learning_rate=1e30", steps=50), device="cpu")
    checkpoint = tmp_path / "run" / "gan" / "checkpoint.pt"
    if checkpoint.exists():
        parts = torch.load(checkpoint, weights_only=True)["parts"]
        assert all(value.isfinite().all() for value in parts["critic"].values())


def test_without_moving_average_the_bundle_holds_the_generator_itself(data, tmp_path):
    train_gan(data, tmp_path, tiny("gan.ema_decay=0"), device="cpu")
    trained = torch.load(tmp_path / "gan" / "checkpoint.pt", weights_only=True)["parts"]["generator"]
    bundled = load_file(tmp_path / "bundle" / "generator.safetensors")
    weights = [name for name in trained if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(trained[name], bundled[name]) for name in weights)


def test_the_bundle_says_that_it_was_trained_with_known_faults(data, tmp_path):
    bundle = train_gan(data, tmp_path, tiny("gan.kwon_compatible=true", steps=1), device="cpu")
    description = json.loads((bundle / "bundle.json").read_text())
    assert description["kind"] == "gan" and description["gan"]["kwon_compatible"] is True
    assert "kwon_compatible: true" in (tmp_path / "config.yaml").read_text()


def test_scans_of_a_gan_depend_on_seed_and_number_alone(finished, tmp_path):
    options = {"file_format": "npy", "device": "cpu", "processes": 1}
    paths = sample(finished / "bundle", tmp_path / "all", num_samples=4, **options)
    scans = np.stack([np.load(path) for path in paths])
    assert scans.shape == (4, *SHAPE) and all(not np.array_equal(scans[0], scan) for scan in scans[1:])
    loaded = load_bundle(finished / "bundle")
    assert isinstance(loaded, WGANGPBundle)
    (third,) = loaded.sample(1, first=2)
    assert np.array_equal(third.array, scans[2]) and np.allclose(third.affine, AFFINE)
    assert torch.equal(loaded.generate([3, 0]), loaded.generate(range(4))[[3, 0]])
    assert not torch.equal(loaded.generate([0], seed=1), loaded.generate([0]))
    paths[1].unlink()
    kept = paths[0].stat().st_mtime_ns
    sample(finished / "bundle", tmp_path / "all", num_samples=4, **options)
    assert np.array_equal(np.load(paths[1]), scans[1]) and paths[0].stat().st_mtime_ns == kept


def test_scans_of_a_gan_are_written_as_dicom_too(finished, tmp_path):
    (path,) = sample(finished / "bundle", tmp_path, file_format="dicom", device="cpu")
    assert len(list(path.iterdir())) == SHAPE[0]
    about = json.loads((tmp_path / "synthetic_000000.json").read_text())
    assert about["synthetic"] is True and "steps" not in about and "sampler" not in about


@pytest.mark.parametrize(("options", "named"), [({"steps": 5}, "steps"), ({"sampler": "ddim"}, "sampler")])
def test_a_gan_has_no_sampling_steps_and_no_sampler(finished, tmp_path, options, named):
    with pytest.raises(UserError, match=f"{named} is .* GAN, .*leave out {named}"):
        sample(finished / "bundle", tmp_path / "out", device="cpu", **options)
    assert not (tmp_path / "out").exists()


def test_what_needs_an_autoencoder_refuses_a_gan(finished):
    with pytest.raises(UserError, match="bundle of a GAN, which has no autoencoder"):
        load_latent_diffusion(finished / "bundle")


def test_a_damaged_gan_bundle_is_refused(finished, tmp_path):
    for name in ("bundle.json", "generator.safetensors"):
        (tmp_path / name).write_bytes((finished / "bundle" / name).read_bytes())
    (tmp_path / "generator.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="missing or damaged"):
        load_bundle(tmp_path)


def test_the_plan_counts_all_scans_of_a_step(data, tmp_path, monkeypatch):
    quick = Measurement(
        seconds_per_step=1e-3,
        steps_between=(1e-3, 2e-3),
        waited=0.0,
        num_parameters={},
        seconds_of_others={},
        peak_gb=0.5,
    )
    monkeypatch.setattr("anatogen.training.cost.estimate.probe", lambda *_, **__: quick)
    monkeypatch.setattr("anatogen.training.cost.estimate.peak_memory_gb", lambda *_, **__: 0.5)
    config = tiny("gan.critic_steps=3", steps=10)
    text = describe_training(data, config, ("gan",))
    assert "width: 2" in text and f"{10 * 3 * 4 / 6:.1f} passes" in text
    write_dataset(tmp_path / "none", num_train=0)
    with pytest.raises(UserError, match="has no training scans"):
        describe_training(tmp_path / "none", config, ("gan",))
    with pytest.raises(UserError, match="gan_training has no budget"):
        describe_training(
            data, gan_settings(parse_overrides([*TINY, "gan_training.steps=null"], GANConfig)), ("gan",)
        )


def _learn_once(fabric, config, real, z, epsilon, folder):
    """One step of either network on this process's part of a batch; the first process writes the weights."""
    torch.set_num_threads(1)
    train_step = WGANGPStep(fabric, config, SHAPE)
    # Batch normalisation sees each process's part alone; without it, two processes must be as one.
    train_step.generator.eval()
    half = (
        slice(None) if fabric.world_size == 1 else slice(2 * fabric.global_rank, 2 * fabric.global_rank + 2)
    )
    train_step.update_critic(real[half], z[half], epsilon[half], lambda losses: None)
    train_step.update_generator(z[half], lambda losses: None)
    if fabric.is_global_zero:
        gradients = {
            f"{name}.{key}": parameter.grad
            for name, network in (("generator", train_step.generator), ("critic", train_step.critic))
            for key, parameter in network.named_parameters()
        }
        torch.save(gradients, folder / f"{fabric.world_size}.pt")


@pytest.mark.usefixtures("forked_processes")
def test_two_processes_follow_the_gradient_of_one(tmp_path):
    """The penalty's own way back, through the gradient, is averaged over processes as well."""
    torch.manual_seed(0)
    real, z, epsilon = torch.randn(4, 1, *SHAPE), torch.randn(4, 4), torch.rand(4)
    for devices in (1, 2):
        fabric = build_fabric("cpu", devices, broadcast_buffers=False)
        config = tiny("gan_training.learning_rate=1e-6")
        launch(fabric, partial(_learn_once, config=config, real=real, z=z, epsilon=epsilon, folder=tmp_path))
    one, two = (torch.load(tmp_path / f"{devices}.pt", weights_only=True) for devices in (1, 2))
    for name, gradient in one.items():
        assert torch.allclose(two[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max())), name


@pytest.mark.usefixtures("forked_processes")
def test_the_faulty_variant_runs_in_two_processes(data, tmp_path):
    """Its critic has buffers that change between two passes before one way back."""
    config = tiny("gan.kwon_compatible=true", steps=2)
    bundle = train_gan(data, tmp_path, config, device="cpu", devices=2)
    assert (bundle / "bundle.json").exists() and (tmp_path / "gan" / WEIGHTS_NAME).exists()

"""Both stages as a user runs them: resumed, refused, stopped before harm, and shared by processes."""

import json
import multiprocessing
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import Precision
from safetensors.torch import load_file
from synthetic_dataset import ADVERSARIAL, tiny_settings, write_dataset

import anatogen
from anatogen.config.presets import training_settings
from anatogen.core.errors import UserError
from anatogen.core.weights import WEIGHTS_NAME, load_weights, save_weights
from anatogen.dataset.manifest import Split
from anatogen.dataset.volumes import VolumeDataset
from anatogen.generators.loading import load_bundle
from anatogen.models.vqgan import VQGAN
from anatogen.training import latent_cache as latent_cache_module
from anatogen.training import latent_diffusion, run_folder
from anatogen.training import loop as loop_module
from anatogen.training.autoencoder import train_autoencoder
from anatogen.training.autoencoder_check import AutoencoderCheck, _problems, check_autoencoder, psnr_db
from anatogen.training.diffusion import DenoiserStep
from anatogen.training.latent_cache import cached_latents
from anatogen.training.loop import NonFiniteLossError
from anatogen.training.stage import accept_losses
from anatogen.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = ("autoencoder", "diffusion")
OVERRIDES = (*ADVERSARIAL, "training.checkpoint_minutes=0")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("stages") / "data")


@pytest.fixture(scope="module")
def finished(data: Path, one_thread: None, tmp_path_factory) -> Path:
    """A run of both stages that nobody disturbed."""
    run = tmp_path_factory.mktemp("stages") / "run"
    train(data, run, tiny_settings(*OVERRIDES), device="cpu")
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _weights(run: Path) -> dict[str, bytes]:
    return {stage: (run / stage / WEIGHTS_NAME).read_bytes() for stage in STAGES}


class _Killed(BaseException):
    """Stands for a SIGKILL: nothing in the program may catch it."""


def _die_at(monkeypatch: pytest.MonkeyPatch, moment: str, count: int) -> None:
    """Arranges for the program to stop at the count-th time that it reaches a moment."""
    left = [count]

    def passes() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise _Killed

    if moment == "after a step":
        record = loop_module.Loop.record

        def recorded(self, values):
            passes()
            record(self, values)

        monkeypatch.setattr(loop_module.Loop, "record", recorded)
    elif moment == "while a checkpoint is written":
        save = torch.save

        def saved(content, path):
            save(content, path)
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            # A killed process can't clean up either.
            (Path(path).parent / ".part-left.pt").write_bytes(b"half")
            passes()
            save(content, path)

        monkeypatch.setattr(torch, "save", saved)
    elif moment == "while latents are encoded":
        encode = latent_cache_module.VQGAN.encode

        def encoded(self, x):
            if sys._getframe(1).f_code.co_name in ("cached_latents", "<listcomp>"):
                passes()
            return encode(self, x)

        monkeypatch.setattr(latent_cache_module.VQGAN, "encode", encoded)
    else:
        module = latent_diffusion if hasattr(latent_diffusion, moment) else run_folder
        function = getattr(module, moment)

        def called(*arguments, **options):
            passes()
            return function(*arguments, **options)

        monkeypatch.setattr(module, moment, called)


@pytest.mark.parametrize(
    "deaths",
    [
        [("write_text", 1), ("write_provenance", 1), ("save_yaml", 1)],
        [("after a step", 1), ("after a step", 3), ("while latents are encoded", 2)],
        [("while a checkpoint is written", 2), ("while a checkpoint is written", 4), ("_write_bundle", 1)],
        [("after a step", 8), ("while a checkpoint is written", 3), ("_require_fit", 1)],
        [("claim_latents", 1), ("after a step", 4), ("codebook_range_scaling", 1), ("after a step", 2)],
    ],
    ids=lambda deaths: " - ".join(f"{moment} {count}" for moment, count in deaths),
)
def test_a_run_stopped_at_any_moment_and_started_again_ends_with_the_same_bits(
    deaths, data, finished, tmp_path
):
    run = tmp_path / "run"
    for moment, count in deaths:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(_Killed):
            _die_at(patch, moment, count)
            train(data, run, tiny_settings(*OVERRIDES), device="cpu")
    bundle = train(data, run, tiny_settings(*OVERRIDES), device="cpu")
    assert _weights(run) == _weights(finished)
    assert (bundle / "bundle.json").read_bytes() == (finished / "bundle" / "bundle.json").read_bytes()
    assert not list(run.rglob(".part-*"))


def _train_until(data: Path, run: Path, stage: str, reached) -> None:
    """Trains up to the fourth step of a stage, and hangs in it."""
    record = loop_module.Loop.record

    def hangs(self, values):
        record(self, values)
        if (self.folder.name, self.step) == (stage, 3):
            reached.set()
            time.sleep(600)

    loop_module.Loop.record = hangs
    train(data, run, tiny_settings(*OVERRIDES), device="cpu")


def test_a_killed_process_resumes_to_the_same_bits(data, finished, tmp_path):
    """The real thing: SIGKILL from outside in each stage."""
    run, context = tmp_path / "killed", multiprocessing.get_context("fork")
    for stage in STAGES:
        reached = context.Event()
        process = context.Process(target=_train_until, args=(data, run, stage, reached))
        process.start()
        assert reached.wait(90)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert (run / stage / "checkpoint.pt").exists() and not (run / stage / WEIGHTS_NAME).exists()
    train(data, run, tiny_settings(*OVERRIDES), device="cpu")
    assert _weights(run) == _weights(finished)


def test_a_finished_run_is_left_as_it_is(data, finished):
    description = finished / "bundle" / "bundle.json"
    kept = [*finished.rglob("*.safetensors"), *finished.rglob("log.jsonl"), description]
    before = {path: path.read_bytes() for path in kept}
    written, previews = description.stat().st_mtime_ns, sorted(finished.rglob("*.png"))
    train(data, finished, tiny_settings(*OVERRIDES), device="cpu")
    assert {path: path.read_bytes() for path in kept} == before
    assert description.stat().st_mtime_ns == written and sorted(finished.rglob("*.png")) == previews


def test_a_larger_budget_goes_on_from_where_the_run_ended(data, tmp_path):
    """The learning rate is constant: 2 + 2 steps are 4."""

    def run(folder: str, steps: int) -> bytes:
        settings = tiny_settings(*OVERRIDES, f"autoencoder_training.steps={steps}")
        train(data, tmp_path / folder, settings, stages=("autoencoder",), device="cpu")
        return (tmp_path / folder / "autoencoder" / WEIGHTS_NAME).read_bytes()

    short = run("a", 2)
    assert run("a", 4) == run("b", 4) != short
    assert run("a", 2) != short, "a smaller budget must not undo steps"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.seed=1", "training.seed"),
        ("denoiser.width=16", "denoiser.width"),
        ("autoencoder_training.learning_rate=1e-5", "autoencoder_training.learning_rate"),
    ],
)
def test_a_run_with_other_settings_is_refused_by_the_key(data, finished, override, key):
    with pytest.raises(UserError, match=f"other settings.*{key} was .*, is "):
        train(data, finished, tiny_settings(*OVERRIDES, override), device="cpu")


def test_a_run_on_other_data_is_refused(finished, tmp_path):
    other = write_dataset(tmp_path / "data", seed=1)
    with pytest.raises(UserError, match="other data"):
        train(other, finished, tiny_settings(*OVERRIDES), device="cpu")


def test_a_folder_with_something_else_in_it_is_refused(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty and holds no run"):
        train(data, tmp_path, tiny_settings(), device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_configuration_of_another_version_is_refused_by_the_key(data, tmp_path):
    text = "family: latent_diffusion\nautoencoder: {num_groups: 4}\n"
    (tmp_path / "config.yaml").write_text(text)
    for read in (
        lambda: train(data, tmp_path, tiny_settings(), device="cpu"),
        lambda: run_folder.read_settings(tmp_path),
        lambda: training_settings(config=tmp_path / "config.yaml"),
    ):
        with pytest.raises(UserError, match=r"autoencoder\.num_groups: unknown key"):
            read()


def test_a_bundle_of_another_version_is_refused_by_the_key_in_one_line(run):
    path = run / "bundle" / "bundle.json"
    content = json.loads(path.read_text())
    content["autoencoder"]["num_groups"] = 4
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"autoencoder\.num_groups is unknown to anatogen") as caught:
        load_bundle(run / "bundle")
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device 'tpu' is unknown"),
        ({"device": "cpu", "devices": 0}, "devices is 0"),
        ({"device": "cpu", "devices": 3}, "batch_size 2 can't be shared evenly by 3 devices"),
    ],
)
def test_devices_that_can_not_be_are_refused_before_anything_is_written(data, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        train(data, tmp_path / "run", tiny_settings(), **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_and_not_replaced_by_the_cpu(data, tmp_path):
    with pytest.raises(UserError, match="no usable GPU"):
        train(data, tmp_path / "run", tiny_settings(), device="cuda")


def test_a_training_without_a_budget_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="diffusion_training has no budget"):
        train(data, tmp_path / "run", tiny_settings("diffusion_training.steps=null"), device="cpu")


@pytest.mark.usefixtures("forked_processes")
@pytest.mark.parametrize("devices", [1, 2])
def test_scans_that_are_not_finite_stop_the_training_before_the_step(tmp_path, devices):
    data = write_dataset(tmp_path / "data", num_train=4)
    poisoned = np.load(data / "volumes" / "case_00001.npy")
    poisoned[3, 4, 5] = np.inf
    np.save(data / "volumes" / "case_00001.npy", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"the loss .*l1.* is not finite"):
        train(data, tmp_path / "run", tiny_settings(*OVERRIDES), device="cpu", devices=devices)
    _assert_finite_checkpoint_if_any(tmp_path / "run" / "autoencoder")


@pytest.mark.parametrize("rate", ["1e12", "1e30"])
@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_a_learning_rate_that_explodes_stops_with_a_finite_checkpoint(data, tmp_path, rate, clip):
    settings = tiny_settings(
        f"autoencoder_training.learning_rate={rate}",
        f"autoencoder_training.gradient_clip={clip}",
        "autoencoder_training.steps=20",
        "training.checkpoint_minutes=0",
    )
    with pytest.raises(NonFiniteLossError, match="not finite"):
        train(data, tmp_path / "run", settings, stages=("autoencoder",), device="cpu")
    _assert_finite_checkpoint_if_any(tmp_path / "run" / "autoencoder")


def _assert_finite_checkpoint_if_any(folder: Path) -> None:
    path = folder / "checkpoint.pt"
    if path.exists():
        network = torch.load(path, weights_only=True)["parts"]["network"]
        assert all(value.isfinite().all() for value in network.values())


def test_discriminators_learn_where_only_fabric_may_go_backward(data, finished, tmp_path):
    """Mixed precision refuses any other way back, as on every GPU; here without its rounding."""

    class Strict(Precision):
        def backward(self, tensor, model, *arguments, **options):
            super().backward(tensor, model, *arguments, **options)

    fabric = Fabric(accelerator="cpu", plugins=[Strict()])
    train_autoencoder(fabric, data, tmp_path, tiny_settings(*OVERRIDES))
    plain = finished / "autoencoder" / WEIGHTS_NAME
    assert (tmp_path / WEIGHTS_NAME).read_bytes() == plain.read_bytes()


def test_discriminators_start_when_the_settings_say(finished):
    record = json.loads((finished / "autoencoder" / "log.jsonl").read_text().splitlines()[-1])
    for name in ("discriminator", "adversarial_slice", "adversarial_volume", "feature_matching_slice"):
        assert name in record


def test_adversarial_losses_wait_for_their_start(data, tmp_path):
    """Until `adversarial_start` the generator is the one that trains without discriminators."""

    def run(name: str, *overrides: str) -> bytes:
        settings = tiny_settings("autoencoder_training.steps=3", *overrides)
        train(data, tmp_path / name, settings, stages=("autoencoder",), device="cpu")
        return (tmp_path / name / "autoencoder" / WEIGHTS_NAME).read_bytes()

    alone = run("alone", "training.flip=left_right")
    assert run("waiting", *ADVERSARIAL, "losses.adversarial_start=3") == alone
    assert run("pulled", *ADVERSARIAL, "losses.adversarial_start=2") != alone


@pytest.mark.usefixtures("forked_processes")
def test_two_processes_learn_what_one_learns(data, tmp_path):
    """The same global batch in two halves: sums in another order, else the same; codebook included."""
    settings = tiny_settings(
        *ADVERSARIAL,
        # With one channel a group, normalisation cancels biases, and Adam blows up their gradients' noise.
        "autoencoder.base_width=64",
        "autoencoder.decoder_width=64",
        "denoiser.width=16",
        "losses.discriminator_width=16",
        "autoencoder_training.steps=5",
        "diffusion_training.steps=4",
    )
    found = {}
    for devices in (1, 2):
        run = tmp_path / str(devices)
        train(data, run, settings, stages=("autoencoder",), device="cpu", devices=devices)
        # Stage two on the same latents, or it would differ by what the autoencoders do.
        others = {"stages": ("diffusion",), "autoencoder_run": tmp_path / "1"}
        train(data, run, settings, **others, device="cpu", devices=devices)
        found[devices] = {stage: load_file(run / stage / WEIGHTS_NAME) for stage in STAGES}
    for stage in STAGES:
        for name, one in found[1][stage].items():
            two = found[2][stage][name]
            assert torch.allclose(one.double(), two.double(), atol=3e-4, rtol=1e-3), (stage, name)
    assert torch.equal(found[1]["autoencoder"]["codebook.usage"], found[2]["autoencoder"]["codebook.usage"])


def test_batches_that_are_accumulated_have_the_gradient_of_one_batch():
    """Sums in another order, else the same: a step of four scans is one, however it is taken."""
    x_0 = torch.randn(4, 4, 8, 8, 8, generator=torch.Generator().manual_seed(5))
    gradients = []
    for batch, number in ((4, 1), (2, 2), (1, 4)):
        settings = tiny_settings(
            f"diffusion_training.batch_size={batch}", f"diffusion_training.accumulate={number}"
        )
        train_step = DenoiserStep(Fabric(accelerator="cpu", devices=1), settings, (8, 8, 8))
        train_step(x_0, 0, torch.Generator().manual_seed(0), accept_losses)
        gradients.append(torch.cat([p.grad.flatten() for p in train_step.network.parameters()]))
    assert gradients[0].norm() > 0
    for gradient in gradients[1:]:
        assert float((gradient - gradients[0]).norm() / gradients[0].norm()) < 1e-5


def test_learning_makes_reconstructions_better(data, tmp_path):
    settings = tiny_settings("autoencoder_training.steps=40", "autoencoder_training.learning_rate=3e-3")
    train(data, tmp_path, settings, stages=("autoencoder",), device="cpu")
    x = VolumeDataset(data, Split.VALIDATION).batch([0, 1])
    torch.manual_seed(settings.training.seed)
    network = VQGAN(settings.autoencoder).eval()
    before = (network.reconstruct(x) - x).abs().mean()
    load_weights(network, tmp_path / "autoencoder" / WEIGHTS_NAME)
    assert (network.reconstruct(x) - x).abs().mean() < 0.8 * before


def test_an_unfit_autoencoder_is_refused_for_stage_two_with_reasons(data, tmp_path):
    settings = tiny_settings("autoencoder_training.steps=1", "training.require_fit_autoencoder=true")
    with pytest.raises(UserError, match=r"not fit for stage two:\n  - reconstructions .*mean scan") as caught:
        train(data, tmp_path / "run", settings, device="cpu")
    assert "training.require_fit_autoencoder=false" in str(caught.value)
    assert json.loads((tmp_path / "run" / "autoencoder_check.json").read_text())["problems"]
    settings = tiny_settings("autoencoder_training.steps=1", "diffusion_training.steps=1")
    assert (train(data, tmp_path / "run", settings, device="cpu") / "bundle.json").exists()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, None),
        ({"psnr_db": 21.0}, "hardly closer"),
        ({"codes_used": 0.001}, "collapsed"),
        ({"latent_std": [1.0, 1e-5]}, "hardly varies"),
        ({"latent_peak": 99.0}, "99 standard deviations"),
        ({"psnr_db": float("nan")}, "not finite"),
    ],
)
def test_each_defect_of_an_autoencoder_is_named(values, problem):
    good = {
        "psnr_db": 30.0,
        "mean_scan_psnr_db": 20.0,
        "codes_used": 0.8,
        "latent_std": [1.0, 2.0],
        "latent_peak": 5.0,
        "problems": [],
    }
    found = _problems(AutoencoderCheck.model_validate(good | values))
    assert found == [] if problem is None else problem in found[0] and len(found) == 1


def test_psnr_by_hand():
    x = torch.zeros(2, 2)
    assert psnr_db(x + 0.2, x) == pytest.approx(20.0, abs=1e-4)
    assert psnr_db(x + 5, x) == pytest.approx(10 * np.log10(4), abs=1e-4), "clipped to the range first"


def test_the_yardstick_of_the_check_is_the_mean_training_scan(data, finished):
    train_set, held_out = VolumeDataset(data, Split.TRAIN), VolumeDataset(data, Split.VALIDATION)
    network = VQGAN(tiny_settings().autoencoder)
    load_weights(network, finished / "autoencoder" / WEIGHTS_NAME)
    check = check_autoencoder(network, train_set, held_out, torch.device("cpu"))
    mean = train_set.batch(range(len(train_set))).mean(0)
    wanted = np.mean([psnr_db(mean, held_out.batch([index])[0]) for index in range(len(held_out))])
    assert check.mean_scan_psnr_db == pytest.approx(wanted, abs=1e-3)
    x = held_out.batch([0, 1])
    codes = network.codebook.lookup(network.encode(x))
    assert check.codes_used == pytest.approx(codes.unique().numel() / 32)


def test_stage_two_uses_the_autoencoder_of_another_run(data, finished, tmp_path):
    # The other run's architecture is taken over, whatever this one's settings say of it.
    settings = tiny_settings("autoencoder.num_codes=7", "training.flip=left_right")
    bundle = train(
        data,
        tmp_path / "run",
        settings,
        stages=("diffusion",),
        autoencoder_run=finished,
        device="cpu",
    )
    assert json.loads((bundle / "bundle.json").read_text())["autoencoder"]["num_codes"] == 32
    same = (finished / "autoencoder" / WEIGHTS_NAME).read_bytes()
    assert (bundle / "autoencoder.safetensors").read_bytes() == same


def test_an_autoencoder_that_is_named_is_not_trained(data, finished, tmp_path):
    run = tmp_path / "run"
    train(data, run, tiny_settings(), autoencoder_run=finished, device="cpu")
    assert (run / "bundle").is_dir() and not (run / "autoencoder").exists()
    with pytest.raises(UserError, match="--autoencoder-run names a trained autoencoder"):
        train(
            data,
            tmp_path / "other",
            tiny_settings(),
            stages=("autoencoder",),
            autoencoder_run=finished,
            device="cpu",
        )
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("of_other_run", [True, False])
def test_a_dry_run_is_of_the_training_that_would_be_made(data, finished, tmp_path, capsys, of_other_run):
    """That of stage two has the autoencoder's own settings, and what can't be trained is refused."""
    run = finished if not of_other_run else tmp_path / "run"
    others = {"autoencoder_run": finished} if of_other_run else {"stages": ("diffusion",)}
    settings = tiny_settings("autoencoder.num_codes=7")
    anatogen.train(data, run, settings, **others, device="cpu", dry_run=True)
    shown = capsys.readouterr().out
    assert "num_codes: 32" in shown and "diffusion: parameters" in shown and "autoencoder: par" not in shown
    with pytest.raises(UserError, match="can't be shared evenly by 3 devices"):
        anatogen.train(data, run, settings, **others, device="cpu", devices=3, dry_run=True)


def test_few_cells_are_no_collapse(data):
    """Of 16 x 16 x 16 voxels at compression 8 a scan has 8 cells: no more codes can be used."""
    network = VQGAN(tiny_settings("autoencoder.compression=8", "autoencoder.num_codes=4096").autoencoder)
    train_set, held_out = VolumeDataset(data, Split.TRAIN), VolumeDataset(data, Split.VALIDATION)
    check = check_autoencoder(network, train_set, held_out, torch.device("cpu"))
    cells = torch.cat(
        [network.codebook.lookup(network.encode(held_out.batch([i]))).flatten() for i in (0, 1)]
    )
    assert check.codes_used == cells.unique().numel() / 16


def test_stage_two_without_stage_one_says_what_is_missing(data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="run holds no autoencoder"):
        train(data, run, tiny_settings(), stages=("diffusion",), device="cpu")
    train(data, run, tiny_settings(), stages=("autoencoder",), device="cpu")
    (run / "autoencoder" / WEIGHTS_NAME).unlink()
    with pytest.raises(UserError, match="the stage that makes it has not finished"):
        train(data, run, tiny_settings(), stages=("diffusion",), device="cpu")


def test_the_autoencoder_stays_as_it_is_once_stage_two_has_begun(data, run, capsys):
    before = (run / "autoencoder" / WEIGHTS_NAME).read_bytes()
    longer = tiny_settings(*OVERRIDES, "autoencoder_training.steps=7", "diffusion_training.steps=7")
    train(data, run, longer, device="cpu")
    assert (run / "autoencoder" / WEIGHTS_NAME).read_bytes() == before
    assert "left as it is" in capsys.readouterr().out
    train(data, run, longer, stages=("autoencoder",), device="cpu")
    assert (run / "autoencoder" / WEIGHTS_NAME).read_bytes() == before


def test_stage_two_is_not_resumed_on_latents_of_an_autoencoder_that_trained_on(data, run):
    network = VQGAN(tiny_settings().autoencoder)
    save_weights(network, run / "autoencoder" / WEIGHTS_NAME)
    with pytest.raises(UserError, match="latents of another autoencoder"):
        train(data, run, tiny_settings(*OVERRIDES, "diffusion_training.steps=7"), device="cpu")


def test_a_damaged_bundle_is_written_anew(data, run):
    denoiser = run / "bundle" / "denoiser.safetensors"
    weights = denoiser.read_bytes()
    denoiser.write_bytes(weights[:100])
    train(data, run, tiny_settings(*OVERRIDES), device="cpu")
    assert denoiser.read_bytes() == weights


@pytest.fixture
def encoder(data: Path, tmp_path: Path) -> tuple[VQGAN, Path, VolumeDataset]:
    torch.manual_seed(0)
    network = VQGAN(tiny_settings().autoencoder).eval()
    save_weights(network, tmp_path / WEIGHTS_NAME)
    return network, tmp_path / WEIGHTS_NAME, VolumeDataset(data, Split.TRAIN)


def _latents(encoder: tuple[VQGAN, Path, VolumeDataset], folder: Path, *overrides: str) -> np.memmap:
    return cached_latents(*encoder, tiny_settings(*overrides), folder, torch.device("cpu"))


@pytest.mark.parametrize(("flip", "axis"), [("none", None), ("vertical", 3), ("left_right", 4)])
def test_cached_latents_are_those_of_the_encoder_with_their_flips(encoder, tmp_path, flip, axis):
    network, _, dataset = encoder
    latents = _latents(encoder, tmp_path / "cache", f"training.flip={flip}")
    assert latents.shape == (6, 1 if axis is None else 2, 4, 8, 8, 8) and latents.dtype == np.float32
    for index in range(len(dataset)):
        x = dataset.batch([index])
        views = [x] if axis is None else [x, x.flip(axis)]
        with torch.no_grad():
            wanted = torch.stack([network.encode(view)[0] for view in views])
        assert torch.allclose(torch.from_numpy(np.array(latents[index])), wanted, atol=1e-5)


def test_the_cache_is_used_again_and_keyed_by_data_weights_and_views(encoder, tmp_path):
    network, weights, dataset = encoder

    def path(*overrides: str, dataset: VolumeDataset = dataset) -> Path:
        found = _latents((network, weights, dataset), tmp_path / "cache", *overrides)
        return Path(str(found.filename))

    first = path()
    stamp = first.stat().st_mtime_ns
    assert path() == first and first.stat().st_mtime_ns == stamp
    assert len({first, path("training.flip=left_right"), path("training.flip=vertical")}) == 3
    assert path("training.seed=1") == first, "nothing random is in it"
    other = write_dataset(tmp_path / "other", seed=1)
    assert path(dataset=VolumeDataset(other, Split.TRAIN)) != first
    network.encoder[-1].bias.data += 1
    save_weights(network, weights)
    last = path()
    assert last != first and list((tmp_path / "cache").iterdir()) == [last], (
        "scans that no one needs are gone"
    )


def test_a_cache_cut_short_is_never_used_and_is_removed(encoder, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    encode = VQGAN.encode
    calls = []

    def dies(self, x):
        calls.append(x)
        if len(calls) == 2:
            raise _Killed
        return encode(self, x)

    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(VQGAN, "encode", dies)
        _latents(encoder, folder)
    (folder / ".part-xyz.npy").write_bytes(b"\x93NUMPY cut")
    latents = _latents(encoder, folder)
    assert np.isfinite(latents).all() and latents.shape[0] == 6
    assert [path.suffix for path in folder.iterdir()] == [".npy"] and len(list(folder.iterdir())) == 1


def test_settings_of_stage_two_may_change_until_it_has_begun(data, run):
    shutil.rmtree(run / "diffusion")
    other = tiny_settings(*OVERRIDES, "diffusion_training.learning_rate=2e-4", "autoencoder.num_codes=7")
    train(data, run, other, stages=("diffusion",), device="cpu")
    used = run_folder.read_settings(run)
    assert used.diffusion_training.learning_rate == 2e-4
    assert used.autoencoder == tiny_settings(*OVERRIDES).autoencoder
    with pytest.raises(UserError, match=r"diffusion_training\.learning_rate was 0\.0002"):
        train(data, run, tiny_settings(*OVERRIDES), stages=("diffusion",), device="cpu")

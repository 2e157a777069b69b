"""Training of a wavelet flow: what its levels learn from a scan, when it stops, and that nothing is lost."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flows import SHAPE, flow_description
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from synthetic_dataset import tiny_flow_settings, write_dataset
from torch.nn import functional

from anatogen.core.errors import UserError
from anatogen.core.weights import WEIGHTS_NAME
from anatogen.dataset.manifest import Split
from anatogen.dataset.volumes import VolumeDataset
from anatogen.generators.loading import load_bundle
from anatogen.generators.wavelet_flow import FlowLevels, FlowNetworks, WaveletFlowBundle
from anatogen.models.pyramid import BACKGROUND, WaveletPyramid
from anatogen.training import flow as flow_module
from anatogen.training import flow_batches
from anatogen.training import loop as loop_module
from anatogen.training.devices import build_fabric
from anatogen.training.flow import BestWeights, FlowStep, checked_losses, train_levels
from anatogen.training.flow_batches import crop_shape, level_batches
from anatogen.training.loop import read_log
from anatogen.training.stage import accept_losses
from anatogen.training.train import train
from anatogen.training.wavelet_flow import fit_statistics

pytestmark = pytest.mark.usefixtures("one_thread")

NO_NOISE = ("flow.told_noise=0", "flow.sampled_noise=0")
OVERRIDES = ("training.checkpoint_minutes=0", "training.check_steps=2")


def _with_background(folder: Path, **options) -> Path:
    """A prepared dataset of blobs of which a slab is background."""
    data = write_dataset(folder, shape=SHAPE, **options)
    for path in (data / "volumes").glob("*.npy"):
        array = np.load(path)
        array[:, :, 7:] = BACKGROUND
        np.save(path, array)
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return _with_background(tmp_path_factory.mktemp("flow") / "data")


@pytest.fixture(autouse=True, scope="module")
def crops_grow() -> Iterator[None]:
    """Trainings of six steps begin with small crops, too, and end with larger ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_batches, "_EARLY_STEPS", 3)
        patch.setattr(flow_batches, "_EARLY_CROP", 2)
        yield


@pytest.fixture(scope="module")
def finished(data: Path, one_thread: None, crops_grow: None, tmp_path_factory) -> Path:
    """A run that nobody disturbed."""
    run = tmp_path_factory.mktemp("flow") / "run"
    train(data, run, tiny_flow_settings(*OVERRIDES), device="cpu")
    return run


def _weights(run: Path) -> bytes:
    return (run / "flow" / WEIGHTS_NAME).read_bytes()


class _Killed(BaseException):
    """Stands for a SIGKILL: nothing in the program may catch it."""


def _killed(patch: pytest.MonkeyPatch, place: object, name: str, count: int) -> None:
    """Arranges for the program to stop at the count-th call of a function."""
    function, calls = getattr(place, name), []

    def called(*arguments, **options):
        calls.append(None)
        if len(calls) == count:
            raise _Killed
        return function(*arguments, **options)

    patch.setattr(place, name, called)


@pytest.mark.parametrize(
    "deaths",
    [
        [(loop_module.Loop, "record", 1), (loop_module.Loop, "record", 4)],
        [(loop_module, "save_checkpoint", 3), (flow_module, "checked_losses", 3)],
        [(flow_module, "save_weights", 1), (WaveletFlowBundle, "save", 1)],
    ],
    ids=["after steps", "at a checkpoint and a look", "at the end"],
)
def test_a_run_that_is_killed_and_started_again_ends_with_the_same_bits(deaths, data, finished, tmp_path):
    run = tmp_path / "run"
    for place, name, count in deaths:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(_Killed):
            _killed(patch, place, name, count)
            train(data, run, tiny_flow_settings(*OVERRIDES), device="cpu")
    bundle = train(data, run, tiny_flow_settings(*OVERRIDES), device="cpu")
    assert _weights(run) == _weights(finished)
    assert (bundle / "bundle.json").read_bytes() == (finished / "bundle" / "bundle.json").read_bytes()


def test_a_training_s_crops_grow_after_its_first_steps(data, tmp_path, monkeypatch):
    seen, make = [], flow_module.level_batches

    def seeing(*arguments):
        batches = make(*arguments)
        seen.append(max(batches[0].x_0.shape[2:]))
        return batches

    monkeypatch.setattr(flow_module, "level_batches", seeing)
    train(data, tmp_path / "run", tiny_flow_settings(), device="cpu")
    assert seen[:6] == [2, 2, 2, 4, 4, 4]


def test_a_longer_budget_goes_on_as_if_it_had_been_given_at_first(data, finished, tmp_path):
    longer = tiny_flow_settings(*OVERRIDES, "flow_training.steps=9", "flow_training.decay=none")
    train(data, tmp_path / "whole", longer, device="cpu")
    shorter = tiny_flow_settings(*OVERRIDES, "flow_training.decay=none")
    train(data, tmp_path / "run", shorter, device="cpu")
    train(data, tmp_path / "run", longer, device="cpu")
    assert _weights(tmp_path / "run") == _weights(tmp_path / "whole") != _weights(finished)


def test_a_run_goes_on_with_the_scales_that_it_began_with(data, finished, tmp_path, monkeypatch):
    """Whatever another version would find."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    monkeypatch.setattr("anatogen.training.wavelet_flow.fit_statistics", lambda *_: pytest.fail("found anew"))
    before = load_bundle(run / "bundle").description.statistics
    bundle = train(data, run, tiny_flow_settings(*OVERRIDES, "flow_training.steps=8"), device="cpu")
    assert load_bundle(bundle).description.statistics == before


def test_a_finished_run_is_left_as_it_is(data, finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    bundle = load_bundle(train(data, run, tiny_flow_settings(*OVERRIDES), device="cpu"))
    assert _weights(run) == _weights(finished)
    assert bundle.sha256 == load_bundle(finished / "bundle").sha256
    with pytest.raises(UserError):
        train(data, run, tiny_flow_settings(*OVERRIDES, "details.width=32"), device="cpu")


@pytest.mark.usefixtures("forked_processes")
def test_two_processes_learn_what_one_learns(data, tmp_path):
    """The same batch in two halves: sums in another order, else the same; looks at held-out scans, too."""
    found, looks = [], []
    for devices in (1, 2):
        run = tmp_path / str(devices)
        settings = tiny_flow_settings(*OVERRIDES, "flow_training.learning_rate=1e-3")
        train(data, run, settings, device="cpu", devices=devices)
        found.append(load_file(run / "flow" / WEIGHTS_NAME))
        # A record is a second's, and may hold several looks.
        looks.append(read_log(run / "flow")[-1]["held_out_coarse"])
    for name, one in found[0].items():
        assert torch.allclose(one, found[1][name], atol=1e-4), name
    assert looks[1] == pytest.approx(looks[0], rel=1e-2)


def test_every_level_learns(data):
    settings = tiny_flow_settings("pyramid.crop=16", "flow.ema_decay=0.9")
    scans = VolumeDataset(data, Split.TRAIN)
    pyramid = WaveletPyramid(SHAPE, scans.manifest.grid.spacing_mm, settings.pyramid.num_levels)
    statistics = fit_statistics(pyramid, scans)
    description = flow_description().model_copy(update={"statistics": statistics})
    fabric = build_fabric("cpu", 1)
    fabric.launch()
    step = FlowStep(fabric, settings, description)
    bundle = WaveletFlowBundle(description, step.ema.shadow)
    before = checked_losses(bundle, scans)
    # Of noise that they can't tell from the values; the values themselves are of about unit size.
    assert all(1 < loss < 4 for loss in before)
    for number in range(80):
        draws = [torch.Generator().manual_seed(2 * number + position) for position in range(2)]
        batches = level_batches(step.levels, settings, scans.batch([number % 6, (number + 1) % 6]), 9, draws)
        step(batches, number, torch.Generator().manual_seed(number), accept_losses)
    after = checked_losses(bundle, scans)
    assert all(late < 0.8 * early for early, late in zip(before, after, strict=True)), (before, after)


def test_the_best_weights_are_each_level_s_own_of_its_lowest_loss():
    networks = FlowNetworks(FlowLevels(flow_description()))
    best = BestWeights(networks)

    def look(step: int, losses: list[float]) -> None:
        with torch.no_grad():
            for parameter in networks.parameters():
                parameter.fill_(step)
        best.update(networks, losses, step)

    for step, losses in enumerate([[3.0, 1.0, 5.0], [2.0, 2.0, float("nan")], [2.5, 0.9, 4.0]]):
        look(step, losses)
    assert best.steps.tolist() == [1, 2, 2] and best.age.tolist() == [1, 0, 0] and not best.is_over
    look(3, [9.0, 9.0, 9.0])
    best.restore(networks)
    for level, step in zip(networks.levels, [1, 2, 2], strict=True):
        assert all((parameter == step).all() for parameter in level.parameters())


def test_looks_are_over_when_every_level_has_long_grown_worse():
    networks = FlowNetworks(FlowLevels(flow_description()))
    best = BestWeights(networks)
    for step in range(flow_module._PATIENCE + 1):
        assert not best.is_over
        best.update(networks, [1.0 + step] * 3, step)
    assert best.is_over
    best.update(networks, [99.0, 0.5, 99.0], 99)
    assert not best.is_over


def _growing(patch: pytest.MonkeyPatch) -> None:
    """Lets the loss grow from the first look on, and the second look that sees it be the last."""
    seen = []

    def losses(bundle, scans):
        if not seen or not torch.equal(seen[-1], next(bundle.networks.parameters())):
            seen.append(next(bundle.networks.parameters()).clone())
        return [1.0 + len(seen)] * 3

    patch.setattr(flow_module, "checked_losses", losses)
    patch.setattr(flow_module, "_PATIENCE", 1)


def test_a_training_whose_levels_all_grow_worse_stops_for_good(data, tmp_path, monkeypatch, capsys):
    settings = tiny_flow_settings(*OVERRIDES, "flow_training.steps=20")
    for name in ("undisturbed", "killed"):
        with pytest.MonkeyPatch.context() as patch:
            _growing(patch)
            if name == "killed":
                _killed(patch, flow_module, "save_weights", 1)
                with pytest.raises(_Killed):
                    train(data, tmp_path / name, settings, device="cpu")
            else:
                train(data, tmp_path / name, settings, device="cpu")
    assert read_log(tmp_path / "undisturbed" / "flow")[-1]["step"] == 4
    assert "still falling" not in capsys.readouterr().out, "more steps would not help"
    before = _weights(tmp_path / "undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        _growing(patch)
        for name in ("undisturbed", "killed"):
            train(data, tmp_path / name, settings, device="cpu")
            assert read_log(tmp_path / name / "flow")[-1]["step"] == 4
            assert _weights(tmp_path / name) == before


def test_the_budget_alone_decides_where_it_is_to(data, tmp_path, monkeypatch):
    _growing(monkeypatch)
    settings = tiny_flow_settings(*OVERRIDES, "training.stop=budget", "flow_training.steps=8")
    train(data, tmp_path / "run", settings, device="cpu")
    assert read_log(tmp_path / "run" / "flow")[-1]["step"] == 8


def test_a_set_without_held_out_scans_is_trained_to_its_end(tmp_path):
    data = write_dataset(tmp_path / "data", num_train=2, num_validation=0, shape=SHAPE)
    bundle = load_bundle(train(data, tmp_path / "run", tiny_flow_settings(*OVERRIDES), device="cpu"))
    assert bundle.levels.num_channels == 1, "nor does it have a background"


def test_a_single_scan_can_be_learned_from(tmp_path):
    data = _with_background(tmp_path / "data", num_train=1, num_validation=1)
    bundle = load_bundle(train(data, tmp_path / "run", tiny_flow_settings(*OVERRIDES), device="cpu"))
    assert bundle.levels.num_channels == 2 and bundle.generate([0]).isfinite().all()
    levels, scan = bundle.levels, VolumeDataset(data, Split.VALIDATION).batch([0])
    images, bands = levels.pyramid.analyse(levels.channels_of(scan))
    assert levels.texture(images, bands).abs().max() < 100, "one scan's texture says nothing of the spread"


def test_values_that_are_learned_are_of_about_unit_size(data):
    """Whatever the shift: the slab's edge lies between cells in one, and inside of them in the next."""
    scans, description = VolumeDataset(data, Split.TRAIN), flow_description()
    statistics = fit_statistics(FlowLevels(description).pyramid, scans)
    levels = FlowLevels(description.model_copy(update={"statistics": statistics}))
    settings = tiny_flow_settings("pyramid.crop=64", "flow.deformed=0")
    seen = [
        level_batches(levels, settings, scans.batch([index % 6]), 9, [torch.Generator().manual_seed(index)])
        for index in range(120)
    ]
    for level, batches in enumerate(zip(*seen, strict=True)):
        x_0 = torch.cat([batch.x_0 for batch in batches])
        size = x_0.square().mean(dim=(0, 2, 3, 4)).sqrt()
        is_details = level < levels.num_levels
        learned = size[::2] if is_details else size
        assert ((learned > 0.7) & (learned < 1.4) | (learned < 1e-3)).all()
        if is_details:
            # However rare a border's cells are, none is further out than the edge of a mask of -1 and 1.
            assert x_0[:, 1::2].abs().max() <= 8**0.5 + 1e-5


def test_a_shifted_scan_that_ends_in_tissue_has_no_edge_there(tmp_path):
    """Its foreground's details are those of the background that it has, not of a border all around."""
    data = _with_background(tmp_path / "data")
    scans, levels = VolumeDataset(data, Split.TRAIN), FlowLevels(flow_description())
    settings = tiny_flow_settings("pyramid.crop=64", "flow.deformed=0")
    filled = torch.where(scans.batch([0]) == BACKGROUND, 0.25, scans.batch([0]))
    for seed in range(8):
        *details, _ = level_batches(levels, settings, filled, 9, [torch.Generator().manual_seed(seed)])
        assert all(not batch.x_0[:, 1::2].any() for batch in details)


def test_scans_without_a_background_have_no_edge_where_they_end(tmp_path):
    """However they are shifted, all details are as large as those inside."""
    data = write_dataset(tmp_path / "data", shape=SHAPE)
    for path in (data / "volumes").glob("*.npy"):
        np.save(path, (0.5 + 0.05 * np.random.default_rng(len(path.name)).normal(size=SHAPE)).astype("f2"))
    scans, description = VolumeDataset(data, Split.TRAIN), flow_description(channels=1)
    statistics = fit_statistics(FlowLevels(description).pyramid, scans)
    levels = FlowLevels(description.model_copy(update={"statistics": statistics}))
    images, bands = levels.pyramid.analyse(levels.channels_of(scans.batch([0])))
    for level, values in enumerate(bands):
        inside = values[:, :, 1:-1, 1:-1, 1:-1].square().mean().sqrt()
        assert statistics.band_scales[level] == pytest.approx([float(inside)] * values.shape[1], rel=0.4)
    assert levels.texture(images, bands).abs().max() < 4


@pytest.mark.parametrize("seed", range(6))
def test_a_crop_is_the_scan_where_its_positions_say(seed):
    """Shifts and crops move what a level learns and what it is told of the place alike."""
    settings = tiny_flow_settings(*NO_NOISE, "flow.deformed=0", "pyramid.crop=4")
    levels = FlowLevels(flow_description(channels=1))
    pyramid = levels.pyramid
    x = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    batches = level_batches(levels, settings, x, 9, [torch.Generator().manual_seed(seed)])
    details, coarse = batches[: levels.num_levels], batches[-1]
    # Beyond its ends the scan, which has no background, goes on as it ends.
    more = [2 * large - size for large, size in zip(pyramid.shapes[0], SHAPE, strict=True)]
    beyond = functional.pad(x, (0, more[2], 0, more[1], 0, more[0]), mode="replicate")

    def there(positions: torch.Tensor, level: int, cells: torch.Tensor) -> torch.Tensor:
        """The part of the scan that begins at the first cell's first voxel."""
        box = [slice(None), slice(None)]
        for axis, (size, step) in enumerate(zip(pyramid.shapes[0], pyramid.stride(level), strict=True)):
            start = (float(positions[0, axis, 0, 0, 0]) + 1) / 2 * size - step / 2
            assert abs(start - round(start)) < 1e-4
            box.append(slice(round(start), round(start) + cells.shape[axis + 2] * step))
        return beyond[tuple(box)]

    shift, scale = levels._statistics.image_shift[0], levels._statistics.image_scale[0]
    for level, batch in enumerate(details):
        assert batch.x_0.shape[2:].numel() <= 4**3
        image = batch.told[:, :1] * scale + shift
        fine = pyramid.refine(level, image, levels.bands_of(level, batch.x_0))
        stride = pyramid.stride(level)
        voxels = there(batch.told[:, 1:], level + 1, image)
        assert torch.allclose(fine, torch.nn.functional.avg_pool3d(voxels, stride, stride), atol=1e-5)
    image = levels.image_of(coarse.x_0)
    stride = pyramid.stride(levels.num_levels)
    voxels = there(coarse.told, levels.num_levels, image)
    assert torch.allclose(image, torch.nn.functional.avg_pool3d(voxels, stride, stride), atol=1e-5)


def test_crops_are_small_in_the_first_steps_and_as_large_as_was_set_later():
    shape = (40, 28, 12)
    levels, x = FlowLevels(flow_description(shape=shape)), torch.zeros(1, 1, *shape)
    for asked, early in ((12, 2), (4, 2)):
        settings = tiny_flow_settings(f"pyramid.crop={asked}")
        for step, side in ((0, early), (2, early), (3, asked)):
            generators = [torch.Generator().manual_seed(step)]
            for level, batch in enumerate(level_batches(levels, settings, x, step, generators)[:-1]):
                assert batch.x_0.shape[2:] == crop_shape(levels.pyramid.shapes[level + 1], side)


@given(cells=st.tuples(*[st.integers(1, 40)] * 3), side=st.integers(1, 16))
def test_a_crop_has_the_cells_of_a_cube_where_the_level_has_as_many(cells, side):
    """Never more, and fewer only by the rounding of its sides; a cube, wherever one fits."""
    shape = crop_shape(cells, side)
    assert all(1 <= length <= size for length, size in zip(shape, cells, strict=True))
    assert math.prod(shape) <= side**3
    if min(cells) >= side:
        assert shape == (side, side, side)
    elif math.prod(cells) <= side**3:
        assert shape == cells
    for axis, (length, size) in enumerate(zip(shape, cells, strict=True)):
        others = math.prod(shape) // length
        shorter = all(length <= other for other in shape[:axis] + shape[axis + 1 :])
        assert length == size or not shorter or (length + 1) * others > side**3


def test_shifts_reach_every_voxel_of_a_coarse_cell_and_no_further():
    levels = FlowLevels(flow_description())
    step = levels.pyramid.stride(levels.num_levels)
    found = set()
    for seed in range(100):
        x = torch.zeros(1, 1, *SHAPE)
        batch = level_batches(levels, tiny_flow_settings(), x, 9, [torch.Generator().manual_seed(seed)])[-1]
        first = (batch.told[0, :, 0, 0, 0] + 1) / 2 * torch.tensor(levels.pyramid.shapes[0])
        found.add(tuple((first - torch.tensor(step) / 2).round().int().tolist()))
    assert found == {(d, h, w) for d in range(step[0]) for h in range(step[1]) for w in range(step[2])}


def test_the_coarse_level_alone_learns_from_deformed_copies_and_is_told():
    levels, x = FlowLevels(flow_description()), torch.zeros(1, 1, *SHAPE)
    x[:, :, 2:5, 3:9, 2:7] = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))
    never, always = (
        level_batches(
            levels, tiny_flow_settings(f"flow.deformed={share}"), x, 9, [torch.Generator().manual_seed(1)]
        )
        for share in (0, 1)
    )
    number = levels.num_levels
    assert never[number].conditions[:, 0].tolist() == [0.0]
    assert always[number].conditions[:, 0].tolist() == [1.0]
    # The first draws are the same, the anatomy is not.
    assert torch.equal(never[number].told, always[number].told)
    assert not torch.allclose(never[number].x_0, always[number].x_0, atol=0.01)
    for plain, other in zip(never[:number], always[:number], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    told = [
        bool(
            level_batches(
                levels, tiny_flow_settings("flow.deformed=0.5"), x, 9, [torch.Generator().manual_seed(s)]
            )[-1].conditions[0, 0]
        )
        for s in range(40)
    ]
    assert 8 < sum(told) < 32


def test_noise_on_what_details_are_told_is_as_strong_as_they_are_told():
    levels = FlowLevels(flow_description())
    x = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    plain, noisy = (
        level_batches(
            levels,
            tiny_flow_settings(*told, "pyramid.crop=16"),
            x,
            9,
            [torch.Generator().manual_seed(1)],
        )
        for told in (NO_NOISE, ())
    )
    for level in range(levels.num_levels):
        difference = (noisy[level].told - plain[level].told)[:, :2]
        strength = noisy[level].conditions[0, 0] * levels._description.flow.told_noise
        assert torch.isclose(difference.std(), strength, rtol=0.35)
        assert plain[level].conditions[0, 0] == 0 and 0 < noisy[level].conditions[0, 0] <= 1


def test_more_levels_than_a_grid_has_are_refused_before_anything_is_written(data, tmp_path):
    with pytest.raises(UserError, match=r"can be halved \d times: set pyramid\.num_levels="):
        train(data, tmp_path / "run", tiny_flow_settings("pyramid.num_levels=5"), device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_loop_can_be_called_without_a_run(data, tmp_path):
    """As plans and races do."""
    fabric = build_fabric("cpu", 1)
    fabric.launch()
    train_levels(fabric, data, tmp_path, tiny_flow_settings(*OVERRIDES), flow_description())
    assert (tmp_path / WEIGHTS_NAME).exists()


def test_the_pyramid_that_is_not_set_fits_the_grid_and_is_written_into_the_bundle(tmp_path):
    data = write_dataset(tmp_path / "data", shape=(32, 32, 16))
    settings = tiny_flow_settings("pyramid.num_levels=null", "flow_training.steps=1")
    bundle = load_bundle(train(data, tmp_path / "run", settings, device="cpu"))
    cells = [math.prod(shape) for shape in bundle.levels.pyramid.shapes]
    assert bundle.description.pyramid.num_levels == len(cells) - 1
    assert cells[-1] <= 2_048 < cells[-2]

"""Few labels: which patients they are, how they are changed, and that a training resumes to the same bits."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from anatogen.config.resolving import parse_overrides, resolve
from anatogen.core.errors import ConfigError, UserError
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import save_weights
from anatogen.dataset.manifest import Case, Split, load_manifest
from anatogen.dataset.volumes import LabelledDataset, prefetched
from anatogen.downstream import finetune as finetune_module
from anatogen.downstream.augmentation import augmented
from anatogen.downstream.early_stopping import EarlyStopping
from anatogen.downstream.finetune import _Batches, finetune
from anatogen.downstream.labelled import labelled_subset, labels_in, load_labelled
from anatogen.downstream.network import PaddedSwinUNETR
from anatogen.downstream.patches import corner_around, crop, random_corner
from anatogen.downstream.segmenter import load_segmenter
from anatogen.downstream.settings import AugmentationSettings, FinetuneConfig, SwinUNETRSettings
from anatogen.training import loop as loop_module
from anatogen.training.loop import read_log

pytestmark = pytest.mark.usefixtures("small_network")

KINDS = tuple(AugmentationSettings.model_fields)
NOTHING = dict.fromkeys(KINDS, 0.0)


def tiny(*overrides: str, steps: int = 4) -> FinetuneConfig:
    base = {
        "network": {"feature_size": 12},
        "segmenter_training": {"batch_size": 1, "steps": steps},
        "validate_every": 2,
        "training": {"checkpoint_minutes": 0},
    }
    return resolve(FinetuneConfig, base, overrides=parse_overrides(overrides, FinetuneConfig))


@pytest.fixture
def data(labelled) -> Path:
    return labelled


def cases(patients: list[str]) -> list[Case]:
    known = dict.fromkeys(Case.model_fields)
    return [Case.model_construct(**known | {"id": f"case_{i}", "patient": p}) for i, p in enumerate(patients)]


def test_fractions_are_nested_whole_patients_and_their_number_is_rounded():
    patients = [f"p{number // 2}" for number in range(80)]  # two scans each
    for seed in range(5):
        smaller: set[int] = set()
        for fraction in (0.03, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0):
            subset = set(labelled_subset(cases(patients), fraction, seed))
            assert smaller <= subset
            assert len(subset) == 2 * round(40 * fraction)
            assert {index ^ 1 for index in subset} == subset, "both scans of a patient or none"
            smaller = subset
        assert smaller == set(range(80))
    first, second = (labelled_subset(cases(patients), 0.2, seed) for seed in (0, 1))
    assert first != second


def test_a_fraction_of_nobody_is_refused():
    with pytest.raises(UserError, match=r"fraction 0.04 of 10 training patients is none: use more than 0.05"):
        labelled_subset(cases([f"p{i}" for i in range(10)]), 0.04, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_change_is_its_draws_alone_and_keeps_range_and_labels(data, kind):
    splits = load_labelled(data)
    x, labels = splits.train.batch([0])[0], splits.train.masks([0])[0]
    settings = AugmentationSettings(**NOTHING | {kind: 1.0})
    results = []
    for foreign in (1, 2):
        torch.manual_seed(foreign)
        np.random.seed(foreign)  # noqa: NPY002 - a library might draw from it
        results.append(augmented(x, labels, (1, 2, 3), settings, derived_generator("draw")))
        assert torch.initial_seed() == foreign, "the global generator is as it was"
    (y, changed), (again, _) = results
    assert torch.equal(y, again)
    assert not torch.equal(y, x)
    assert y.shape == x.shape and y.dtype == x.dtype and float(y.abs().max()) <= 1
    assert changed.dtype == torch.uint8 and set(changed.unique().tolist()) <= set(labels.unique().tolist())
    if kind == "affine":
        assert not torch.equal(changed, labels)
    else:
        assert torch.equal(changed, labels)
    other, _ = augmented(x, labels, (1, 2, 3), settings, derived_generator("another draw"))
    assert not torch.equal(other, y)


def test_changes_take_as_many_threads_as_their_process_has(data, one_thread):
    splits = load_labelled(data)
    x, labels = splits.train.batch([0])[0], splits.train.masks([0])[0]
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(2)
    augmented(x, labels, (1, 1, 1), AugmentationSettings(), derived_generator(0))
    assert SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads() == 1


def test_no_change_is_no_change(data):
    splits = load_labelled(data)
    x, labels = splits.train.batch([0])[0], splits.train.masks([0])[0]
    y, same = augmented(x, labels, (1, 1, 1), AugmentationSettings(**NOTHING), derived_generator(0))
    torch.testing.assert_close(y, x, atol=1e-6, rtol=0)
    assert torch.equal(same, labels)


def test_labels_go_where_their_voxels_go(data):
    """Bright and dark balls carry labels 1 and 2: after a turn they still lie on them."""
    splits = load_labelled(data)
    x, labels = splits.train.batch([0])[0], splits.train.masks([0])[0]
    settings = AugmentationSettings(**NOTHING | {"affine": 1.0})
    for seed in range(5):
        y, turned = augmented(x, labels, (1, 1, 1), settings, derived_generator(seed))
        tissue = float(x[labels == 0].median())
        assert float(y[turned == 1].median()) > tissue + 0.3
        assert float(y[turned == 2].median()) < tissue - 0.3


def test_crops_lie_inside_and_half_of_them_around_a_label():
    labels = torch.zeros(20, 30, 40, dtype=torch.uint8)
    labels[18, 2, 39] = 3
    draws = derived_generator("crops")
    for _ in range(20):
        corner = corner_around(labels, (8, 8, 8), draws)
        assert 3 in crop(labels, corner, (8, 8, 8))
        assert crop(labels, random_corner((20, 30, 40), (8, 8, 8), draws), (8, 8, 8)).shape == (8, 8, 8)
    places = [random_corner((20, 8, 9), (8, 8, 8), draws) for _ in range(200)]
    assert [sorted({place[axis] for place in places}) for axis in range(3)] == [list(range(13)), [0], [0, 1]]
    corner_around(torch.zeros(8, 8, 8), (8, 8, 8), draws)


def test_processes_load_the_batches_that_a_thread_does(data):
    batches = _Batches(load_labelled(data).train, [0, 1, 2], tiny())
    load = partial(batches.load, mine=slice(1))
    steps = [list(prefetched(range(3), load, processes)) for processes in (0, 2)]
    for (step, (x, labels)), (same, (y, theirs)) in zip(*steps, strict=True):
        assert step == same
        assert torch.equal(x, y) and torch.equal(labels, theirs)


def test_early_stopping_keeps_the_best_and_counts_looks_in_vain():
    network = nn.Linear(1, 1, bias=False)
    stopping = EarlyStopping(network, patience=2)
    for score, weight in ((0.2, 1.0), (0.5, 2.0), (0.4, 3.0)):
        nn.init.constant_(network.weight, weight)
        stopping.judge(score, network)
    assert not stopping.is_over
    copy = EarlyStopping(nn.Linear(1, 1, bias=False), patience=2)
    copy.load_state_dict(stopping.state_dict())
    copy.judge(0.5, network)
    assert copy.is_over and not stopping.is_over
    copy.restore_best(network)
    assert network.weight.item() == 2.0


def test_a_killed_finetuning_goes_on_to_the_same_weights(data, tmp_path, monkeypatch, one_thread, capsys):
    pretrained = tmp_path / "weights.safetensors"
    torch.manual_seed(5)
    save_weights(PaddedSwinUNETR(SwinUNETRSettings(feature_size=12), 1), pretrained)
    settings = tiny("fraction=0.5", "training.flip=left_right")
    whole = finetune(data, tmp_path / "whole", settings, init=pretrained, device="cpu")
    assert "6 of 8 tensors from the pre-trained network" in capsys.readouterr().out
    assert len(json.loads((whole / "transfer.json").read_text())["loaded"]) == 6
    save, killed = loop_module.save_checkpoint, []

    def killing(path, parts, counters):
        save(path, parts, counters)
        if counters["step"] == 3 and not killed:
            killed.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(loop_module, "save_checkpoint", killing)
    with pytest.raises(KeyboardInterrupt):
        finetune(data, tmp_path / "resumed", settings, init=pretrained, device="cpu")
    resumed = finetune(data, tmp_path / "resumed", settings, init=pretrained, device="cpu")
    expected, found = (load_file(folder / "weights.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert load_segmenter(tmp_path / "whole").description.labels == (0, 1, 2)
    with pytest.raises(UserError, match="other data"):
        finetune(data, tmp_path / "whole", settings, device="cpu")


def rewrite_masks(data: Path, folder: Path, change) -> Path:
    """A copy of the dataset with changed masks or description."""
    import shutil

    shutil.copytree(data, folder)
    manifest = load_manifest(folder)
    for case in manifest.cases:
        path = folder / str(case.mask)
        np.save(path, change(case, np.load(path)))
    return folder


def test_labels_are_found_with_the_first_case_that_holds_each(data, tmp_path):
    def rare(case, mask):
        number = int(case.id.removeprefix("case_"))
        mask[1, 2, 3], mask[15, 15, 15] = 255, 100 + number // 2
        return mask

    dataset = load_labelled(data).train
    assert labels_in(dataset, [1, 0]) == dict.fromkeys((0, 1, 2), dataset.cases[1].id)
    dataset = LabelledDataset(rewrite_masks(data, tmp_path / "rare", rare), Split.TRAIN)
    expected: dict[int, str] = {}
    for index in (3, 1, 0):
        for label in torch.unique(dataset.masks([index])).tolist():
            expected.setdefault(label, dataset.cases[index].id)
    assert labels_in(dataset, (3, 1, 0)) == expected
    assert {0, 1, 2, 255} < set(expected)
    assert labels_in(dataset, []) == {}


def test_bad_masks_are_named(data, tmp_path):
    train = load_manifest(data).split(Split.TRAIN)[0].id

    def alien(case, mask):
        mask[0, 0, 0] = 9 if case.split is Split.TEST else 0
        return mask

    # What to do differs: nothing can be learned of a label that training lacks; another may be named.
    test = load_manifest(data).split(Split.TEST)[0].id
    rare = rf"{test} \(test\) holds the label 9, and no training mask does, .*: prepare with another seed"
    folder = rewrite_masks(data, tmp_path / "alien", alien)
    with pytest.raises(UserError, match=rare):
        load_labelled(folder)
    content = load_manifest(folder)
    content.model_copy(update={"labels": {"1": "front", "2": "back", "9": "rare"}}).save(folder)
    with pytest.raises(UserError, match=rare.replace("label 9", r"label 9 \(rare\)")):
        load_labelled(folder)
    content.model_copy(update={"labels": {"1": "front", "2": "back"}}).save(folder)
    unnamed = (
        rf"{test} \(test\) holds the label 9, which the dataset does not name \(it names 1, 2\): name it"
    )
    with pytest.raises(UserError, match=unnamed):
        load_labelled(folder)
    with pytest.raises(UserError, match="the training masks are empty"):
        load_labelled(rewrite_masks(data, tmp_path / "empty", lambda case, mask: 0 * mask))
    with pytest.raises(UserError, match=rf"{train}.npy has shape \(15, 16, 16\), not \(16, 16, 16\)"):
        load_labelled(
            rewrite_masks(data, tmp_path / "shape", lambda case, m: m[1:] if case.id == train else m)
        )
    named = rewrite_masks(data, tmp_path / "named", lambda case, mask: mask * (mask != 2))
    content = load_manifest(named).model_copy(
        update={"labels": {"0": "background", "1": "front", "2": "back"}}
    )
    content.save(named)
    with pytest.raises(UserError, match=r"no training mask holds the label 2 \(back\)"):
        load_labelled(named)
    bare = load_manifest(data)
    bare = bare.model_copy(update={"cases": [case.model_copy(update={"mask": None}) for case in bare.cases]})
    rewrite_masks(data, tmp_path / "bare", lambda case, mask: mask)
    bare.save(tmp_path / "bare")
    with pytest.raises(UserError, match=r"4 of 4 train cases have no mask \(e.g. case_"):
        load_labelled(tmp_path / "bare")
    cut = load_manifest(data)
    rewrite_masks(data, tmp_path / "cut", lambda case, mask: mask)
    cut.model_copy(update={"config": cut.config | {"region": "breasts_by_mask"}}).save(tmp_path / "cut")
    with pytest.raises(UserError, match=r"cut was cut by its masks .* prepare it with region=breasts$"):
        load_labelled(tmp_path / "cut")


def test_bad_settings_are_named_before_anything_is_written(data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"fraction 0.1 of 4 training patients is none"):
        finetune(data, run, tiny("fraction=0.1"), device="cpu")
    with pytest.raises(UserError, match="holds no finished pre-training"):
        finetune(data, run, tiny(), init=tmp_path, device="cpu")
    with pytest.raises(UserError, match="larger than the scans"):
        finetune(data, run, tiny("patch_shape=[64,16,16]"), device="cpu")
    with pytest.raises(ConfigError, match=r"network.feature_size: .*12, 24 or 48"):
        tiny("network.feature_size=13")
    other = tmp_path / "weights.safetensors"
    save_file({"network.something": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="is not of this network"):
        finetune(data, run, tiny(), init=other, device="cpu")
    assert not run.exists()


def test_patience_ends_the_training_with_a_whole_log_and_a_kill_after_it_changes_nothing(
    data, tmp_path, monkeypatch, one_thread
):
    scores = iter([0.5, 0.4, 0.3, 0.2])
    monkeypatch.setattr(finetune_module, "_mean_dice", lambda *_: next(scores))
    settings = tiny("validate_every=1", "patience=2", steps=50)
    folder = finetune(data, tmp_path / "run", settings, device="cpu")
    records = read_log(folder)
    assert [record["step"] for record in records][-1] == 3
    best = load_file(folder / "weights.safetensors")
    # As if killed between the last checkpoint and the weights: no step more, no further look.
    (folder / "weights.safetensors").unlink()
    (folder / "segmenter.json").unlink()
    finetune(data, tmp_path / "run", settings, device="cpu")
    again = load_file(folder / "weights.safetensors")
    assert all(torch.equal(best[name], again[name]) for name in best)
    assert read_log(folder)[-1]["step"] == 3
    assert next(scores) == 0.2

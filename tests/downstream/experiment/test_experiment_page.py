import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from simulated import ARMS, FRACTIONS, simulated_rows

from anatogen.downstream.experiment.figures import (
    PredictionPicture,
    _fields,
    _outline,
    fractions_figure,
    predictions_figure,
)
from anatogen.downstream.experiment.page import write_experiment_page
from anatogen.downstream.experiment.plan import ExperimentPlan
from anatogen.downstream.experiment.trials import Pretraining, Trial
from anatogen.downstream.inpainting import InpaintingQuality, save_inpainting_quality
from anatogen.downstream.labelled import load_labelled
from anatogen.io.npy import write_array

GAINS = {
    "scratch": (0, 0, 0, 0),
    "synthetic": (0.03, 0.02, 0, 0),
    "real": (0.04, 0.02, 0, 0),
    "shapes": (0.02, 0.01, 0, 0),
    "synthetic_and_real": (0.04, 0.02, 0, 0),
}


def _picture(prediction, truth, case="case_00000"):
    image = np.linspace(-1, 1, truth.size, dtype=np.float32).reshape(truth.shape)
    return PredictionPicture(case, image, truth, {"scratch": prediction})


@pytest.fixture(scope="module")
def splits(labelled):
    found = load_labelled(labelled)
    names = {"1": "anterior", "2": "posterior <half>"}
    found.train.manifest = found.manifest.model_copy(update={"labels": names})
    return found


PLAN = ExperimentPlan(
    data="target",
    arms={arm: {} if arm == "scratch" else {"scans": arm} for arm in ARMS},
    fractions=FRACTIONS,
    tolerance_mm=1.5,
)


def _write(splits, out, rows):
    return write_experiment_page(PLAN, splits, rows, out).read_text(encoding="utf-8")


def _finish(job, out, splits):
    """Makes the files of a finished job that the page shows."""
    if isinstance(job, Pretraining):
        stage = job.folder(out) / "inpainter"
        stage.mkdir(parents=True)
        (stage / "weights.safetensors").touch()
        (stage / "log.jsonl").write_text('{"step": 9, "minutes": 200.0}\n')
        (job.folder(out) / "scans.json").write_text('{"num_scans": 400}')
        save_inpainting_quality(InpaintingQuality(network=0.5, copying=0.4), job.folder(out))
        return
    case = splits.test.cases[0].id
    write_array(splits.test.masks([0])[0, 0].numpy(), job.folder(out) / "predictions" / f"{case}.npy")
    (job.folder(out) / "results.jsonl").touch()


def _text(page):
    """The page as it is read."""
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page.split("<body>")[1]))


def test_a_finished_experiment_s_page_says_everything(splits, tmp_path):
    _finish(Trial("scratch", 0.05, 0), tmp_path, splits)
    _finish(Pretraining("synthetic"), tmp_path, splits)
    page = _write(splits, tmp_path, simulated_rows(GAINS))
    text = _text(page)
    assert text.index("Synthetic pre-training helps at 5-10% of the labels") < text.index("Dice against")
    assert "real scans instead of synthetic ones" in text
    assert "trials are done" not in text
    assert "synthetic and real − scratch" in text and "synthetic − shapes" in text
    assert "all 24 comparisons" in text
    for name in ("Dice", "Surface Dice", "95% Hausdorff distance (mm)", "anterior", "mean over labels"):
        assert name in text
    assert "within 1.5 mm" in text
    assert "undefined " not in text.replace("counted as undefined", "")
    assert "Training scans: 5 at 5%, 10 at 10%" in text
    assert "posterior &lt;half&gt;" in page and "Swin UNETR, feature size 24" in text
    assert "pre-training synthetic took 3 h 20 min" in text and "pre-trained on 400 scans; fills in" in text
    assert "predictions of seed 0 with 5% of the labels" in text
    assert "stays in your institution" in text
    assert {path.name for path in tmp_path.glob("*.*")} == {
        "experiment.html",
        "dice_by_fraction.png",
        "predictions.png",
    }
    assert not re.search(r'(src|href)="(?!data:)', page), "the page holds all that it shows"


def test_pretraining_that_taught_nothing_is_named_before_all_numbers(splits, tmp_path):
    assert "taught next to nothing" not in _text(_write(splits, tmp_path, []))
    for arm in ("shapes", "synthetic_and_real"):
        _finish(Pretraining(arm), tmp_path, splits)
    text = _text(_write(splits, tmp_path, []))
    warning = "Pre-training on shapes, synthetic and real taught next to nothing about the target’s scans"
    assert text.index(warning) < text.index("test patients")


def test_an_unfinished_experiment_s_page_says_what_is_missing(splits, tmp_path):
    rows = [
        row
        for row in simulated_rows(GAINS)
        if row.fraction == 0.05 and not (row.arm == "real" and row.seed == 2)
    ]
    # A kill may leave half a run, which does not count.
    half = [row for row in rows if row.trial != Trial("shapes", 0.05, 1) or row.case < "case_00020"]
    text = _text(_write(splits, tmp_path, half))
    assert "13 of 60 trials are done" in text
    assert "real at 5% (1 of 3 seeds), shapes at 5% (1 of 3 seeds), scratch at 10% (3 of 3 seeds)" in text
    assert "stays in your institution" not in text


def test_a_page_before_the_first_run(splits, tmp_path):
    text = _text(_write(splits, tmp_path, []))
    assert "0 of 60 trials are done" in text
    assert "Can't tell yet" in text.replace("&#39;", "'")


def test_undefined_metrics_are_counted_where_they_are(splits, tmp_path):
    rows = simulated_rows(GAINS)
    first = rows[0]
    rows[0] = first.model_copy(
        update={
            "dice": first.dice | {"2": 0.0},
            "hausdorff95_mm": first.hausdorff95_mm | {"2": None},
        }
    )
    text = _text(_write(splits, tmp_path, rows))
    assert text.count("1 of 120 undefined") == 1
    assert text.index("95% Hausdorff distance (mm)") < text.index("1 of 120 undefined")


def test_one_label_needs_no_mean_and_one_seed_gives_no_interval(splits, tmp_path):
    rows = [
        row.model_copy(
            update={name: {"1": getattr(row, name)["1"]} for name in row.model_dump() if name in _METRICS}
        )
        for row in simulated_rows(GAINS, num_seeds=1)
    ]
    text = _text(_write(replace(splits, labels=(0, 1)), tmp_path, rows))
    assert "anterior" in text and "mean over labels" not in text.split("Surface Dice")[1]
    assert "no interval; 1 seed, 40 patients" in text


_METRICS = ("dice", "surface_dice", "hausdorff95_mm")


def _colours(path):
    """How many pixels of a figure are clearly green and clearly red."""
    red, green, blue = (np.asarray(Image.open(path).convert("RGB"), int)[..., i] for i in range(3))
    return int(np.sum((green > red + 40) & (green > blue + 20))), int(
        np.sum((red > green + 60) & (red > blue + 60))
    )


def test_green_is_right_and_red_is_wrong(tmp_path):
    truth = np.zeros((5, 30, 30), np.uint8)
    truth[1:4, 8:20, 8:20] = 1
    path = tmp_path / "predictions.png"
    found = {}
    for name, prediction in {
        "right": truth,
        "missed": np.zeros_like(truth),
        "other label": 2 * truth,
        "too much": np.ones_like(truth),
    }.items():
        predictions_figure(
            [_picture(prediction, truth)], ["scratch"], path, spacing_mm=(3, 1, 1), axis_codes=None
        )
        found[name] = _colours(path)
    assert found["right"][0] > 1000 and found["right"][1] == 0
    assert found["missed"][0] == 0 and 0 < found["missed"][1] < 2000, "an outline"
    assert found["other label"][0] == 0 and found["other label"][1] > 5000, "filled"
    assert found["too much"][0] > 1000 and found["too much"][1] > 5000


def test_an_outline_has_the_sides_between_inside_and_outside():
    mask = np.random.default_rng(0).random((7, 9)) < 0.4
    padded = np.pad(mask, 1).astype(int)
    lines = list(_outline(mask))
    assert len(lines) == len(set(lines)) == sum(np.abs(np.diff(padded, axis=a)).sum() for a in (0, 1))
    assert sorted(_outline(np.array([[True]]))) == [
        ((0, 0), (0, 1)),
        ((0, 0), (1, 0)),
        ((0, 1), (1, 1)),
        ((1, 0), (1, 1)),
    ]


def test_what_is_shown_holds_the_structure_and_has_one_size():
    truths = [np.zeros((40, 60), np.float32) for _ in range(3)]
    truths[0][2:8, 50:59] = 1
    truths[1][20:30, 20:26] = 1
    fields = _fields(truths, 2.0, 1.0)
    assert {tuple(part.stop - part.start for part in field) for field in fields} == {(18, 36)}
    for truth, field in zip(truths, fields, strict=True):
        assert truth[field].sum() == truth.sum()
        assert all(part.start >= 0 and part.stop <= n for part, n in zip(field, truth.shape, strict=True))


def test_figures_need_something_to_draw(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        fractions_figure({}, [], ARMS, tmp_path / "a.png")
    with pytest.raises(ValueError, match="no prediction"):
        predictions_figure([], ARMS, tmp_path / "a.png", spacing_mm=(1, 1, 1), axis_codes=None)


def test_equal_results_give_an_equal_page(splits, tmp_path):
    rows = simulated_rows(GAINS, num_patients=8)
    first = _write(splits, tmp_path / "one", rows)
    assert _write(splits, tmp_path / "two", rows[::-1]) == first


def test_seeds_that_drew_different_numbers_of_scans_are_told_by_their_range(splits, tmp_path):
    rows = [
        row.model_copy(update={"num_training_scans": 9}) if (row.seed, row.fraction) == (0, 0.05) else row
        for row in simulated_rows(GAINS)
    ]
    assert "Training scans: 5 to 9 at 5%, 10 at 10%" in _text(_write(splits, tmp_path, rows))

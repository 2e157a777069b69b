"""The audit finds copies that were planted, clears scans that are none, and says when it can't see."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from test_contrastive import smooth_scans

from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Grid, Intensity
from anatogen.dataset.scan_sets import ScanSet, content_hash
from anatogen.evaluation.answers import privacy_answer
from anatogen.evaluation.privacy import copy_detector
from anatogen.evaluation.privacy.audit import audit
from anatogen.evaluation.privacy.closest_pairs import registered
from anatogen.evaluation.privacy.contrastive import ContrastiveSettings
from anatogen.evaluation.privacy.finding import Copying, privacy_finding
from anatogen.evaluation.privacy.planted import plant
from anatogen.report.rows import Row

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = ContrastiveSettings(widths=(8, 16, 32), dimensions=16, batch_size=16, steps=60)
GRID = Grid(shape=(16, 16, 16), spacing_mm=(1, 1, 1), affine=np.eye(4)[[2, 1, 0, 3]].tolist())


def scan_set(role: str, arrays: np.ndarray) -> ScanSet:
    hashes = tuple(content_hash(array) for array in arrays)
    return ScanSet(role, arrays, hashes, GRID, "MR", Intensity(modality="MR", low=0, high=1))


TRAIN = scan_set("train", smooth_scans(40, 0))
HOLDOUT = scan_set("holdout", smooth_scans(40, 1))
FRESH = scan_set("synthetic", smooth_scans(40, 2))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def clear(tmp_path_factory, cache):
    out = tmp_path_factory.mktemp("clear")
    return audit(TRAIN, HOLDOUT, FRESH, seed=0, out=out, cache=cache, settings=SETTINGS)


@pytest.fixture(scope="module")
def leaking(tmp_path_factory, cache):
    """Half of the synthetic scans are training scans, blurred or flipped."""
    copies = np.concatenate(
        [plant("flipped", TRAIN.arrays[:10], 3), plant("blurred", TRAIN.arrays[10:20], 3)]
    )
    synthetic = scan_set("synthetic", np.concatenate([copies, FRESH.arrays[:20]]))
    out = tmp_path_factory.mktemp("leaking")
    return audit(TRAIN, HOLDOUT, synthetic, seed=0, out=out, cache=cache, settings=SETTINGS)


def _values(found) -> dict[str, Row]:
    return {row.name: row for row in found.rows}


def test_the_audit_sees_what_it_planted(clear):
    rows = _values(clear)
    assert rows["planted_exact"].value == rows["planted_flipped"].value == 1
    assert rows["planted_blurred"].value >= 0.9 and rows["planted_noised"].value >= 0.9
    assert rows["planted_independent"].value <= 0.15


def test_independent_scans_are_cleared(clear):
    rows = _values(clear)
    assert rows["copies"].value <= 0.15 and rows["copies"].low <= 0.05
    assert rows["closer_to_train_p"].value > 0.01
    assert rows["distance_ratio"].low < rows["distance_ratio"].reference_high
    assert clear.finding.tone == "good" and clear.finding.copying is Copying.NOT_FOUND


def test_copies_are_found_and_named(leaking):
    rows = _values(leaking)
    assert rows["copies"].value >= 0.45 and rows["copies"].low > 0.05
    assert rows["closer_to_train"].value > 0.6
    assert rows["memorised"].value > 0.3
    assert leaking.finding.copying is Copying.COPIED
    # The likest pairs are copies, each beside the scan that it is of.
    assert all(pair.flagged and pair.synthetic == pair.train < 20 for pair in leaking.pairs)


def test_a_detector_comes_back_as_it_was_written(clear):
    again = copy_detector.load_detector(clear.folder)
    assert np.array_equal(again.nearest(FRESH.arrays[:3]), np.float32(clear.nearest["synthetic"][:3]))
    assert again.threshold == clear.detector.threshold


def test_one_seed_gives_one_audit(clear, cache, tmp_path):
    audit(TRAIN, HOLDOUT, FRESH, seed=0, out=tmp_path, cache=cache, settings=SETTINGS)
    for name in ("audit.json", "embeddings.safetensors", "encoder.safetensors", "closest_pairs.png"):
        assert (tmp_path / name).read_bytes() == (clear.folder / name).read_bytes(), name


def test_the_figure_is_small_and_the_report_names_no_file(clear):
    path = clear.folder / "closest_pairs.png"
    assert path.stat().st_size < 500_000 and min(Image.open(path).size) > 300
    content = json.loads((clear.folder / "audit.json").read_text())
    assert content["hashes"]["train"] == TRAIN.sha256 and content["scans"]["holdout"] == 40
    assert str(clear.folder) not in json.dumps(content)


def test_a_registered_scan_lies_where_the_other_does():
    fixed = np.full((20, 20, 20), -1, np.float32)
    fixed[5:12, 6:14, 8:17], fixed[5:8, 6:9, 8:10] = 0.2, 1.0
    moved = np.roll(np.flip(fixed, (0, 2)), (2, -1, 1), (0, 1, 2))
    found = registered(np.ascontiguousarray(moved), fixed, (1.0, 1.0, 1.0))
    before = np.corrcoef(moved.ravel(), fixed.ravel())[0, 1]
    assert np.corrcoef(found.ravel(), fixed.ravel())[0, 1] > max(0.95, before)


def test_few_scans_get_a_note_with_the_number_that_would_do(cache, tmp_path):
    found = audit(
        TRAIN,
        HOLDOUT.take(range(10)),
        FRESH.take(range(5)),
        seed=0,
        out=tmp_path,
        cache=cache,
        settings=SETTINGS,
    )
    note = "; ".join(_values(found)["copies"].notes)
    assert "10 held-out scans" in note and "40 would do" in note
    assert "5 synthetic scans are few: 50 would do" in note
    assert "chance flags 9%" in note


def _rows(**values: float) -> list[Row]:
    known = {"planted_exact": 1.0, "planted_flipped": 1.0, "planted_blurred": 1.0, "copies": 0.04}
    known |= {"copies_p": 1e-3, "closer_to_train": 0.5, "closer_to_train_p": 0.5} | values
    better = {name: "higher" for name in known if name.startswith("planted")}
    return [
        Row(
            "privacy",
            name,
            f"Found of planted {name}",
            value,
            value - 0.01,
            better=better.get(name, "lower"),
            count=(2, 50),
        )
        for name, value in known.items()
    ]


@pytest.mark.parametrize(
    ("values", "tone", "text"),
    [
        ({}, "good", "No sign of copying: 2 of 50"),
        (
            {"planted_flipped": 0.5, "copies": 0.9},
            "open",
            "proves nothing: it finds only 50% of planted flipped copies",
        ),
        ({"copies": 0.5}, "bad", "copy training patients: 2 of 50"),
        (
            {"copies": 0.5, "copies_p": 0.2},
            "open",
            "Too few scans to say whether patients are copied: 2 of 50",
        ),
        ({"closer_to_train": 0.8, "closer_to_train_p": 1e-4}, "bad", "80% of them are closer to training"),
        ({"planted_blurred": 0.3}, "good", "would miss many copies blurred (Gaussian, sigma 1 voxel)"),
        ({"membership_denoiser_auc": 0.9}, "mixed", "AUC 0.90): keep the bundle"),
        (
            {"membership_denoiser_auc": 0.5, "membership_autoencoder_auc": 0.8},
            "mixed",
            "AUC 0.80): keep the bundle",
        ),
    ],
)
def test_the_answer_says_what_the_numbers_say_and_never_promises(values, tone, text):
    answer = privacy_answer(privacy_finding(_rows(**values)))
    assert answer.tone == tone
    assert text in f"{answer.headline} {answer.detail}" and "An audit is no guarantee" in answer.detail


@pytest.mark.parametrize("values", [{}, {"planted_flipped": 0.5}])
def test_a_single_training_scan_among_synthetic_ones_is_no_chance(values):
    answer = privacy_answer(privacy_finding(_rows(**values), num_identical=1))
    assert answer.tone == "bad"
    assert answer.headline.startswith("Synthetic scans copy training patients: 1 of 50 are training scans")


@pytest.mark.parametrize("name", ["audit.json", "encoder.safetensors", "embeddings.safetensors"])
@pytest.mark.parametrize("damage", ["absent", "short", "other"])
def test_a_damaged_audit_is_refused(clear, tmp_path, name, damage):
    folder = tmp_path / "audit"
    shutil.copytree(clear.folder, folder, ignore=shutil.ignore_patterns("*.png"))
    content = (folder / name).read_bytes()
    if damage == "absent":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content[: len(content) // 2] if damage == "short" else b"{}")
    with pytest.raises(UserError, match=r"damaged|is not a privacy audit"):
        copy_detector.load_detector(folder)


def test_an_audit_of_another_format_is_refused(clear, tmp_path):
    content = json.loads((clear.folder / "audit.json").read_text()) | {"format_version": 99}
    (tmp_path / "audit.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="format version 99"):
        copy_detector.read_audit(tmp_path)

"""Pictures are whole, small, reproducible, and the right way up whatever a volume's orientation."""

import itertools
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from anatogen.report.figures import MAX_PNG_BYTES, curves_figure
from anatogen.report.numbers import duration_text
from anatogen.report.volume_figures import planes_figure, slices_figure


def _volume(seed: int = 0, shape: tuple[int, int, int] = (9, 11, 13)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L")).astype(int)


def test_every_storage_orientation_gives_the_same_picture(tmp_path: Path) -> None:
    canonical, spacing = _volume(), (3.0, 2.0, 1.0)
    planes_figure([("real", [canonical])], tmp_path / "a.png", spacing_mm=spacing, axis_codes=("S", "A", "R"))
    opposite = {"S": "I", "A": "P", "R": "L"}
    every = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
    for order, signs in every[3::7]:
        stored = np.transpose(canonical[tuple(slice(None, None, sign) for sign in signs)], order)
        codes = tuple(code if sign > 0 else opposite[code] for code, sign in zip("SAR", signs, strict=True))
        planes_figure(
            [("real", [stored])],
            tmp_path / "b.png",
            spacing_mm=tuple(spacing[axis] for axis in order),
            axis_codes=tuple(codes[axis] for axis in order),
        )
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes(), (order, signs)


def test_superior_is_up_anterior_and_right_are_left(tmp_path: Path) -> None:
    # RAS storage: the half named by the test is bright, the other half grey so that nothing is trimmed.
    centres = []
    for axis in range(3):
        volume = np.full((21, 21, 21), -0.5, dtype=np.float32)
        volume[tuple(slice(11, None) if number == axis else slice(None) for number in range(3))] = 1
        path = tmp_path / f"{axis}.png"
        planes_figure([("real", [volume])], path, axis_codes=nib.aff2axcodes(np.eye(4)))
        pixels = _pixels(path)
        pixels = pixels[:, int(pixels.shape[1] * 0.22) :]  # without the labels
        bands = np.split(pixels, np.flatnonzero(np.diff(pixels.max(axis=1) > 40)) + 1)
        planes = [band for band in bands if band.max() > 40 and len(band) > 50]
        assert len(planes) == 3
        centres.append(
            [
                np.argwhere(plane > 200).mean(axis=0) / plane.shape if plane.max() > 200 else None
                for plane in planes
            ]
        )
    right, front, top = centres
    assert right[0][1] < 0.4
    assert right[1][1] < 0.4
    assert front[0][0] < 0.4
    assert front[2][1] < 0.4
    assert top[1][0] < 0.4
    assert top[2][0] < 0.4


def test_pictures_are_small_and_reproducible_and_leave_no_parts(tmp_path: Path) -> None:
    noise = [_volume(seed, (64, 64, 64)) for seed in range(8)]
    rows = [("real", noise), ("reconstructed", noise), ("synthetic", noise[:3])]
    planes_figure(rows, tmp_path / "one.png")
    planes_figure(rows, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").stat().st_size < MAX_PNG_BYTES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_spacing_gives_the_aspect(tmp_path: Path) -> None:
    volume = np.ones((10, 20, 20), dtype=np.float32)
    planes_figure([("real", [volume])], tmp_path / "thick.png", spacing_mm=(4, 1, 1))
    planes_figure([("real", [volume])], tmp_path / "thin.png", spacing_mm=(1, 1, 1))
    thick, thin = _pixels(tmp_path / "thick.png"), _pixels(tmp_path / "thin.png")
    assert thick.shape[0] > 1.8 * thin.shape[0]


@pytest.mark.parametrize(
    ("rows", "codes", "message"),
    [
        ([("real", [])], None, "no volume"),
        ([("real", [np.zeros((4, 4))])], None, "share one shape"),
        ([("real", [np.zeros((4, 4, 4)), np.zeros((4, 4, 5))])], None, "share one shape"),
        ([("real", [np.zeros((4, 4, 4))])], ("S", "I", "R"), "axis codes"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, rows: list, codes: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planes_figure(rows, tmp_path / "none.png", axis_codes=codes)
    assert not list(tmp_path.iterdir())


def test_an_empty_scan_is_drawn_too(tmp_path: Path) -> None:
    planes_figure([("synthetic", [np.full((4, 4, 4), -1.0)])], tmp_path / "black.png")
    assert (tmp_path / "black.png").exists()


def test_curves_skip_gaps_and_values_that_are_not_finite(tmp_path: Path) -> None:
    records = [{"step": step, "minutes": step / 60, "loss": 100 * 0.97**step} for step in range(200)]
    records[7]["loss"] = float("nan")
    records[50]["validation_loss"] = 0.5
    curves_figure(records, tmp_path / "one.png")
    curves_figure(records, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with pytest.raises(ValueError, match="no curve"):
        curves_figure([{"step": 1, "minutes": 0.1, "loss": float("inf")}], tmp_path / "none.png")


def test_losses_of_training_and_held_out_scans_share_a_panel(tmp_path: Path) -> None:
    both = [{"step": step, "train_loss": 1 / step, "held_out_loss": 0.5} for step in range(1, 5)]
    one = [{"step": record["step"], "train_loss": record["train_loss"]} for record in both]
    other = [{"step": record["step"], "held_out_loss": record["held_out_loss"]} for record in both]
    for name, records in (("both", both), ("one", one), ("other", other)):
        curves_figure(records, tmp_path / f"{name}.png")
    sizes = {Image.open(path).size for path in tmp_path.iterdir()}
    assert len(sizes) == 1
    assert (tmp_path / "both.png").read_bytes() != (tmp_path / "one.png").read_bytes()


def test_pyplot_is_not_touched(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from anatogen.report.figures import curves_figure\n"
        "assert 'matplotlib' not in sys.modules\n"
        "curves_figure([{'step': 1, 'loss': 2.0}], Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "one.png"], check=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (9.97, "10 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_neighbouring_slices_are_drawn_in_their_order_around_the_middle(tmp_path: Path) -> None:
    # Slice number n is grey of its own: from black to white through the volume.
    shades = np.linspace(-0.8, 1, 12, dtype=np.float32)
    volume = np.broadcast_to(shades[:, None, None], (12, 20, 30))
    slices_figure([("a", volume), ("b", volume)], tmp_path / "slices.png", spacing_mm=(5, 1, 1))
    picture = np.asarray(Image.open(tmp_path / "slices.png").convert("L")).astype(float)
    width = picture.shape[1]
    gap, cell = 0.04 * 30, 30.0
    scale = width / (gap + 8 * (cell + gap))
    centres = [int(scale * (gap + column * (cell + gap) + cell / 2)) for column in range(8)]
    for row in range(2):
        drawn = picture[int(scale * (row * (6 + 20) + 6 + 10)), centres]
        assert drawn == pytest.approx(255 * (shades[2:10] + 1) / 2, abs=2)
    with pytest.raises(ValueError, match="no volume"):
        slices_figure([], tmp_path / "none.png")

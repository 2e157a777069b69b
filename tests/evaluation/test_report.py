"""The report says what its rows say: the same every time, whole, and never mixed with something else."""

import base64
import io
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_example import DIVERSITY, FIDELITY, example_report

from anatogen.core.errors import UserError
from anatogen.evaluation.answers import diversity_answer, fidelity_answer
from anatogen.evaluation.charts import bars_figure, forest_figure, histogram_figure
from anatogen.evaluation.report import clear_report, open_report_folder
from anatogen.report.numbers import number_text
from anatogen.report.rows import Row, ratio_to_floor, tells_apart


def _row(value: float | None, reference: float | None, reach: float = 0.5, **changed) -> Row:
    row = Row("fidelity", "frechet_slices", "Fréchet distance", value, reference=reference)
    if value is not None and reference is not None:
        row = replace(
            row,
            low=value - reach,
            high=value + reach,
            reference_low=reference - reach,
            reference_high=reference + reach,
        )
    return replace(row, **changed)


def _diversity(synthetic: float, real: float, gap_of_halves: float | None) -> list[Row]:
    similarity = Row("diversity", "ms_ssim", "MS-SSIM", synthetic, reference=real, better="reference")
    gap = Row("diversity", "ms_ssim_gap", "gap", abs(synthetic - real), reference=gap_of_halves)
    return [similarity, gap]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a report."""
    return example_report(tmp_path_factory.mktemp("report") / "one")


def test_the_json_holds_every_row_and_equal_content_is_equal(example: Path, tmp_path: Path) -> None:
    pages = [example, example_report(tmp_path / "two")]
    first, second = (
        json.loads((page.parent / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
        for page in pages
    )
    assert first.pop("created") and second.pop("created")
    assert first == second
    assert first["rows"] == json.loads(json.dumps([asdict(row) for row in (*FIDELITY, *DIVERSITY)]))
    assert first["details"]["not finite"] == [None, None]
    assert first["inputs"]["real"]["num_scans"] == 5 and len(first["inputs"]["real"]["sha256"]) == 64
    assert {path.name for path in pages[0].parent.iterdir()} == {
        "report.html",
        "report.json",
        "figures",
        "cache",
    }


def test_figures_are_in_the_page_and_beside_it(example: Path) -> None:
    shown = re.findall(r'src="data:image/png;base64,([^"]*)"', example.read_text(encoding="utf-8"))
    files = {path.read_bytes() for path in (example.parent / "figures").glob("*.png")}
    assert {base64.b64decode(picture) for picture in shown} == files
    assert all(Image.open(io.BytesIO(picture)).width > 200 for picture in files)


def test_notes_of_most_rows_are_said_once(tmp_path: Path) -> None:
    from anatogen.evaluation.report import Section

    rows = [
        replace(row, notes=("few scans (5 real, 9 synthetic)", f"only {index}"))
        for index, row in enumerate(FIDELITY)
    ]
    page = example_report(tmp_path / "out", sections=[Section("Numbers", "All of them", rows)])
    text = page.read_text(encoding="utf-8")
    assert text.count("ew scans (5") == 1 and "Few scans (5 real, 9 synthetic)." in text
    assert all(f"only {index}" in text for index in range(len(rows)))


def test_a_new_report_replaces_the_old_one_and_keeps_the_cache(example: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(example.parent, out)
    (out / "cache" / "features.npy").write_bytes(b"kept")
    (out / "figures" / "stale.png").write_bytes(b"of another evaluation")
    (out / "audit").mkdir()
    (out / "audit" / "audit.json").write_text("{}")
    open_report_folder(out)
    clear_report(out, keep=("audit",))
    assert {path.name for path in out.rglob("*")} == {
        "audit",
        "audit.json",
        "cache",
        "features.npy",
        "figures",
    }
    clear_report(out)
    assert {path.name for path in out.rglob("*")} == {"cache", "features.npy", "figures"}


@pytest.mark.parametrize("names", [["thesis.docx"], ["report.html"], ["figures"], ["cache", "scan.nii.gz"]])
def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="no report's folder"):
        open_report_folder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    with pytest.raises(UserError, match="is a file"):
        open_report_folder(tmp_path / names[0])


@pytest.mark.parametrize(
    ("rows", "tone", "said"),
    [
        ([_row(3, 3)], "good", "1 times as far"),
        ([_row(9, 3)], "bad", "3 times as far"),
        ([_row(9, 3), _row(3, 3, name="kid_slices"), _row(0.1, 0.1, name="spectrum")], "mixed", "1 of 3"),
        # Details repeat: they don't vote.
        ([_row(3, 3), _row(9, 3, name="frechet_slices_axial", is_detail=True)], "good", "0 of 1"),
        ([_row(None, None)], "open", "not measured"),
        ([], "open", "not measured"),
        # An unbiased distance's floor may be 0 or below: no ratio, and still apart.
        ([_row(2, -0.1, name="kid_slices")], "bad", "1 of 1 measures tell"),
    ],
)
def test_the_answer_on_looks_follows_the_floor(rows: list[Row], tone: str, said: str) -> None:
    answer = fidelity_answer(rows)
    assert answer.tone == tone
    assert said in f"{answer.headline} {answer.detail}"


@pytest.mark.parametrize(
    ("rows", "tone", "said"),
    [
        (_diversity(0.51, 0.5, 0.02), "good", "as much as real scans"),
        (_diversity(0.6, 0.5, 0.02), "mixed", "20% of the way to one scan repeated"),
        (_diversity(0.9, 0.5, 0.02), "bad", "80% of the way"),
        (_diversity(0.3, 0.5, 0.02), "mixed", "noise alone"),
        (_diversity(0.6, 0.5, None), "mixed", "more alike"),
        (_diversity(0.5, 0.5, None), "good", "as much as"),
        ([], "open", "not measured"),
    ],
)
def test_the_answer_on_diversity_follows_real_halves(rows: list[Row], tone: str, said: str) -> None:
    answer = diversity_answer(rows)
    assert answer.tone == tone
    assert said in f"{answer.headline} {answer.detail}"


def test_worse_has_a_side() -> None:
    assert tells_apart(_row(5, 3)) and not tells_apart(_row(1, 3))
    assert tells_apart(_row(1, 3, better="higher")) and not tells_apart(_row(5, 3, better="higher"))
    assert tells_apart(_row(5, 3, better="reference")) and tells_apart(_row(1, 3, better="reference"))
    assert not tells_apart(_row(3.9, 3)), "intervals overlap"
    assert ratio_to_floor(_row(6, 3)) == ratio_to_floor(_row(3, 6, better="higher")) == 2
    assert ratio_to_floor(_row(1, 0)) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (3.0, "3"), (0.12345, "0.123"), (57.25, "57.2"), (12345.6, "12,346")],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number_text(value) == text
    assert number_text(1.5e-6) == "1.50e-06"


def test_charts_of_constants_are_drawn(tmp_path: Path) -> None:
    forest_figure([_row(0, 0, reach=0)], tmp_path / "zero.png")
    values = {"real": np.ones(5), "synthetic": np.ones(1)}
    histogram_figure(values, tmp_path / "ones.png", title="t", label="l", threshold=(2, "threshold"))
    bars_figure({"exact copies": 1.0, "noised": 0.0}, tmp_path / "bars.png", title="Found")
    assert len(list(tmp_path.iterdir())) == 3

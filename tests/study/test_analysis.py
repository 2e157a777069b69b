import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from chromium import browser_page
from click.testing import CliRunner
from simulated_readers import simulated_rows, simulated_study
from study_maker import answer, make_study

from anatogen import analyse_study, compare_studies
from anatogen.cli.app import app
from anatogen.core.errors import UserError
from anatogen.report.figures import save_figure
from anatogen.study.analysis import charts
from anatogen.study.analysis.analyse import analyse_answers
from anatogen.study.analysis.answers import read_answers
from anatogen.study.analysis.equivalence import difference
from anatogen.study.analysis.headlines import headlines, summary
from anatogen.study.analysis.page import read_blinding, write_analysis
from anatogen.study.analysis.parts import limits
from anatogen.study.analysis.ratings import ratings_of
from anatogen.study.analysis.statistic import Place, pick, pick_one
from anatogen.study.leaks import BlindingStatus
from anatogen.study.questions import load_protocols

ALL = load_protocols(["paper", "turing", "2afc"])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "study"
    simulated_study(folder, readers=("Ada <b>", "Bo"), number=20)
    return folder


@pytest.fixture(scope="module")
def page(study):
    return analyse_study(study)[1]


@pytest.fixture
def small_figures(monkeypatch):
    """Drawn as ever, in few pixels."""
    monkeypatch.setattr(
        charts, "save_figure", lambda figure, path, dpi: save_figure(figure, path, dpi=dpi // 4)
    )


def tidy(content):
    """Whatever is written must be numbers that JSON has."""
    return json.loads(content, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_command_gives_the_same_numbers_again(study, page, tmp_path, small_figures):
    result = CliRunner().invoke(app, ["study", "analyse", str(study), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "2 readers read 20 real, 20 reconstructed, 20 synthetic scans" in result.output
    for question in ("rated as real ones", "best answer", "tell real from", "pick the real", "readers agree"):
        assert question in result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"analysis.html", "analysis.json", "analysis.csv", "answers.csv", "figures"}
    assert len(list((tmp_path / "out" / "figures").glob("*.png"))) == 4
    first, second = (
        tidy((folder / "analysis.json").read_text()) for folder in (page.parent, tmp_path / "out")
    )
    assert first["numbers"] == second["numbers"]


def test_json_csv_and_the_answers_say_the_same(study, page):
    content = tidy((page.parent / "analysis.json").read_text())
    with (page.parent / "analysis.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content["numbers"]) > 300
    for row, number in zip(rows, content["numbers"], strict=True):
        assert row["name"] == number["name"]
        assert row["value"] == ("" if number["value"] is None else str(number["value"]))
    with (page.parent / "answers.csv").open(encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    stored = read_answers(study)
    assert [row["value"] for row in answers] == [str(row.value) for row in stored]
    assert content["answers"] and content["summary"].startswith("2 readers")


def test_the_page_is_whole_in_a_browser(page, tmp_path):
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed: `apt-get install chromium` gives one")
    with browser_page(program, tmp_path) as tab:
        tab.open(page)
        images = tab.evaluate("Array.from(document.images, image => [image.complete, image.naturalWidth])")
        assert len(images) == 4 and all(complete and width > 200 for complete, width in images)
        assert tab.requests == []
        assert tab.evaluate("document.querySelectorAll('script, link, b').length") == 0
        assert tab.evaluate("document.querySelectorAll('article').length") == 5
        text = tab.evaluate("document.body.innerText")
        assert "Ada <b>" in text and "None" not in text and "nan" not in text.lower().split()
        for width in (400, 800, 1400):
            tab.open(page, width)
            content = tab.evaluate("document.documentElement.scrollWidth")
            assert content <= width


def test_repeats_change_nothing_but_the_readers_agreement_with_themselves():
    rows = simulated_rows(number=20)
    generator = np.random.default_rng(0)
    changed = [
        replace(row, value=int(generator.integers(0, 2)), seconds_active=1.0)
        if row.repeat_of is not None and row.protocol == "turing"
        else row
        for row in rows
    ]
    before, after = (analyse_answers(each, ALL).statistics for each in (rows, changed))
    differing = {
        (number.section, "" if number.section == "repeatability" else number.name)
        for number, other in zip(before, after, strict=True)
        if number != other
    }
    assert differing <= {("repeatability", ""), ("times", "hours_active")} and differing


def test_the_sides_of_pairs_change_nothing():
    rows = simulated_rows(number=20)
    swapped = [
        row
        if row.other_case is None
        else replace(
            row,
            case=row.other_case,
            source=row.other_source,
            other_case=row.case,
            other_source=row.source,
            value=1 - row.value,
        )
        for row in rows
    ]
    before, after = (analyse_answers(each, ALL).statistics for each in (rows, swapped))
    assert pick(before, section="pairs") == pick(after, section="pairs")


def test_missing_answers_are_counted_and_left_out(tmp_path, small_figures):
    folder = tmp_path / "study"
    simulated_study(folder, number=15, missing=0.2)
    rows = read_answers(folder)
    gone = sum(row.value is None for row in rows)
    analysis, page = analyse_study(folder, unfinished=True)
    counted = pick(analysis.statistics, section="answers")
    assert sum(number.value for number in counted) == gone > 0
    assert f"{gone} of {len(rows):,} answers are missing" in summary(analysis)
    assert "Missing answers" in page.read_text()
    paper = ratings_of(rows, ALL[0], ALL[0].questions[0])
    expected = difference(paper.first, paper.of("synthetic"), paper.of("real"))
    found = pick_one(
        analysis.statistics,
        name="mean_difference",
        question=paper.question.id,
        source="synthetic",
        reference="real",
    )
    assert found.value == pytest.approx(expected.value)


def test_readers_with_cases_left_are_named_before_answers_are_seen(tmp_path, small_figures):
    study = make_study(tmp_path / "study")
    with pytest.raises(UserError, match="has no answers yet"):
        analyse_study(study.folder)
    answer(study, "ada", {0: 4, 1: 3})
    with pytest.raises(UserError, match=r"cases left \(ada 4, bo 4\).*--unfinished"):
        analyse_study(study.folder)
    assert not (study.folder / "analysis").exists()
    analysis, page = analyse_study(study.folder, unfinished=True)
    assert page.is_file() and len(headlines(analysis)) == 3


def test_what_can_t_be_analysed_is_said_in_one_line(study, tmp_path):
    for options, message in (
        ([str(tmp_path)], "is no study"),
        ([str(study), "--margin", "0"], "margin is 0"),
        ([str(study), "--share-margin", "15"], "share margin is 15"),
        ([str(study), str(study / "study.yaml")], "is a file"),
    ):
        result = CliRunner().invoke(app, ["study", "analyse", *options])
        assert result.exit_code != 0
        assert isinstance(result.exception, UserError) and message in str(result.exception)
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    (copy / "key.json").unlink()
    with pytest.raises(UserError, match="reader's copy"):
        analyse_study(copy)


def test_a_study_that_is_not_blind_says_so_first(tmp_path, small_figures):
    simulated_study(tmp_path / "study", ("paper",), ("Ada",), number=3)
    analysis = analyse_answers(read_answers(tmp_path / "study"), ALL[:1])
    for content, said in (
        (None, "not known"),
        ({"passed": False, "num_scans": {"real": 20, "synthetic": 20}}, "not achieved"),
        ({"passed": True, "num_scans": {"real": 20, "synthetic": 3}}, "not tested"),
        ({"passed": True, "num_scans": {"real": 20, "synthetic": 20}}, "passed"),
    ):
        if content is not None:
            (tmp_path / "study" / "leaks.json").write_text(json.dumps(content))
        blinding = read_blinding(tmp_path / "study")
        assert limits(analysis, blinding)[0].startswith(f"Blinding was {said}") == (said != "passed")
    _, page = analyse_study(tmp_path / "study")
    assert tidy((page.parent / "analysis.json").read_text())["settings"]["blinding"].startswith("passed")


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"readers": ("Ada",)}, None),
        ({"sources": ("synthetic",), "protocols": ("paper",)}, None),
        ({"number": 1, "repeat": 0}, None),
        ({"number": 2, "sources": ("real", "synthetic")}, None),
        ({"repeat": 0}, 1),
        ({}, 1),
        ({"missing": 0.97}, None),
        ({"protocols": ("turing",)}, None),
        ({"protocols": ("2afc",)}, None),
        ({"readers": tuple(f"Reader {number}" for number in range(5)), "number": 4}, None),
    ],
    ids=str,
)
def test_poor_studies_are_analysed_too(options, values, tmp_path, small_figures):
    """One reader, one source, one case, all answers the same, hardly any answers: a page, and reasons."""
    chosen = {"number": 6} | options
    protocols = load_protocols(chosen.get("protocols", ("paper", "turing", "2afc")))
    rows = simulated_rows(**chosen)
    if values is not None:
        rows = [replace(row, value=values) for row in rows]
    spec = simulated_study(tmp_path / "study", ("paper",), number=1).spec
    analysis = analyse_answers(rows, protocols)
    page = write_analysis(analysis, spec, tmp_path / "out", BlindingStatus.PASSED)
    content = tidy((page.parent / "analysis.json").read_text())
    for number in content["numbers"]:
        assert number["value"] is not None or number["note"], number
    assert "None" not in page.read_text() and ">nan" not in page.read_text()


@pytest.mark.parametrize(
    ("number", "right", "tone"),
    [(4, 0.5, "open"), (100, 0.5, "good"), (100, 0.9, "bad"), (100, 0.65, "mixed"), (100, 0.1, "mixed")],
)
def test_guessing_is_good_news_only_where_it_is_shown(number, right, tone):
    """Half of 4 pairs fits guessing, and nearly everything else; wrong in nine of ten is no guessing."""
    sources = ("real", "synthetic")
    rows = simulated_rows(("turing", "2afc"), ("Ada",), number, sources=sources, repeat=0)
    place = {(case, q): index for q in {row.question for row in rows} for index, case in _cases(rows, q)}
    told = []
    for row in rows:
        is_right = place[row.case, row.question] < right * number
        real_at = int(row.source != "real") if row.other_case is not None else int(row.source == "real")
        value = 50 if row.question == "confidence" else real_at if is_right else 1 - real_at
        told.append(replace(row, value=value))
    tones = {answer.question: answer.tone for answer in headlines(analyse_answers(told, ALL[1:]))}
    assert tones["Side by side, can they pick the real one?"] == tone
    assert tones["Can readers tell real from synthetic?"] == tone


def _cases(rows, question):
    """Each case with its number among those of its source, for pairs among all."""
    mine = [row for row in rows if row.question == question]
    for source in ("real", "synthetic"):
        cases = [row.case for row in mine if row.other_case is not None or row.source == source]
        yield from enumerate(cases)


def test_questions_of_ones_own_are_analysed(tmp_path):
    text = """
id: own
title: Own questions
kind: rating
questions:
  - {id: noise, text: "Noise?", kind: choice, options: [{value: 10, text: much}, {value: 0, text: little}]}
  - {id: quality, text: Quality, kind: score, low: bad, high: good}
"""
    (tmp_path / "own.yaml").write_text(text)
    protocols = [str(tmp_path / "own.yaml")]
    rows = simulated_rows(protocols, number=10)
    rows = [replace(row, value=10 * (row.value % 2)) if row.question == "noise" else row for row in rows]
    analysis = analyse_answers(rows, load_protocols(protocols))
    shares = pick(analysis.statistics, section="shares", name="share", reader="", source="real")
    assert [number.option for number in shares] == [0, 10]
    assert sum(number.value for number in shares) == pytest.approx(1)
    assert pick_one(analysis.statistics, section="scores", question="quality", reader="").value is not None


def test_several_studies_are_one_figure_with_the_bars_of_each(tmp_path, monkeypatch):
    bars = []
    draw = charts._draw_bar
    monkeypatch.setattr(charts, "_draw_bar", lambda axes, y, *bar: (bars.append(bar), draw(axes, y, *bar)))
    studies = [tmp_path / name for name in ("knees", "brains", "chests")]
    for seed, (study, protocols) in enumerate(zip(studies, (["paper"], ["paper"], ["turing"]), strict=True)):
        simulated_study(study, protocols, ("Ada", "Bo"), 6, sources=["synthetic"], seed=seed)
    assert compare_studies(tmp_path / "new" / "fig2.png", studies).stat().st_size > 10_000
    # Three questions of two studies, by two readers and both together.
    assert len(bars) == 3 * 2 * 3
    wanted = [
        [share.value for share in pick(analysis.statistics, **place)]
        for question in ALL[0].questions
        for analysis in (analyse_answers(read_answers(study), ALL[:1]) for study in studies[:2])
        for reader in ("Ada", "Bo", "")
        for place in [Place(section="shares", name="share", question=question.id, reader=reader)]
    ]
    assert [[share.value for share in shares] for _, shares, _ in bars] == wanted


def test_studies_that_cannot_be_compared_are_told(tmp_path):
    first, again, pairs = (tmp_path / name for name in ("a/knees", "b/knees", "pairs"))
    for study in (first, again):
        simulated_study(study, ["paper"], ("Ada",), 4, sources=["synthetic"])
    simulated_study(pairs, ["2afc"], ("Ada",), 4)
    with pytest.raises(UserError, match="two of the studies' folders are named 'knees'"):
        compare_studies(tmp_path / "x.png", [first, again])
    with pytest.raises(UserError, match="none of the studies asks for a rating"):
        compare_studies(tmp_path / "x.png", [pairs])
    assert not (tmp_path / "x.png").exists()

import pytest

from anatogen.core.errors import ConfigError, UserError
from anatogen.study.questions import PROTOCOLS, load_protocol, load_protocols


def test_the_papers_questions_have_four_ordinal_options_each():
    paper = load_protocol("paper")
    assert [question.text for question in paper.questions] == [
        "Realistic image appearance",
        "Consistency between slices",
        "Anatomic correctness",
    ]
    assert all([option.value for option in q.options] == [1, 2, 3, 4] for q in paper.questions)
    assert paper.questions[0].options[-1].text == "Can't tell whether fake or not"


def test_all_protocols_that_come_with_the_package_can_be_combined():
    assert [protocol.kind for protocol in load_protocols(PROTOCOLS)] == ["rating", "rating", "pair"]


def test_a_protocol_of_ones_own_may_be_translated(tmp_path):
    path = tmp_path / "deutsch.yaml"
    path.write_text(
        "id: qualität\ntitle: Bildqualität\nkind: rating\nquestions:\n"
        "- {id: schärfe, text: Schärfe, kind: score, low: unscharf, high: scharf}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=r"deutsch.yaml: (.|\n)*id: "):
        load_protocol(str(path))
    path.write_text(
        path.read_text(encoding="utf-8").replace("id: qualität", "id: qualitaet"), encoding="utf-8"
    )
    path.write_text(path.read_text(encoding="utf-8").replace("id: schärfe", "id: schaerfe"), encoding="utf-8")
    question = load_protocol(str(path)).questions[0]
    assert [question.allows(value) for value in (-1, 0, 100, 101)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("{id: a, text: A, kind: choice, options: [{value: 1, text: x}]}", "two or more options"),
        (
            "{id: a, text: A, kind: choice, options: [{value: 1, text: x}, {value: 1, text: y}]}",
            "different values",
        ),
        ("{id: a, text: A, kind: score}", "`low` and `high`"),
        ("{id: a, text: A, kind: scale}", "kind"),
        ("{id: a, text: A, kind: score, low: l, high: h, colour: red}", "unknown key"),
    ],
)
def test_wrong_questions_are_told(tmp_path, question, message):
    path = tmp_path / "own.yaml"
    path.write_text(f"id: own\ntitle: Own\nkind: rating\nquestions:\n- {question}\n")
    with pytest.raises(ConfigError, match=message):
        load_protocol(str(path))


def test_unknown_and_repeated_protocols_are_told():
    with pytest.raises(UserError, match="paper, turing, 2afc"):
        load_protocol("papr")
    with pytest.raises(UserError, match="each once"):
        load_protocols(["paper", "paper"])

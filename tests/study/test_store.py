import itertools
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from pydantic import ValidationError
from study_maker import make_study

from anatogen.core.errors import UserError
from anatogen.study.analysis.answers import read_answers
from anatogen.study.spec import DATABASE_NAME, KEY_NAME
from anatogen.study.store import (
    AnswerInput,
    StoredAnswer,
    UnknownItemError,
    all_readers,
    answers_of,
    items_of,
    latest_answers,
    open_study,
    progress,
    save_answer,
    set_paused,
)

QUESTION = "realistic_image_appearance"


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path / "study")


def _first(study, number=0):
    with study.session() as session:
        reader = all_readers(session)[number]
        return reader, items_of(session, reader)[0]


def _given(item, value=3, **changes):
    whole = {"item_id": item.id, "question": QUESTION, "value": value, "client_id": str(uuid4())}
    return AnswerInput(**(whole | changes))


def test_the_same_answer_sent_twice_is_stored_once(study):
    reader, item = _first(study)
    given = _given(item)
    assert save_answer(study, reader, given) is save_answer(study, reader, given) is None
    with study.session() as session:
        assert len(session.exec(StoredAnswer.__table__.select()).all()) == 1


def test_the_highest_revision_counts_in_whatever_order_answers_arrive(study):
    reader, item = _first(study)
    for revision in (1, 2, 0):
        save_answer(study, reader, _given(item, value=revision + 1, revision=revision))
    with study.session() as session:
        assert answers_of(session, reader)[item.id, QUESTION].value == 3


def test_an_answer_hears_what_was_stored_before_it_and_overrules_it(study):
    reader, item = _first(study)

    def overruled_by(given):
        return save_answer(study, reader, given)

    first, late = _given(item, revision=0), _given(item, revision=1)
    assert overruled_by(first) is None
    assert overruled_by(_given(item, revision=2)) is None
    # Sent again because its receipt was lost, it hears the same.
    assert overruled_by(late) == overruled_by(late) == 2
    # Of one revision the later counts.
    assert overruled_by(_given(item, revision=2)) is None
    # What followed rightly counts instead.
    assert overruled_by(first) is None


def test_which_of_two_answers_of_one_revision_counts_does_not_depend_on_their_order():
    answers = [
        StoredAnswer(
            item_id="a",
            question="q",
            value=number,
            client_id=str(number),
            revision=1,
            answered_at=f"2025-01-0{1 + number % 2}",
        )
        for number in range(3)
    ]
    values = {latest_answers(order)["a", "q"].value for order in itertools.permutations(answers)}
    assert values == {1}


def test_answers_that_do_not_fit_are_refused(study):
    reader, item = _first(study)
    other_reader, _ = _first(study, 1)
    given = _given(item)
    save_answer(study, reader, given)
    with pytest.raises(UnknownItemError):
        save_answer(study, other_reader, _given(item))
    with pytest.raises(UnknownItemError):
        save_answer(study, reader, _given(item, item_id="f" * 16))
    with pytest.raises(UserError, match="no answer 5"):
        save_answer(study, reader, _given(item, value=5))
    with pytest.raises(UserError, match="no question"):
        save_answer(study, reader, _given(item, question="confidence"))
    with pytest.raises(UserError, match="used for another"):
        save_answer(study, reader, given.model_copy(update={"value": 4}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"item_id": "../../etc/passwd"},
        {"value": 101},
        {"value": "3"},
        {"value": True},
        {"client_id": "x" * 65},
        {"client_id": "'; DROP TABLE answer"},
        {"seconds_active": float("nan")},
        {"revision": -1},
        {"source": "real"},
    ],
)
def test_malformed_answers_are_refused(study, wrong):
    _, item = _first(study)
    with pytest.raises(ValidationError):
        _given(item, **wrong)


def test_readers_have_tokens_that_open_their_own_page_only(study):
    with study.session() as session:
        ada, bo = all_readers(session)
        assert ada.token != bo.token and min(len(ada.token), len(bo.token)) >= 32
        assert {item.id for item in items_of(session, ada)}.isdisjoint(i.id for i in items_of(session, bo))


def test_progress_counts_items_whose_questions_are_all_answered(study):
    reader, item = _first(study)
    questions = [question.id for question in study.spec.protocols[0].questions]
    for number, question in enumerate(questions):
        assert progress(study)[0].num_done == 0
        save_answer(study, reader, _given(item, question=question, seconds_active=5.0 * (number + 1)))
    set_paused(study, reader, True)
    ada, bo = progress(study)
    assert (ada.num_items, ada.num_done, ada.seconds_active, ada.paused) == (4, 1, 15.0, True)
    assert (bo.num_done, bo.last_answer_at, bo.paused) == (0, None, False)


def test_the_flat_table_has_every_question_of_every_reader(study):
    reader, item = _first(study)
    save_answer(study, reader, _given(item, value=2, seconds_active=3.5, seconds_idle=1.0))
    rows = read_answers(study.folder)
    assert len(rows) == 2 * 4 * 3
    answered = [row for row in rows if row.value is not None]
    assert [(r.reader, r.item, r.question, r.value, r.source) for r in answered] == [
        ("ada", item.id, QUESTION, 2, "real")
    ]
    assert (answered[0].seconds_active, answered[0].seconds_idle) == (3.5, 1.0)
    assert {row.source for row in rows} == {"real", "synthetic"}


def test_a_copy_without_the_key_has_no_flat_table(study):
    (study.folder / KEY_NAME).unlink()
    with pytest.raises(UserError, match="reader's copy"):
        read_answers(study.folder)


def test_many_readers_at_once_lose_nothing(tmp_path):
    study = make_study(tmp_path / "study", readers=tuple(f"reader{n}" for n in range(20)))
    with study.session() as session:
        work = [(r, i) for r in all_readers(session) for i in items_of(session, r)]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda pair: save_answer(study, pair[0], _given(pair[1])), work))
    assert sum(row.value is not None for row in read_answers(study.folder)) == len(work) == 80


_SAVER = """
import sys
from pathlib import Path
from uuid import uuid4
from anatogen.study.store import *
study = open_study(Path(sys.argv[1]))
with study.session() as session:
    reader = all_readers(session)[0]
    items = items_of(session, reader)
for revision in range(100000):
    given = AnswerInput(item_id=items[revision % 4].id, question="realistic_image_appearance", value=1,
                        client_id=str(uuid4()), revision=revision)
    save_answer(study, reader, given)
    print(given.client_id, flush=True)
"""


def test_no_acknowledged_answer_is_lost_when_the_process_is_killed(study):
    command = [sys.executable, "-c", _SAVER, str(study.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        acknowledged = [process.stdout.readline().strip() for _ in range(25)]
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.read().split("\n")[:-1]
    study = open_study(study.folder)
    with study.session() as session:
        stored = {answer.client_id for answer in session.exec(StoredAnswer.__table__.select()).all()}
    assert set(acknowledged) <= stored


def test_a_database_of_a_newer_version_is_refused(study):
    study.engine.dispose()
    with sqlite3.connect(study.folder / DATABASE_NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match=r"version 99.*update Anatogen"):
        open_study(study.folder)


def test_a_study_may_lie_in_any_folder(tmp_path):
    odd = make_study(tmp_path / "which? 100%20 #1")
    assert progress(open_study(odd.folder))[0].num_items == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["which? 100%20 #1"]


def test_a_damaged_database_is_refused_in_one_line(study):
    study.engine.dispose()
    for path in study.folder.glob(f"{DATABASE_NAME}-*"):
        path.unlink()
    (study.folder / DATABASE_NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="can't be opened"):
        open_study(study.folder)


def test_the_database_keeps_a_write_ahead_log(study):
    with sqlite3.connect(study.folder / DATABASE_NAME) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_serving_and_reading_answers_import_no_torch():
    code = (
        "import sys, anatogen.study.serve, anatogen.study.exchange, anatogen.study.analysis.page\n"
        "print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"

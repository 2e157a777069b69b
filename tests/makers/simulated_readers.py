"""Readers whose skill is known: answers drawn from a latent quality of each case, as rows or as a study."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np

from anatogen.config.resolving import save_yaml
from anatogen.core.files import write_json
from anatogen.study.analysis.answers import AnswerRow
from anatogen.study.analysis.ratings import Ratings
from anatogen.study.orders import random_names, reader_items
from anatogen.study.questions import Protocol, Question, load_protocols
from anatogen.study.spec import KEY_NAME, SPEC_NAME, StudySpec
from anatogen.study.store import Reader, StoredAnswer, Study, create_study, new_token

# Mean latent quality; thresholds between the four answers are -2, -1 and 0 by default.
QUALITY = {"real": 1.4, "reconstructed": 0.7, "synthetic": 0.5}
THRESHOLDS = (-2.0, -1.0, 0.0)


def simulated_ratings(
    values: np.ndarray,
    sources: Sequence[str],
    question: Question | None = None,
    again: np.ndarray | None = None,
) -> Ratings:
    """Answers (R, C), NaN where there is none, as the statistics take them."""
    question = question or load_protocols(["paper"])[0].questions[0]
    values = np.asarray(values, dtype=np.float64)
    return Ratings(
        protocol="paper",
        question=question,
        readers=tuple(f"reader {line}" for line in range(len(values))),
        cases=tuple(f"{case:016x}" for case in range(values.shape[1])),
        sources=tuple(sources),
        first=values,
        again=np.full_like(values, np.nan) if again is None else np.asarray(again, dtype=np.float64),
    )


def ordinal_answers(
    generator: np.random.Generator, quality: np.ndarray, num_readers: int = 2, *, noise: float = 0.7
) -> np.ndarray:
    """Answers 1 to 4 of readers (R, C) who see the quality (C,) with noise, each with an own strictness."""
    shift = np.linspace(-0.2, 0.2, num_readers)[:, None] if num_readers > 1 else 0.0
    seen = quality + shift + noise * generator.standard_normal((num_readers, len(quality)))
    return np.digitize(seen, THRESHOLDS) + 1.0


def simulated_rows(
    protocols: Sequence[str] = ("paper", "turing", "2afc"),
    readers: Sequence[str] = ("Reader A", "Reader B"),
    number: int = 50,
    *,
    sources: Sequence[str] = ("real", "reconstructed", "synthetic"),
    seed: int = 0,
    missing: float = 0.0,
    repeat: float = 0.15,
) -> list[AnswerRow]:
    """The table of answers of a whole simulated study."""
    return _answered(
        *_items(load_protocols(protocols), readers, number, sources, seed, repeat), seed, missing
    )


def simulated_study(
    folder: Path,
    protocols: Sequence[str] = ("paper", "turing", "2afc"),
    readers: Sequence[str] = ("Reader A", "Reader B"),
    number: int = 50,
    *,
    sources: Sequence[str] = ("real", "reconstructed", "synthetic"),
    seed: int = 0,
    missing: float = 0.0,
    repeat: float = 0.15,
) -> Study:
    """The same as a study's folder, without volumes."""
    loaded = load_protocols(protocols)
    key, items = _items(loaded, readers, number, sources, seed, repeat)
    folder.mkdir(parents=True)
    spec = StudySpec(
        id=f"{seed:016x}",
        title="Simulated study",
        protocols=loaded,
        readers=tuple(readers),
        modality="MR",
        shape=(4, 5, 6),
        spacing_mm=(1, 1, 1),
        window=(0, 255),
        num_cases=dict.fromkeys(sources, number),
        repeat=repeat,
        seed=seed,
    )
    save_yaml(spec, folder / SPEC_NAME)
    write_json(folder / KEY_NAME, {"cases": {case: {"source": source} for case, source in key.items()}})
    study = create_study(folder, spec, new_token())
    rows = _answered(key, items, seed, missing)
    with study.session() as session:
        for line, name in enumerate(readers, 1):
            session.add(Reader(id=line, name=name, token=new_token()))
            session.flush()
            session.add_all(item for owner, _, item in items if owner == name)
        session.flush()
        for index, row in enumerate(rows):
            if row.value is not None:
                session.add(
                    StoredAnswer(
                        item_id=row.item,
                        question=row.question,
                        value=row.value,
                        client_id=str(UUID(int=index)),
                        seconds_active=row.seconds_active,
                        seconds_idle=row.seconds_idle,
                        answered_at="2026-01-01T12:00:00.000+00:00",
                    )
                )
        session.commit()
    return study


def _items(protocols, readers, number, sources, seed, repeat):
    cases = random_names(number * len(sources), seed, "cases")
    key = dict(zip(cases, np.repeat(list(sources), number).tolist(), strict=True))
    items = []
    for line, name in enumerate(readers, 1):
        for item in reader_items(line, name, key, protocols, repeat=repeat, seed=seed):
            protocol = next(each for each in protocols if each.id == item.protocol)
            items.append((name, protocol, item))
    return key, items


def _answered(key, items: list[tuple[str, Protocol, object]], seed: int, missing: float) -> list[AnswerRow]:
    generator = np.random.default_rng(seed)
    quality = {case: QUALITY[source] + 0.6 * generator.standard_normal() for case, source in key.items()}
    strict = {name: generator.normal(0, 0.3) for name, _, _ in items}
    rows = []
    for name, protocol, item in items:
        seconds = float(generator.lognormal(3.2, 0.5))
        idle = float(generator.exponential(60)) if generator.random() < 0.1 else 0.0
        seen = quality[item.case] - strict[name] + 0.5 * generator.standard_normal()
        other = None
        if item.other_case is not None:
            other = quality[item.other_case] + 0.5 * generator.standard_normal()
        gone = generator.random() < missing
        for part, question in enumerate(protocol.questions, 1):
            row = AnswerRow(
                reader=name,
                item=item.id,
                protocol=protocol.id,
                question=question.id,
                case=item.case,
                source=key[item.case],
                other_case=item.other_case,
                other_source=None if item.other_case is None else key[item.other_case],
                repeat_of=item.repeat_of,
                position=item.position,
                value=_value(question, seen, other, generator),
                seconds_active=seconds * part / len(protocol.questions),
                seconds_idle=idle,
            )
            rows.append(replace(row, value=None, seconds_active=None, seconds_idle=None) if gone else row)
    return rows


def _value(question: Question, seen: float, other: float | None, generator: np.random.Generator) -> int:
    if other is not None:
        return int(other > seen)
    if question.id == "real_or_synthetic":
        return int(seen > 0.9)
    if question.kind == "score":
        return int(np.clip(round(60 * abs(seen - 0.9) + generator.normal(0, 15)), 0, 100))
    return int(np.digitize(seen + 0.4 * generator.standard_normal(), (-1.6, -0.7, 0.35)) + 1)

"""A small study whose volumes are all the same, for tests of what does not look at them."""

from pathlib import Path
from uuid import uuid4

import numpy as np

from anatogen.config.resolving import save_yaml
from anatogen.core.files import write_json
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume
from anatogen.study.questions import load_protocols
from anatogen.study.spec import KEY_NAME, SPEC_NAME, StudySpec, volume_path
from anatogen.study.store import (
    AnswerInput,
    Item,
    Reader,
    Study,
    all_readers,
    create_study,
    items_of,
    new_token,
    save_answer,
)


def make_study(
    folder: Path, readers: tuple[str, ...] = ("ada", "bo"), protocols: tuple[str, ...] = ("paper",)
) -> Study:
    """A study of four cases, two of them real, in the same order for every reader."""
    folder.mkdir(parents=True)
    spec = StudySpec(
        id="0123456789abcdef",
        title="Test",
        protocols=load_protocols(protocols),
        readers=readers,
        modality="MR",
        shape=(4, 5, 6),
        spacing_mm=(1, 1, 1),
        window=(0, 255),
    )
    save_yaml(spec, folder / SPEC_NAME)
    cases = [f"{number:016x}" for number in range(4)]
    sources = ["real", "real", "synthetic", "synthetic"]
    for case in cases:
        volume = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
        write_nifti(Volume(volume, np.diag([1.0, -1, -1, 1])), volume_path(folder, case), np.int16)
    key = {case: {"source": source} for case, source in zip(cases, sources, strict=True)}
    write_json(folder / KEY_NAME, {"cases": key})
    study = create_study(folder, spec, new_token())
    with study.session() as session:
        for number, name in enumerate(readers):
            session.add(Reader(id=number + 1, name=name, token=new_token()))
            session.flush()
            places = [(protocol, case) for protocol in spec.protocols for case in cases]
            for position, (protocol, case) in enumerate(places):
                session.add(
                    Item(
                        id=f"{number + 1:08x}{position:08x}",
                        reader_id=number + 1,
                        position=position,
                        protocol=protocol.id,
                        case=case,
                        other_case=cases[(position + 2) % 4] if protocol.kind == "pair" else None,
                    )
                )
        session.commit()
    return study


def answer(study: Study, name: str, values: dict[int, int], *, revision: int = 0) -> None:
    """Lets a reader answer the first question of the items at some positions.

    Args:
        study: The study, or a copy of it.
        name: Of the reader.
        values: The answer by position.
        revision: Of the answers.
    """
    with study.session() as session:
        reader = next(each for each in all_readers(session) if each.name == name)
        items = items_of(session, reader)
    for position, value in values.items():
        item = items[position]
        given = AnswerInput(
            item_id=item.id,
            question=study.spec.protocol(item.protocol).questions[0].id,
            value=value,
            client_id=str(uuid4()),
            revision=revision,
        )
        save_answer(study, reader, given)

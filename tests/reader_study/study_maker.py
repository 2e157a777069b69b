"""A small study without scans, for tests of what does not look at volumes."""

from pathlib import Path

from anatogen.config import save_yaml
from anatogen.reader_study.questions import load_protocols
from anatogen.reader_study.spec import DATABASE_NAME, KEY_NAME, SPEC_NAME, StudySpec
from anatogen.reader_study.store import (
    ORGANISER_TOKEN,
    Item,
    Reader,
    Setting,
    Study,
    new_token,
    open_database,
    open_study,
)
from anatogen.storage import write_json


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
    key = {case: {"source": source} for case, source in zip(cases, sources, strict=True)}
    write_json(folder / KEY_NAME, {"cases": key})
    engine = open_database(folder / DATABASE_NAME)
    study = Study(folder, spec, engine)
    with study.session() as session:
        session.add(Setting(key=ORGANISER_TOKEN, value=new_token()))
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
    return open_study(folder)

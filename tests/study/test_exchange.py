import hashlib
import json
import zipfile

import pytest
from study_maker import answer, make_study

from anatogen.core.errors import UserError
from anatogen.study.analysis.answers import read_answers
from anatogen.study.exchange import export_study, import_study
from anatogen.study.spec import KEY_NAME, SPEC_NAME
from anatogen.study.store import StoredAnswer, all_readers, items_of, open_study, organiser_token


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path / "study")


def _values(folder):
    return {(row.item, row.question): row.value for row in read_answers(folder) if row.value is not None}


def _repacked(file, target, change):
    """A zip with other files: `change` gets and returns the contents by name."""
    with zipfile.ZipFile(file) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in change(files).items():
            archive.writestr(name, content)
    return target


def _with_records(change):
    """A change of the records whose hash is put right, as whoever forges answers would."""

    def changed(files):
        records = json.loads(files["records.json"])
        change(records)
        files["records.json"] = json.dumps(records).encode()
        contents = json.loads(files["contents.json"])
        contents["sha256"]["records.json"] = hashlib.sha256(files["records.json"]).hexdigest()
        files["contents.json"] = json.dumps(contents).encode()
        return files

    return changed


def test_a_whole_study_comes_back_as_it_was(study, tmp_path):
    answer(study, "ada", {0: 1, 1: 2})
    answer(study, "ada", {1: 4}, revision=1)
    export_study(study.folder, tmp_path / "all.zip")
    found = import_study(tmp_path / "copy", tmp_path / "all.zip")
    copy = open_study(tmp_path / "copy")
    assert found.num_new == 3
    assert read_answers(copy.folder) == read_answers(study.folder)
    assert copy.spec == study.spec
    with study.session() as here, copy.session() as there:
        assert organiser_token(here) == organiser_token(there)
        assert [r.token for r in all_readers(here)] == [r.token for r in all_readers(there)]
    for path in study.folder.glob("volumes/*"):
        assert (copy.folder / "volumes" / path.name).read_bytes() == path.read_bytes()


def test_a_readers_zip_holds_neither_key_nor_other_readers_nor_what_the_key_follows_from(study, tmp_path):
    answer(study, "ada", {0: 3})
    answer(study, "bo", {0: 3, 1: 1})
    with study.session() as session:
        ada, bo = all_readers(session)
        items = items_of(session, ada)
        items[3].repeat_of = items[0].id
        session.add(items[3])
        session.commit()
        secrets = [bo.token, organiser_token(session), *(item.id for item in items_of(session, bo))]
    export_study(study.folder, tmp_path / "ada.zip", reader="ada")
    content = (tmp_path / "ada.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "ada.zip") as archive:
        assert KEY_NAME not in archive.namelist()
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        assert len({info.date_time for info in archive.infolist()}) == 1
        volumes = [info for info in archive.infolist() if info.filename.startswith("volumes/")]
        assert len({info.file_size for info in volumes}) == 1
        assert not any(item["repeat_of"] for item in json.loads(archive.read("records.json"))["items"])
    for secret in [*secrets, "synthetic", '"bo"', "- bo"]:
        assert secret.encode() not in content
    assert b"real:" not in content and b"seed: null" in content
    import_study(tmp_path / "ada", tmp_path / "ada.zip")
    copy = open_study(tmp_path / "ada")
    with copy.session() as session:
        assert [reader.name for reader in all_readers(session)] == ["ada"]
        assert organiser_token(session) not in secrets


def test_answers_come_back_and_merge_without_loss_in_any_order(study, tmp_path):
    answer(study, "ada", {0: 1})
    for name in ("ada", "bo"):
        export_study(study.folder, tmp_path / f"to_{name}.zip", reader=name)
        import_study(tmp_path / name, tmp_path / f"to_{name}.zip")
    # At the reader's machine and at the organiser's, the same question: the later revision counts.
    answer(open_study(tmp_path / "ada"), "ada", {0: 2, 1: 3}, revision=1)
    answer(open_study(tmp_path / "bo"), "bo", {2: 4})
    answer(study, "ada", {0: 4}, revision=2)
    answer(study, "bo", {2: 1})
    export_study(study.folder, tmp_path / "before.zip")
    merged = []
    for order in (["ada", "bo"], ["bo", "ada", "bo"]):
        folder = tmp_path / "-".join(order)
        import_study(folder, tmp_path / "before.zip")
        for name in order:
            export_study(tmp_path / name, tmp_path / f"from_{name}.zip")
            import_study(folder, tmp_path / f"from_{name}.zip")
        merged.append(read_answers(folder))
    assert merged[0] == merged[1]
    with study.session() as session:
        ada, bo = all_readers(session)
        first, second = (items_of(session, ada)[n].id for n in (0, 1))
        third = items_of(session, bo)[2].id
    values = {row.item: row.value for row in merged[0] if row.value is not None}
    assert values == {first: 4, second: 3, third: 1}


def test_importing_twice_adds_nothing(study, tmp_path):
    export_study(study.folder, tmp_path / "to.zip", reader="bo")
    import_study(tmp_path / "bo", tmp_path / "to.zip")
    answer(open_study(tmp_path / "bo"), "bo", {0: 1, 1: 2})
    export_study(tmp_path / "bo", tmp_path / "back.zip")
    assert import_study(study.folder, tmp_path / "back.zip").num_new == 2
    before = _values(study.folder)
    assert import_study(study.folder, tmp_path / "back.zip").num_new == 0
    assert _values(study.folder) == before
    with study.session() as session:
        assert len(session.exec(StoredAnswer.__table__.select()).all()) == 2


def test_a_second_readers_zip_needs_a_folder_of_its_own(study, tmp_path):
    export_study(study.folder, tmp_path / "ada.zip", reader="ada")
    export_study(study.folder, tmp_path / "bo.zip", reader="bo")
    import_study(tmp_path / "copy", tmp_path / "ada.zip")
    with pytest.raises(UserError, match=r"reader 'bo', whom .*copy does not have: .* another folder"):
        import_study(tmp_path / "copy", tmp_path / "bo.zip")
    # Where both are, it brings their answers.
    assert import_study(study.folder, tmp_path / "bo.zip").num_new == 0


def test_answers_alone_make_no_study(study, tmp_path):
    export_study(study.folder, tmp_path / "to.zip", reader="bo")
    import_study(tmp_path / "bo", tmp_path / "to.zip")
    export_study(tmp_path / "bo", tmp_path / "back.zip")
    with zipfile.ZipFile(tmp_path / "back.zip") as archive:
        assert sorted(archive.namelist()) == ["contents.json", "records.json"]
    with pytest.raises(UserError, match="answers only"):
        import_study(tmp_path / "elsewhere", tmp_path / "back.zip")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_changed_bytes_are_noticed(study, tmp_path, place):
    export_study(study.folder, tmp_path / "all.zip")
    content = bytearray((tmp_path / "all.zip").read_bytes())
    index = {"start": 200, "middle": len(content) // 2, "end": len(content) - 30}[place]
    content[index] ^= 0xFF
    (tmp_path / "all.zip").write_bytes(content)
    with pytest.raises(UserError):
        import_study(tmp_path / "copy", tmp_path / "all.zip")
    assert not (tmp_path / "copy").exists()
    assert not list(tmp_path.glob(".part-*"))


def test_a_volume_with_another_hash_is_noticed_behind_a_right_checksum(study, tmp_path):
    export_study(study.folder, tmp_path / "all.zip")

    def change(files):
        name = next(name for name in files if name.startswith("volumes/"))
        return files | {name: files[name][:-1] + b"!"}

    _repacked(tmp_path / "all.zip", tmp_path / "changed.zip", change)
    with pytest.raises(UserError, match="another hash"):
        import_study(tmp_path / "copy", tmp_path / "changed.zip")


@pytest.mark.parametrize(
    "name",
    [
        "../escaped.txt",
        "/tmp/escaped.txt",
        "volumes/../../escaped.nii",
        "volumes/0000000000000000.nii/../x",
        "volumes\\..\\escaped.nii",
        "volumes/0000000000000000.NII",
        "study.sqlite",
        "extra.txt",
    ],
)
def test_files_that_are_no_part_of_a_study_are_never_written(study, tmp_path, name):
    export_study(study.folder, tmp_path / "all.zip")

    def change(files):
        contents = json.loads(files["contents.json"])
        contents["sha256"][name] = hashlib.sha256(b"x").hexdigest()
        return files | {name: b"x", "contents.json": json.dumps(contents).encode()}

    _repacked(tmp_path / "all.zip", tmp_path / "evil.zip", change)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="no part of a study"):
        import_study(tmp_path / "copy", tmp_path / "evil.zip")
    assert sorted(tmp_path.rglob("*")) == before


def test_forged_answers_are_refused_and_leave_the_study_as_it_was(study, tmp_path):
    answer(study, "ada", {0: 2})
    export_study(study.folder, tmp_path / "all.zip")
    before = _values(study.folder)
    forgeries = {
        "does not have": lambda records: records["answers"][0].update(item_id="f" * 16),
        "which is none": lambda records: records["answers"][0].update(value=77),
        "no question": lambda records: records["answers"][0].update(question="confidence"),
        "damaged": lambda records: records["answers"][0].update(value="2"),
        "damaged or": lambda records: records["answers"][0].update(extra=1),
        "to another item": lambda records: records["answers"][0].update(item_id=records["items"][1]["id"]),
    }
    for message, forge in forgeries.items():
        _repacked(tmp_path / "all.zip", tmp_path / "forged.zip", _with_records(forge))
        with pytest.raises(UserError, match=message):
            import_study(study.folder, tmp_path / "forged.zip")
        assert _values(study.folder) == before


def test_records_that_contradict_one_another_are_refused_and_leave_nothing(study, tmp_path):
    export_study(study.folder, tmp_path / "all.zip")
    forgeries = [
        lambda records: records["items"][1].update(id=records["items"][0]["id"]),
        lambda records: records["items"][0].update(reader_id=99),
        lambda records: records["readers"].append(records["readers"][0]),
    ]
    for forge in forgeries:
        _repacked(tmp_path / "all.zip", tmp_path / "forged.zip", _with_records(forge))
        with pytest.raises(UserError, match="is damaged or was changed"):
            import_study(tmp_path / "copy", tmp_path / "forged.zip")
        assert not (tmp_path / "copy").exists()


def test_zips_of_another_study_of_newer_versions_and_of_anything_else_are_refused(study, tmp_path):
    export_study(study.folder, tmp_path / "all.zip")
    spec = (study.folder / SPEC_NAME).read_text()
    (study.folder / SPEC_NAME).write_text(spec.replace("0123456789abcdef", "fedcba9876543210"))
    with pytest.raises(UserError, match="another study"):
        import_study(study.folder, tmp_path / "all.zip")
    newer = _repacked(
        tmp_path / "all.zip",
        tmp_path / "newer.zip",
        lambda files: (
            files
            | {"contents.json": files["contents.json"].replace(b'"format_version":1', b'"format_version":9')}
        ),
    )
    with pytest.raises(UserError, match=r"version 9.*update"):
        import_study(tmp_path / "copy", newer)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(UserError, match="damaged"):
        import_study(tmp_path / "copy", tmp_path / "text.zip")
    with pytest.raises(UserError, match="no file"):
        import_study(tmp_path / "copy", tmp_path / "none.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(UserError, match="no study"):
        import_study(tmp_path / "copy", tmp_path / "empty.zip")


def test_exports_that_can_not_be_are_told(study, tmp_path):
    with pytest.raises(UserError, match="readers are ada, bo"):
        export_study(study.folder, tmp_path / "x.zip", reader="eve")
    with pytest.raises(UserError, match="inside the study"):
        export_study(study.folder, study.folder / "x.zip")
    with pytest.raises(UserError, match=r"end in \.zip"):
        export_study(study.folder, tmp_path / "x.tar")
    (study.folder / KEY_NAME).unlink()
    with pytest.raises(UserError, match="without --reader"):
        export_study(study.folder, tmp_path / "x.zip", reader="ada")
    assert not list(tmp_path.glob("*.zip"))


def test_equal_studies_give_equal_zips(study, tmp_path):
    export_study(study.folder, tmp_path / "a.zip")
    export_study(study.folder, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()

"""Folders that describe themselves are read whole, or refused with what to do."""

import json

import pytest

from anatogen.core.described import check_hashes, read_description_file
from anatogen.core.errors import UserError
from anatogen.core.files import sha256_file


def _read(path):
    return read_description_file(
        path, lambda content: int(content["size"]), version=2, missing="no thing here", mend="make it anew"
    )


def test_a_description_of_this_version_is_parsed(tmp_path):
    path = tmp_path / "thing.json"
    path.write_text(json.dumps({"format_version": 2, "size": "7"}))
    assert _read(path) == 7


@pytest.mark.parametrize("text", ["{", "[1]", "null", "{}", '{"format_version": 2}', "\xff"])
def test_a_damaged_description_says_what_to_do(tmp_path, text):
    path = tmp_path / "thing.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"thing\.json is damaged .*: make it anew$"):
        _read(path)


def test_what_is_not_read_any_more_is_told_with_the_file(tmp_path):
    path = tmp_path / "thing.json"
    path.write_text(json.dumps({"format_version": 2}))

    def refuse(content):
        raise UserError("things of this size were taken out")

    with pytest.raises(UserError, match=r"thing\.json: things of this size were taken out$"):
        read_description_file(path, refuse, version=2, missing="no thing here", mend="make it anew")


def test_another_version_is_told_before_its_content_is_parsed(tmp_path):
    path = tmp_path / "thing.json"
    path.write_text(json.dumps({"format_version": 3}))
    with pytest.raises(UserError, match=r"format version 3, this program reads 2: make it anew$"):
        _read(path)
    with pytest.raises(UserError, match=r"^no thing here$"):
        _read(tmp_path / "other.json")


def test_files_beside_it_must_be_those_that_it_names(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"whole")
    hashes = {"a.bin": sha256_file(path)}
    check_hashes(tmp_path, hashes, mend="make it anew")
    path.write_bytes(b"whale")
    for damaged in (hashes, {"b.bin": hashes["a.bin"]}):
        with pytest.raises(UserError, match="missing or damaged: make it anew"):
            check_hashes(tmp_path, damaged, mend="make it anew")

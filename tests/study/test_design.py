"""`anatogen study new`, from folders of scans to a blinded study."""

import json
import sqlite3
from collections import Counter
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from anatogen import new_study, sample
from anatogen.api.scans import prepare
from anatogen.core.errors import UserError
from anatogen.io.nifti import write_nifti
from anatogen.io.npy import write_npy
from anatogen.io.volume import Volume
from anatogen.study.analysis.answers import read_answers, read_key
from anatogen.study.blinding import padded_borders
from anatogen.study.leaks import BlindingStatus
from anatogen.study.spec import DATABASE_NAME, KEY_NAME, LEAKS_NAME, SPEC_NAME, VOLUMES, load_spec
from anatogen.study.store import all_readers, items_of, open_study

AFFINE = np.array([[0.0, 0, -1.5, 0], [0, -1.5, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
SHAPE = (12, 14, 16)


def _scan(seed):
    generator = np.random.default_rng(seed)
    noise = gaussian_filter(generator.standard_normal(SHAPE), 1.0)
    return (500 + 900 * noise).clip(1).astype(np.float32)


@pytest.fixture
def folders(tmp_path):
    """Ten real scans with padding and coarse grey levels, ten synthetic ones with neither."""
    real, synthetic = tmp_path / "real", tmp_path / "synthetic"
    for number in range(10):
        array = np.round(_scan(number) / 15) * 15
        array[: number % 3 + 1] = 0
        array[:, :, -(number % 2 + 1) :] = 0
        write_nifti(Volume(array, AFFINE), real / f"patient_{number}.nii.gz")
        write_npy(Volume(_scan(100 + number), AFFINE), synthetic / f"synthetic_{number:06d}.npy")
    return real, synthetic


def test_volumes_are_alike_in_all_but_the_picture(folders, tmp_path):
    real, synthetic = folders
    made = new_study(tmp_path / "study", synthetic, real=real, readers=["ada", "bo"], seed=1)
    assert made.check.status is BlindingStatus.PASSED
    # Padding differs between sources with certainty, so it had to go.
    assert made.spec.shape == (9, 14, 14)
    assert made.spec.num_cases == {"real": 10, "synthetic": 10}
    paths = sorted((tmp_path / "study" / VOLUMES).iterdir())
    assert len(paths) == 20
    headers = {path.read_bytes()[:352] for path in paths}
    assert len(headers) == 1
    assert len({(path.stat().st_size, path.stat().st_mtime) for path in paths}) == 1
    image = nib.load(paths[0])
    assert image.get_data_dtype() == np.int16
    assert image.header.get_zooms() == (1.5, 1.5, 2.0)
    assert made.spec.spacing_mm == pytest.approx((2, 1.5, 1.5))
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    for path in paths:
        voxels = np.asarray(nib.load(path).dataobj)
        assert (voxels.min(), voxels.max()) == (0, 255)


def test_nothing_outside_the_key_tells_a_source(folders, tmp_path):
    real, synthetic = folders
    new_study(tmp_path / "study", synthetic, real=real, seed=1)
    key = read_key(tmp_path / "study")
    assert Counter(key.values()) == {"real": 10, "synthetic": 10}
    everything = b"".join(
        path.read_bytes()
        for path in (tmp_path / "study").rglob("*")
        if path.is_file() and path.name not in (KEY_NAME, LEAKS_NAME)
    )
    assert b"patient" not in everything and b"synthetic_0" not in everything
    assert str(tmp_path).encode() not in (tmp_path / "study" / KEY_NAME).read_bytes() + everything
    # Names follow no order of the sources.
    in_order = [key[case] for case in sorted(key)]
    assert 3 < sum(a != b for a, b in pairwise(in_order)) < 17


def test_the_pictures_are_those_of_the_sources(folders, tmp_path):
    real, synthetic = folders
    new_study(tmp_path / "study", synthetic, real=real, seed=1, num_cases=10)
    key = read_key(tmp_path / "study")
    scans = [np.asarray(nib.load(path).dataobj).T[3:, :, :-2] for path in sorted(real.iterdir())]
    scans += [np.load(path)[3:, :, :-2] for path in sorted(synthetic.iterdir())]
    for case, source in key.items():
        volume = np.asarray(nib.load(tmp_path / "study" / VOLUMES / f"{case}.nii").dataobj).T
        correlations = [np.corrcoef(volume.ravel(), scan.ravel())[0, 1] for scan in scans]
        best = int(np.argmax(correlations))
        assert correlations[best] > 0.98
        assert ("real" if best < 10 else "synthetic") == source


def test_every_protocol_can_be_combined_and_read_back(folders, tmp_path):
    real, synthetic = folders
    made = new_study(
        tmp_path / "study",
        synthetic,
        real=real,
        readers=["ada", "bo"],
        protocols=["paper", "turing", "2afc"],
        num_cases=8,
        repeat=0.2,
        seed=1,
    )
    study = open_study(tmp_path / "study")
    with study.session() as session:
        assert [reader.name for reader in all_readers(session)] == ["ada", "bo"]
        items = items_of(session, all_readers(session)[0])
    originals = Counter(item.protocol for item in items if item.repeat_of is None)
    assert originals == {"paper": 16, "turing": 16, "2afc": 8}
    assert len(items) == made.num_items == 40 + 4 + 4 + 2
    rows = read_answers(tmp_path / "study")
    assert len(rows) == 2 * (20 * 3 + 20 * 2 + 10)
    assert all({row.source, row.other_source} == {"real", "synthetic"} for row in rows if row.other_case)
    assert load_spec(tmp_path / "study") == made.spec


def test_the_seed_fixes_all_but_the_links(folders, tmp_path):
    real, synthetic = folders
    for name in ("a", "b"):
        new_study(tmp_path / name, synthetic, real=real, num_cases=6, seed=3)
    a, b = ({path.name: path.read_bytes() for path in (tmp_path / name / VOLUMES).iterdir()} for name in "ab")
    assert a == b
    assert read_key(tmp_path / "a") == read_key(tmp_path / "b")
    assert [r.item for r in read_answers(tmp_path / "a")] == [r.item for r in read_answers(tmp_path / "b")]
    tokens = []
    for name in ("a", "b"):
        with sqlite3.connect(tmp_path / name / DATABASE_NAME) as connection:
            tokens.append(connection.execute("SELECT token FROM reader").fetchall())
    assert tokens[0] != tokens[1]


def test_without_a_seed_nobody_knows_it_beforehand(folders, tmp_path):
    _, synthetic = folders
    seeds = {new_study(tmp_path / name, synthetic, num_cases=2).spec.seed for name in ("a", "b")}
    assert len(seeds) == 2


def test_synthetic_scans_alone_make_the_papers_study(folders, tmp_path):
    _, synthetic = folders
    made = new_study(tmp_path / "study", synthetic, num_cases=4)
    assert made.spec.num_cases == {"synthetic": 4}
    assert made.check.status is BlindingStatus.UNTESTED and "one source only" in made.summary


def test_a_leak_that_can_not_be_mended_is_told_and_nothing_is_written(folders, tmp_path):
    real, synthetic = folders
    # A mask has three grey levels, whatever is done about it.
    for path in synthetic.iterdir():
        array = np.load(path)
        np.save(path, np.digitize(array, [400, 600]).astype(np.float32))
    with pytest.raises(UserError, match=r"grey levels.*--allow-leaks"):
        new_study(tmp_path / "study", synthetic, real=real)
    assert not (tmp_path / "study").exists()
    assert not list(tmp_path.glob(".part-*"))
    made = new_study(tmp_path / "study", synthetic, real=real, allow_leaks=True)
    assert "NOT ACHIEVED" in made.summary
    told = json.loads((tmp_path / "study" / LEAKS_NAME).read_text())
    assert not told["passed"] and told["leaks"]


def test_wrong_settings_are_told_before_any_scan_is_read(folders, tmp_path):
    real, synthetic = folders
    (tmp_path / "exists").mkdir()
    for message, arguments in {
        "exists": {"study": tmp_path / "exists"},
        "repeat is 0.7": {"repeat": 0.7},
        "needs real scans": {"protocols": ["turing"], "real": None},
        "'2afc' needs real": {"protocols": ["2afc"], "real": None},
        "each once": {"readers": ["ada", "ada"]},
        "printable": {"readers": ["a\nb"]},
        "holds 10 real scans, and 11": {"num_cases": 11},
        "at least 1": {"num_cases": 0},
        "is not a folder": {"synthetic": tmp_path / "none"},
        "voxel for voxel": {"synthetic": real},
    }.items():
        given = {"study": tmp_path / "study", "synthetic": synthetic, "real": real} | arguments
        with pytest.raises(UserError, match=message):
            new_study(given.pop("study"), given.pop("synthetic"), **given)
        assert not (tmp_path / "study").exists()


def test_scans_on_other_grids_are_told(folders, tmp_path):
    real, _ = folders
    write_npy(Volume(_scan(0)[1:], AFFINE), tmp_path / "other" / "a.npy")
    with pytest.raises(UserError, match="prepare both on one grid"):
        new_study(tmp_path / "study", tmp_path / "other", real=real, num_cases=1)


def test_the_folder_holds_what_the_documents_say(folders, tmp_path):
    _, synthetic = folders
    new_study(tmp_path / "study", synthetic, num_cases=2)
    names = {path.name for path in (tmp_path / "study").iterdir()}
    assert names == {SPEC_NAME, KEY_NAME, LEAKS_NAME, VOLUMES, DATABASE_NAME}


def test_real_and_synthetic_hippocampi_can_be_blinded(shared_data, tmp_path):
    """Real scans of several sizes are padded by `prepare`; synthetic ones have what a network makes of it."""
    images = shared_data / "hippocampus" / "images"
    prepare(images, tmp_path / "data", overrides={"shape": (40, 56, 40), "spacing_mm": 1}, limit=12)
    sample("hippocampus-mr", tmp_path / "synthetic", num_samples=6, steps=2, processes=1, file_format="npy")
    made = new_study(
        tmp_path / "study",
        tmp_path / "synthetic",
        real=tmp_path / "data",
        seed=0,
    )
    assert made.check.passed and made.spec.num_cases == {"real": 6, "synthetic": 6}
    key = read_key(tmp_path / "study")
    padding = [
        padded_borders(np.asarray(nib.load(path).dataobj)).sum()
        for path in (tmp_path / "study" / VOLUMES).iterdir()
    ]
    # Every real scan was padded, to one grid.
    assert (len(key) == 12 and not any(padding)) or made.how.clears_background

"""MRNet: the provider's tree as it is unpacked, voxel by voxel, and all that is known to go wrong with it."""

from pathlib import Path

import numpy as np
import pytest

from anatogen.config.resolving import parse_overrides
from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Case, Split
from anatogen.dataset.prepare import PrepareSummary, prepare
from anatogen.dataset.prepare_config import PrepareConfig, prepare_settings
from anatogen.io.geometry import axis_codes

TRAIN = {0: 17, 1: 61, 2: 32, 3: 24}  # slices by number
VALID = {1130: 30, 1131: 33}


def knee(number: int, slices: int) -> np.ndarray:
    """uint8 (slices, 256, 256): dark at the edges, brighter towards the back and the feet."""
    rows, columns = np.meshgrid(np.linspace(0, 1, 256), np.linspace(0, 1, 256), indexing="ij")
    plane = 40 + 120 * rows + 60 * columns
    stack = plane + 20 * np.linspace(0, 1, slices)[:, None, None]
    stack += np.random.default_rng(number).normal(0, 4, (slices, 1, 256))
    stack[:, :8] = stack[:, :, :8] = number % 5
    return np.clip(stack, 0, 255).astype(np.uint8)


def write_mrnet(root: Path) -> Path:
    for split, scans in (("train", TRAIN), ("valid", VALID)):
        for plane in ("axial", "coronal", "sagittal"):
            (root / split / plane).mkdir(parents=True)
            for number, slices in scans.items():
                array = knee(number, slices if plane == "sagittal" else 4)
                np.save(root / split / plane / f"{number:04d}.npy", array)
        for task, ones in (("abnormal", {0, 1, 1130}), ("acl", {1}), ("meniscus", {0, 1131})):
            lines = [f"{number:04d},{int(number in ones)}\n" for number in scans]
            (root / f"{split}-{task}.csv").write_text("".join(lines))
    return root


@pytest.fixture
def mrnet(tmp_path: Path) -> Path:
    """The folder that MRNet-v1.0 was unpacked into."""
    return write_mrnet(tmp_path / "download" / "MRNet-v1.0").parent


def run(download: Path, out: Path, *overrides: str) -> PrepareSummary:
    settings = prepare_settings(parse_overrides(overrides, PrepareConfig), recipe="mrnet")
    return prepare(download, out, settings, workers=1, progress=False)


def by_number(summary: PrepareSummary) -> dict[int, Case]:
    return dict(zip((*TRAIN, *VALID), summary.manifest.cases, strict=True))


def test_every_voxel_is_the_files_own(mrnet: Path, tmp_path: Path) -> None:
    summary = run(mrnet, tmp_path / "out")
    assert not summary.left_out
    assert summary.num_ignored == 6 * 2 + 6  # two other planes, and the tables
    assert summary.manifest.recipe == "mrnet"
    assert summary.manifest.grid.shape == (32, 256, 256)
    for number, case in by_number(summary).items():
        slices = (TRAIN | VALID)[number]
        file = (
            mrnet
            / "MRNet-v1.0"
            / ("valid" if number in VALID else "train")
            / "sagittal"
            / f"{number:04d}.npy"
        )
        source = np.load(file).astype(np.float64)
        low, high = source.min(), source.max()
        expected = np.full((32, 256, 256), -1.0)
        scaled = 2 * (source - low) / (high - low) - 1
        # Of an odd number of slices too many, one more goes at one end.
        cut, pad = max(0, slices - 32) // 2, -(-max(0, 32 - slices) // 2)
        expected[pad - (max(0, 32 - slices) % 2) :][: min(slices, 32)] = scaled[cut : cut + 32]
        array = np.load(tmp_path / "out" / case.file)
        assert np.abs(array - expected).max() < 2**-11
        assert (array.min(), array.max()) == (-1, 1) or slices > 32
        assert axis_codes(np.array(case.affine)) == "RIP"
        assert np.linalg.norm(np.array(case.affine)[:3, :3], axis=0) == pytest.approx([4, 0.6, 0.6])


def test_splits_and_conditions_are_the_providers(mrnet: Path, tmp_path: Path) -> None:
    summary = run(mrnet, tmp_path / "out")
    cases = by_number(summary)
    assert {number for number, case in cases.items() if case.split is Split.TEST} == set(VALID)
    assert sum(case.split is Split.VALIDATION for case in cases.values()) == 1
    assert cases[0].conditions == {"abnormal": 1.0, "acl": 0.0, "meniscus": 1.0}
    assert cases[1].conditions == {"abnormal": 1.0, "acl": 1.0, "meniscus": 0.0}
    assert cases[1131].conditions == {"abnormal": 0.0, "acl": 0.0, "meniscus": 1.0}
    assert len({case.patient for case in cases.values()}) == 6
    torn = run(mrnet, tmp_path / "torn", "where.acl=1")
    assert len(torn.manifest.cases) == 1
    assert "1 of 6 scans have acl 1.0; the others: 5 0.0" in torn.decisions


def test_the_folder_itself_or_two_levels_up_will_do(mrnet: Path, tmp_path: Path) -> None:
    apple = mrnet / "__MACOSX" / "MRNet-v1.0" / "train" / "sagittal"
    apple.mkdir(parents=True)
    (apple / "._0000.npy").write_bytes(b"\0\5\x16\7")
    (apple / "0000.npy").write_bytes(b"\0\5\x16\7")
    (mrnet / "MRNet-v1.0" / "train" / "sagittal" / "._0001.npy").write_bytes(b"\0\5\x16\7")
    expected = run(mrnet / "MRNet-v1.0", tmp_path / "a").manifest
    assert len(expected.cases) == 6
    assert run(mrnet, tmp_path / "b").manifest == expected
    summary = run(mrnet.parent / "download", tmp_path / "b")
    assert not summary.left_out


def test_a_limit_takes_the_first(mrnet: Path, tmp_path: Path) -> None:
    summary = run(mrnet, tmp_path / "out", "limit=3")
    assert len(summary.manifest.cases) == 3
    assert "limit: the first 3 of 6 scans are taken" in summary.decisions


def test_tables_may_lack_lines_or_be_missing(mrnet: Path, tmp_path: Path) -> None:
    root = mrnet / "MRNet-v1.0"
    (root / "train-acl.csv").unlink()
    (root / "train-meniscus.csv").write_text("\ufeff0,1\r\n1,yes\r\n\r\n0003,0\r\n")
    summary = run(mrnet, tmp_path / "out")
    cases = by_number(summary)
    assert cases[0].conditions == {"abnormal": 1.0, "meniscus": 1.0}
    assert cases[1].conditions == {"abnormal": 1.0}
    assert cases[3].conditions == {"abnormal": 0.0, "meniscus": 0.0}
    assert "there is no train-acl.csv, so its scans have no such condition" in summary.decisions
    assert "2 scans have no usable line in train-meniscus.csv, and so no such condition" in summary.decisions
    changed = (root / "train-meniscus.csv").write_text("0000,0\n")
    assert changed and not run(mrnet, tmp_path / "out").was_complete


def test_what_is_not_mrnets_is_left_out(mrnet: Path, tmp_path: Path) -> None:
    folder = mrnet / "MRNet-v1.0" / "train" / "sagittal"
    np.save(folder / "0000.npy", knee(0, 20)[:, :, :128])
    np.save(folder / "0001.npy", knee(1, 20).astype(np.float32))
    (folder / "0002.npy").write_bytes((folder / "0002.npy").read_bytes()[:5000])
    np.save(mrnet / "MRNet-v1.0" / "valid" / "sagittal" / "0003.npy", knee(77, 30))
    summary = run(mrnet, tmp_path / "out")
    reasons = {Path(scan.name).stem: scan.reason for scan in summary.left_out}
    assert reasons["0000"] == "it is uint8 (20, 256, 128), and MRNet's scans are uint8 (slices, 256, 256)"
    assert reasons["0001"] == "it is float32 (20, 256, 256), and MRNet's scans are uint8 (slices, 256, 256)"
    assert reasons["0002"].startswith("the file is truncated")
    assert reasons["0003"] == "its patient has scans in train and in test: the latter are kept"
    assert [case.split for case in summary.manifest.cases] == [Split.TEST] * 3


def test_another_folder_is_no_mrnet(tmp_path: Path) -> None:
    np_folder = tmp_path / "scans" / "sagittal"
    np_folder.mkdir(parents=True)
    np.save(np_folder / "0000.npy", knee(0, 20))
    with pytest.raises(UserError, match="holds no MRNet scans: expected files such as"):
        run(tmp_path / "scans", tmp_path / "out")

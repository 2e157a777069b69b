"""NRRD headers as other programs write them: the right place and size."""

from pathlib import Path

import numpy as np
import pytest

from anatogen.core.errors import ScanError
from anatogen.dataset.discover import Source
from anatogen.doctor.headers import read_scan_header
from anatogen.io.formats import read_scan

ARRAY = np.random.default_rng(0).integers(0, 99, (6, 5, 4)).astype(np.int16)
DIRECTIONS = "space directions: (0.7,0,0) (0,0,-0.8) (0,2.5,0)\nspace origin: (1,2,3)\n"
LPS = f"space: left-posterior-superior\n{DIRECTIONS}"


def write_nrrd(path: Path, more: str, encoding: str = "utf-8") -> Path:
    header = f"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nendian: little\nencoding: raw\n{more}\n"
    path.write_bytes(header.encode(encoding) + ARRAY.tobytes())
    return path


def places(affine: np.ndarray) -> np.ndarray:
    """LPS mm of the first voxel, then the steps along i, j and k."""
    return (np.diag([-1, -1, 1, 1]) @ affine)[:3, [3, 2, 1, 0]].T


@pytest.mark.parametrize(
    "unit, factor",
    [
        ("mm", 1), ("millimeter", 1), ("", 1), ("cm", 10), ("CM", 10), ("centimetres", 10), ("m", 1000),
        ("meters", 1000), ("um", 1e-3), ("µm", 1e-3), ("μm", 1e-3), ("microns", 1e-3), ("micrometer", 1e-3),
    ],
)  # fmt: skip
def test_units_of_space(tmp_path: Path, unit: str, factor: float) -> None:
    """All were read as millimetres."""
    expected = np.array([[1, 2, 3], [0.7, 0, 0], [0, 0, -0.8], [0, 2.5, 0]])
    origin, *steps = (f"({x:.9g},{y:.9g},{z:.9g})" for x, y, z in expected / factor)
    lines = f"space: left-posterior-superior\nspace directions: {' '.join(steps)}\nspace origin: {origin}\n"
    path = write_nrrd(tmp_path / "scan.nrrd", f'{lines}space units: "{unit}" "{unit}" "{unit}"\n')
    scan = read_scan(path)
    assert np.array_equal(scan.array, ARRAY)
    np.testing.assert_allclose(places(scan.affine), expected)
    header = read_scan_header(Source("scan.nrrd", (path,)))
    np.testing.assert_allclose(header.spacing_mm, scan.spacing_mm)


def test_each_axis_of_space_may_have_its_unit(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "scan.nrrd", f'{LPS}space units: "mm" "cm" "um"\n')
    expected = [[1, 20, 0.003], [0.7, 0, 0], [0, 0, -0.0008], [0, 25, 0]]
    np.testing.assert_allclose(places(read_scan(path).affine), expected)


def test_units_of_spacings_and_their_signs(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "scan.nrrd", 'spacings: 0.07 -0.08 0.25\nunits: "cm" "cm" "cm"\n')
    expected = [[0, 0, 0], [0.7, 0, 0], [0, -0.8, 0], [0, 0, 2.5]]
    np.testing.assert_allclose(places(read_scan(path).affine), expected)


def test_the_micro_sign_of_latin_1(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "scan.nrrd", f'{LPS}space units: "µm" "µm" "µm"\n', "latin-1")
    np.testing.assert_allclose(read_scan(path).spacing_mm, (0.0025, 0.0008, 0.0007))


def test_a_unit_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "scan.nrrd", f'{LPS}space units: "mm" "furlong" "mm"\n')
    with pytest.raises(ScanError, match="lengths in 'furlong': known are"):
        read_scan(path)

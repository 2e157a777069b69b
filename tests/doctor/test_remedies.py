"""Every reason for which a scan is left out has advice of its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import anatogen.dataset
from anatogen.doctor.remedies import FALLBACK, cure

_RAISED = ("ScanError", "DamagedDicomError", "LeftOut", "_Damaged")


def _text(node: ast.expr) -> str:
    """A string or f-string, with 7 for what is filled in; "" for anything else."""
    if isinstance(node, ast.Constant):
        return str(node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "7" for part in node.values)
    return ""


def _reasons() -> Iterator[str]:
    """What the readers and recipes write in their sources."""
    for path in sorted(Path(anatogen.dataset.__path__[0]).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _RAISED:
                yield from map(_text, node.args)
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("reason", "STRAY"):
                yield _text(node.value)


REASONS = sorted({reason for reason in _reasons() if " " in reason})


def test_the_sources_tell_reasons() -> None:
    assert len(REASONS) > 60


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_its_own_advice(reason: str) -> None:
    assert cure(reason)[0] != FALLBACK


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("its slices differ in Rows", "series of its own"),
        ("its slices differ in PixelSpacing", "series of its own"),
        ("its slices have mixed orientations (several stacks, or a damaged slice)", "series of its own"),
        ("its slices have mixed orientations (of 3 planes, as a localiser's)", "scout"),
        ("it is a localiser (ImageType LOCALIZER)", "scout"),
        ("it holds several volumes in one file: 4 time points", "Split it"),
        ("it holds several volumes in one file: 2 echoes", "Split it"),
        ("4 dimensions (30, 9, 9, 9), expected 3", "Split it"),
        ("3 slices lie where another one is, with another image: they differ in EchoTime", "one echo"),
        ("3 slices lie where another one is, with another image: several echoes, b-values", "one echo"),
        ("its slices are unevenly spaced, 1.000 to 1.300 mm", "no even stack"),
        ("its slices do not lie in line: one is 1.20 mm aside", "no even stack"),
        ("2 of 3 parts of a concatenation are there", "missing parts"),
        ("its pixels are compressed (MPEG2), which is not supported: decompress it", "gdcmconv"),
        ("its compressed pixel data is truncated", "not whole"),
        ("its header spreads the voxels over several files, which is not supported", "one file"),
        ("the data file that its header names is missing", "back together"),
        ("2 slices are missing inside the stack of 20", "missing slices"),
        ("its voxels hold several values (colour), expected one number", "colour"),
        ("3 values per voxel (colour or vectors), expected 1", "colour"),
        ("5 of 9 voxels are NaN or infinite", "bad voxels"),
        ("it is constant: every voxel is 3", "empty"),
        ("it is CT without RescaleIntercept, so its values are not in Hounsfield units", "rescale slope"),
        ("a slice's PixelSpacing is not positive", "geometry"),
        ("a slice has no ImagePositionPatient, so its place in the patient is unknown", "geometry"),
        ("a file of it, or beside it, is damaged: tilt/localiser NaN.dcm", "damaged file"),
        ("the file is truncated, damaged or not of the format of its ending (OSError)", "not whole"),
        ("patient_pattern '(tilt)' does not match its path", "Widen"),
        ("patient_csv has no line for it", "table"),
        ("it has no mask", "Put its mask"),
        ("the patient has no T1 series without fat saturation, but only: localiser", "mapping sheet"),
    ],
)  # fmt: skip
def test_advice_fits_the_reason(reason: str, advice: str) -> None:
    assert advice in cure(reason)[0]


def test_tilt_is_told_its_option() -> None:
    assert cure("its slices are sheared by 16.7 degrees (gantry tilt)")[1] == "allow_tilt=true"

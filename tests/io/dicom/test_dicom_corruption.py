"""Random damage to files of every format: refused with a reason, or nothing that can be told is wrong.

What passes must have the shape of the original. In a DICOM series only the damaged slice may differ, and
there only the voxels whose stored bytes were hit (any voxel where they are compressed), or by a slope and
intercept that its header now tells. Positions may differ by what rounding in headers may. A volume in one
file has one header, and a consistent lie in it can't be told: there the fields that were hit may count.

ANATOGEN_CORRUPTIONS=20000 makes a longer run, ANATOGEN_CORRUPTION_SEED another one.
"""

import faulthandler
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom import uid
from pydicom.dataset import Dataset
from scan_makers import ct_head, oblique_affine, pattern_volume, same_place
from test_dicom_multiframe import enhanced, slices_of
from test_dicom_syntaxes import encode, rewrite

from anatogen.core.errors import ScanError
from anatogen.dataset.discover import discover
from anatogen.dataset.reading import read_source
from anatogen.io.checks import quiet_libraries
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.formats import read_scan
from anatogen.io.nifti import write_nifti
from anatogen.io.npy import write_npy
from anatogen.io.volume import Volume

NUM_CASES = int(os.environ.get("ANATOGEN_CORRUPTIONS", "510"))
SEED = int(os.environ.get("ANATOGEN_CORRUPTION_SEED", "0"))
SHAPE = (6, 40, 33)
SECONDS_PER_CASE = 20
GROWTH_MB = 600

SYNTAXES = {
    "explicit": uid.ExplicitVRLittleEndian,
    "implicit": uid.ImplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "RLE": uid.RLELossless,
    "JPEG lossless": uid.JPEGLosslessSV1,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
}
SINGLE_FILES = ["enhanced", "nii", "nii.gz", "nrrd", "nrrd gzip", "mha", "mha zlib", "npy"]
BASES = ["real", *SYNTAXES, *SINGLE_FILES]

# Bytes of the NIfTI-1 header whose alteration can't be told from another, right header.
NIFTI_VALUES = [(70, 74), (112, 120)]  # datatype, bitpix, scl_slope, scl_inter
NIFTI_PLACE = [(76, 108), (123, 124), (252, 328)]  # pixdim, xyzt_units, qform, sform


@dataclass(frozen=True)
class Base:
    """A scan that gets damaged: the slice that each file is, and where its pixel data starts."""

    folder: Path
    files: list[Path]
    before: Volume
    order: list[int]
    pixels_at: list[int]


def series(folder: Path, syntax: uid.UID) -> Path:
    if syntax == uid.ImplicitVRLittleEndian:
        write_dicom(ct_head(), folder, "CT", uid_from="a", patient_id="p")
        for path in sorted(folder.iterdir())[6:]:
            path.unlink()
    else:
        write_dicom(pattern_volume(oblique_affine(2), SHAPE, 15), folder, "MR", uid_from="a", patient_id="p")
    rewrite(folder, lambda dataset, index: encode(dataset, syntax, index))
    if syntax in (uid.ImplicitVRLittleEndian, uid.RLELossless):  # as many archives export them
        for path in folder.iterdir():
            path.rename(folder / path.stem.replace("slice", "IM"))
    return folder


def single_file(folder: Path, name: str) -> None:
    folder.mkdir()
    volume = pattern_volume(oblique_affine(3), (6, 12, 10), 15)
    if name == "enhanced":
        write_dicom(volume, folder / "single", "MR", uid_from="a", patient_id="p")
        slices = slices_of(folder / "single")
        for path in (folder / "single").iterdir():
            path.unlink()
        (folder / "single").rmdir()
        dataset = enhanced(slices, uid.EnhancedMRImageStorage, np.arange(6))
        dataset.save_as(folder / "scan.dcm", enforce_file_format=True)
    elif name.startswith("nii"):
        write_nifti(volume, folder / f"scan.{name}")
    elif name == "npy":
        write_npy(volume, folder / "scan.npy")
    else:
        image = sitk.GetImageFromArray(np.rint(volume.array * 1000).astype(np.int16))
        image.SetSpacing((0.7, 0.8, 3.0))
        sitk.WriteImage(image, str(folder / f"scan.{name.split()[0]}"), useCompression=" " in name)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    root = tmp_path_factory.mktemp("corruption")
    default = Path(__file__).resolve().parents[4] / "shared" / "data"
    real = Path(os.environ.get("ANATOGEN_TEST_DATA", default)) / "dicom" / "hippocampus_crop"
    made = {}
    for name in BASES:
        folder = root / name
        if name in SINGLE_FILES:
            single_file(folder, name)
        elif name in SYNTAXES:
            series(folder, SYNTAXES[name])
        elif real.is_dir():
            folder.mkdir()
            for number in range(9, 15):
                (folder / f"{number}.dcm").write_bytes((real / f"{number}.dcm").read_bytes())
        else:
            continue
        files = sorted(folder.iterdir())
        before = read_scan(files[0] if name in SINGLE_FILES else folder)
        order, pixels_at = list(range(len(files))), [0] * len(files)
        if name not in SINGLE_FILES:
            headers = [pydicom.dcmread(path) for path in files]
            normal = np.cross(headers[0].ImageOrientationPatient[:3], headers[0].ImageOrientationPatient[3:])
            places = [float(normal @ np.array(header.ImagePositionPatient, float)) for header in headers]
            order = np.argsort(np.argsort(places)).tolist()
            pixels_at = [
                path.stat().st_size - len(header.PixelData)
                for path, header in zip(files, headers, strict=True)
            ]
        made[name] = Base(folder, files, before, order, pixels_at)
    return made


# --- ways to damage a file: new content of (content, generator)


def flip_bits(content: bytes, random: np.random.Generator, low: int = 0) -> bytes:
    damaged = bytearray(content)
    for place in random.integers(low, len(content), random.choice([1, 1, 2, 8, 64])):
        damaged[place] ^= 1 << random.integers(8)
    return bytes(damaged)


def flip_in_header(content: bytes, random: np.random.Generator) -> bytes:
    return (
        flip_bits(content[: len(content) // 3], random, min(128, len(content) // 4))
        + content[len(content) // 3 :]
    )


def random_bytes(content: bytes, random: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for place in random.integers(0, len(content), random.choice([1, 2, 4, 16])):
        damaged[place] = random.integers(256)
    return bytes(damaged)


def another_digit(content: bytes, random: np.random.Generator) -> bytes:
    """A number in text that stays a number: what looks most like a right header."""
    damaged = bytearray(content)
    digits = np.flatnonzero(np.isin(np.frombuffer(content, np.uint8), list(b"0123456789")))
    if digits.size:
        damaged[random.choice(digits)] = random.choice(list(b"0123456789.-eE"))
    return bytes(damaged)


def zero_block(content: bytes, random: np.random.Generator) -> bytes:
    size = int(random.choice([4, 16, 64, 512, 1024, 4096]))
    start = int(random.integers(0, len(content))) // size * size
    return content[:start] + bytes(len(content[start : start + size])) + content[start + size :]


def truncate(content: bytes, random: np.random.Generator) -> bytes:
    return content[: int(random.integers(0, len(content)))]


def truncate_a_little(content: bytes, random: np.random.Generator) -> bytes:
    return content[: -int(random.integers(1, 64))]


def cut_out(content: bytes, random: np.random.Generator) -> bytes:
    start = int(random.integers(0, len(content)))
    return content[:start] + content[start + int(random.choice([1, 2, 8, 100, 512])) :]


def insert(content: bytes, random: np.random.Generator) -> bytes:
    start = int(random.integers(0, len(content)))
    return content[:start] + random.bytes(int(random.choice([1, 2, 8, 100, 512]))) + content[start:]


BYTE_DAMAGE = [
    flip_bits, flip_in_header, flip_in_header, random_bytes, another_digit, another_digit, zero_block,
    truncate, truncate_a_little, cut_out, insert,
]  # fmt: skip

GARBAGE = [
    "", "0", "1", "-1", "1e9", "1e-9", "nan", "inf", "1e400", "abc", "1\\2", "1\\2\\3", "65535",
    "99999999999", "\0",
]  # fmt: skip


def damage_element(path: Path, random: np.random.Generator) -> None:
    """Removes, empties or garbles an element, as a bad de-identifier would."""
    dataset = pydicom.dcmread(path)
    places = [
        (group, element)
        for group in _groups(dataset)
        for element in group
        if element.keyword and element.keyword != "PixelData"
    ]
    holder, element = places[random.integers(len(places))]
    way = random.integers(4)
    if way == 0:
        del holder[element.tag]
    elif way == 1:
        element.value = None if element.VR != "SQ" else []
    elif element.VR in ("US", "SS", "UL", "SL"):
        element.value = int(random.choice([0, 1, 2, 8, 12, 15, 16, 17, 32, 255, 4000, 65535]))
    elif element.VR == "SQ":
        element.value = []
    elif element.VR in ("FD", "FL"):
        element.value = float(random.choice([0, -1, 1e30, np.nan, np.inf]))
    elif element.VR not in ("OB", "OW", "UN"):
        holder.add(pydicom.DataElement(element.tag, "UN", str(random.choice(GARBAGE)).encode()))
    pydicom.dcmwrite(path, dataset)


def _groups(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _groups(item)


def touched(before: bytes, after: bytes) -> tuple[np.ndarray, bool]:
    """Offsets of bytes that changed, all from the first on where the length did; whether it did."""
    common = min(len(before), len(after))
    first, second = (np.frombuffer(content[:common], np.uint8) for content in (before, after))
    offsets = np.flatnonzero(first != second)
    if len(before) == len(after):
        return offsets, False
    start = int(offsets[0]) if offsets.size else common
    return np.arange(start, max(len(before), len(after))), True


# --- what must hold


def check_series(base: Base, number: int, content: bytes, after: Volume, name: str) -> None:
    assert after.array.shape == base.before.array.shape
    pixel, gap = base.before.spacing_mm[1], base.before.spacing_mm[0]
    assert same_place(after, base.before) < 1.3 * (0.1 * pixel + 0.05) + 0.03 * gap + 0.01
    hit = base.order[number]
    others = np.arange(len(base.files)) != hit
    assert np.array_equal(after.array[others], base.before.array[others]), "another slice differs"
    if np.array_equal(after.array[hit], base.before.array[hit]):
        return
    offsets, moved = touched(content, base.files[number].read_bytes())
    in_pixels = offsets[offsets >= base.pixels_at[number]] - base.pixels_at[number]
    compressed = SYNTAXES.get(name, uid.ExplicitVRLittleEndian).is_compressed
    if compressed and in_pixels.size:
        return
    if SYNTAXES.get(name) == uid.DeflatedExplicitVRLittleEndian:
        return  # one stream without a checksum
    may_differ = np.zeros(after.array[hit].size, bool)
    voxels = np.unique(in_pixels // 2)
    may_differ[voxels[voxels < may_differ.size]] = True
    if moved and in_pixels.size:
        may_differ[in_pixels[0] // 2 :] = True
    with quiet_libraries():
        told = pydicom.dcmread(base.files[number], force=True)
        slope, intercept = (
            float(told.get(key) or default) for key, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
        )
    true = pydicom.dcmread(pydicom.filebase.DicomBytesIO(content))
    old = float(true.get("RescaleSlope", 1)), float(true.get("RescaleIntercept", 0))
    expected = base.before.array[hit]
    if (slope, intercept) != old:
        expected = (expected - old[1]) / old[0] * slope + intercept
    same = np.isclose(after.array[hit], expected, rtol=1e-4, atol=1e-4 * np.ptp(expected))
    assert (same.ravel() | may_differ).all(), "voxels differ that were not hit"


def check_single(base: Base, content: bytes, after: Volume, name: str) -> None:
    before = base.before
    assert after.array.shape == before.array.shape
    offsets, _ = touched(content, base.files[0].read_bytes())
    if name in ("nii.gz", "nrrd gzip", "mha zlib"):
        # A checksum guards the values; of gzip's own header nothing counts.
        assert name != "nii.gz" or np.array_equal(after.array, before.array)
        return
    start = len(content) - before.array.size * (4 if name in ("nii", "npy") else 2)
    in_pixels = offsets[offsets >= start] - start
    in_header = offsets[offsets < start]
    if name == "nii":
        if not _within(in_header, NIFTI_PLACE):
            assert np.array_equal(after.affine, before.affine)
        if _within(in_header, NIFTI_VALUES):
            return
    elif in_header.size:
        return
    else:
        assert np.array_equal(after.affine, before.affine)
    voxels = np.unique(in_pixels // (4 if name in ("nii", "npy") else 2))
    differ = np.flatnonzero(after.array.ravel() != before.array.ravel())
    assert np.isin(differ, voxels).all()


def _within(offsets: np.ndarray, fields: list[tuple[int, int]]) -> bool:
    return any(((offsets >= low) & (offsets < high)).any() for low, high in fields)


def ways_to_read(base: Base, name: str) -> list[Callable[[], Volume]]:
    def discovered() -> Volume:
        sources, left_out, _ = discover(base.folder)
        volumes, refusals = [], [scan.refusal for scan in left_out]
        for source in sources:
            try:
                volumes.append(read_source(source))
            except ScanError as error:
                refusals.append(error.refusal)
        if not volumes:
            assert refusals, "a scan is gone without a reason"
            raise ScanError(refusals[0])
        assert len(volumes) == 1
        return volumes[0]

    if name in SINGLE_FILES:
        return [lambda: read_scan(base.files[0])]
    return [lambda: read_scan(base.folder), discovered]


def test_random_damage_is_refused_or_harmless(
    bases: dict[str, Base], capfd: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS_PER_CASE} s")

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: dict[str, list[int]] = {name: [0, 0, 0] for name in bases}
    failures = []
    handler = signal.signal(signal.SIGALRM, stop)
    try:
        for case in range(NUM_CASES):
            random = np.random.default_rng([SEED, case])
            name = list(bases)[case % len(bases)]
            base = bases[name]
            number = int(random.integers(len(base.files)))
            path = base.files[number]
            content = path.read_bytes()
            dicom = name in SYNTAXES or name in ("real", "enhanced")
            way = "element"
            if dicom and random.random() < 0.3:
                try:
                    with quiet_libraries():
                        damage_element(path, random)
                except Exception:  # pydicom refuses to write some nonsense
                    path.write_bytes(content)
            else:
                damage = BYTE_DAMAGE[random.integers(len(BYTE_DAMAGE))]
                way = damage.__name__
                path.write_bytes(damage(content, random))
            # Stops what Python does; the other one also ends a library that hangs, and says where.
            signal.alarm(SECONDS_PER_CASE)
            faulthandler.dump_traceback_later(3 * SECONDS_PER_CASE, exit=True)
            try:
                for read in ways_to_read(base, name):
                    try:
                        after = read()
                    except ScanError as error:
                        assert str(error)
                        assert "\n" not in str(error)
                        outcomes[name][0] += 1
                        continue
                    same = np.array_equal(after.array, base.before.array)
                    outcomes[name][1 if same else 2] += 1
                    if name not in SINGLE_FILES:
                        check_series(base, number, content, after, name)
                    elif name == "enhanced":
                        check_enhanced(base, content, after)
                    else:
                        check_single(base, content, after, name)
            except Exception as error:
                failures.append(f"case {case} ({name}, {way}): {type(error).__name__}: {error}")
            finally:
                signal.alarm(0)
                faulthandler.cancel_dump_traceback_later()
                path.write_bytes(content)
    finally:
        signal.signal(signal.SIGALRM, handler)
    for name, (refused, equal, other) in outcomes.items():
        print(f"{name}: {refused} refused, {equal} with the voxels of before, {other} with others")
    assert not failures, f"{len(failures)} of {NUM_CASES}:\n" + "\n".join(failures[:40])
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    assert growth < GROWTH_MB, f"memory grew by {growth:.0f} MB"


def check_enhanced(base: Base, content: bytes, after: Volume) -> None:
    """At most one frame is rescaled by damage to its group; others differ where their bytes were hit.

    One element says for all frames whether values are signed, and nothing else in the file tells: where it
    was hit, the values have to be those that the file now says.
    """
    assert after.array.shape == base.before.array.shape
    with quiet_libraries():
        is_signed = pydicom.dcmread(base.files[0], force=True).PixelRepresentation == 1
    true = pydicom.dcmread(pydicom.filebase.DicomBytesIO(content))
    assert true.PixelRepresentation == 0
    if is_signed:
        rescale = true.PerFrameFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
        signed = true.pixel_array.astype(np.int16) * float(rescale.RescaleSlope) + rescale.RescaleIntercept
        np.testing.assert_allclose(after.array, signed, rtol=1e-5, atol=1e-5)
        return
    size = base.before.array[0].size * 2
    start = len(content) - len(base.before.array) * size
    offsets, _ = touched(content, base.files[0].read_bytes())
    hit = set(((offsets[offsets >= start] - start) // size).tolist())
    frames = zip(after.array, base.before.array, strict=True)
    differ = {index for index, (new, old) in enumerate(frames) if not np.array_equal(new, old)}
    assert len(differ - hit) <= 1 + (offsets < start).sum() // 64

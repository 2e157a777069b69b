"""Enhanced objects give the volume of the same slices in single files, or are refused with the reason."""

from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from scan_makers import ct_head, oblique_affine, pattern_volume

from anatogen.core.errors import ScanError
from anatogen.dataset.discover import discover
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.formats import read_scan
from anatogen.io.volume import Volume


def group(**elements: object) -> Sequence:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return Sequence([item])


def enhanced(slices: list[Dataset], sop_class: uid.UID, order: np.ndarray) -> Dataset:
    """One object of single-frame slices, frames in the given order, geometry where the standard wants it."""
    first = slices[0]
    dataset = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    for element in first:
        if element.keyword not in (
            "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
            "RescaleIntercept", "PixelData",
        ):  # fmt: skip
            dataset.add(element)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID[:-1]
    dataset.NumberOfFrames = len(slices)
    shared = Dataset()
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=first.ImageOrientationPatient)
    shared.PixelMeasuresSequence = group(PixelSpacing=first.PixelSpacing)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for index in order:
        frame = Dataset()
        frame.FrameContentSequence = group(StackID="1", InStackPositionNumber=int(index) + 1)
        frame.PlanePositionSequence = group(ImagePositionPatient=slices[index].ImagePositionPatient)
        frame.PixelValueTransformationSequence = group(
            RescaleSlope=slices[index].RescaleSlope, RescaleIntercept=slices[index].RescaleIntercept
        )
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset.PixelData = b"".join(slices[index].PixelData for index in order)
    dataset["PixelData"].VR = "OW"
    return dataset


def slices_of(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


@pytest.fixture
def single(tmp_path: Path) -> Path:
    write_dicom(pattern_volume(oblique_affine(1), (8, 9, 7)), tmp_path / "single", "MR", uid_from="a")
    for index, dataset in enumerate(slices_of(tmp_path / "single")):
        dataset.RescaleSlope = 0.5 + index
        dataset.save_as(tmp_path / "single" / f"slice_{index + 1:04d}.dcm")
    return tmp_path / "single"


@pytest.fixture
def one_file(single: Path, tmp_path: Path) -> Path:
    order = np.random.default_rng(0).permutation(8)
    dataset = enhanced(slices_of(single), uid.EnhancedMRImageStorage, order)
    (tmp_path / "enhanced").mkdir()
    dataset.save_as(tmp_path / "enhanced" / "volume.dcm", enforce_file_format=True)
    return tmp_path / "enhanced" / "volume.dcm"


def same(first: Volume, second: Volume) -> bool:
    return np.array_equal(first.array, second.array) and np.array_equal(first.affine, second.affine)


def test_enhanced_mr_is_its_slices(single: Path, one_file: Path) -> None:
    assert same(read_scan(one_file), read_scan(single))
    assert same(read_scan(one_file.parent), read_scan(single))


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless])
def test_compressed_frames(single: Path, one_file: Path, syntax: uid.UID) -> None:
    dataset = pydicom.dcmread(one_file)
    dataset.compress(syntax)
    dataset.save_as(one_file)
    assert same(read_scan(one_file), read_scan(single))


def test_enhanced_ct_is_in_hounsfield_units(tmp_path: Path) -> None:
    write_dicom(ct_head(), tmp_path / "single", "CT", uid_from="a")
    slices = slices_of(tmp_path / "single")
    dataset = enhanced(slices, uid.EnhancedCTImageStorage, np.arange(len(slices)))
    dataset.save_as(tmp_path / "volume.dcm", enforce_file_format=True)
    assert same(read_scan(tmp_path / "volume.dcm"), read_scan(tmp_path / "single"))
    del dataset.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence
    dataset.save_as(tmp_path / "volume.dcm", enforce_file_format=True)
    with pytest.raises(ScanError, match="Hounsfield"):
        read_scan(tmp_path / "volume.dcm")


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_legacy_converted_objects_agree_with_highdicom(tmp_path: Path, modality: str) -> None:
    volume = ct_head() if modality == "CT" else pattern_volume(oblique_affine(3), (8, 9, 7))
    write_dicom(volume, tmp_path / "single", modality, uid_from="a")
    slices = slices_of(tmp_path / "single")
    for dataset in slices:
        # highdicom copies these, and takes no empty ones.
        dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20200101"
        dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "120000"
        dataset.AcquisitionNumber = 1
    convert = {
        "CT": highdicom.legacy.LegacyConvertedEnhancedCTImage,
        "MR": highdicom.legacy.LegacyConvertedEnhancedMRImage,
    }[modality]
    legacy = convert(slices, uid.generate_uid(), 2, uid.generate_uid(), 1)
    legacy.save_as(tmp_path / "volume.dcm", enforce_file_format=True)
    ours = read_scan(tmp_path / "volume.dcm")
    assert same(ours, read_scan(tmp_path / "single"))
    theirs = highdicom.imread(tmp_path / "volume.dcm").get_volume(
        apply_real_world_transform=False, apply_presentation_lut=False
    )
    affine = np.diag([-1.0, -1, 1, 1]) @ theirs.affine
    flipped = affine[:3, 0] @ ours.affine[:3, 0] < 0
    np.testing.assert_allclose(ours.array, theirs.array[::-1] if flipped else theirs.array, rtol=1e-6)


@pytest.mark.parametrize("series", ["hippocampus_crop", "t1_post_axial_oblique"])
def test_real_series_as_one_object(shared_data: Path, tmp_path: Path, series: str) -> None:
    slices = slices_of(shared_data / "dicom" / series)
    for dataset in slices:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    order = np.random.default_rng(1).permutation(len(slices))
    dataset = enhanced(slices, uid.EnhancedMRImageStorage, order)
    dataset.save_as(tmp_path / "volume.dcm", enforce_file_format=True)
    assert same(read_scan(tmp_path / "volume.dcm"), read_scan(shared_data / "dicom" / series))


def _each(dataset: Dataset, sequence: str, **values: Callable[[int], object]) -> None:
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        item = frame[sequence].value[0] if sequence in frame else Dataset()
        for keyword, value in values.items():
            setattr(item, keyword, value(index))
        setattr(frame, sequence, Sequence([item]))


def _drop_frame(dataset: Dataset) -> None:
    frames = list(dataset.PerFrameFunctionalGroupsSequence)
    middle = sorted(range(8), key=lambda i: frames[i].FrameContentSequence[0].InStackPositionNumber)[4]
    size = dataset.Rows * dataset.Columns * 2
    data = dataset.PixelData
    dataset.PixelData = data[: middle * size] + data[(middle + 1) * size :]
    del frames[middle]
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset.NumberOfFrames = 7


def _same_place(dataset: Dataset) -> None:
    frames = dataset.PerFrameFunctionalGroupsSequence
    frames[2].PlanePositionSequence = frames[5].PlanePositionSequence


SEVERAL: dict[str, tuple[Callable[[Dataset], object], str]] = {
    "stacks": (
        lambda d: _each(d, "FrameContentSequence", StackID=lambda i: str(i % 2 + 1)), "2 stacks",
    ),
    "times": (
        lambda d: _each(d, "FrameContentSequence", TemporalPositionIndex=lambda i: i % 4 + 1),
        "4 time points",
    ),
    "echoes": (lambda d: _each(d, "MREchoSequence", EffectiveEchoTime=lambda i: 10.0 * (i % 2)), "2 echoes"),
    "b-values": (
        lambda d: _each(d, "MRDiffusionSequence", DiffusionBValue=lambda i: 500.0 * (i % 3)), "3 b-values",
    ),
    "types": (
        lambda d: _each(
            d, "MRImageFrameTypeSequence", FrameType=lambda i: ["ORIGINAL", "PRIMARY", "M" if i % 2 else "P"]
        ),
        "2 kinds of image",
    ),
    "one place": (_same_place, "1 slices lie where another one is"),
    "missing": (_drop_frame, "1 slices are missing inside the stack of 7"),
    "no places": (
        lambda d: [frame.pop("PlanePositionSequence") for frame in d.PerFrameFunctionalGroupsSequence],
        "no ImagePositionPatient",
    ),
    "count": (lambda d: setattr(d, "NumberOfFrames", 7), "7 frames, 8 told"),
    "localiser": (lambda d: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localiser"),
    "narrower": (lambda d: setattr(d, "Columns", 5), "can't be read.*their header"),
    "cut": (lambda d: setattr(d, "PixelData", d.PixelData[:-40]), "can't be read"),
    "colour": (lambda d: setattr(d, "SamplesPerPixel", 3), "colour"),
    "another class": (
        lambda d: setattr(d, "SOPClassUID", uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage),
        "does not tell the place of each frame",
    ),
    "part": (
        lambda d: (setattr(d, "ConcatenationUID", "1.2"), setattr(d, "InConcatenationNumber", 1),
                   setattr(d, "InConcatenationTotalNumber", 2)),
        "1 of 2 parts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SEVERAL)
def test_what_is_no_single_whole_volume_is_refused(one_file: Path, case: str) -> None:
    spoil, reason = SEVERAL[case]
    dataset = pydicom.dcmread(one_file)
    spoil(dataset)
    dataset.save_as(one_file)
    with pytest.raises(ScanError, match=reason):
        read_scan(one_file)


def test_parts_of_a_concatenation_are_one_volume(single: Path, tmp_path: Path) -> None:
    slices = slices_of(single)
    for number, part in enumerate((slices[:4], slices[4:]), 1):
        dataset = enhanced(part, uid.EnhancedMRImageStorage, np.arange(4))
        dataset.ConcatenationUID, dataset.InConcatenationTotalNumber = "1.2.3", 2
        dataset.InConcatenationNumber = number
        (tmp_path / "parts").mkdir(exist_ok=True)
        dataset.save_as(tmp_path / "parts" / f"{number}.dcm", enforce_file_format=True)
    assert same(read_scan(tmp_path / "parts"), read_scan(single))


def test_each_enhanced_object_is_a_scan_of_its_own(one_file: Path) -> None:
    dataset = pydicom.dcmread(one_file)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.save_as(one_file.parent / "second.dcm")
    (one_file.parent / "third.dcm").write_bytes(one_file.read_bytes()[:900])
    sources, left_out, _ = discover(one_file.parent)
    assert [source.name for source in sources] == ["second.dcm", "volume.dcm"]
    assert [scan.name for scan in left_out] == ["third.dcm"]

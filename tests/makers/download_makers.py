"""Small downloads in the layouts of their providers: NIfTI and DICOM of phantoms, tables, the usual mess."""

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openpyxl
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from anatogen.io.dicom.writing import write_dicom
from anatogen.io.geometry import centred_affine, orient
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume


def millimetres(volume: Volume) -> np.ndarray:
    """RAS+ place of every voxel, (3, D, H, W)."""
    index = np.indices(volume.array.shape).reshape(3, -1)
    return (volume.affine[:3, :3] @ index + volume.affine[:3, 3:]).reshape(3, *volume.array.shape)


def empty(shape: tuple[int, int, int], spacing: tuple[float, float, float], codes: str = "SPL") -> Volume:
    return Volume(np.zeros(shape, np.float32), centred_affine(codes, shape, spacing))


def ellipsoid(points: np.ndarray, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    offset = points - np.reshape(centre, (3, 1, 1, 1))
    return ((offset / np.reshape(radii, (3, 1, 1, 1))) ** 2).sum(axis=0) < 1


def brain(
    seed: int = 0,
    shape: tuple[int, int, int] = (40, 44, 36),
    spacing: tuple[float, float, float] = (4.5, 4.5, 5.0),
    skull: bool = False,
) -> Volume:
    """A skull-stripped head (or a whole one) with a bright ball in its left half; about 1.3 (or 4) litres."""
    generator = np.random.default_rng(seed)
    volume = empty(shape, spacing)
    points = millimetres(volume)
    size = 1 + 0.05 * generator.uniform(-1, 1)
    inside = ellipsoid(points, (0, 5, 0), (62 * size, 80 * size, 62 * size))
    array = np.where(inside, 600 + 60 * np.sin(points[1] / 9 + seed), 0.0)
    array[ellipsoid(points, (-30, 15, 10), (14, 14, 14))] = 1100
    if skull:
        head = ellipsoid(points, (0, 0, -10), (82, 102, 108)) & ~inside
        array = np.where(head, 350, array) + generator.uniform(1, 20, shape)
    return Volume(np.rint(array).astype(np.float32), volume.affine)


def torso(
    shape: tuple[int, int, int] = (40, 110, 140),
    spacing: tuple[float, float, float] = (5.0, 2.5, 2.6),
    *,
    left_mm: float = 75,
    right_mm: float = 60,
    seed: int = 0,
) -> Volume:
    """A woman's chest, lying prone: fat bright, muscle grey, lungs dark, a bright ball in the left breast.

    The front of the chest is at 0 mm along the front-back axis where the midline is, at 4 mm to the left.
    """
    generator = np.random.default_rng(seed)
    volume = empty(shape, spacing)
    volume.affine[1, 3] -= 40  # most of the field of view lies behind the sternum
    points = millimetres(volume)
    points = points + np.reshape([4.0, 0, 0], (3, 1, 1, 1))
    x, y = points[0], points[1]
    chest = ((x / 160) ** 2 + ((y + 100) / 100) ** 2) < 1
    array = np.where(chest, 900.0, 0)
    array[((x / 148) ** 2 + ((y + 100) / 86) ** 2) < 1] = 350
    for side in (-1, 1):
        array[ellipsoid(points, (side * 65, -105, 0), (55, 62, 90))] = 30
        depth = left_mm if side < 0 else right_mm
        if depth > 0:
            breast = ellipsoid(points, (side * 78, -25, 5), (62, depth + 12, 70)) & (y > -60) & (array != 350)
            array[breast] = 900
            array[ellipsoid(points, (side * 80, 0, 5), (30, depth * 0.55, 35))] = 450
    if left_mm > 0:
        array[ellipsoid(points, (-80, 15, 5), (10, 10, 12))] = 1300
    noise = np.hypot(array + generator.normal(0, 12, shape), generator.normal(0, 12, shape))
    return Volume(np.rint(noise).astype(np.float32), volume.affine)


def chest_ct(
    shape: tuple[int, int, int] = (36, 60, 64), spacing: tuple[float, float, float] = (7.0, 6.0, 6.5)
) -> Volume:
    """Hounsfield units: body 40, lungs -850, spine 700, a ball of 300 in the left lung, -2000 around it."""
    volume = empty(shape, spacing)
    points = millimetres(volume)
    array = np.full(shape, -1000.0)
    array[((points[0] / 165) ** 2 + (points[1] / 120) ** 2) < 1] = 40
    for side in (-1, 1):
        array[ellipsoid(points, (side * 75, 5, 0), (60, 80, 110))] = -850
    array[((points[0] / 18) ** 2 + ((points[1] + 85) / 18) ** 2) < 1] = 700
    array[ellipsoid(points, (-75, 10, 20), (22, 22, 22))] = 300
    array[((points[0] / 190) ** 2 + (points[1] / 176) ** 2) > 1] = -2000
    return Volume(array.astype(np.float32), volume.affine)


def write_series(
    volume: Volume,
    folder: Path,
    modality: str,
    patient: str,
    *,
    description: str = "",
    study: str = "",
    name: str = "1-{:03d}.dcm",
    shuffled: bool = False,
    **elements: object,
) -> str:
    """Writes a series as an archive delivers it: de-identified, in files named by instance.

    Returns:
        Its SeriesInstanceUID.
    """
    folder.mkdir(parents=True)
    series = generate_uid(entropy_srcs=[patient, description, folder.name])
    with tempfile.TemporaryDirectory() as temporary:
        write_dicom(volume, Path(temporary) / "series", modality, uid_from=str(folder), patient_id=patient)
        files = sorted((Path(temporary) / "series").iterdir())
        order = np.random.default_rng(0).permutation(len(files)) if shuffled else np.arange(len(files))
        for number, place in enumerate(order, start=1):
            dataset = pydicom.dcmread(files[place])
            del dataset.SyntheticData
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
            dataset.PatientName = dataset.PatientID = patient
            dataset.SeriesDescription = description
            dataset.SeriesInstanceUID = series
            dataset.StudyInstanceUID = generate_uid(entropy_srcs=[patient, study])
            dataset.InstanceNumber = number
            dataset.StudyDate = "20000101"
            dataset.Laterality = ""
            dataset.PatientIdentityRemoved = "YES"
            dataset.DeidentificationMethod = "Per DICOM PS 3.15 AnnexE"
            for keyword, value in elements.items():
                setattr(dataset, keyword, value)
            dataset.save_as(folder / name.format(number))
    return str(series)


def write_image(folder: Path, modality: str, patient: str, sop_class: str, name: str = "1-001.dcm") -> None:
    """One two-dimensional image or segmentation beside the scans."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = generate_uid(), generate_uid()
    dataset.PatientID, dataset.Modality = patient, modality
    dataset.Rows = dataset.Columns = 8
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = bytes(128)
    dataset.save_as(folder / name, enforce_file_format=True)


ADNI_COLUMNS = (
    "Image Data ID", "Subject", "Group", "Sex", "Age", "Visit", "Modality", "Description", "Type", "Acq Date",
    "Format", "Downloaded",
)  # fmt: skip
PROCESSED = "MPR__GradWarp__B1_Correction__N3__Scaled"


def adni_nifti(
    download: Path,
    volume: Volume,
    subject: str,
    sequence: str,
    date: str,
    series: int,
    image: int,
    *,
    folder: str = "I",
) -> Path:
    """One NIfTI of the IDA; its folder is named by the image ("I") or the series ("S")."""
    number = image if folder == "I" else series
    file = f"ADNI_{subject}_MR_{sequence}_Br_20081001114556321_S{series}_I{image}.nii"
    path = download / "ADNI" / subject / sequence / date / f"{folder}{number}" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(volume, path)
    return path


def adni_dicom(
    download: Path, volume: Volume, subject: str, sequence: str, date: str, series: int, image: int
) -> Path:
    folder = download / "ADNI" / subject / sequence / date / f"I{image}"
    write_series(
        volume,
        folder,
        "MR",
        subject,
        description=sequence,
        name=f"ADNI_{subject}_MR_{sequence}__br_raw_20060418193713091_{{}}_S{series}_I{image}.dcm",
        shuffled=True,
    )
    return folder


def adni_download(root: Path) -> Path:
    """Four subjects, sessions in several versions, no row in the table, masks, localisers, empty folders."""
    download = root / "ADNI1 Complete 1Yr 1.5T"
    sagittal = orient(brain(1), "RIP")
    first, second = "2006-04-18_08_20_30.0", "2007-05-25_07_11_49.0"
    adni_dicom(download, orient(brain(1, skull=True), "RIP"), "002_S_0295", "MP-RAGE", first, 13408, 13722)
    adni_nifti(download, sagittal, "002_S_0295", PROCESSED, first, 13408, 45107)
    repeat = PROCESSED.replace("MPR", "MPR-R")
    adni_nifti(download, sagittal, "002_S_0295", repeat, "2006-04-18_08_31_02.0", 13407, 45115)
    adni_nifti(download, brain(2), "002_S_0295", "MPR____N3__Scaled", second, 32678, 64033, folder="S")
    adni_nifti(download, brain(3), "005_S_0221", "MPR__GradWarp__N3", "2006-01-10_10_00_00.0", 11958, 72131)
    adni_nifti(download, brain(4), "010_S_0472", "MT1__GradWarp__N3m", "2011-03-02_12_00_00.0", 23000, 238627)
    adni_nifti(download, brain(5), "099_S_10001", "MPRAGE", "2012-01-01_12_00_00.0", 24000, 300001)
    mask = Volume((brain(1).array > 0).astype(np.float32), brain(1).affine)
    adni_nifti(download, mask, "002_S_0295", "MIDAS_Whole_Brain_Mask", first, 13408, 320896)
    adni_dicom(
        download, brain(6, (5, 16, 16), (30, 12, 12)), "002_S_0295", "3_Plane_Localizer", first, 13399, 13720
    )
    (download / "ADNI" / "011_S_0002" / "MP-RAGE" / first).mkdir(parents=True)
    (download / "ADNI" / "ADNI_002_S_0295_MPR_S13408_I45107.xml").write_text("<idaxs/>")
    rows = [
        ("I45107", "002_S_0295", "CN", "M", "84", "sc", PROCESSED, "4/18/2006"),
        ("I45115", "002_S_0295", "CN", "M", "84", "sc", repeat, "4/18/2006"),
        ("64033", "002_S_0295", "CN", "M", "86", "m12", "MPR; ; N3; Scaled", "5/25/2007"),
        ("I72131", "005_S_0221", "AD", "F", "67", "sc", "MPR; GradWarp; N3", "1/10/2006"),
        ("I238627", "010_S_0472", "CN", "F", "91.4", "v03", "MT1; GradWarp; N3m", "3/02/2011"),
        # The number of a series must not be taken for that of an image.
        ("I13408", "005_S_0221", "AD", "F", "67", "sc", "MPR", "1/10/2006"),
    ]
    with (download / "ADNI1_Complete_1Yr_1.5T_4_18_2024.csv").open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(ADNI_COLUMNS)
        for image, subject, group, sex, age, visit, description, date in rows:
            line = (
                image,
                subject,
                group,
                sex,
                age,
                visit,
                "MRI",
                description,
                "Processed",
                date,
                "NiFTI",
                "",
            )
            writer.writerow(line)
    return download


def write_sheet(path: Path, rows: Sequence[Sequence[object]]) -> None:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(list(row))
    book.save(path)


def duke_series(
    download: Path, number: int, folder: str, volume: Volume, description: str, **elements: object
) -> str:
    patient = f"Breast_MRI_{number:03d}"
    study = "01-01-1990-NA-MRI BREAST BILATERAL W  WO-51972"
    place = download / "Duke-Breast-Cancer-MRI" / patient / study / folder
    return write_series(volume, place, "MR", patient, description=description, **elements)


def duke_download(root: Path, *, mapping: bool = True, clinical: bool = True) -> Path:
    """Patient 1 as the sheets tell, 2 by its description, 3 with nothing to choose, what lies around."""
    download = root / "manifest-1654812109500"
    first = torso()
    small = torso((20, 55, 70), (10.0, 5.0, 5.2))
    t1 = "3.000000-ax t1-41554"
    duke_series(download, 1, t1, first, "ax t1", shuffled=True)
    duke_series(download, 1, "26.000000-ax t1 tse c-58582", small, "ax t1 tse c")
    duke_series(download, 1, "600.000000-ax dyn 1st pass-25442", small, "ax dyn 1st pass", ScanOptions="FS")
    duke_series(download, 1, "1.000000-loc-11111", torso((4, 55, 70), (40, 5, 5.2)), "loc")
    duke_series(download, 2, "4.000000-Ax T1 3mm-22222", torso(left_mm=60, right_mm=72), "Ax T1 3mm")
    duke_series(download, 2, "5.000000-Ax T1 FS-22223", small, "Ax T1", ScanOptions=["FAST_GEMS", "FS"])
    duke_series(download, 2, "7.000000-Ph1Ax Vibrant MultiPhase-1", small, "Ph1/Ax Vibrant MultiPhase")
    duke_series(download, 3, "2.000000-t1 fl3d tra fs-33333", small, "t1_fl3d_tra_fs")
    duke_series(download, 3, "3.000000-ax t2-33334", small, "ax t2")
    images = download / "Duke-Breast-Cancer-MRI"
    segmentation = (
        images / "Breast_MRI_001/01-01-1990-NA-MRI BREAST BILATERAL W  WO-51972/300.000000-Segmentation-1"
    )
    write_image(segmentation, "SEG", "Breast_MRI_001", "1.2.840.10008.5.1.4.1.1.66.4")
    (images / "Breast_MRI_004").mkdir()
    (images / "LICENSE").write_text("CC BY-NC 4.0")
    (download / "metadata.csv").write_text("Series UID,Collection,3rd Party Analysis\n1.2.3,Duke,NO\n")
    study = "01-01-1990-NA-MRI BREAST BILATERAL W  WO-51972"
    if mapping:
        rows = [("original_path_and_filename", "classic_path", "descriptive_path")]
        for sequence, folder in (("T1", t1), ("post_1", "600.000000-ax dyn 1st pass-25442")):
            rows += [
                (
                    f"DICOM_Images/Breast_MRI_001/{sequence}/Breast_MRI_001_{sequence}_{number:03d}.dcm",
                    f"Duke-Breast-Cancer-MRI/Breast_MRI_001/1.3.6.1/1.3.6.1.{folder[0]}/1-{number:03d}.dcm",
                    f"Duke-Breast-Cancer-MRI/BreastMRI001/{study}//{folder}/1-{number:03d}.dcm",
                )
                for number in (1, 2, 3)
            ]
        write_sheet(download / "Breast-Cancer-MRI-filepath_filename-mapping.xlsx", rows)
    if clinical:
        rows = [
            ("Patient Information", "Demographics", None, "Tumor Characteristics", None, None),
            ("Patient ID", "Date of Birth (Days)", "Race and Ethnicity", "Mol Subtype", "Tumor Location",
             "Bilateral Information"),
            (None, "(Taking date of diagnosis as day 0)", "{0 = N/A, 1 = white}", "{0 = luminal-like, ...}",
             "L/R", "{0 = no, 1 = yes}"),
            ("Breast_MRI_001", -15209, 2, 0, "L", 0),
            ("Breast_MRI_002", -34000, 1, 3, "R", 1),
            ("Breast_MRI_003", "NC", 1, "NP", None, "NC"),
        ]  # fmt: skip
        write_sheet(download / "Clinical_and_Other_Features.xlsx", rows)
    return download


def lidc_series(
    download: Path, number: int, study: str, series: str, volume: Volume, **elements: object
) -> Path:
    patient = f"LIDC-IDRI-{number:04d}"
    folder = download / "LIDC-IDRI" / patient / study / series
    write_series(volume, folder, "CT", patient, study=study, **elements)
    (folder / "069.xml").write_text('<?xml version="1.0"?><LidcReadMessage/>')
    return folder


def lidc_download(root: Path) -> Path:
    """Three patients, one with two scans and radiographs, one with missing slices."""
    download = root / "manifest-1600709154662"
    study = "01-01-2000-NA-NA-30178"
    lidc_series(download, 1, study, "3000566.000000-NA-03192", chest_ct(), shuffled=True)
    second = chest_ct((60, 50, 50), (5.0, 7.5, 8.0))
    lidc_series(download, 1, "01-01-2000-CT THORAX WCONTRAST-05064", "3-Recon 2 CHEST-95147", second)
    radiograph = download / "LIDC-IDRI/LIDC-IDRI-0001/01-01-2000-NA-NA-35511/3000923.000000-NA-62357"
    write_image(radiograph, "DX", "LIDC-IDRI-0001", "1.2.840.10008.5.1.4.1.1.1.1")
    (radiograph / "071.xml").write_text('<?xml version="1.0"?><IdriReadMessage/>')
    lidc_series(
        download, 2, "01-01-2000-98329", "3000522.000000-04919", chest_ct((30, 60, 64), (8.0, 6.0, 6.5))
    )
    holed = lidc_series(download, 3, study, "3000611.000000-NA-03264", chest_ct((20, 40, 40), (12, 9, 10)))
    (holed / "1-009.dcm").unlink()
    (download / "LIDC-IDRI" / "LIDC-IDRI-0004").mkdir()
    (download / "LIDC-IDRI" / "LICENSE").write_text("CC BY 3.0")
    (download / "metadata.csv").write_text("Series UID,Collection,3rd Party Analysis\n1.2.3,LIDC-IDRI,NO\n")
    return download

"""What the recipes choose in downloads as their providers deliver them, and what they say of it."""

import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pydicom
import pytest
from download_makers import (
    PROCESSED,
    adni_nifti,
    brain,
    chest_ct,
    duke_download,
    duke_series,
    torso,
    write_sheet,
)

from anatogen.core.errors import UserError
from anatogen.dataset.discover import discover
from anatogen.dataset.recipes import adni as adni_recipe
from anatogen.dataset.recipes import duke as duke_recipe
from anatogen.dataset.recipes import lidc as lidc_recipe
from anatogen.dataset.recipes.adni import is_skull_stripped
from anatogen.dataset.recipes.recipe import Recipe, Selection
from anatogen.dataset.recipes.tables import find_tables, number, read_csv, read_sheet
from anatogen.io.formats import read_scan
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume


def chosen(recipe: Recipe, download: Path) -> Selection:
    sources, _, _ = discover(download)
    return recipe.select(download, sources)


def told(selection: Selection) -> str:
    return "\n".join(selection.notes)


# --- ADNI


def test_adni_takes_one_image_of_each_session_the_most_processed(adni: Path) -> None:
    selection = chosen(adni_recipe.RECIPE, adni)

    images = [scan.source.files[0].stem.rsplit("_", 1)[1] for scan in selection.scans]
    # Not the raw DICOM, not the repeat of ten minutes later, no mask, no localiser.
    assert images == ["I45107", "I64033", "I72131", "I238627", "I300001"]
    assert [scan.patient for scan in selection.scans] == [
        "002_S_0295", "002_S_0295", "005_S_0221", "010_S_0472", "099_S_10001",
    ]  # fmt: skip
    assert not selection.left_out
    assert "7 MP-RAGE images of 5 sessions" in told(selection)
    assert "1 with gradwarp, b1 correction, n3, scaled; " in told(selection)
    assert "1 as scanned" in told(selection)
    assert "passed over: 2 scans" in told(selection)


def test_adni_conditions_come_from_the_row_of_the_image(adni: Path) -> None:
    scans = chosen(adni_recipe.RECIPE, adni).scans
    assert [dict(scan.conditions) for scan in scans] == [
        {"diagnosis": "CN", "sex": "M", "age": 84},
        {"diagnosis": "CN", "sex": "M", "age": 86},  # of a number without its "I"
        {"diagnosis": "AD", "sex": "F", "age": 67},
        {"diagnosis": "CN", "sex": "F", "age": 91},
        {},
    ]


@pytest.mark.parametrize("place", ["inside", "beside", "in ADNI"])
def test_adni_finds_its_table_wherever_people_put_it(adni: Path, tmp_path: Path, place: str) -> None:
    shutil.copytree(adni, tmp_path / "download")
    table = next((tmp_path / "download").glob("*.csv"))
    folder = tmp_path / "download"
    table.rename({"inside": folder, "beside": tmp_path, "in ADNI": folder / "ADNI"}[place] / "Table.CSV")
    assert chosen(adni_recipe.RECIPE, folder).scans[0].conditions["diagnosis"] == "CN"
    # The folder within the download may be named, too.
    inner = chosen(adni_recipe.RECIPE, folder / "ADNI").scans[0]
    assert inner.patient == "002_S_0295"
    if place != "beside":
        assert inner.conditions["diagnosis"] == "CN"


def test_adni_without_a_table_says_what_is_missing(tmp_path: Path) -> None:
    adni_nifti(tmp_path, brain(), "002_S_0295", PROCESSED, "2006-04-18_08_20_30.0", 13408, 45107)
    selection = chosen(adni_recipe.RECIPE, tmp_path)
    assert dict(selection.scans[0].conditions) == {}
    assert "no table tells diagnosis" in told(selection)


def test_adni_takes_what_all_rows_of_a_subject_say_for_an_image_without_one(tmp_path: Path) -> None:
    for subject, image in (("002_S_0295", 1), ("003_S_0001", 2), ("004_S_0001", 3)):
        adni_nifti(tmp_path, brain(image), subject, "MP-RAGE", "2006-04-18_08_20_30.0", 7, image)
    (tmp_path / "search.csv").write_text(
        "Subject ID,Sex,Research Group,Age,Image ID\n"
        "002_S_0295,M,Normal,70.2,I90\n002_S_0295,M,Normal,71.4,I91\n"  # one group, two ages
        "003_S_0001,F,MCI,60,I92\n003_S_0001,F,AD,63,I93\n"  # it changed
        "005_S_0001,F,AD,63,3\n"  # the number of an image, but another subject
    )
    scans = chosen(adni_recipe.RECIPE, tmp_path).scans
    assert [dict(scan.conditions) for scan in scans] == [{"diagnosis": "CN", "sex": "M"}, {"sex": "F"}, {}]


@pytest.mark.parametrize(
    ("sequence", "wanted"),
    [
        ("MP-RAGE", True), ("MPRAGE", True), ("MPRAGE_SENSE2", True), ("MP_RAGE_REPEAT", True),
        ("Accelerated_Sagittal_MPRAGE", True), ("Accelerated_SAG_IR-SPGR", True), ("SAG_IR-FSPGR", True),
        ("MPR____N3__Scaled_2", True), ("MPR-R__GradWarp__N3", True), ("MT1__GradWarp__N3m", True),
        ("Spatially_Normalized__Masked_and_N3_corrected_T1_images", True),
        ("3_Plane_Localizer", False), ("Axial_T2-FLAIR", False), ("B1-Calibration_Body", False),
        ("Hippocampal_Mask", False), ("MIDAS_Whole_Brain_Mask", False), ("Axial_PD_T2_FSE", False),
        ("Field_Mapping", False), ("MPRAGE_Brain_Mask", False),
    ],
)  # fmt: skip
def test_adni_knows_mp_rage_by_its_many_names(tmp_path: Path, sequence: str, wanted: bool) -> None:
    adni_nifti(tmp_path, brain(), "002_S_0295", sequence, "2006-04-18_08_20_30.0", 1, 2)
    adni_nifti(tmp_path, brain(), "003_S_0001", "MPRAGE", "2006-04-18_08_20_30.0", 3, 4)
    assert len(chosen(adni_recipe.RECIPE, tmp_path).scans) == 1 + wanted


def test_adni_prefers_skull_stripped_versions_and_reads_bare_files(tmp_path: Path) -> None:
    date = "2006-04-18_08_20_30.0"
    stripped = "Spatially_Normalized__Masked_and_N3_corrected_T1_images"
    adni_nifti(tmp_path, brain(), "002_S_0295", PROCESSED, date, 1, 2)
    adni_nifti(tmp_path, brain(), "002_S_0295", stripped, date, 1, 3)
    assert "_I3.nii" in chosen(adni_recipe.RECIPE, tmp_path).scans[0].source.name
    # Moved out of their folders, two versions are known to be of one series by its number.
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (tmp_path / "ADNI").rglob("*.nii"):
        shutil.copy(file, flat)
    write_nifti(brain(), flat / "brain.nii")
    write_nifti(brain(), flat / "ADNI_009_S_0001 Jane Doe_MPRAGE.nii")
    selection = chosen(adni_recipe.RECIPE, flat)
    assert "Jane" not in told(selection)
    assert [scan.patient for scan in selection.scans] == ["002_S_0295", "009_S_0001"]
    assert "_I3.nii" in selection.scans[0].source.name
    assert [scan.name for scan in selection.left_out] == ["brain.nii"]


def test_skull_stripping_is_told_by_exact_zeros_and_volume(tmp_path: Path) -> None:
    head = brain(skull=True)
    defaced = Volume(np.where(head.array < 30, 0, head.array), head.affine)
    assert is_skull_stripped(brain())
    assert not is_skull_stripped(head)
    assert not is_skull_stripped(defaced)  # zeros around it, but as large as a head
    for place, volume in enumerate((brain(), head, defaced), start=1):
        date = "2006-04-18_08_20_30.0"
        adni_nifti(tmp_path, volume, f"002_S_000{place}", "MP-RAGE", date, place, place)
    assert "1 of 3 scans looked into are skull-stripped" in told(chosen(adni_recipe.RECIPE, tmp_path))
    shutil.rmtree(tmp_path / "ADNI" / "002_S_0001")
    assert "none of 2 scans looked into is" in told(chosen(adni_recipe.RECIPE, tmp_path))


def test_real_heads_are_not_taken_for_stripped_ones(shared_data: Path) -> None:
    for name in ("T1W", "FLAIR"):
        assert not is_skull_stripped(read_scan(shared_data / "brain" / f"patient01_study1_{name}.nii.gz"))


# --- Duke


def test_duke_takes_the_t1_series_without_fat_saturation(duke: Path) -> None:
    selection = chosen(duke_recipe.RECIPE, duke)
    assert [Path(scan.source.name).name for scan in selection.scans] == [
        "3.000000-ax t1-41554",
        "4.000000-Ax T1 3mm-22222",
    ]
    assert [scan.patient for scan in selection.scans] == ["Breast_MRI_001", "Breast_MRI_002"]
    (left_out,) = selection.left_out
    assert "Breast_MRI_003" in left_out.name
    assert "only: ax t2, t1 fl3d tra fs" in left_out.reason
    assert "the mapping sheet tells the T1 series of 1 of 3 patients" in told(selection)
    assert "passed over: 6 other series" in told(selection)


def test_duke_conditions_come_from_the_clinical_sheet(duke: Path) -> None:
    scans = chosen(duke_recipe.RECIPE, duke).scans
    assert [dict(scan.conditions) for scan in scans] == [
        {"tumor_side": "left", "subtype": "luminal", "age": 41},
        {"tumor_side": "both", "subtype": "triple_negative", "age": 93},
    ]

    sheet = "the clinical sheet has 3 patients and tells age of 2, subtype of 2, tumor_side of 2"
    assert sheet in told(chosen(duke_recipe.RECIPE, duke))


def test_duke_without_its_sheets_goes_by_descriptions_and_says_so(tmp_path: Path) -> None:
    download = duke_download(tmp_path, mapping=False, clinical=False)
    selection = chosen(duke_recipe.RECIPE, download)
    # Of two T1 series of patient 1 the one before contrast.
    assert [Path(scan.source.name).name for scan in selection.scans] == [
        "3.000000-ax t1-41554",
        "4.000000-Ax T1 3mm-22222",
    ]
    assert all(not scan.conditions for scan in selection.scans)
    assert "told by description" in told(selection)
    assert "no Clinical_and_Other_Features.xlsx" in told(selection)


def test_duke_mapping_outweighs_descriptions_and_knows_folders_named_by_uid(tmp_path: Path) -> None:
    download = tmp_path / "Duke"
    volume = torso((10, 30, 40), (20.0, 9.0, 9.0))
    duke_series(download, 7, "1.000000-ax t1-1", volume, "ax t1")
    wanted = duke_series(download, 7, "2.000000-mystery-2", volume, "mystery", ScanOptions="FS")
    study = next((download / "Duke-Breast-Cancer-MRI" / "Breast_MRI_007").iterdir())
    (study / "2.000000-mystery-2").rename(study / wanted)
    write_sheet(
        download / "Breast-Cancer-MRI-filepath_filename-mapping (1).xlsx",
        [
            ("original_path_and_filename", "classic_path", "descriptive_path"),
            (
                "DICOM_Images/Breast_MRI_007/T1/Breast_MRI_007_T1_001.dcm",
                f"Duke/x/y/{wanted}/1-001.dcm",
                None,
            ),
            ("DICOM_Images/Breast_MRI_007/pre/Breast_MRI_007_pre_001.dcm", "Duke/x/y/z/1-001.dcm", "short"),
        ],
    )
    (scan,) = chosen(duke_recipe.RECIPE, download).scans
    assert scan.source.name.endswith(wanted)


@pytest.mark.parametrize(
    ("description", "options", "wanted"),
    [
        ("ax t1", "", True), ("AX T1 FSE", "", True), ("t1_tse_tra", "", True), ("ax t1 non fs", "FS", True),
        ("Ax 3D T1 without fat sat", "", True), ("ax t1 tse c", "", True),
        ("ax t1", "FS", False), ("ax t1", ["PFP", "FS"], False), ("ax t1 fs", "", False),
        ("t1_fl3d_tra_dynaVIEWS_spair", "", False), ("Ax T1 fat sat", "", False), ("ax dyn pre", "", False),
        ("Ph2/Ax T1 Vibrant", "", False), ("sub t1 1", "", False), ("MIP t1", "", False),
        ("ax t2", "", False), ("3 plane loc", "", False), ("t1 localizer", "", False),
        ("AX 3DT1", "", True), ("ax post1", "", False), ("t10 test", "", False),
    ],
)  # fmt: skip
def test_duke_descriptions(tmp_path: Path, description: str, options: object, wanted: bool) -> None:
    volume = torso((4, 12, 16), (40.0, 22.0, 22.0))
    duke_series(
        tmp_path, 1, f"3.000000-{description.replace('/', '')}-1", volume, description, ScanOptions=options
    )
    assert len(chosen(duke_recipe.RECIPE, tmp_path).scans) == wanted


def test_duke_reads_the_folder_where_a_header_lacks_its_description(tmp_path: Path) -> None:
    volume = torso((4, 12, 16), (40.0, 22.0, 22.0))
    duke_series(tmp_path, 1, "3.000000-ax t1-1", volume, "")
    duke_series(tmp_path, 1, "4.000000-ax t1 fs-2", volume, "")
    (scan,) = chosen(duke_recipe.RECIPE, tmp_path).scans
    assert scan.source.name.endswith("3.000000-ax t1-1")


def test_duke_takes_breast_masks_and_no_others(tmp_path: Path) -> None:
    import SimpleITK as sitk

    volume = torso((4, 12, 16), (40.0, 22.0, 22.0))
    for patient in (1, 2):
        duke_series(tmp_path, patient, "3.000000-ax t1-1", volume, "ax t1")
    folder = tmp_path / "Segmentation_Masks_NRRD" / "Breast_MRI_002"
    folder.mkdir(parents=True)
    for name in ("Breast", "Dense_and_Vessels"):
        image = sitk.GetImageFromArray((volume.array > 100).astype(np.uint8))
        sitk.WriteImage(image, str(folder / f"Segmentation_Breast_MRI_002_{name}.seg.nrrd"))
    selection = chosen(duke_recipe.RECIPE, tmp_path)
    masks = [scan.mask.name.split("/")[-1] if scan.mask else None for scan in selection.scans]
    assert masks == [None, "Segmentation_Breast_MRI_002_Breast.seg.nrrd"]
    assert "by a mask in 1 of 2 scans" in told(selection)


# --- LIDC


def test_lidc_takes_all_ct_by_patient(lidc: Path) -> None:
    selection = chosen(lidc_recipe.RECIPE, lidc)
    assert [scan.patient for scan in selection.scans] == [
        "LIDC-IDRI-0001", "LIDC-IDRI-0001", "LIDC-IDRI-0002", "LIDC-IDRI-0003",
    ]  # fmt: skip
    assert all(scan.source.modality == "CT" for scan in selection.scans)
    assert "passed over beside the CT: 1 DX" in told(selection)
    assert "patients with several scans, which share a split: 1" in told(selection)


def test_lidc_knows_converted_scans_by_their_path(tmp_path: Path) -> None:
    for name in ("LIDC-IDRI-0007.nii.gz", "lidc-idri-0007_2.nii.gz", "other.nii.gz"):
        write_nifti(chest_ct((8, 12, 12), (30, 30, 30)), tmp_path / name)
    selection = chosen(lidc_recipe.RECIPE, tmp_path)
    assert [scan.patient for scan in selection.scans] == ["LIDC-IDRI-0007"] * 2
    assert [scan.name for scan in selection.left_out] == ["other.nii.gz"]


@pytest.mark.parametrize("recipe", [adni_recipe, duke_recipe, lidc_recipe])
def test_another_download_is_told_from_the_wanted_one(tmp_path: Path, recipe: ModuleType) -> None:
    write_nifti(brain(), tmp_path / "brain.nii")
    with pytest.raises(UserError, match=r"holds no .*: expected") as caught:
        chosen(recipe.RECIPE, tmp_path)
    assert "\n" not in str(caught.value)


# --- Tables


def test_tables_are_found_near_and_read_as_they_are(tmp_path: Path) -> None:
    download = tmp_path / "download"
    (download / "a" / "b" / "c").mkdir(parents=True)
    for folder in (tmp_path, download, download / "a", download / "a" / "b", download / "a" / "b" / "c"):
        (folder / "Table.CSV").write_text("﻿X  y,Z\n 1 ,\n", encoding="utf-8")
    (download / ".table.csv").write_text("hidden")
    found = find_tables(download, r".*\.csv")
    assert [path.parent.name for path in found] == ["download", "a", "b", tmp_path.name]
    assert read_csv(found[0]) == [{"x y": "1", "z": ""}]


def test_cells_that_are_no_numbers_are_none() -> None:
    assert [number(cell) for cell in ("41.5", 2, "NC", "nan", "inf", None, "")] == [41.5, 2, *[None] * 5]


def test_broken_tables_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"a,b\nJos\xe9,1\n" + b"x" * 200_000 + b",2\n")
    assert read_csv(tmp_path / "table.csv", {"c"}) == []  # another's table, whatever is in it
    with pytest.raises(UserError, match="can't be read"):
        read_csv(tmp_path / "table.csv", {"a", "c"}, {"b"})
    (tmp_path / "short.csv").write_bytes(b"a,b\nJos\xe9\n\n,2,3\n")
    assert read_csv(tmp_path / "short.csv") == [{"a": "Jos\ufffd"}, {"a": "", "b": "2"}]
    (tmp_path / "sheet.xlsx").write_bytes(b"PK no archive")
    with pytest.raises(UserError, match="can't be read"):
        list(read_sheet(tmp_path / "sheet.xlsx", ("patient id",)))
    write_sheet(tmp_path / "other.xlsx", [("a", "b"), (1, 2)])
    with pytest.raises(UserError, match="no column 'patient id'"):
        list(read_sheet(tmp_path / "other.xlsx", ("patient id",)))


# --- The fixtures themselves


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy of dicom3tools is not installed")
@pytest.mark.parametrize("name", ["adni", "duke", "lidc"])
def test_the_dicom_of_the_fixtures_is_valid(request: pytest.FixtureRequest, name: str) -> None:
    checked = 0
    for file in sorted(request.getfixturevalue(name).rglob("*1*.dcm"))[::7]:
        if pydicom.dcmread(file, stop_before_pixels=True).Modality not in ("CT", "MR"):
            continue  # the radiograph and the segmentation are there to be passed over
        report = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=False)
        assert "Error" not in report.stdout + report.stderr
        checked += 1
    assert checked > 3

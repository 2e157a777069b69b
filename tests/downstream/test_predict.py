"""Masks come back in each scan's own voxels, whatever its geometry."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from labelled_dataset import balls
from scan_makers import head, oblique_affine, pattern_volume
from torch import Tensor, nn

from anatogen.config.resolving import parse_overrides
from anatogen.core.errors import ScanError, UserError
from anatogen.dataset import regions
from anatogen.dataset.conversion import Placement
from anatogen.dataset.discover import Source, discover
from anatogen.dataset.manifest import Intensity
from anatogen.dataset.prepare import prepare
from anatogen.dataset.prepare_config import PrepareConfig, prepare_settings
from anatogen.downstream.finetune import _start
from anatogen.downstream.labelled import load_labelled
from anatogen.downstream.network import PaddedSwinUNETR
from anatogen.downstream.predict import _read, mask_names, predict, segment_scan
from anatogen.downstream.segmenter import Segmenter, SegmenterDescription, load_segmenter
from anatogen.downstream.settings import FinetuneConfig, SwinUNETRSettings
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.formats import AS_IT_IS, read_scan
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume

pytestmark = pytest.mark.usefixtures("small_network")


def description(shape=(32, 32, 32), spacing_mm=(1.5, 1.5, 1.5), **changes) -> SegmenterDescription:
    placement = Placement(
        codes="SPL", spacing_mm=spacing_mm, shape=shape, center="grid", interpolation="linear"
    )
    known = {
        "network": SwinUNETRSettings(feature_size=12),
        "labels": (0, 3, 7),
        "names": {},
        "patch_shape": None,
        "region": "scan",
        "placement": placement,
        "intensity": Intensity(modality="CT", low=-2.0, high=2.0),
        "percentiles": (0.5, 99.5),
        "reading": AS_IT_IS,
    }
    return SegmenterDescription(**known | changes)


class Threshold(nn.Module):
    """Says 3 where a voxel is above 0.2, 7 below -0.2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return 200 * torch.cat([torch.full_like(x, 0.2), x, -x], dim=1)


def truth(array: np.ndarray) -> np.ndarray:
    scaled = array / 2
    return np.select([scaled > 0.2, scaled < -0.2], [3, 7], 0)


def test_both_breasts_are_found_and_labelled_in_one_mask(monkeypatch):
    """Without a mask: each half is brought to the grid by itself, as in training."""
    scan = pattern_volume(oblique_affine(0, (1.5, 1.5, 1.5)), (24, 40, 44))

    def halves(volume, mask):
        assert mask is None
        d, h, w = volume.array.shape
        return ((0, 0, w // 2), (d, h, w - w // 2)), ((0, 0, 0), (d, h, w // 2))

    monkeypatch.setattr(regions, "breast_boxes", halves)
    placement = Placement(
        codes="SPL", spacing_mm=None, shape=(32, 64, 64), center="grid", interpolation="linear"
    )
    segmenter = Segmenter(description(region="breasts", placement=placement), Threshold())
    mask = segment_scan(scan, segmenter)
    far = np.abs(np.abs(scan.array / 2) - 0.2) > 0.1
    for half in (slice(None, 22), slice(22, None)):
        assert (mask.array == truth(scan.array))[..., half][far[..., half]].mean() > 0.97


@pytest.mark.parametrize("seed", range(4))
def test_an_oblique_scan_gets_its_mask_in_its_own_voxels(seed):
    scan = pattern_volume(oblique_affine(seed, (3.0, 0.7, 0.9)), (12, 50, 40))
    # A grid that covers the scan whichever way it lies.
    segmenter = Segmenter(description(shape=(64, 64, 64), spacing_mm=(1.2, 1.2, 1.2)), Threshold())
    mask = segment_scan(scan, segmenter)
    assert mask.array.shape == scan.array.shape
    np.testing.assert_array_equal(mask.affine, scan.affine)
    agree = mask.array == truth(scan.array)
    # Voxels whose value is far from a threshold must agree; near it interpolation decides.
    far = np.abs(np.abs(scan.array / 2) - 0.2) > 0.03
    assert agree[far].mean() > 0.995
    assert agree.mean() > 0.95


def test_a_scan_on_the_grid_is_labelled_voxel_by_voxel():
    affine = np.array([[0, 0, -1.5, 3], [0, -1.5, 0, 8], [1.5, 0, 0, -20], [0, 0, 0, 1.0]])
    scan = pattern_volume(affine, (32, 32, 32))
    mask = segment_scan(scan, Segmenter(description(), Threshold()))
    np.testing.assert_array_equal(mask.array, truth(np.float32(scan.array)))


def test_where_the_grid_does_not_reach_is_background():
    affine = np.array([[0, 0, -1.5, 3], [0, -1.5, 0, 8], [1.5, 0, 0, -20], [0, 0, 0, 1.0]])
    scan = pattern_volume(affine, (32, 48, 32))
    mask = segment_scan(scan, Segmenter(description(), Threshold()))
    expected = truth(scan.array)
    expected[:, :8], expected[:, 40:] = 0, 0
    np.testing.assert_array_equal(mask.array, expected)


def test_windows_give_what_the_whole_gives_where_the_network_looks_at_single_voxels():
    x = torch.rand(1, 1, 24, 40, 20) * 2 - 1
    whole = Segmenter(description(), Threshold()).segment(x)
    windows = Segmenter(description(patch_shape=(16, 16, 16)), Threshold()).segment(x)
    assert whole.dtype == torch.uint8 and whole.shape == x.shape
    assert set(whole.unique().tolist()) == {0, 3, 7}
    assert torch.equal(whole, windows)


class Recording(nn.Module):
    """Keeps what it is given, and finds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return torch.cat([torch.ones_like(x), torch.zeros_like(x)], dim=1)


def write_heads(folder: Path, modality: str) -> list[str]:
    """Three scans that lie otherwise each, with masks; their names in order."""
    for number, shape in enumerate([(20, 26, 18), (24, 20, 22), (18, 22, 26)]):
        # Air on one side, so that the head is not in the middle.
        array = np.pad(head(number, shape).array, ((0, 6), (8, 0), (0, 4)), mode="edge")
        mask = Volume((array > 300).astype(np.float32), oblique_affine(number, (1.4, 0.9, 1.1)))
        if modality == "CT":
            array = np.where(array < 100, array - 1000, array - 450)
        for kind, volume in (("images", Volume(array, mask.affine)), ("labels", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write_nifti(volume, folder / kind / f"p{number}.nii.gz")
    return [f"images/p{number}.nii.gz" for number in range(3)]


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize(
    "settings",
    [
        "",
        "spacing_mm=1.2 interpolation=cubic",
        "center=foreground shape=[16,16,16]",
        "region=foreground",
        "region=foreground center=foreground spacing_mm=1.2 interpolation=cubic orientation=RIP",
        "fit=resize shape=[24,20,16]",
        "fit=resize shape=[16,16,16] cube=true",
        "fit=resize shape=[16,16,16] cube=true region=foreground interpolation=cubic",
        "window_hu=[-160,240] percentiles=[3,90]",
    ],
)
def test_a_scan_reaches_the_network_as_its_prepared_array_did(tmp_path, modality, settings):
    names = write_heads(tmp_path / "scans", modality)
    overrides = ["split.validation=0.34", "split.test=0.34", *settings.split()]
    config = prepare_settings(parse_overrides(overrides, PrepareConfig), recipe="folder_with_masks")
    prepare(tmp_path / "scans", tmp_path / "data", config, workers=1, progress=False)
    splits = load_labelled(tmp_path / "data")
    assert splits.manifest.intensity.modality == modality
    learned = _start(splits, FinetuneConfig(network=SwinUNETRSettings(feature_size=12)))
    network = Recording()
    prepared = {
        case.id: part.batch([index])
        for part in (splits.train, splits.validation, splits.test)
        for index, case in enumerate(part.cases)
    }
    for number, name in enumerate(names):
        scan = read_scan(tmp_path / "scans" / name, learned.description.reading)
        segment_scan(scan, Segmenter(learned.description, network))
        expected = prepared[f"case_{number:05d}"]
        # Prepared arrays are float16: half a step of it below 1.
        torch.testing.assert_close(network.seen.pop(), expected, atol=2.0**-12 + 1e-6, rtol=0)
        assert float(expected.std()) > 0.1
    assert not network.seen and len(prepared) == 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory, small_network) -> Path:
    folder = tmp_path_factory.mktemp("segmenter")
    torch.manual_seed(0)
    network = PaddedSwinUNETR(SwinUNETRSettings(feature_size=12), 3)
    settings = description(shape=(16, 16, 16), intensity=Intensity(modality="MR", low=0, high=1))
    Segmenter(settings, network).save(folder)
    return folder


def test_every_scan_of_a_folder_gets_its_mask_and_a_stopped_call_goes_on(saved, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "masks"
    for name, seed in (("a/first.nii.gz", 0), ("second.nii", 1)):
        (scans / name).parent.mkdir(parents=True, exist_ok=True)
        write_nifti(balls(seed, (14, 18, 20), oblique_affine(seed))[0], scans / name)
    (scans / "broken.nii").write_bytes(b"nothing")
    left_out = predict(scans, saved, out, device="cpu")
    assert [scan.name for scan in left_out] == ["broken.nii"]
    for name, source in (("a/first.nii.gz", "a/first.nii.gz"), ("second.nii.gz", "second.nii")):
        mask, scan = nib.load(out / name), nib.load(scans / source)
        assert mask.get_data_dtype() == np.uint8
        assert mask.shape == scan.shape
        np.testing.assert_array_equal(mask.affine, scan.affine)
        assert set(np.unique(mask.dataobj)) <= {0, 3, 7}
    made = (out / "second.nii.gz").stat().st_mtime_ns
    (out / "a" / "first.nii.gz").unlink()
    predict(scans, saved, out, device="cpu")
    assert (out / "a" / "first.nii.gz").exists()
    assert (out / "second.nii.gz").stat().st_mtime_ns == made


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.nii.gz")}


@pytest.mark.parametrize(
    ("scans", "out"), [("scans", "scans"), ("scans", "scans/masks"), ("data/scans", "data")]
)
def test_masks_never_come_among_the_scans(saved, tmp_path, scans, out):
    scan = balls(0)[0]
    # The last one would be written over by its own mask, of OUT/scans/p.nii.gz.
    names = ("p.nii.gz", "scans/p.nii.gz")
    for name in names:
        (tmp_path / scans / name).parent.mkdir(parents=True, exist_ok=True)
        write_nifti(Volume(scan.array + names.index(name), scan.affine), tmp_path / scans / name)
    before = files_below(tmp_path)
    with pytest.raises(UserError, match="choose another"):
        predict(tmp_path / scans, saved, tmp_path / out, device="cpu")
    assert files_below(tmp_path) == before


def test_masks_go_beside_scans_that_they_do_not_touch(saved, tmp_path):
    (tmp_path / "scans").mkdir()
    write_nifti(balls(0)[0], tmp_path / "scans" / "p.nii.gz")
    assert predict(tmp_path / "scans", saved, tmp_path, device="cpu") == []
    assert set(files_below(tmp_path)) == {"p.nii.gz", "scans/p.nii.gz"}


def test_what_prepare_would_leave_out_is_left_out(saved, tmp_path):
    scan, mask = balls(0)
    for folder, volume in (("images", scan), ("labels", mask)):
        (tmp_path / "scans" / folder).mkdir(parents=True)
        write_nifti(volume, tmp_path / "scans" / folder / "p.nii.gz")
    write_nifti(Volume(scan.array * 3 - 1000, scan.affine), tmp_path / "scans" / "ct.nii.gz")
    for modality in ("CT", "MR"):
        write_dicom(scan, tmp_path / "scans" / modality, modality, uid_from=modality)
    left_out = predict(tmp_path / "scans", saved, tmp_path / "masks", device="cpu")
    low, high = (float(end) for end in (scan.array.min() * 3 - 1000, scan.array.max() * 3 - 1000))
    assert {scan.name: scan.reason for scan in left_out} == {
        "CT": "its DICOM modality is CT, and the segmenter's is MR",
        "ct.nii.gz": f"its values from {low:g} to {high:g} do not look like MR, the segmenter's modality",
        "labels/p.nii.gz": "it looks like a label map (3 distinct whole values)",
    }
    assert set(files_below(tmp_path / "masks")) == {"MR.nii.gz", "images/p.nii.gz"}


@pytest.mark.parametrize(
    ("modality", "values", "told", "fits"),
    [
        ("CT", (-1000, 1500), False, True),
        ("CT", (0, 900), False, False),
        # A brain cut out of a CT, prepared with modality=CT: air is nowhere.
        ("CT", (0, 80), True, True),
        ("MR", (0, 900), False, True),
        ("MR", (-1000, 1500), False, False),
        ("MR", (-1000, 1500), True, True),
    ],
)
def test_values_of_another_modality_are_refused_as_prepare_does(tmp_path, modality, values, told, fits):
    array = np.random.default_rng(0).uniform(*values, (16, 16, 16)).astype(np.float32)
    array.flat[:2] = values
    write_nifti(Volume(array, np.eye(4)), tmp_path / "p.nii.gz")
    (source,), _, _ = discover(tmp_path)
    known = description(intensity=Intensity(modality=modality, low=-100, high=200), told_modality=told)
    if fits:
        assert _read(source, known).array.shape == array.shape
    else:
        with pytest.raises(ScanError, match=f"its values from {values[0]} to {values[1]} do not look like"):
            _read(source, known)


def test_a_label_map_is_named_as_one_whatever_the_modality(tmp_path):
    _, mask = balls(0)
    write_nifti(mask, tmp_path / "p.nii.gz")
    (source,), _, _ = discover(tmp_path)
    with pytest.raises(ScanError, match="looks like a label map"):
        _read(source, description(intensity=Intensity(modality="CT", low=-100, high=200)))


def test_masks_of_another_segmenter_are_not_taken_for_this_ones(saved, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "masks"
    scans.mkdir()
    write_nifti(balls(0)[0], scans / "p.nii.gz")
    predict(scans, saved, out, device="cpu")
    before = files_below(out)
    torch.manual_seed(1)
    other = Segmenter(
        load_segmenter(saved).description, PaddedSwinUNETR(SwinUNETRSettings(feature_size=12), 3)
    )
    other.save(tmp_path / "other")
    with pytest.raises(UserError, match="holds masks of another segmenter: choose another folder"):
        predict(scans, tmp_path / "other", out, device="cpu")
    for damage in ("{", "[]", None):
        record = out / "predicted_by.json"
        record.write_text(damage) if damage else record.unlink()
        with pytest.raises(UserError, match=r"holds p.nii.gz, and nothing that says which segmenter made it"):
            predict(scans, saved, out, device="cpu")
    assert files_below(out) == before
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        predict(scans, saved, tmp_path / "file", device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:99"])
def test_a_device_that_is_not_there_is_named(saved, tmp_path, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "scans").mkdir()
    with pytest.raises(UserError, match=r"device '?(gpu' is unknown|cuda: this machine has no usable GPU)"):
        predict(tmp_path / "scans", saved, tmp_path / "masks", device=device)
    assert not (tmp_path / "masks").exists()


def test_a_damaged_segmenter_is_named(saved, tmp_path):
    with pytest.raises(UserError, match="holds no finished segmenter"):
        load_segmenter(tmp_path)
    (tmp_path / "segmenter.json").write_text((saved / "segmenter.json").read_text())
    with pytest.raises(UserError, match="is missing or damaged: fine-tune anew"):
        load_segmenter(tmp_path)
    (tmp_path / "segmenter.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        load_segmenter(tmp_path)


def test_two_scans_of_one_name_are_refused():
    sources = [Source(name, (Path(name),)) for name in ("a.nii", "a.nrrd")]
    with pytest.raises(UserError, match=r"a.nii and a.nrrd would both get the mask a.nii.gz"):
        mask_names(sources)
    series = Source("a/b.c", (Path("x"),), is_dicom=True)
    assert mask_names([series, sources[0]]) == ["a/b.c.nii.gz", "a.nii.gz"]

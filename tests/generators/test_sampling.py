"""From a bundle to files: the same scans however they are made, restartable, and honest about themselves."""

import ast
import json
import os
import shutil
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from bundles import SHAPE, make_bundle
from synthetic_dataset import AFFINE, SPACING_MM

import anatogen
import anatogen.generators.sampling
from anatogen.core.errors import UserError
from anatogen.core.files import write_json
from anatogen.evaluation.privacy.contrastive import ContrastiveSettings, Encoder, embeddings
from anatogen.evaluation.privacy.copy_detector import AuditFilter, CopyDetector
from anatogen.generators.bundle import Bundle
from anatogen.generators.latent_diffusion import LatentDiffusionBundle
from anatogen.generators.loading import load_bundle
from anatogen.generators.sampling import num_rejected
from anatogen.io.formats import read_scan

# Without `processes` one would be started for every core, and import PyTorch anew.
CPU = {"device": "cpu", "processes": 1}
NPY = CPU | {"file_format": "npy"}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "ct")


def sample(bundle: Path, out: Path, **options: object) -> list[Path]:
    return load_bundle(bundle).write(out, **options)


def _scans(paths: list[Path]) -> np.ndarray:
    return np.stack([np.load(path) for path in paths])


def test_scans_of_a_set_differ_and_so_do_sets(bundle, tmp_path):
    a = _scans(sample(bundle, tmp_path / "a", num_samples=3, **NPY))
    b = _scans(sample(bundle, tmp_path / "b", num_samples=3, seed=1, **NPY))
    scans = [*a, *b]
    assert all(not np.array_equal(x, y) for i, x in enumerate(scans) for y in scans[:i])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver_pp", "euler", "heun"])
def test_scan_k_depends_on_seed_and_k_and_not_on_its_batch(bundle, sampler):
    """To the bit on a CPU. Latents of one batch may be rounded otherwise, which is what a GPU shows."""
    loaded = load_bundle(bundle)
    together = loaded.sample_latents(range(5), seed=3, sampler=sampler)
    whole = loaded.generate(range(5), seed=3, sampler=sampler)
    for indices in ([0], [3, 1], [4, 2]):
        found = loaded.sample_latents(indices, seed=3, sampler=sampler)
        assert torch.allclose(found, together[indices], atol=1e-4)
        assert torch.equal(loaded.generate(indices, seed=3, sampler=sampler), whole[indices])


def test_the_library_call_gives_the_scans_of_the_files(bundle, tmp_path):
    files = _scans(sample(bundle, tmp_path, num_samples=3, batch_size=2, **NPY))
    volumes = list(load_bundle(bundle).sample(3, batch_size=2))
    assert np.array_equal(files, np.stack([volume.array for volume in volumes]))
    assert np.allclose(volumes[0].affine, AFFINE)
    (third,) = load_bundle(bundle).sample(1, first=2, batch_size=1)
    assert np.array_equal(third.array, volumes[2].array)


def test_a_call_that_was_stopped_makes_what_is_missing_and_nothing_else(bundle, tmp_path):
    options = {"batch_size": 1, **NPY}
    first = sample(bundle, tmp_path, num_samples=3, **options)
    before = {path: path.stat().st_mtime_ns for path in first}
    contents = _scans(first)
    first[1].unlink()  # killed before the scan was there
    (tmp_path / "synthetic_000002.json").unlink()  # killed between the scan and its sidecar
    (tmp_path / ".part-x.npy").write_bytes(b"half")
    after = sample(bundle, tmp_path, num_samples=4, **options)
    assert len(after) == 4 and np.array_equal(_scans(after[:3]), contents)
    assert [path.stat().st_mtime_ns == before.get(path) for path in after] == [True, False, False, False]


def test_nothing_is_made_where_all_scans_are_there(bundle, tmp_path, monkeypatch):
    sample(bundle, tmp_path, num_samples=2, **NPY)
    monkeypatch.setattr(Bundle, "generate", None)
    assert len(sample(bundle, tmp_path, num_samples=2, **NPY)) == 2


def test_a_damaged_sidecar_makes_its_scan_anew(bundle, tmp_path):
    sample(bundle, tmp_path, num_samples=2, **NPY)
    for index, text in enumerate(("{", "[1]")):
        (tmp_path / f"synthetic_{index:06d}.json").write_text(text)
    sample(bundle, tmp_path, num_samples=2, **NPY)
    assert json.loads((tmp_path / "synthetic_000001.json").read_text())["index"] == 1


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"sampler": "heun"}, "sampler"),
        ({"steps": 4}, "steps"),
        ({"file_format": "nifti"}, "format"),
    ],
)
def test_a_folder_with_another_set_is_refused_by_what_differs(bundle, tmp_path, changed, named):
    options = {"num_samples": 2, **NPY}
    sample(bundle, tmp_path, **options)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=rf"of another set of scans \(other {named}\)"):
        sample(bundle, tmp_path, **(options | changed))
    assert sorted(tmp_path.iterdir()) == before


def test_scans_of_another_bundle_are_refused_even_where_the_numbers_do_not_meet(bundle, tmp_path):
    other = make_bundle(tmp_path / "other", "MR")
    sample(bundle, tmp_path / "out", num_samples=3, **NPY)
    for index in (0, 1):
        (tmp_path / "out" / f"synthetic_{index:06d}.json").unlink()
    with pytest.raises(UserError, match="other bundle_sha256"):
        sample(other, tmp_path / "out", num_samples=1, **NPY)


def test_the_sidecar_says_that_and_how_the_scan_was_made(bundle, tmp_path):
    sample(bundle, tmp_path, num_samples=2, seed=5, steps=2, **NPY)
    found = json.loads((tmp_path / "synthetic_000001.json").read_text())
    assert found == {
        "synthetic": True,
        "anatogen_version": anatogen.__version__,
        "bundle_sha256": load_bundle(bundle).sha256,
        "seed": 5,
        "index": 1,
        "sampler": "ddpm",
        "steps": 2,
        "format": "npy",
        "modality": "CT",
        "unit": "HU",
    }


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("file_format", ["nifti", "npy", "dicom"])
def test_every_format_carries_the_place_and_the_unit_of_the_scans(tmp_path, modality, file_format):
    folder = make_bundle(tmp_path / "bundle", modality)
    (path,) = sample(folder, tmp_path / "out", num_samples=1, file_format=file_format, **CPU)
    (wanted,) = load_bundle(folder).sample(1)
    assert wanted.array.min() >= -200 and wanted.array.max() <= 600 and np.ptp(wanted.array) > 1
    if file_format == "npy":
        assert np.array_equal(np.load(path), wanted.array)
        return
    found = read_scan(path)
    # DICOM holds whole HU, and MR in 65,535 steps.
    tolerance = {"nifti": 0, "dicom": 0.5 if modality == "CT" else 0.02}[file_format]
    assert found.spacing_mm == pytest.approx(SPACING_MM, abs=1e-4)
    voxels = [(0, 0, 0), (6, 7, 9), (3, 0, 5)]
    inverse = np.linalg.inv(found.affine)
    for voxel in voxels:
        place = np.asarray(wanted.affine) @ [*voxel, 1]
        at = np.rint(inverse @ place).astype(int)[:3]
        assert abs(found.array[tuple(at)] - wanted.array[voxel]) <= tolerance


def test_nifti_scans_open_in_the_orientation_of_the_data(bundle, tmp_path):
    (path,) = sample(bundle, tmp_path, num_samples=1, **CPU)
    image = nib.load(path)
    assert nib.aff2axcodes(image.affine) == ("L", "P", "I")
    assert image.header.get_zooms() == pytest.approx(tuple(reversed(SPACING_MM)))
    assert image.header.get_xyzt_units()[0] == "mm"


def test_dicom_scans_say_that_they_are_synthetic_and_hold_no_patient(bundle, tmp_path):
    paths = sample(bundle, tmp_path, num_samples=2, file_format="dicom", **CPU)
    series = set()
    for number, path in enumerate(paths):
        files = sorted(path.iterdir())
        assert len(files) == SHAPE[0]
        for file in files:
            dataset = pydicom.dcmread(file)
            assert dataset[0x0008, 0x001C].value == "YES"
            assert dataset.PatientID == f"SYNTHETIC-{number:06d}"
            assert dataset.Modality == "CT"
        series.add(dataset.SeriesInstanceUID)
    assert len(series) == 2
    # The same scan again has the same identifiers.
    again = sample(bundle, tmp_path / "again", num_samples=1, file_format="dicom", **CPU)
    assert {pydicom.dcmread(file).SeriesInstanceUID for file in again[0].iterdir()} <= series


@pytest.mark.parametrize("name", ["autoencoder.safetensors", "denoiser.safetensors", "bundle.json"])
@pytest.mark.parametrize("damage", ["absent", "short", "flipped"])
def test_a_damaged_bundle_is_refused(bundle, tmp_path, name, damage):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    content = bytearray((folder / name).read_bytes())
    if damage == "absent":
        (folder / name).unlink()
    elif damage == "short":
        (folder / name).write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|is not a model bundle"):
        sample(folder, tmp_path / "out", **CPU)


def test_a_bundle_of_another_format_version_is_refused_with_both(bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    content = json.loads((folder / "bundle.json").read_text()) | {"format_version": 99}
    (folder / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="format version 99, this program reads 1"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"processes": 0}, "processes is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"sampler": "plms"}, "sampler 'plms' is unknown: use ddpm"),
        ({"file_format": "mp4"}, "format 'mp4' is unknown: use nifti"),
        ({"device": "abacus"}, "device 'abacus' is unknown"),
        ({"device": "meta"}, "device 'meta' is unknown"),
        ({"device": "abacus", "processes": 2}, "device 'abacus' is unknown"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_written(bundle, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        sample(bundle, tmp_path / "out", **(CPU | options))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_gpu_that_is_not_there_is_a_clear_error(bundle, tmp_path, processes):
    with pytest.raises(UserError, match="no usable GPU; use --device cpu"):
        sample(bundle, tmp_path / "out", device="cuda", processes=processes)


def test_more_steps_than_the_process_has_levels_are_refused_before_anything_is_written(tmp_path):
    folder = make_bundle(tmp_path / "bundle", "CT", "diffusion.num_train_steps=10")
    with pytest.raises(UserError, match="11 sampling steps: this process has 10"):
        sample(folder, tmp_path / "out", steps=11, device="cpu")
    assert not (tmp_path / "out").exists()


class _Deadly:
    """A filter that ends the process that it looks at a scan in, as the system does for want of memory."""

    sha256 = "0"

    def load(self, grid: object, device: object) -> object:
        return self.end

    def end(self, scan: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_one_clear_line(bundle, tmp_path):
    with pytest.raises(
        UserError, match="one of 2 processes that made scans died; most likely memory ran out"
    ):
        load_bundle(bundle).write(
            tmp_path / "out", num_samples=2, processes=2, device="cpu", reject_copies=_Deadly()
        )


def test_a_file_is_no_folder_for_scans(bundle, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        sample(bundle, tmp_path / "out", **CPU)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_bundle_that_was_never_saved_writes_nothing(bundle, tmp_path):
    """Its hash would not know its weights, and scans are known by it."""
    description = load_bundle(bundle).description
    with pytest.raises(UserError, match="lies on no disk: save it"):
        LatentDiffusionBundle.build(description).write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bundle_describes_what_it_makes(bundle):
    text = load_bundle(bundle).describe()
    assert "CT, 7 x 8 x 10 voxels of" in text and "orientation" in text


def test_zero_steps_are_not_taken_for_the_default(bundle):
    with pytest.raises(ValueError, match="0 sampling steps"):
        list(load_bundle(bundle).sample(1, steps=0))


def test_the_paper_s_ancestral_sampling_works_at_any_number_of_steps(tmp_path):
    folder = make_bundle(tmp_path / "bundle", "MR", "diffusion.num_train_steps=6")
    loaded = load_bundle(folder)
    for steps in (1, 2, 6):
        latents = loaded.sample_latents(range(2), steps=steps)
        assert latents.isfinite().all() and not torch.equal(latents[0], latents[1])


def test_a_bundle_comes_back_as_it_was_saved(bundle, tmp_path):
    loaded = load_bundle(bundle)
    loaded.save(tmp_path)
    again = load_bundle(tmp_path)
    assert again.sha256 == loaded.sha256
    for before, after in ((loaded.autoencoder, again.autoencoder), (loaded.denoiser, again.denoiser)):
        for name, value in before.state_dict().items():
            assert torch.equal(value, after.state_dict()[name]), name


def test_nothing_on_the_way_to_a_scan_is_unpickled():
    source = Path(anatogen.__file__).parent
    files = [path for room in ("core", "diffusion", "generators") for path in (source / room).glob("*.py")]
    networks = ("vqgan", "denoiser", "codebook", "blocks", "convolution", "wgan_gp")
    files += [source / "models" / f"{name}.py" for name in networks]
    for file in files:
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        assert "pickle" not in imported and "torch.load" not in calls, file


def _audit(folder: Path, bundle: Path, flagged: set[int], shape: tuple[int, int, int] = SHAPE) -> AuditFilter:
    """A privacy audit rigged to flag some of scans 0 to 7: their own embeddings are its training scans."""
    loaded = load_bundle(bundle)
    torch.manual_seed(0)
    encoder = Encoder(ContrastiveSettings(widths=(4, 8), dimensions=8)).eval()
    grid = loaded.description.grid.model_copy(update={"shape": shape})
    known = embeddings(encoder, loaded.generate(sorted(flagged)).numpy())
    detector = CopyDetector(encoder, known, 1 - 1e-5, grid)
    write_json(folder / "audit.json", {"format_version": 1, "detector": detector.save(folder)})
    return AuditFilter(folder)


def _numbers(paths: list[Path]) -> list[int]:
    return [int(path.stem.split("_")[1]) for path in paths]


def test_scans_that_the_audit_flags_are_left_out_and_others_take_their_place(bundle, tmp_path):
    audit = _audit(tmp_path / "audit", bundle, {1, 4})
    options = {**NPY, "reject_copies": audit}
    paths = sample(bundle, tmp_path / "out", num_samples=4, **options)
    assert _numbers(paths) == [0, 2, 3, 5] and num_rejected(tmp_path / "out") == 2
    assert not (tmp_path / "out" / "synthetic_000001.npy").exists()
    told = json.loads((tmp_path / "out" / "rejected_000004.json").read_text())
    assert told["rejected"] and told["correlation"] > 0.99 and told["index"] == 4
    whole = _scans(sample(bundle, tmp_path / "whole", num_samples=6, **NPY))
    assert np.array_equal(_scans(paths), whole[[0, 2, 3, 5]])


def test_a_set_without_copies_goes_on_where_it_stopped_in_any_number_of_processes(bundle, tmp_path):
    audit = _audit(tmp_path / "audit", bundle, {0, 3})
    options = {"num_samples": 4, **NPY, "reject_copies": audit}
    one = sample(bundle, tmp_path / "one", **options)
    two = sample(bundle, tmp_path / "two", **(options | {"processes": 2}))
    for gone in ("synthetic_000002.json", "rejected_000003.json", "synthetic_000005.npy"):
        (tmp_path / "two" / gone).unlink()
    again = sample(bundle, tmp_path / "two", **options)
    assert _numbers(one) == _numbers(two) == _numbers(again) == [1, 2, 4, 5]
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("one", "two")]
    assert names[0] == names[1]
    for name in names[0]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    more = sample(bundle, tmp_path / "two", **(options | {"num_samples": 5}))
    assert _numbers(more) == [1, 2, 4, 5, 6]


def test_sets_with_and_without_an_audit_are_not_mixed(bundle, tmp_path):
    audits = [_audit(tmp_path / name, bundle, flagged) for name, flagged in (("a", {0}), ("b", {1}))]
    options = {"num_samples": 2, **NPY}
    sample(bundle, tmp_path / "with", reject_copies=audits[0], **options)
    with pytest.raises(UserError, match="other audit_sha256"):
        sample(bundle, tmp_path / "with", **options)
    with pytest.raises(UserError, match="other audit_sha256"):
        sample(bundle, tmp_path / "with", reject_copies=audits[1], **options)
    # Stopped before a scan was kept: what was left out would be missing from any other set.
    for path in (tmp_path / "with").glob("synthetic_*"):
        path.unlink()
    with pytest.raises(UserError, match=r"rejected_000000\.json is of another set .*audit_sha256"):
        sample(bundle, tmp_path / "with", **options)
    sample(bundle, tmp_path / "without", **options)
    with pytest.raises(UserError, match="other audit_sha256"):
        sample(bundle, tmp_path / "without", reject_copies=audits[0], **options)


def test_a_bundle_that_gives_copies_only_is_given_up(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(anatogen.generators.sampling, "_ENOUGH_CANDIDATES", 4)
    audit = _audit(tmp_path / "audit", bundle, set(range(8)))
    with pytest.raises(UserError, match="flags 4 of 4 scans as copies: this bundle has memorised"):
        sample(bundle, tmp_path / "out", num_samples=2, **NPY, reject_copies=audit)


def test_an_audit_of_other_scans_or_none_is_refused(bundle, tmp_path):
    other = _audit(tmp_path / "audit", bundle, {0}, shape=(16, 16, 16))
    with pytest.raises(UserError, match="audit was made on scans of 16 x 16 x 16 voxels"):
        sample(bundle, tmp_path / "out", **CPU, reject_copies=other)
    with pytest.raises(UserError, match="is not a privacy audit"):
        sample(bundle, tmp_path / "out", **CPU, reject_copies=AuditFilter(tmp_path))

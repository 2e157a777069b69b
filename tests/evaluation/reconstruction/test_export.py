"""`anatogen reconstruct`: what an autoencoder gives back of scans, as files."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from flows import write_flow_bundle
from synthetic_dataset import write_bundle, write_dataset

from anatogen import compare_autoencoders
from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Split, load_manifest
from anatogen.dataset.volumes import VolumeDataset
from anatogen.evaluation.reconstruction.export import reconstruct
from anatogen.generators.loading import load_latent_diffusion


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "data", num_train=1, num_validation=4)


@pytest.fixture
def bundle(tmp_path, data):
    return write_bundle(tmp_path / "bundle", load_manifest(data))


def test_files_are_what_the_autoencoder_gives_back_in_the_scans_unit_and_place(data, bundle, tmp_path):
    paths = reconstruct(bundle, data, tmp_path / "out")
    assert [path.name for path in paths] == [f"reconstructed_{n:06d}.nii.gz" for n in range(4)]
    manifest = load_manifest(data)
    scans = VolumeDataset(data, Split.VALIDATION).batch(range(4))
    with torch.inference_mode():
        expected = load_latent_diffusion(bundle).autoencoder(scans)[0].clamp(-1, 1)[:, 0].numpy()
    for path, array in zip(paths, expected, strict=True):
        image = nib.load(path)
        np.testing.assert_allclose(
            np.asarray(image.dataobj).T, manifest.intensity.restore(array), rtol=1e-4, atol=0.01
        )
        np.testing.assert_allclose(image.affine[:, [2, 1, 0, 3]], manifest.grid.affine)


def test_a_json_beside_each_says_what_it_is_and_names_no_scan(data, bundle, tmp_path):
    paths = reconstruct(bundle, data, tmp_path / "out", file_format="npy")
    told = json.loads((tmp_path / "out" / "reconstructed_000000.json").read_text())
    assert told["reconstructed"] is True and told["synthetic"] is False and told["unit"] == "HU"
    assert "case_" not in json.dumps(told)
    assert np.load(paths[0]).shape == (16, 16, 16)


def test_the_seed_chooses(data, bundle, tmp_path):
    found = []
    for name, seed in [("a", 0), ("b", 0), *((f"c{seed}", seed) for seed in range(1, 8))]:
        (path,) = reconstruct(bundle, data, tmp_path / name, num_samples=1, seed=seed, file_format="npy")
        found.append(path.read_bytes())
    assert found[0] == found[1] and len(set(found)) > 1


def test_what_can_not_be_is_told_and_leaves_nothing(data, bundle, tmp_path):
    (tmp_path / "exists").mkdir()
    with pytest.raises(UserError, match="exists"):
        reconstruct(bundle, data, tmp_path / "exists")
    with pytest.raises(UserError, match="has 4 scans"):
        reconstruct(bundle, data, tmp_path / "out", num_samples=5)
    with pytest.raises(UserError, match="format 'dicom' is unknown"):
        reconstruct(bundle, data, tmp_path / "out", file_format="dicom")
    with pytest.raises(UserError, match="no bundle"):
        reconstruct(data, data, tmp_path / "out")
    other = write_dataset(tmp_path / "other", shape=(20, 16, 16))
    with pytest.raises(UserError, match="on the bundle's grid"):
        reconstruct(bundle, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_family_without_an_autoencoder_has_nothing_to_give_back(data, tmp_path):
    bundle = write_flow_bundle(tmp_path / "flow" / "bundle")
    told = "is the bundle of a wavelet flow, which has no autoencoder"
    for named in (bundle, bundle.parent):
        with pytest.raises(UserError, match=told):
            reconstruct(named, data, tmp_path / "out")
    with pytest.raises(UserError, match=told):
        compare_autoencoders(data, tmp_path / "report", [bundle])
    assert not (tmp_path / "out").exists()

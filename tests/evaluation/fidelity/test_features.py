"""Features of slices and volumes: the box, the planes, the cache, and weights files of MedicalNet."""

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_dataset import write_dataset

import anatogen.evaluation.fidelity.features as features_module
from anatogen.core.errors import UserError
from anatogen.dataset.scan_sets import ScanSet, load_scans
from anatogen.evaluation.fidelity.features import foreground_box, slice_features, volume_features
from anatogen.models.medicalnet import MedicalNet, load_medicalnet

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
# As published: shortcuts of type A for 18, of type B for 10 and 50.
PROJECTED = {10: True, 18: False, 50: True}


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> ScanSet:
    return load_scans(write_dataset(tmp_path_factory.mktemp("scans") / "data", 3, 1), "real")


def _network(depth: int, seed: int = 0) -> MedicalNet:
    torch.manual_seed(seed)
    network = MedicalNet(BLOCKS[depth], bottleneck=depth == 50, projected_shortcut=PROJECTED[depth])
    return network.requires_grad_(False).eval()


def _publish(network: MedicalNet, path: Path) -> Path:
    """Writes weights the way MedicalNet's authors do, with the head of their segmentation network."""
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    state["module.conv_seg.0.weight"] = torch.zeros(512, 32, 2, 2, 2)
    torch.save({"state_dict": state}, path)
    return path


class TestBox:
    def test_it_holds_what_the_mean_scan_shows(self, scans):
        arrays = np.full((4, 16, 16, 16), -1, np.float32)
        arrays[:, 3:9, 5:6, 2:16] = 0.5
        arrays[0, 0, 0, 0] = -0.4  # one voxel of one scan
        assert foreground_box(scans.with_arrays(arrays)) == ((3, 9), (5, 6), (2, 16))

    def test_all_of_the_grid_where_nothing_is_shown(self, scans):
        empty = scans.with_arrays(np.full_like(scans.arrays, -1))
        assert foreground_box(empty) == ((0, 16), (0, 16), (0, 16))


class TestSlices:
    def test_planes_are_named_by_the_body_and_cut_inside_the_box(self, scans):
        found = slice_features(scans.take([0]), ((4, 8), (0, 16), (0, 3)))
        # D goes towards the feet, H towards the back, W towards the left.
        shapes = {plane: rows.shape for plane, rows in found.items()}
        assert shapes == {"axial": (1, 4, 192), "coronal": (1, 16, 192), "sagittal": (1, 3, 192)}

    @pytest.mark.parametrize("num_cores", [1, 3])
    def test_cores_share_scans_and_change_no_number(self, scans, monkeypatch, num_cores):
        box, threads, counts = ((0, 16), (0, 4), (0, 4)), torch.get_num_threads(), []
        expected = slice_features(scans, box)
        pixels = features_module._square_pixels

        def counted(*arguments):
            counts.append(torch.get_num_threads())
            return pixels(*arguments)

        monkeypatch.setattr(features_module, "_square_pixels", counted)
        monkeypatch.setattr(features_module, "available_cores", lambda: num_cores)
        found = slice_features(scans, box)
        assert all(np.array_equal(found[plane], expected[plane]) for plane in expected)
        assert num_cores == 1 or set(counts) == {1}, "threads would wait for one another"
        assert torch.get_num_threads() == threads

    def test_a_slice_decides_its_own_row_alone(self, scans):
        changed = scans.arrays[:1].copy()
        changed[0, 6] = 0
        box = ((5, 8), (5, 6), (5, 6))
        before, after = (
            slice_features(s, box)["axial"] for s in (scans.take([0]), scans.with_arrays(changed))
        )
        assert np.abs(after[0, 1] - before[0, 1]).max() > 0.01
        np.testing.assert_allclose(after[0, [0, 2]], before[0, [0, 2]], atol=1e-5)

    def test_the_cache_gives_the_same(self, scans, tmp_path, monkeypatch):
        box = ((5, 8), (5, 6), (5, 6))
        first = slice_features(scans, box, tmp_path)
        files = sorted(tmp_path.glob("*.npy"))
        assert len(files) == len(scans)
        files[0].unlink()
        told = []
        again = slice_features(scans, box, tmp_path, lambda what, done, total: told.append((done, total)))
        assert all(np.array_equal(first[plane], again[plane]) for plane in first)
        assert told[-1] == (4, 4)
        assert np.load(files[0]).shape == (5, 192)

        def refuse(*arguments):
            raise AssertionError("computed again")

        monkeypatch.setattr("anatogen.models.perceptual.SliceFeatures.forward", refuse)
        assert np.array_equal(slice_features(scans, box, tmp_path)["axial"], first["axial"])
        with pytest.raises(AssertionError, match="computed again"):
            slice_features(scans, ((5, 7), (5, 6), (5, 6)), tmp_path)


class TestMedicalNet:
    @pytest.mark.parametrize("depth", [10, 18, 50])
    def test_published_weights_give_the_network_back(self, tmp_path, depth):
        network = _network(depth)
        loaded = load_medicalnet(_publish(network, tmp_path / "weights.pth"))
        assert loaded.num_features == (2048 if depth == 50 else 512)
        x = torch.randn(1, 1, 16, 12, 10, generator=torch.Generator().manual_seed(0))
        assert torch.equal(loaded(x), network(x))

    def test_resolution_ends_at_an_eighth(self):
        """The last two stages dilate instead of striding."""
        network = _network(10)
        shapes = []
        network.get_submodule("layer4").register_forward_hook(lambda *args: shapes.append(args[2].shape))
        network(torch.zeros(1, 1, 32, 40, 24))
        assert shapes == [(1, 512, 4, 5, 3)]

    def test_shortcut_a_keeps_channels_and_adds_zeros(self):
        network = _network(18)
        block = network.get_submodule("layer2.0")
        for name in ("bn2.weight", "bn2.bias"):
            block.get_parameter(name).zero_()
        x = torch.rand(1, 64, 6, 6, 6)
        found = block(x)
        assert torch.equal(found[:, :64], x[:, :, ::2, ::2, ::2]) and not found[:, 64:].any()

    def test_features_of_a_scan_do_not_see_its_brightness_or_contrast(self, scans, tmp_path):
        weights = _publish(_network(10), tmp_path / "weights.pth")
        found = volume_features(scans, weights)
        changed = volume_features(scans.with_arrays(0.5 * scans.arrays + 0.2), weights)
        assert found.shape == (4, 512) and found.dtype == np.float32
        np.testing.assert_allclose(changed, found, rtol=1e-3, atol=1e-4)
        constant = volume_features(scans.with_arrays(np.zeros_like(scans.arrays[:1])), weights)
        assert np.isfinite(constant).all()

    def test_bad_files(self, tmp_path):
        def fails(match: str, path: Path) -> None:
            with pytest.raises(UserError, match=match):
                load_medicalnet(path)

        fails("there is no file", tmp_path / "none.pth")
        (tmp_path / "text.pth").write_text("hello")
        fails("damaged", tmp_path / "text.pth")
        torch.save([torch.zeros(2)], tmp_path / "list.pth")
        fails("no dictionary of weights", tmp_path / "list.pth")
        torch.save({"state_dict": {"module.fc.weight": torch.zeros(2)}}, tmp_path / "other.pth")
        fails("not of ResNet-10, 18, 34 or 50", tmp_path / "other.pth")
        state = {f"module.{name}": value for name, value in _network(10).state_dict().items()}
        del state["module.layer3.0.bn1.weight"]
        torch.save({"state_dict": state}, tmp_path / "part.pth")
        fails("does not fit its own layout: .*layer3.0.bn1.weight", tmp_path / "part.pth")

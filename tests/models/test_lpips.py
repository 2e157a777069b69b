"""LPIPS on VGG16 from small files in their makers' layout: the formula, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from anatogen.config.resolving import resolve
from anatogen.config.settings import LossSettings
from anatogen.core.errors import ConfigError, UserError
from anatogen.models.lpips import LPIPS, load_lpips

# Layers of torchvision's VGG16: convolutions by channels, M for halving by the largest value.
LAYERS = (4, 4, "M", 6, 6, "M", 8, 8, 8, "M", 10, 10, 10, "M", 10, 10, 10)
WIDTHS = (4, 6, 8, 10, 10)


def _files(folder: Path) -> tuple[Path, Path]:
    """Weights as torchvision and LPIPS name them, with few channels; the classifier's, too."""
    generator = torch.Generator().manual_seed(0)
    vgg, current, number = {}, 3, 0
    for layer in LAYERS:
        if layer == "M":
            number += 1
            continue
        assert isinstance(layer, int)
        vgg[f"features.{number}.weight"] = torch.randn(layer, current, 3, 3, generator=generator) / 3
        vgg[f"features.{number}.bias"] = torch.randn(layer, generator=generator) / 10
        current, number = layer, number + 2
    vgg["classifier.0.weight"] = torch.zeros(2, 2)
    linear = {
        f"lin{index}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for index, width in enumerate(WIDTHS)
    }
    paths = folder / "vgg16.pth", folder / "vgg.pth"
    torch.save(vgg, paths[0])
    torch.save(linear, paths[1])
    return paths


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return _files(tmp_path)


@pytest.fixture
def distance(files: tuple[Path, Path]) -> LPIPS:
    return load_lpips(*files)


@pytest.fixture
def slices() -> tuple[Tensor, Tensor]:
    one, other = torch.rand(2, 3, 1, 40, 56, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return one, other


def _by_definition(files: tuple[Path, Path], one: Tensor, other: Tensor) -> float:
    """Zhang et al. 2018, equation 1, layer by layer and place by place, of one pair of grey slices."""
    vgg, linear = (torch.load(path, weights_only=True) for path in files)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def features(x: Tensor) -> list[Tensor]:
        x = ((x.repeat(3, 1, 1).movedim(0, -1) - shift) / scale).movedim(-1, 0)[None]
        found, number = [], 0
        for index, layer in enumerate(LAYERS):
            if layer == "M":
                x, number = functional.max_pool2d(x, 2), number + 1
                continue
            weights = vgg[f"features.{number}.weight"], vgg[f"features.{number}.bias"]
            x, number = functional.relu(functional.conv2d(x, *weights, padding=1)), number + 2
            if index + 1 == len(LAYERS) or LAYERS[index + 1] == "M":
                found.append(x[0])
        return found

    total = 0.0
    for level, (a, b) in enumerate(zip(features(one), features(other), strict=True)):
        weight = linear[f"lin{level}.model.1.weight"].flatten()
        for row in range(a.shape[1]):
            for column in range(a.shape[2]):
                u, v = (x[:, row, column] / (x[:, row, column].norm() + 1e-10) for x in (a, b))
                total += float((weight * (u - v) ** 2).sum()) / (a.shape[1] * a.shape[2])
    return total


def test_it_is_the_published_formula(distance, files, slices):
    wanted = [_by_definition(files, *pair) for pair in zip(*slices, strict=True)]
    assert float(distance(*slices)) == pytest.approx(sum(wanted) / 3, rel=1e-5)


def test_equal_slices_are_at_no_distance_and_flat_ones_have_a_finite_gradient(distance, slices):
    assert float(distance(slices[0], slices[0])) == 0
    flat = torch.full((1, 1, 16, 16), -1.0, requires_grad=True)
    distance(flat, flat.detach() + 0.1).backward()
    assert flat.grad is not None and flat.grad.isfinite().all()
    assert all(not p.requires_grad for p in distance.parameters())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda vgg, linear: vgg.pop("features.28.bias"),
        lambda vgg, linear: linear.pop("lin4.model.1.weight"),
        lambda vgg, linear: linear.update({"lin0.model.1.weight": torch.ones(1, 5, 1, 1)}),
        lambda vgg, linear: vgg.update({"features.0.weight": torch.ones(4, 1, 3, 3)}),
    ],
)
def test_weights_of_another_network_are_refused(files, spoil: Callable[[dict, dict], object]):
    vgg, linear = (torch.load(path, weights_only=True) for path in files)
    spoil(vgg, linear)
    with pytest.raises(UserError, match="not those of VGG16"):
        LPIPS(vgg, linear)


def test_missing_and_single_files_are_told(files, tmp_path):
    with pytest.raises(UserError, match=r"losses\.vgg_weights: there is no file"):
        load_lpips(tmp_path / "none.pth", files[1])
    with pytest.raises(ConfigError, match="name both or neither"):
        resolve(LossSettings, overrides={"vgg_weights": "a.pth"})


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut short"])
def test_a_file_that_holds_no_weights_is_told(files, content: bytes):
    files[1].write_bytes(content)
    with pytest.raises(UserError, match=r"losses\.lpips_weights: .*vgg\.pth holds no weights"):
        load_lpips(*files)


def test_a_file_of_something_else_is_told(files):
    torch.save([1, 2], files[0])
    with pytest.raises(UserError, match="not those of VGG16"):
        load_lpips(*files)

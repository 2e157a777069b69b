"""Swin UNETR on any grid, and the weights that pre-training hands on."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from anatogen.core.errors import UserError
from anatogen.core.weights import save_weights
from anatogen.downstream.network import PaddedSwinUNETR, padded_shape, transfer_weights
from anatogen.downstream.settings import SwinUNETRSettings

SMALL = SwinUNETRSettings(feature_size=12)


def network(out_channels: int, seed: int = 0) -> PaddedSwinUNETR:
    torch.manual_seed(seed)
    return PaddedSwinUNETR(SMALL, out_channels)


@pytest.mark.parametrize(
    ("shape", "padded"),
    [
        ((32, 32, 32), (64, 32, 32)),
        ((16, 20, 18), (32, 64, 32)),
        ((48, 48, 48), (64, 64, 64)),
        ((40, 56, 40), (64, 64, 64)),
        ((33, 32, 32), (64, 32, 32)),
        ((20, 256, 130), (32, 256, 160)),
    ],
)
def test_padding_is_the_least_that_the_network_takes(shape, padded):
    assert padded_shape(shape) == padded
    assert all(side % 32 == 0 for side in padded)


@pytest.fixture(scope="module")
def segmenting() -> PaddedSwinUNETR:
    return network(3).eval()


@pytest.mark.parametrize("shape", [(32, 32, 32), (17, 40, 20)])
def test_any_grid_comes_out_as_it_went_in(segmenting, shape):
    with torch.no_grad():
        assert segmenting(torch.zeros(1, 1, *shape)).shape == (1, 3, *shape)


def test_what_needs_no_padding_is_monais_own_result(segmenting):
    x = torch.rand(1, 1, 32, 64, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(segmenting(x), segmenting.network(x))


def test_it_draws_nothing_at_random_in_training(segmenting):
    """So a resumed training needs no state of the global generators."""
    x = torch.rand(1, 1, 64, 32, 32) * 2 - 1
    with torch.no_grad():
        first, second = (segmenting.train()(x) for _ in range(2))
    segmenting.eval()
    assert torch.equal(first, second)


def test_padding_is_background_around_the_scan(segmenting):
    """The padded result is that of the scan laid into the middle of an empty one."""
    x = torch.rand(1, 1, 30, 64, 28) * 2 - 1
    around = torch.full((1, 1, 32, 64, 32), -1.0)
    around[:, :, 1:31, :, 2:30] = x
    with torch.no_grad():
        torch.testing.assert_close(segmenting(x), segmenting.network(around)[:, :, 1:31, :, 2:30])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    path = tmp_path_factory.mktemp("transfer") / "weights.safetensors"
    save_weights(network(1, seed=7), path)
    return path


def test_the_transfer_reaches_every_tensor_but_the_head(pretrained):
    found, target = load_file(pretrained), network(3)
    start = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    loaded = transfer_weights(target, pretrained)
    state = target.state_dict()
    kept = set(state) - set(loaded)
    assert all(name.startswith("network.out.") for name in kept)
    assert all(torch.equal(state[name], found[name]) for name in loaded)
    assert all(torch.equal(state[name], start[name]) for name in kept)
    encoder = [name for name in state if name.startswith(("network.swinViT.", "network.encoder"))]
    assert set(encoder) <= set(loaded)
    # Random weights of another seed: the transfer changed what it reached.
    assert any(not torch.equal(state[name], start[name]) for name in encoder)


def test_the_encoder_alone_leaves_the_decoder_at_its_start(pretrained):
    found, target = load_file(pretrained), network(3)
    start = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    loaded = transfer_weights(target, pretrained, "encoder")
    state = target.state_dict()
    assert all(name.startswith(("network.swinViT.", "network.encoder")) for name in loaded)
    assert all(torch.equal(state[name], found[name]) for name in loaded)
    assert all(torch.equal(state[name], start[name]) for name in set(state) - set(loaded))


def test_weights_that_do_not_fit_change_nothing(pretrained, tmp_path):
    target = network(3)
    start = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    tensors = load_file(pretrained)
    name = next(name for name in tensors if name.startswith("network.swinViT."))
    lacking = {key: value for key, value in tensors.items() if key != name}
    other = tensors | {name: torch.zeros(3)}
    stranger = tensors | {"network.unheard_of": torch.zeros(3)}
    for number, content in enumerate((lacking, other, stranger)):
        path = tmp_path / f"{number}.safetensors"
        save_file(content, path)
        with pytest.raises(UserError, match="is not of this network"):
            transfer_weights(target, path)
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="can't be read"):
        transfer_weights(target, tmp_path / "damaged.safetensors")
    assert all(torch.equal(tensor, start[key]) for key, tensor in target.state_dict().items())

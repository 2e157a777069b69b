"""Laws of the network of a level: how far it sees, and what it says before it has learned."""

import pytest
import torch
from torch import nn

from anatogen.config.settings import FlowNetworkSettings
from anatogen.models.flow_network import FlowNetwork

CHAIN = FlowNetworkSettings(width=16, multipliers=(1,), num_blocks=2)
U_NET = FlowNetworkSettings(width=16, multipliers=(1, 2), num_blocks=1)


def _network(settings: FlowNetworkSettings = CHAIN, strides: list = [], started: bool = True) -> FlowNetwork:  # noqa: B006
    """A network from 3 to 2 channels; all of its layers do something unless it is to be as it starts."""
    torch.manual_seed(0)
    network = FlowNetwork(settings, 3, 2, 2, strides)
    for parameter in network.parameters():
        if started and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.double().eval()


def _inputs(number: int, *cells: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(number, 3, *cells, generator=generator, dtype=torch.float64)
    t, conditions = (
        torch.rand(number, *size, generator=generator, dtype=torch.float64) for size in [(), (2,)]
    )
    return x, t, conditions


def test_a_crop_is_the_volume_but_for_what_lies_beyond_its_faces():
    network, (x, t, conditions) = _network(), _inputs(1, 15, 16, 17)
    whole = network(x, t, conditions)
    crop = network(x[:, :, 2:14, 1:13, 3:15], t, conditions)
    # One cell of each block's convolution, of the entry's and of the exit's.
    reach = CHAIN.num_blocks + 2
    inner = [slice(None), slice(None)] + [slice(reach, -reach)] * 3
    assert torch.allclose(crop[tuple(inner)], whole[:, :, 2:14, 1:13, 3:15][tuple(inner)], atol=1e-12)
    wider = [slice(None), slice(None)] + [slice(reach - 1, 1 - reach)] * 3
    assert not torch.allclose(crop[tuple(wider)], whole[:, :, 2:14, 1:13, 3:15][tuple(wider)], atol=1e-6)


def test_a_cell_further_away_than_the_network_sees_changes_nothing():
    network, (x, t, conditions) = _network(), _inputs(1, 1, 1, 20)
    other = x.clone()
    other[..., 15] += 5
    changed = (network(x, t, conditions) - network(other, t, conditions)).abs().amax(dim=(0, 1, 2, 3)) > 1e-12
    assert changed.nonzero().flatten().tolist() == list(range(15 - 4, 20))


@pytest.mark.parametrize(("settings", "strides"), [(CHAIN, []), (U_NET, [(1, 2, 2)])])
def test_a_network_starts_without_a_velocity_and_every_weight_learns(settings, strides):
    network, given = _network(settings, strides, started=False), _inputs(2, 4, 5, 6)
    assert not network(*given).any()
    network = _network(settings, strides)
    network(*given).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize(("settings", "strides"), [(CHAIN, []), (U_NET, [(1, 2, 2)])])
def test_scans_of_a_batch_do_not_see_each_other(settings, strides):
    network, given = _network(settings, strides), _inputs(4, 4, 5, 6)
    order = [2, 0, 3, 1]
    shuffled = network(*(part[order] for part in given))
    assert torch.allclose(shuffled, network(*given)[order], atol=1e-12)
    assert torch.allclose(network(*(part[1:2] for part in given)), network(*given)[1:2], atol=1e-12)


def test_widths_that_no_head_divides_have_a_single_one():
    settings = FlowNetworkSettings(width=56, multipliers=(1, 2), num_blocks=1)
    network = FlowNetwork(settings, 2, 2, 1, [(2, 2, 2)])
    assert network(torch.randn(1, 2, 4, 4, 4), torch.zeros(1), torch.zeros(1, 1)).shape == (1, 2, 4, 4, 4)


def test_time_and_conditions_are_heard():
    network, (x, t, conditions) = _network(), _inputs(1, 4, 4, 4)
    plain = network(x, t, conditions)
    assert not torch.allclose(network(x, t / 2, conditions), plain)
    assert not torch.allclose(network(x, t, conditions + 1), plain)


@pytest.mark.parametrize("cells", [(1, 3, 5), (4, 4, 4), (3, 7, 2)])
def test_any_grid_is_taken_and_its_shape_kept(cells):
    x, t, conditions = _inputs(1, *cells)
    assert _network(U_NET, [(2, 2, 2)])(x, t, conditions).shape == (1, 2, *cells)


def test_muon_teaches_what_cells_go_through_and_adam_the_rest():
    settings = FlowNetworkSettings(width=16, multipliers=(1, 2), num_blocks=1)
    network = FlowNetwork(settings, 5, 2, 3, [(2, 2, 2)])
    names = network.matrix_names()
    kinds = {"convolution", "expand", "project", "skip", "to_qkv", "to_out"}
    found = {part for name in names for part in name.split(".") if part in kinds}
    assert found == kinds
    assert all(name.endswith("weight") for name in names)
    for other in ("embedding", "modulation", "entry", "exit", "upsample", "norm"):
        assert not any(other in name for name in names), other

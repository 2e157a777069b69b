"""What is learned from at once: mirrored along the axes that settings name, half of the time."""

from collections import Counter

import pytest
import torch

from anatogen.downstream.patches import drawn_mirror, mirror_axes

AXIAL = [[0, 0, -1, 0], [0, -1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("flip", "axes"), [("none", ()), ("vertical", (-2,)), ("left_right", (-1,)), ("in_plane", (-2, -1))]
)
def test_half_of_the_scans_are_mirrored_along_one_of_the_axes(flip, axes):
    assert mirror_axes(flip, AXIAL) == axes
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(drawn_mirror(axes, generator) for _ in range(4000))
    wanted = {(): 4000} if not axes else {(): 2000} | {(axis,): 2000 / len(axes) for axis in axes}
    assert drawn.keys() == wanted.keys()
    for axis, number in wanted.items():
        assert drawn[axis] == pytest.approx(number, abs=130)
    # A scan that is not mirrored is itself.
    x = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert torch.equal(x.flip(()), x)

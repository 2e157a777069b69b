"""Pairs out of one set have the MS-SSIM that each has alone."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from anatogen.evaluation.pairwise_ssim import PairwiseMsSsim
from anatogen.evaluation.ssim import choose_scales, ms_ssim, reference_compatible_ms_ssim

SHAPES = [(16, 20, 24), (23, 25, 22), (6, 30, 31), (40, 23, 45), (12, 13, 150)]


def scans(shape: tuple[int, int, int]) -> torch.Tensor:
    generator = np.random.default_rng(0)
    common = 3 * gaussian_filter(generator.standard_normal(shape), 2)
    own = [gaussian_filter(generator.standard_normal(shape), 0.7) for _ in range(3)]
    # The last one is as unlike the others as can be.
    return torch.from_numpy(np.clip(np.stack([common + own[0], common + own[1], -common]), -1, 1)).float()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["whole", "masked", "published"])
def test_pairs_have_the_values_that_each_has_alone(shape, kind):
    volumes, scales = scans(shape), choose_scales(shape)
    mask = None
    if kind == "masked":
        mask = volumes.mean(0) > 0
    pairwise = (
        PairwiseMsSsim.published(shape) if kind == "published" else PairwiseMsSsim.standard(scales, 2.0, mask)
    )
    moments = [pairwise.moments(volume) for volume in volumes]
    size = sum(part.numel() for scale in moments[0] for part in scale) * 4
    assert size <= pairwise.num_bytes
    for i, j in ((0, 0), (0, 1), (1, 0), (0, 2), (1, 2)):
        x, y = volumes[i : i + 1], volumes[j : j + 1]
        if kind == "published":
            expected = float(reference_compatible_ms_ssim(x, y))
        else:
            expected = float(ms_ssim(x, y, 2.0, scales, mask))
        assert pairwise.similarity(moments[i], moments[j]) == pytest.approx(expected, abs=2e-5)

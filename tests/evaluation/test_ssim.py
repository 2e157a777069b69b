import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from anatogen.evaluation.ssim import (
    WEIGHTS,
    choose_scales,
    gaussian,
    ms_ssim,
    reference_compatible_ms_ssim,
    ssim,
)


def scans(number, shape, seed=0, noise=0.3):
    """Smooth volumes and noisy copies of them, float64 in [-1, 1]."""
    generator = np.random.default_rng(seed)
    x = np.stack([gaussian_filter(generator.standard_normal(shape), 2) for _ in range(number)])
    x = np.clip(4 * x, -1, 1)
    y = np.clip(x + noise * generator.standard_normal(x.shape), -1, 1)
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.mark.parametrize("shape", [(16, 20, 24), (11, 11, 11), (13, 12, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ssim_is_scikit_images_over_the_windows_that_fit(shape, dtype):
    x, y = scans(2, shape)
    found = ssim(x.to(dtype), y.to(dtype), 2.0)
    for index in range(2):
        _, full = structural_similarity(
            x[index].numpy(),
            y[index].numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=2.0,
            full=True,
        )
        inside = full[5:-5, 5:-5, 5:-5]
        assert float(found[index]) == pytest.approx(inside.mean(), abs=1e-5)


def test_ssim_is_symmetric_and_one_on_itself_alone():
    x, y = scans(3, (14, 14, 14))
    torch.testing.assert_close(ssim(x, y, 2.0), ssim(y, x, 2.0))
    torch.testing.assert_close(ssim(x, x, 2.0), torch.ones(3, dtype=torch.float64))
    assert (ssim(x, y, 2.0) < 0.99).all()
    # A window of other constants is luminance alone: (2ab + c) / (a^2 + b^2 + c).
    a, b = torch.full((1, 12, 12, 12), 0.5), torch.full((1, 12, 12, 12), -0.25)
    assert float(ssim(a, b, 2.0)) == pytest.approx((-0.25 + 4e-4) / (0.3125 + 4e-4), abs=1e-5)


def test_masked_ssim_is_the_mean_of_the_map_over_the_mask():
    x, y = scans(1, (16, 14, 15))
    mask = torch.zeros(16, 14, 15, dtype=torch.bool)
    mask[7, 8, 6] = mask[9, 6, 8] = True
    # What lies more than a window away from the mask doesn't count.
    single = [ssim(x[:, 2:13, 3:14, 1:12], y[:, 2:13, 3:14, 1:12], 2.0)]
    single.append(ssim(x[:, 4:15, 1:12, 3:14], y[:, 4:15, 1:12, 3:14], 2.0))
    torch.testing.assert_close(ssim(x, y, 2.0, mask=mask), sum(single) / 2)
    torch.testing.assert_close(ssim(x, y, 2.0, mask=torch.ones_like(mask)), ssim(x, y, 2.0))
    with pytest.raises(ValueError, match="mask is empty"):
        ssim(x, y, 2.0, mask=torch.zeros_like(mask))


def test_scales_follow_the_shape():
    assert len(choose_scales((161, 161, 161)).shapes) == 5
    assert len(choose_scales((160, 160, 160)).shapes) == 4
    assert choose_scales((64, 64, 64)).shapes == ((64, 64, 64), (32, 32, 32), (16, 16, 16))
    assert choose_scales((40, 56, 40)).shapes == ((40, 56, 40), (20, 28, 20))
    # The few slices of an anisotropic grid don't limit the scales of the plane.
    thick = choose_scales((32, 256, 256))
    assert [shape[0] for shape in thick.shapes] == [32, 16, 16, 16, 16]
    assert [shape[1] for shape in thick.shapes] == [256, 128, 64, 32, 16]
    few = choose_scales((8, 64, 64))
    assert few.window == 7 and few.sigma == pytest.approx(1.5 * 7 / 11)
    for scales in (thick, few, choose_scales((64, 64, 64))):
        assert sum(scales.weights) == pytest.approx(1)
        assert min(min(shape) for shape in scales.shapes) >= scales.window
        assert scales.weights[0] / scales.weights[1] == pytest.approx(WEIGHTS[0] / WEIGHTS[1])
    assert "3 scales (64 x 64 x 64, 32 x 32 x 32, 16 x 16 x 16), window 11" in str(
        choose_scales((64, 64, 64))
    )
    with pytest.raises(ValueError, match="at least 5 voxels"):
        choose_scales((4, 64, 64))


def test_ms_ssim_is_its_definition_scale_by_scale():
    shape = (9, 23, 26)
    x, y = scans(2, shape)
    scales = choose_scales(shape)
    assert scales.shapes == ((9, 23, 26), (9, 12, 13)) and scales.window == 9
    for index in range(2):
        expected = 1.0
        a, b = x[index].numpy(), y[index].numpy()
        for level, (size, power) in enumerate(zip(scales.shapes, scales.weights, strict=True)):
            if level:
                a, b = _mean_of_blocks(a, size), _mean_of_blocks(b, size)
            contrast, similarity = _contrast_and_ssim(a, b, scales.window, scales.sigma)
            expected *= (similarity if level == 1 else contrast) ** power
        assert float(ms_ssim(x, y, 2.0)[index]) == pytest.approx(expected, rel=1e-9)


def _mean_of_blocks(a, shape):
    """Each voxel of `shape` as the mean of those that it stands for, one by one."""
    steps = [2 if old > new else 1 for old, new in zip(a.shape, shape, strict=True)]
    out = np.empty(shape)
    for place in np.ndindex(*shape):
        block = tuple(slice(p * step, p * step + step) for p, step in zip(place, steps, strict=True))
        out[place] = a[block].mean()
    return out


def _contrast_and_ssim(a, b, window, sigma):
    """Means over all windows, each weighted by the whole three-dimensional Gaussian."""
    line = np.array(gaussian(window, sigma))
    weights = line[:, None, None] * line[:, None] * line
    contrasts, similarities = [], []
    for place in np.ndindex(*(size - window + 1 for size in a.shape)):
        cut = tuple(slice(p, p + window) for p in place)
        u, v = a[cut], b[cut]
        mean_u, mean_v = (weights * u).sum(), (weights * v).sum()
        variances = (weights * (u - mean_u) ** 2).sum() + (weights * (v - mean_v) ** 2).sum()
        covariance = (weights * (u - mean_u) * (v - mean_v)).sum()
        contrasts.append((2 * covariance + 0.06**2) / (variances + 0.06**2))
        luminance = (2 * mean_u * mean_v + 0.02**2) / (mean_u**2 + mean_v**2 + 0.02**2)
        similarities.append(contrasts[-1] * luminance)
    return np.mean(contrasts), np.mean(similarities)


def test_ms_ssim_is_symmetric_falls_with_noise_and_ends_at_0():
    x, y = scans(2, (24, 24, 24))
    worse = scans(2, (24, 24, 24), noise=1.0)[1]
    torch.testing.assert_close(ms_ssim(x, x, 2.0), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(ms_ssim(x, y, 2.0), ms_ssim(y, x, 2.0))
    assert (ms_ssim(x, worse, 2.0) < ms_ssim(x, y, 2.0)).all()
    assert (ms_ssim(x, -x, 2.0) == 0).all()


def test_ms_ssim_sees_only_what_the_mask_covers():
    x, y = scans(1, (24, 24, 48))
    half = x.clone()
    half[:, :, :, 30:] = y[:, :, :, 30:]
    mask = torch.zeros(24, 24, 48, dtype=torch.bool)
    mask[8:16, 8:16, 8:14] = True
    assert float(ms_ssim(x, half, 2.0)) < 0.999
    assert float(ms_ssim(x, half, 2.0, mask=mask)) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(32, 32, 32), (17, 20, 40)])
def test_reference_compatible_raises_the_last_scale_to_the_fourth(shape):
    x, y = scans(2, shape)
    for index in range(2):
        a, b = x[index].numpy(), y[index].numpy()
        contrasts, similarities = [], []
        for _ in range(5):
            contrast, similarity = _published_scale(a, b)
            contrasts.append(contrast)
            similarities.append(similarity)
            d, h, w = (size // 2 for size in a.shape)
            a, b = (
                v[: 2 * d, : 2 * h, : 2 * w].reshape(d, 2, h, 2, w, 2).mean(axis=(1, 3, 5)) for v in (a, b)
            )
        last = similarities[-1] ** 0.1333
        expected = math.prod(
            contrast**weight * last for contrast, weight in zip(contrasts[:4], WEIGHTS, strict=False)
        )
        assert expected == pytest.approx(
            math.prod(c**weight for c, weight in zip(contrasts[:4], WEIGHTS, strict=False)) * last**4
        )
        assert float(reference_compatible_ms_ssim(x, y)[index]) == pytest.approx(expected, rel=1e-6)


def _published_scale(a, b):
    """Constants of range 1, SciPy's Gaussian over mirrored borders."""
    mean_a, mean_b = gaussian_filter(a, 1.5), gaussian_filter(b, 1.5)
    variances = gaussian_filter(a * a, 1.5) - mean_a**2 + gaussian_filter(b * b, 1.5) - mean_b**2
    covariance = gaussian_filter(a * b, 1.5) - mean_a * mean_b
    contrast = (2 * covariance + 9e-4) / (variances + 9e-4)
    luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    return contrast.mean(), (contrast * luminance).mean()


def test_reference_compatible_takes_fewer_scales_where_five_do_not_fit():
    x, y = scans(1, (10, 12, 12))
    found = float(reference_compatible_ms_ssim(x, y))
    assert 0 < found < 1
    assert float(reference_compatible_ms_ssim(x, x)) == pytest.approx(1)


def test_volumes_that_cannot_be_compared_are_refused():
    x, y = scans(1, (12, 12, 12))
    with pytest.raises(ValueError, match="one shape"):
        ssim(x, y[:, 1:], 2.0)
    with pytest.raises(ValueError, match="does not fit"):
        ssim(x[:, :8], y[:, :8], 2.0)

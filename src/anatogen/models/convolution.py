"""3D convolution that is as fast for one volume as for several on a CPU.

PyTorch (2.13, `ConvParams::use_mkldnn`) sends a small batch of one past oneDNN to kernels that take up to
five times as long; latents, and everything at their resolution, are small in this sense.
"""

from typing import Any

import torch
from torch import Tensor, nn

# PyTorch's own bound on batch x channels x depth x height.
_SMALL = 20_480


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, with oneDNN for a batch of one on a CPU as well; the same up to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolves float (B, in_channels, D, H, W)."""
        has_onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
        is_single = has_onednn and len(x) == 1 and x.device.type == "cpu" and x.dtype == torch.float32
        if is_single and 1 < self.kernel_size[2] <= 3 and x[..., 0].numel() <= _SMALL:
            out: Tensor = _SingleConvolution.apply(x, self.weight, self.bias, self.stride, self.padding)
            return out
        return super().forward(x)


class _SingleConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = (stride, padding, bias is not None)
        out: Tensor = torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # The way back has no such entry point: a second volume of zeros takes it to oneDNN all the same.
        x, weight = ctx.saved_tensors
        stride, padding, has_bias = ctx.geometry
        (gradient,) = gradients
        x_gradient, weight_gradient, bias_gradient = torch.ops.aten.convolution_backward(
            _with_zeros(gradient),
            _with_zeros(x),
            weight,
            [weight.shape[0]] if has_bias else None,
            stride,
            padding,
            (1, 1, 1),
            False,
            (0, 0, 0),
            1,
            (ctx.needs_input_grad[0], ctx.needs_input_grad[1], has_bias and ctx.needs_input_grad[2]),
        )
        x_gradient = None if x_gradient is None else x_gradient[:1]
        return x_gradient, weight_gradient, bias_gradient, None, None


def _with_zeros(x: Tensor) -> Tensor:
    return torch.cat((x, torch.zeros_like(x)))

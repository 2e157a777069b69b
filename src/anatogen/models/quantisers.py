"""Quantisers between encoder and decoder: the interface of all, and those that learn no codes.

Those that learn their codes are in `codebook`; `vqgan` builds the one that the settings name.
"""

import math

import torch
from torch import Tensor, distributed, nn

# Bounds of a log-variance, so that a posterior neither vanishes nor overflows (Rombach et al. 2022).
_LOG_VARIANCE = (-30.0, 20.0)


class Quantiser(nn.Module):
    """From the encoder's output h to the latent z, and from z to what the decoder is given.

    A latent of several times `code_dim` channels is quantised in groups of `code_dim`, all with the same
    codes (product quantisation, Jegou et al. 2011). Only `update` has side effects. All that a resumed
    training needs is in parameters and buffers.

    Args:
        num_codes: Number of codes; 0 for a continuous latent.

    Attributes:
        codes: float32 (num_codes, code_dim), all codes.
        usage: int64 (num_codes,), how often each was chosen since the last `reset_usage`.
    """

    codes: Tensor
    usage: Tensor

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.register_buffer("usage", torch.zeros(num_codes, dtype=torch.int64))

    def latent(self, h: Tensor) -> Tensor:
        """The latent before quantisation, (B, C, D, H, W), of the encoder's output."""
        return h

    def lookup(self, z: Tensor) -> Tensor:
        """The code of each group of channels of each latent cell.

        Args:
            z: float (B, G * code_dim, D, H, W).

        Returns:
            int64 (B, D, H, W, G).
        """
        raise NotImplementedError

    def embed(self, indices: Tensor) -> Tensor:
        """The codes of int64 (B, D, H, W, G) indices, as float32 (B, G * code_dim, D, H, W)."""
        return self.codes[indices].flatten(-2).movedim(-1, 1)

    def quantise(self, z: Tensor) -> Tensor:
        """The codes nearest to any latent, float32, shape of z; a quantised latent stays as it is."""
        return self.embed(self.lookup(z.float()))

    def forward(self, h: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Replaces each cell by its code; gradients pass straight through to the latent.

        Args:
            h: float (B, C or 2 C, D, H, W), the encoder's output.
            noise: float32 (B, C, D, H, W), standard normal; only a posterior that is drawn from uses it.

        Returns:
            What the decoder is given, float32 (B, C, D, H, W), and the int64 indices (B, D, H, W, G).
        """
        with torch.autocast(h.device.type, enabled=False):
            z = self.latent(h.float())
            indices = self.lookup(z)
            return z + (self.embed(indices) - z).detach(), indices

    def losses(self, h: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """Its parts of the training loss, 0-d and unweighted, under their names in `LossSettings`.

        Args:
            h: The encoder's output.
            indices: What `forward` returned for it.
        """
        return {}

    @torch.no_grad()
    def update(self, h: Tensor, indices: Tensor, generator: torch.Generator) -> None:
        """Learns from one batch what gradients don't teach, and counts the use of codes.

        Under torch.distributed all ranks take part and stay equal.

        Args:
            h: The encoder's output.
            indices: What `forward` returned for it.
            generator: Decides all that is random; alike on all ranks.
        """
        if len(self.usage):
            self.usage += summed_over_ranks(torch.bincount(indices.flatten(), minlength=len(self.usage)))

    @torch.no_grad()
    def fraction_used(self) -> float | None:
        """Share of the codes used since the last `reset_usage`, in [0, 1]; None without codes."""
        return float((self.usage > 0).float().mean()) if len(self.usage) else None

    def reset_usage(self) -> None:
        """Resets the count of the use of codes."""
        self.usage.zero_()


class FiniteScalarQuantiser(Quantiser):
    """Rounds each channel to one of a few levels: a fixed grid of codes, nothing to learn and none to lose.

    Mentzer et al. 2023 (FSQ). The levels are evenly spaced and include -1 and 1, for even numbers too: the
    latent is tanh(h), in (-1, 1), before it is rounded.

    Args:
        levels: Number of levels of each channel of a code; their product is the number of codes.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__(math.prod(levels))
        self.levels = levels
        axes = [torch.linspace(-1, 1, number) for number in levels]
        self.register_buffer("codes", torch.cartesian_prod(*axes).reshape(-1, len(axes)), persistent=False)

    def latent(self, h: Tensor) -> Tensor:
        """Tanh of h."""
        return h.float().tanh()

    def lookup(self, z: Tensor) -> Tensor:
        """Index of the nearest point of the grid of each group; see `Quantiser.lookup`."""
        levels = torch.tensor(self.levels, device=z.device)
        groups = z.movedim(1, -1).unflatten(-1, (-1, len(self.levels))).clamp(-1, 1)
        steps = ((groups + 1) / 2 * (levels - 1)).round().long()
        # The last channel's level counts singly, as in the Cartesian product.
        strides = levels.flip(0).cumprod(0).flip(0) // levels
        return (steps * strides).sum(-1)


class GaussianPosterior(Quantiser):
    """No quantisation: a diagonal Gaussian posterior kept near the standard normal one (a KL autoencoder).

    Kingma and Welling 2014; with a small weight as in Rombach et al. 2022. h is mean and log-variance side
    by side. The latent is the mean; what the decoder learns from is drawn from the posterior.

    Args:
        channels: C of the latent.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(num_codes=0)
        self.register_buffer("codes", torch.zeros(0, channels), persistent=False)

    def latent(self, h: Tensor) -> Tensor:
        """The posterior's mean."""
        return h.chunk(2, dim=1)[0]

    def lookup(self, z: Tensor) -> Tensor:
        """No code for any cell: int64 (B, D, H, W, 0)."""
        return torch.zeros(z.shape[0], *z.shape[2:], 0, dtype=torch.int64, device=z.device)

    def quantise(self, z: Tensor) -> Tensor:
        """The latent itself."""
        return z.float()

    def forward(self, h: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A draw from the posterior, or its mean if there is no noise; see `Quantiser.forward`."""
        with torch.autocast(h.device.type, enabled=False):
            mean, log_variance = _moments(h)
            z = mean if noise is None else mean + (log_variance / 2).exp() * noise
            return z, self.lookup(z)

    def losses(self, h: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """KL divergence of the posterior from N(0, 1) in nats, mean over the latent's values."""
        mean, log_variance = _moments(h)
        return {"kl": (mean.square() + log_variance.exp() - log_variance - 1).mean() / 2}


def _moments(h: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance = h.float().chunk(2, dim=1)
    return mean, log_variance.clamp(*_LOG_VARIANCE)


def summed_over_ranks(x: Tensor) -> Tensor:
    """The sum over all ranks of torch.distributed, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(x)
    return x

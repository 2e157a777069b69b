"""The codebook between encoder and decoder: looked up by distance, learned by moving averages."""

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

# Distances made at once: 128 MB of them; on a CPU as many as its cache holds until they are compared.
_MAX_DISTANCES = 2**25
_MAX_DISTANCES_CPU = 2**20
_EPSILON = 1e-5


class Codebook(nn.Module):
    """Codes learned by exponential moving averages, with the revival of those that fall out of use.

    van den Oord et al. 2017 (VQ-VAE), appendix A.1. Only `update` has side effects. Everything that a resumed
    training needs, the `initialised` flag too, is a buffer.

    Args:
        num_codes: Number of vectors.
        code_dim: Their length.
        decay: Decay of the moving averages, per update.
        revive_below: A code whose moving count falls below this fraction of the mean count is moved to
            where the data is.

    Attributes:
        codes: float32 (num_codes, code_dim), all codes.
        usage: int64 (num_codes,), how often each was chosen since the last `reset_usage`.
    """

    codes: Tensor
    usage: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    initialised: Tensor

    def __init__(
        self, num_codes: int, code_dim: int, decay: float = 0.99, revive_below: float = 0.03
    ) -> None:
        super().__init__()
        self.decay = decay
        self.revive_below = revive_below
        self.register_buffer("usage", torch.zeros(num_codes, dtype=torch.int64))
        self.register_buffer("codes", torch.randn(num_codes, code_dim))
        self.register_buffer("ema_count", torch.ones(num_codes))
        self.register_buffer("ema_sum", torch.zeros(num_codes, code_dim))
        self.register_buffer("initialised", torch.tensor(False))

    def lookup(self, z: Tensor) -> Tensor:
        """The nearest code of each latent cell.

        Args:
            z: float (B, code_dim, D, H, W).

        Returns:
            int64 (B, D, H, W).
        """
        return _nearest(_cells(z), self.codes).reshape(z.shape[0], *z.shape[2:])

    def embed(self, indices: Tensor) -> Tensor:
        """The codes of int64 (B, D, H, W) indices, as float32 (B, code_dim, D, H, W)."""
        return self.codes[indices].movedim(-1, 1)

    def quantise(self, z: Tensor) -> Tensor:
        """The codes nearest to any latent, float32, shape of z; a quantised latent stays as it is."""
        return self.embed(self.lookup(z.float()))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Replaces each cell by its code; gradients pass straight through to the latent.

        Args:
            z: float (B, code_dim, D, H, W).

        Returns:
            The quantised latent, float32, shape of z, and the int64 indices (B, D, H, W).
        """
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            indices = self.lookup(z)
            return z + (self.embed(indices) - z).detach(), indices

    def commitment(self, z: Tensor, indices: Tensor) -> Tensor:
        """0-d pull of the latent towards its codes, as `forward` chose them: the mean squared distance."""
        return functional.mse_loss(z.float(), self.embed(indices))

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor, generator: torch.Generator) -> None:
        """Moves the codes towards the latents that chose them, and revives those that fell out of use.

        The first call places the codes on cells of the batch. Under torch.distributed all ranks take part and
        stay equal.

        Args:
            z: float (B, code_dim, D, H, W).
            indices: What `forward` returned for it.
            generator: Decides all that is random; alike on all ranks.
        """
        cells = _cells(z.detach().float())
        chosen = indices.flatten()
        num_codes = len(self.codes)
        if not self.initialised:
            self._place(torch.ones(num_codes, dtype=torch.bool), _gathered(cells), generator)
            self.initialised.fill_(True)
            chosen = _nearest(cells, self.codes)
        count = _summed(torch.bincount(chosen, minlength=num_codes).to(cells.dtype))
        total = _summed(torch.zeros_like(self.ema_sum).index_add_(0, chosen, cells))
        self.usage += count.to(torch.int64)
        self.ema_count.lerp_(count, 1 - self.decay)
        self.ema_sum.lerp_(total, 1 - self.decay)
        # Laplace smoothing keeps a code in place whose count is nearly 0 (appendix A.1).
        mass = self.ema_count.sum()
        smoothed = (self.ema_count + _EPSILON) / (mass + num_codes * _EPSILON) * mass
        self.codes.copy_(self.ema_sum / smoothed[:, None])
        dead = self.ema_count < self.revive_below * mass / num_codes
        if dead.any():
            self._place(dead.cpu(), _gathered(cells), generator)

    def fraction_used(self) -> float:
        """Share of the codes used since the last `reset_usage`, in [0, 1]."""
        return float((self.usage > 0).float().mean())

    def reset_usage(self) -> None:
        """Resets the count of the use of codes."""
        self.usage.zero_()

    def _place(self, where: Tensor, cells: Tensor, generator: torch.Generator) -> None:
        """Puts the codes at `where` on random cells, as if each had always been used as often as the mean."""
        number = int(where.sum())
        picks = torch.randint(len(cells), (number,), generator=generator)
        placed = cells[picks.to(cells.device)]
        # Codes on the very same cell would never part: a little noise tells them from one another.
        noise = torch.randn(placed.shape, generator=generator).to(placed.device)
        placed = placed + 0.01 * cells.std(0) * noise
        where = where.to(cells.device)
        self.codes[where] = placed
        count = len(cells) / len(self.codes)
        self.ema_count[where] = count
        self.ema_sum[where] = placed * count


def _cells(z: Tensor) -> Tensor:
    """All cells, (B * D * H * W, code_dim)."""
    return z.movedim(1, -1).flatten(0, 3)


def _nearest(cells: Tensor, codes: Tensor) -> Tensor:
    # argmin |z - e|^2 = argmax z.e - |e|^2 / 2, one product with the offset as one more dimension.
    offset = codes.square().sum(1, keepdim=True).mul(-0.5)
    limit = min(_MAX_DISTANCES, _MAX_DISTANCES_CPU) if cells.device.type == "cpu" else _MAX_DISTANCES
    rows = max(1, limit // len(codes))
    codes = torch.cat((codes, offset), dim=1).T.contiguous()
    cells = functional.pad(cells, (0, 1), value=1.0)
    return torch.cat([(chunk @ codes).max(1).indices for chunk in cells.split(rows)])


def _summed(x: Tensor) -> Tensor:
    """The sum over all ranks of torch.distributed, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(x)
    return x


def _gathered(x: Tensor) -> Tensor:
    if not distributed.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)

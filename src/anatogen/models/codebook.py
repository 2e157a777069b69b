"""Codebooks that are learned: by moving averages, on the unit sphere, or as a linear map of frozen codes."""

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from anatogen.models.quantisers import Quantiser, summed_over_ranks

# Distances made at once: 128 MB of them; on a CPU as many as its cache holds until they are compared.
_MAX_DISTANCES = 2**25
_MAX_DISTANCES_CPU = 2**20
_EPSILON = 1e-5


class Codebook(Quantiser):
    """Codes learned by exponential moving averages, with the revival of those that fall out of use.

    van den Oord et al. 2017 (VQ-VAE), appendix A.1. Everything that a resumed training needs, the
    `initialised` flag too, is a buffer.

    Args:
        num_codes: Number of vectors.
        code_dim: Their length.
        decay: Decay of the moving averages, per update.
        revive_below: A code whose moving count falls below this fraction of the mean count is moved to
            where the data is.
    """

    ema_count: Tensor
    ema_sum: Tensor
    initialised: Tensor

    def __init__(
        self, num_codes: int, code_dim: int, decay: float = 0.99, revive_below: float = 0.03
    ) -> None:
        super().__init__(num_codes)
        self.decay = decay
        self.revive_below = revive_below
        self.register_buffer("codes", torch.randn(num_codes, code_dim))
        self.register_buffer("ema_count", torch.ones(num_codes))
        self.register_buffer("ema_sum", torch.zeros(num_codes, code_dim))
        self.register_buffer("initialised", torch.tensor(False))

    def lookup(self, z: Tensor) -> Tensor:
        """Index of the nearest code of each group; see `Quantiser.lookup`."""
        return _lookup(z, self.codes)

    def losses(self, h: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """Pull of the latent towards its codes."""
        return {"commitment": functional.mse_loss(self.latent(h.float()), self.embed(indices))}

    @torch.no_grad()
    def update(self, h: Tensor, indices: Tensor, generator: torch.Generator) -> None:
        """Moves the codes towards the latents that chose them, and revives those that fell out of use.

        The first call places the codes on cells of the batch; see `Quantiser.update`.
        """
        cells = _cells(self.latent(h.detach().float()), self.codes.shape[1])
        chosen = indices.flatten()
        num_codes = len(self.codes)
        if not self.initialised:
            self._place(torch.ones(num_codes, dtype=torch.bool), _gathered(cells), generator)
            self.initialised.fill_(True)
            chosen = _nearest(cells, self.codes)
        count = summed_over_ranks(torch.bincount(chosen, minlength=num_codes).to(cells.dtype))
        total = summed_over_ranks(torch.zeros_like(self.ema_sum).index_add_(0, chosen, cells))
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


class SphericalCodebook(Codebook):
    """Codes of unit length, chosen by the cosine of the angle.

    Yu et al. 2022 (ViT-VQGAN), with their low-dimensional codes; learned by moving averages, each code being
    the direction of the mean of the latents that chose it (spherical k-means, Dhillon and Modha 2001).
    """

    def __init__(
        self, num_codes: int, code_dim: int, decay: float = 0.99, revive_below: float = 0.03
    ) -> None:
        super().__init__(num_codes, code_dim, decay, revive_below)
        self.codes.copy_(functional.normalize(self.codes))

    def latent(self, h: Tensor) -> Tensor:
        """Each group of channels scaled to unit length."""
        groups = h.float().unflatten(1, (-1, self.codes.shape[1]))
        return functional.normalize(groups, dim=2).flatten(1, 2)

    @torch.no_grad()
    def update(self, h: Tensor, indices: Tensor, generator: torch.Generator) -> None:
        """Turns the codes towards the latents that chose them; see `Codebook.update`."""
        super().update(h, indices, generator)
        self.codes.copy_(functional.normalize(self.codes))


class LinearCodebook(Quantiser):
    """Frozen random codes times a learned matrix: a gradient moves all codes, and none falls out of use.

    Zhu et al. 2024 (SimVQ): codes are W c with c drawn once from N(0, 1 / code_dim).

    Args:
        num_codes: Number of vectors.
        code_dim: Their length.
    """

    frozen: Tensor

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__(num_codes)
        self.register_buffer("frozen", torch.randn(num_codes, code_dim) * code_dim**-0.5)
        self.linear = nn.Linear(code_dim, code_dim)

    @property
    def codes(self) -> Tensor:  # type: ignore[override]
        """The frozen codes as the layer maps them, float32 (num_codes, code_dim)."""
        codes: Tensor = self.linear(self.frozen)
        return codes

    def lookup(self, z: Tensor) -> Tensor:
        """Index of the nearest code of each group; see `Quantiser.lookup`."""
        return _lookup(z.detach(), self.codes.detach())

    def losses(self, h: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """Pull of the latent towards its codes, and of the codes towards their latents."""
        z, codes = h.float(), self.embed(indices)
        return {
            "commitment": functional.mse_loss(z, codes.detach()),
            "codebook": functional.mse_loss(codes, z.detach()),
        }


def _cells(z: Tensor, code_dim: int) -> Tensor:
    return z.movedim(1, -1).reshape(-1, code_dim)


def _lookup(z: Tensor, codes: Tensor) -> Tensor:
    return _nearest(_cells(z, codes.shape[1]), codes).reshape(z.shape[0], *z.shape[2:], -1)


def _nearest(cells: Tensor, codes: Tensor) -> Tensor:
    # argmin |z - e|^2 = argmax z.e - |e|^2 / 2, one product with the offset as one more dimension.
    offset = codes.square().sum(1, keepdim=True).mul(-0.5)
    limit = min(_MAX_DISTANCES, _MAX_DISTANCES_CPU) if cells.device.type == "cpu" else _MAX_DISTANCES
    rows = max(1, limit // len(codes))
    codes = torch.cat((codes, offset), dim=1).T.contiguous()
    cells = functional.pad(cells, (0, 1), value=1.0)
    return torch.cat([(chunk @ codes).max(1).indices for chunk in cells.split(rows)])


def _gathered(x: Tensor) -> Tensor:
    if not distributed.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)

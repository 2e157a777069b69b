"""The codebook against brute force and against its equations worked out by hand."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anatogen.models import codebook as module
from anatogen.models.codebook import Codebook


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _latent(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=_generator(seed))


def _codebook(num_codes: int = 32, code_dim: int = 4, seed: int = 1, **options: float) -> Codebook:
    book = Codebook(num_codes, code_dim, **options)
    book.codes.copy_(_latent(num_codes, code_dim, seed=seed))
    return book


def _initialised(book: Codebook, z: torch.Tensor) -> Codebook:
    book.update(z, book.lookup(z), _generator())
    return book


def _brute_force(book: Codebook, z: torch.Tensor) -> torch.Tensor:
    cells = z.movedim(1, -1).double()
    return torch.cdist(cells.flatten(0, -2), book.codes.double()).argmin(1).reshape(cells.shape[:-1])


@given(
    num_codes=st.integers(2, 50),
    code_dim=st.integers(1, 6),
    rows=st.integers(1, 70),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_lookup_finds_the_nearest_code_of_every_cell_whatever_the_chunks(num_codes, code_dim, rows, seed):
    book = _codebook(num_codes, code_dim, seed=seed + 1)
    z = _latent(2, code_dim, 3, 4, 5, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_DISTANCES", rows * num_codes)
        patch.setattr(module, "_MAX_DISTANCES_CPU", rows * num_codes)
        chosen = book.lookup(z)
    # Where two codes are equally near but for float32's rounding, either is right.
    cells = z.movedim(1, -1).double().flatten(0, -2)
    squares = torch.cdist(cells, book.codes.double()).square()
    excess = squares.gather(1, chosen.reshape(-1, 1)) - squares.min(1, keepdim=True).values
    assert excess.max() <= 1e-6 * (cells.square().max() + book.codes.square().max())


def test_lookup_works_where_the_codebook_exceeds_a_chunk(monkeypatch):
    monkeypatch.setattr(module, "_MAX_DISTANCES", 1)
    monkeypatch.setattr(module, "_MAX_DISTANCES_CPU", 1)
    book, z = _codebook(), _latent(1, 4, 2, 2, 2)
    assert torch.equal(book.lookup(z), _brute_force(book, z))


def test_embedding_the_lookup_of_codes_gives_them_back():
    book = _codebook()
    indices = torch.randint(32, (2, 3, 4, 5), generator=_generator())
    z = book.embed(indices)
    assert z.shape == (2, 4, 3, 4, 5)
    assert torch.equal(book.lookup(z), indices)


def test_a_quantised_latent_stays_as_it_is():
    # Far latents, too: a diffusion model may leave the range of the encoder's.
    book, z = _codebook(), 3 * _latent(2, 4, 3, 4, 5)
    quantised = book.quantise(z)
    assert torch.equal(book.quantise(quantised), quantised)
    assert torch.allclose(book(z)[0], quantised, atol=1e-6)


def test_commitment_is_the_mean_squared_distance_and_pulls_the_latent_alone():
    book, z = _codebook(), _latent(1, 4, 2, 2, 2).requires_grad_()
    indices = book(z)[1]
    loss = book.commitment(z, indices)
    assert torch.allclose(loss, (z - book.embed(indices)).square().mean())
    loss.backward()
    assert torch.allclose(z.grad, 2 * (z - book.embed(indices)).detach() / z.numel())
    assert not list(book.parameters())


def test_gradients_pass_straight_through():
    book, z = _codebook(), _latent(1, 4, 2, 2, 2).requires_grad_()
    quantised, indices = book(z)
    assert torch.allclose(quantised, book.embed(indices), atol=1e-6)
    weight = _latent(*quantised.shape, seed=5)
    (quantised * weight).sum().backward()
    assert torch.equal(z.grad, weight)


def test_quantised_latents_are_float32_under_autocast():
    book = _codebook()
    with torch.autocast("cpu", torch.bfloat16):
        quantised, indices = book(_latent(1, 4, 2, 2, 2).bfloat16())
    assert quantised.dtype == torch.float32
    assert torch.equal(indices, book.lookup(_latent(1, 4, 2, 2, 2).bfloat16().float()))


def test_lookup_and_forward_have_no_side_effects():
    book, z = _codebook(), _latent(1, 4, 3, 3, 3)
    before = copy.deepcopy(book.state_dict())
    book.train()
    book(z)
    book.lookup(z)
    assert all(torch.equal(before[name], value) for name, value in book.state_dict().items())


def test_the_first_update_places_the_codes_on_the_data():
    z = _latent(2, 4, 6, 6, 6) + 50
    book = _initialised(_codebook(), z)
    assert bool(book.initialised)
    assert book.codes.mean() == pytest.approx(50, abs=0.5)
    assert (book.lookup(z).unique().numel()) > 16


def test_a_second_update_does_not_initialise_again():
    z = _latent(2, 4, 6, 6, 6)
    book = _initialised(_codebook(revive_below=0.0), z)
    before = book.codes.clone()
    book.update(z, book.lookup(z), _generator(7))
    assert (book.codes - before).norm() < 0.1 * before.norm()


def test_the_update_is_the_moving_average_of_the_paper():
    """N <- d N + (1 - d) n, m <- d m + (1 - d) sum z, e = m / N (van den Oord et al. 2017, A.1)."""
    book = _initialised(_codebook(3, 2, decay=0.9, revive_below=0.0), _latent(1, 2, 4, 4, 4))
    count, total = book.ema_count.clone(), book.ema_sum.clone()
    z = torch.tensor([[[[[1.0, 2.0, 4.0]]], [[[0.0, 1.0, -1.0]]]]])  # cells (1, 0), (2, 1), (4, -1)
    book.update(z, torch.tensor([[[[[0], [2], [2]]]]]), _generator())
    count = 0.9 * count + 0.1 * torch.tensor([1.0, 0.0, 2.0])
    total = 0.9 * total + 0.1 * torch.tensor([[1.0, 0.0], [0.0, 0.0], [6.0, 0.0]])
    assert torch.allclose(book.ema_count, count)
    assert torch.allclose(book.ema_sum, total)
    assert torch.allclose(book.codes, total / count[:, None], rtol=1e-3)


def test_codes_converge_to_the_means_of_their_clusters():
    centres = torch.tensor([[-5.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    book = Codebook(16, 2, decay=0.8)
    for step in range(60):
        which = torch.randint(3, (200,), generator=_generator(step))
        cells = centres[which] + 0.1 * _latent(200, 2, seed=step)
        z = cells.T.reshape(1, 2, 200, 1, 1)
        book.update(z, book.lookup(z), _generator(step))
    assert torch.cdist(centres, book.codes).min(1).values.max() < 0.2
    assert torch.cdist(book.codes, centres).min(1).values.max() < 0.5


def test_a_revived_code_survives_the_next_updates():
    """Its count and sum are set with it, or the next update would throw it back to where it was."""
    z = _latent(1, 2, 8, 8, 8)
    book = _initialised(_codebook(8, 2), z)
    book.codes[3], book.ema_count[3], book.ema_sum[3] = 1e3, 1e-6, 1e-3
    book.update(z, book.lookup(z), _generator(1))
    assert book.codes[3].norm() < 10
    assert book.ema_count[3] == pytest.approx(512 / 8)
    assert torch.allclose(book.ema_sum[3], book.codes[3] * book.ema_count[3])
    revived = book.codes[3].clone()
    for step in range(3):
        book.update(z, book.lookup(z), _generator(2 + step))
        assert (book.codes[3] - revived).norm() < 0.5
    assert book.ema_count[3] > book.revive_below * book.ema_count.mean()


def test_codes_in_use_are_not_moved_by_the_revival_of_others():
    z = _latent(1, 2, 8, 8, 8)
    book = _initialised(_codebook(8, 2), z)
    alone = copy.deepcopy(book)
    book.codes[3], book.ema_count[3], book.ema_sum[3] = 1e3, 1e-6, 1e-3
    alone.codes[3], alone.ema_count[3], alone.ema_sum[3] = 1e3, 1e-6, 1e-3
    alone.revive_below = 0.0
    indices = book.lookup(z)
    book.update(z, indices, _generator(1))
    alone.update(z, indices, _generator(1))
    others = [index for index in range(8) if index != 3]
    assert torch.equal(book.codes[others], alone.codes[others])


def test_most_codes_stay_in_use_over_training():
    book = Codebook(64, 4)
    for step in range(50):
        z = _latent(1, 4, 8, 8, 8, seed=step)
        if step == 40:
            book.reset_usage()
        book.update(z, book.lookup(z), _generator(step))
    assert book.fraction_used() > 0.9


def test_usage_counts_what_was_chosen_since_the_last_reset():
    z = _latent(1, 4, 4, 4, 4)
    book = _initialised(_codebook(), z)
    book.reset_usage()
    assert book.fraction_used() == 0
    indices = book.lookup(z)
    for _ in range(2):
        book.update(z, indices, _generator())
    assert torch.equal(book.usage, 2 * torch.bincount(indices.flatten(), minlength=32))
    assert book.fraction_used() == indices.unique().numel() / 32


def test_a_resumed_codebook_goes_on_as_the_old_one(tmp_path):
    """All of its state is in the state dict; M loses `initialised` and starts over."""
    z = _latent(1, 4, 4, 4, 4)
    book = _initialised(_codebook(), z)
    torch.save(book.state_dict(), tmp_path / "state.pt")
    resumed = Codebook(32, 4)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert bool(resumed.initialised)
    for each in (book, resumed):
        each.update(z, each.lookup(z), _generator(3))
    for name, value in book.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_updates_depend_on_the_generator_alone():
    z = _latent(1, 4, 4, 4, 4)
    first, second = _codebook(), _codebook()
    torch.manual_seed(0)
    _initialised(first, z)
    torch.manual_seed(1)
    _initialised(second, z)
    assert torch.equal(first.codes, second.codes)


def test_equal_cells_leave_finite_codes():
    """An encoder that has collapsed to a point must not give NaN."""
    book = Codebook(8, 2)
    for step in range(3):
        z = torch.ones(1, 2, 4, 4, 4)
        book.update(z, book.lookup(z), _generator(step))
    assert book.codes.isfinite().all()

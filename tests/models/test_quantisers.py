"""The quantisers: nearest codes by brute force, gradients, and closed forms of their losses."""

import itertools

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from anatogen.config.presets import training_settings
from anatogen.config.resolving import parse_overrides
from anatogen.config.settings import AutoencoderSettings, LatentDiffusionSettings
from anatogen.core.errors import ConfigError
from anatogen.models.codebook import Codebook, LinearCodebook, SphericalCodebook
from anatogen.models.quantisers import FiniteScalarQuantiser, GaussianPosterior, Quantiser
from anatogen.models.vqgan import VQGAN, build_quantiser

CODE_DIM, NUM_GROUPS = 3, 2
WITH_CODES = {
    "ema": lambda: Codebook(24, CODE_DIM),
    "l2": lambda: SphericalCodebook(24, CODE_DIM),
    "simvq": lambda: LinearCodebook(24, CODE_DIM),
    "fsq": lambda: FiniteScalarQuantiser((4, 3, 2)),
}


def _quantiser(name: str) -> Quantiser:
    torch.manual_seed(1)
    return WITH_CODES[name]()


def _output(seed: int = 0, channels: int = NUM_GROUPS * CODE_DIM) -> torch.Tensor:
    return torch.randn(2, channels, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


def _groups(z: torch.Tensor) -> torch.Tensor:
    """(cells, code_dim), as the indices count them."""
    return z.movedim(1, -1).reshape(-1, CODE_DIM)


@pytest.mark.parametrize("name", WITH_CODES)
def test_the_nearest_code_is_chosen(name):
    quantiser = _quantiser(name)
    # Far latents, too: a diffusion model may leave the range of the encoder's.
    z = 3 * quantiser.latent(_output())
    distances = torch.cdist(_groups(z), quantiser.codes)
    found = distances.gather(1, quantiser.lookup(z).reshape(-1, 1))[:, 0]
    assert torch.allclose(found, distances.min(1).values, atol=1e-5)


@pytest.mark.parametrize("name", WITH_CODES)
def test_a_quantised_latent_stays_as_it_is(name):
    quantiser = _quantiser(name)
    quantised = quantiser.quantise(quantiser.latent(_output()))
    assert torch.equal(quantiser.quantise(quantised), quantised)
    assert torch.allclose(quantiser(_output())[0], quantised, atol=1e-6)


@pytest.mark.parametrize("name", WITH_CODES)
def test_gradients_pass_straight_through_to_the_latent(name):
    quantiser, h = _quantiser(name), _output().requires_grad_()
    upstream = _output(seed=5)
    (wanted,) = torch.autograd.grad((quantiser.latent(h) * upstream).sum(), h)
    (found,) = torch.autograd.grad((quantiser(h)[0] * upstream).sum(), h)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", WITH_CODES)
def test_use_is_counted_until_it_is_reset(name):
    quantiser, h = _quantiser(name), _output()
    assert quantiser.fraction_used() == 0
    quantiser.update(h, quantiser(h)[1], torch.Generator().manual_seed(0))
    assert int(quantiser.usage.sum()) == h.numel() // CODE_DIM
    assert quantiser.fraction_used() == pytest.approx(float((quantiser.usage > 0).float().mean()))
    quantiser.reset_usage()
    assert quantiser.fraction_used() == 0


def test_l2_codes_and_latents_have_unit_length_whatever_they_learn_from():
    book = _quantiser("l2")
    generator = torch.Generator().manual_seed(0)
    for seed in range(4):
        h = (1 + seed) * _output(seed)
        lengths = _groups(book.latent(h)).norm(dim=1)
        assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-6)
        book.update(h, book(h)[1], generator)
        assert torch.allclose(book.codes.norm(dim=1), torch.ones(24), atol=1e-6)


def test_l2_chooses_by_the_largest_cosine_and_so_ignores_length():
    book, h = _quantiser("l2"), _output()
    cosines = functional.normalize(_groups(h)) @ book.codes.T
    assert torch.equal(book.lookup(h).flatten(), cosines.argmax(1))
    assert torch.equal(book.lookup(h), book.lookup(0.01 * h))


def test_an_l2_code_becomes_the_direction_of_the_mean_of_those_that_chose_it():
    book = SphericalCodebook(2, 2, decay=0.0, revive_below=0.0)
    h = torch.tensor([[1.0, 0.2], [1.0, -0.6], [-1.0, 0.1]]).T.reshape(1, 2, 1, 1, 3)
    book.initialised.fill_(True)
    book.codes.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    book.update(h, book(h)[1], torch.Generator())
    unit = functional.normalize(h.reshape(2, 3).T)
    assert torch.allclose(book.codes[0], functional.normalize(unit[:2].sum(0), dim=0), atol=1e-6)
    assert torch.allclose(book.codes[1], unit[2], atol=1e-6)


def test_simvq_learns_its_matrix_and_leaves_its_codes_frozen():
    book, h = _quantiser("simvq"), _output()
    frozen = book.frozen.clone()
    learner = torch.optim.SGD(book.parameters(), lr=0.5)
    errors = []
    for _ in range(60):
        indices = book(h)[1]
        losses = book.losses(h, indices)
        assert torch.allclose(losses["commitment"], losses["codebook"])
        errors.append(losses["codebook"].item())
        learner.zero_grad()
        losses["codebook"].backward()
        learner.step()
        book.update(h, indices, torch.Generator())
    assert errors[-1] < 0.7 * errors[0]
    assert torch.equal(book.frozen, frozen)
    assert {name for name, _ in book.named_parameters()} == {"linear.weight", "linear.bias"}


def test_simvq_s_pulls_each_move_one_side_only():
    book, h = _quantiser("simvq"), _output().requires_grad_()
    losses = book.losses(h, book(h)[1])
    weights = list(book.parameters())
    assert torch.autograd.grad(losses["commitment"], weights, allow_unused=True, retain_graph=True) == (
        None,
        None,
    )
    assert torch.autograd.grad(losses["codebook"], [h], allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(losses["codebook"], weights)[0].abs().sum() > 0


@pytest.mark.parametrize("levels", [(2,), (5,), (8, 5), (4, 3, 2)])
def test_fsq_reaches_each_level_and_lookup_and_embedding_are_inverse(levels):
    quantiser = FiniteScalarQuantiser(levels)
    wanted = [[-1 + 2 * k / (number - 1) for k in range(number)] for number in levels]
    assert torch.allclose(quantiser.codes, torch.tensor(list(itertools.product(*wanted))), atol=1e-6)
    indices = torch.arange(len(quantiser.codes)).reshape(1, -1, 1, 1, 1)
    assert torch.equal(quantiser.lookup(quantiser.embed(indices)), indices)
    # From the encoder's side: outputs all over the place reach all codes, and none beyond [-1, 1].
    h = 2 * torch.randn(4000, len(levels), 1, 1, 1, generator=torch.Generator().manual_seed(0))
    assert len(quantiser(h)[1].unique()) == len(quantiser.codes)
    assert quantiser(100 * h)[0].abs().max() <= 1


def test_the_posterior_s_divergence_is_that_of_torch():
    quantiser, h = GaussianPosterior(3), _output()
    mean, log_variance = h.chunk(2, dim=1)
    wanted = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean()
    assert torch.allclose(quantiser.losses(h, quantiser(h)[1])["kl"], wanted)
    assert float(quantiser.losses(torch.zeros_like(h), quantiser(h)[1])["kl"]) == 0


def test_the_posterior_is_drawn_from_with_noise_and_is_its_mean_without():
    quantiser, h = GaussianPosterior(3), _output()
    mean, log_variance = h.chunk(2, dim=1)
    noise = _output(seed=2, channels=3)
    z, indices = quantiser(h, noise)
    assert torch.allclose(z, mean + (log_variance / 2).exp() * noise)
    assert torch.equal(quantiser(h)[0], mean) and torch.equal(quantiser.latent(h), mean)
    assert torch.equal(quantiser.quantise(mean), mean)
    assert indices.shape == (2, 3, 4, 5, 0) and quantiser.fraction_used() is None
    quantiser.update(h, indices, torch.Generator())
    extreme = torch.full_like(h, 1e4)
    assert quantiser(extreme, noise)[0].isfinite().all()


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("ema", Codebook, {}),
        ("l2", SphericalCodebook, {}),
        ("simvq", LinearCodebook, {}),
        ("fsq", FiniteScalarQuantiser, {"fsq_levels": (4, 3, 2)}),
        ("none", GaussianPosterior, {}),
    ],
)
def test_an_autoencoder_has_the_quantiser_that_its_settings_name(name, kind, options):
    small = {"compression": 2, "base_width": 4, "decoder_width": 4, "num_codes": 24, "code_dim": 3}
    settings = AutoencoderSettings(quantiser=name, num_groups=2, **small, **options)
    assert type(build_quantiser(settings)) is kind
    network = VQGAN(settings)
    x = torch.rand(1, 1, 7, 8, 9) * 2 - 1
    reconstructed, _, indices = network(x)
    z = network.encode(x)
    assert z.shape == (1, 6, 4, 4, 5) and reconstructed.shape == x.shape
    assert torch.equal(network.codebook.lookup(z), indices)
    again = network.decode(network.codebook.quantise(z), x.shape[2:])
    assert torch.allclose(again, reconstructed, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["autoencoder.quantiser=fsq"], "needs fsq_levels"),
        (["autoencoder.fsq_levels=[8,8,8,4]"], "belong to quantiser fsq, not to ema"),
        (
            ["autoencoder.quantiser=fsq", "autoencoder.fsq_levels=[8,8]"],
            r"\[8, 8\] make 64 codes of length 2, but num_codes is 2048 and code_dim 4",
        ),
        (["autoencoder.quantiser=fsq", "autoencoder.fsq_levels=[2048,1]"], "greater than or equal to 2"),
        (
            ["autoencoder.quantiser=none", "diffusion.latent_scaling=codebook_range"],
            "needs a codebook.*latent_scaling=standardise",
        ),
    ],
)
def test_settings_that_don_t_fit_a_quantiser_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        training_settings("latent_diffusion", parse_overrides(overrides, LatentDiffusionSettings))

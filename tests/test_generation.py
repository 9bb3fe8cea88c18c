"""Generation: from any program's model, with nothing left to chance that no seed decides."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import float64, linear_gaussian
from pyro import poutine
from torch import nn

from pyrovae.data import Batch
from pyrovae.decoders import BernoulliDecoder, GaussianDecoder
from pyrovae.encoders import GaussianEncoder
from pyrovae.encoding import encode, posterior_means
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate, log_evidence
from pyrovae.generation import (
    decode,
    interpolate,
    manifold,
    reconstruct,
    sample,
    traverse,
)
from pyrovae.imputation import impute
from pyrovae.models import VAE
from pyrovae.networks import MLP
from pyrovae.priors import StandardNormal

SHAPE = (1, 2, 3)


def image_vae(latents=2, decoder=BernoulliDecoder):
    return VAE(
        StandardNormal(latents),
        decoder(MLP((latents,), SHAPE, hidden=(5,))),
        GaussianEncoder(MLP(SHAPE, (2 * latents,), hidden=(5,))),
    )


def means(vae, z):
    with torch.no_grad():
        return vae.decoder(z).mean


@pytest.fixture
def vae():
    return image_vae()


@pytest.fixture
def batch():
    return Batch(torch.rand(4, *SHAPE).round())


class Hierarchy(nn.Module):
    """z2 -> z1 -> x."""

    def __init__(self):
        super().__init__()
        self.down, self.decode = nn.Linear(2, 3), nn.Linear(3, 5)
        self.up, self.across = nn.Linear(5, 2), nn.Linear(2, 3)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.down(z2), 0.5).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z1), 0.3).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(self.up(x), 0.5).to_event(1))
            pyro.sample("z1", dist.Normal(self.across(z2), 0.1).to_event(1))


class Meanless(nn.Module):
    """A likelihood whose mean is refused."""

    class NoMean(dist.Normal):
        @property
        def mean(self):
            raise NotImplementedError

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z):
        return self.NoMean(self.net(z), 0.1).to_event(3)


# ── Samples ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 4, 11])
@pytest.mark.parametrize("draw", [False, True])
def test_samples_are_as_many_as_asked_and_of_the_shape_of_x(vae, batch, count, draw):
    found = sample(vae, batch, count, draw=draw)
    assert found.x.shape == (count, *SHAPE)
    assert found.shown_by == ("draw" if draw else "mean")
    assert ((found.x == 0) | (found.x == 1)).all() == draw


def test_samples_have_the_moments_of_the_evidence():
    case = linear_gaussian(1)
    x = sample(case.vae, Batch(case.x), 20000, draw=True).x
    W, b = case.vae.decoder.net.weight.detach(), case.vae.decoder.net.bias.detach()
    covariance = W @ W.T + 0.09 * torch.eye(7)
    torch.testing.assert_close(x.mean(0), b, atol=5 * 1.5 / math.sqrt(20000), rtol=0)
    torch.testing.assert_close(torch.cov(x.T), covariance, atol=0.1, rtol=0)


def test_samples_do_not_depend_on_the_templates_values(vae, batch):
    other = Batch(1 - batch.x)
    assert torch.equal(sample(vae, batch, 5).x, sample(vae, other, 5).x)


def test_samples_are_a_function_of_the_seed_alone(vae, batch):
    first = sample(vae, batch, 5, seed=3).x
    torch.randn(7)
    assert torch.equal(sample(vae, batch, 5, seed=3).x, first)
    assert not torch.equal(sample(vae, batch, 5, seed=4).x, first)


class OfFour(nn.Module):
    """A program whose plate has the four rows that it was trained on."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def model(self, x):
        with pyro.plate("data", 4, subsample_size=len(x)):
            z = pyro.sample("z", self.vae.prior())
            pyro.sample("x", self.vae.decoder(z), obs=x)

    def guide(self, x):
        with pyro.plate("data", 4, subsample_size=len(x)):
            pyro.sample("z", self.vae.encoder(x))


def test_a_plate_of_the_training_data_takes_more_rows_than_these():
    given = linear_gaussian(11)
    program, batch = OfFour(given.vae), Batch(given.x)
    assert sample(program, batch, 9).x.shape == (9, 7)
    torch.testing.assert_close(posterior_means(program, batch)["z"], given.posterior_loc)
    again, expected = reconstruct(program, batch).x, reconstruct(given.vae, batch).x
    torch.testing.assert_close(again, expected)
    # The guide is the posterior, so that every draw weighs the evidence.
    found = evaluate(program, given.examples, num_samples=3)
    torch.testing.assert_close(found.log_evidence, given.log_evidence)
    torch.testing.assert_close(found.elbo, given.log_evidence)
    torch.testing.assert_close(log_evidence(program, given.x, num_samples=3), given.log_evidence)


class Labelled(nn.Module):
    """It takes down the labels that its model is given."""

    def __init__(self):
        super().__init__()
        self.vae, self.seen = image_vae(), []
        self.guide = self.vae.guide

    def model(self, x, y):
        self.seen.append(y.tolist())
        self.vae.model(x)


def test_labels_are_repeated_over_the_samples():
    program = Labelled()
    sample(program, Batch(torch.zeros(3, *SHAPE), torch.tensor([5, 6, 7])), 7)
    assert program.seen == [[5, 6, 7, 5, 6, 7, 5]]


def test_a_line_keeps_the_label_of_its_start():
    program, x = Labelled(), torch.zeros(2, *SHAPE)
    start, end = Batch(x, torch.tensor([5, 6])), Batch(x, torch.tensor([7, 8]))
    interpolate(program, start, end, steps=3)
    assert program.seen[-1] == [5, 5, 5, 6, 6, 6]


def test_generating_leaves_the_program_and_the_process_alone(vae, batch):
    generator, store = torch.get_rng_state(), dict(pyro.get_param_store())
    sample(vae, batch, 3, draw=True)
    reconstruct(vae, batch)
    interpolate(vae, batch, batch, steps=2)
    traverse(vae, batch)
    manifold(vae, batch, side=2)
    assert torch.equal(torch.get_rng_state(), generator)
    assert dict(pyro.get_param_store()) == store
    assert all(module.training for module in vae.modules())
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_a_likelihood_without_a_mean_is_shown_by_one_draw(batch):
    vae, z = image_vae(decoder=Meanless), torch.randn(2, 2).repeat_interleave(2000, 0)
    found = decode(vae, {"z": z}, batch)
    assert found.shown_by == "draw"
    score = (found.x - vae.decoder.net(z).detach()) / 0.1
    assert abs(score.mean()) * score.numel() ** 0.5 < 4.5
    assert abs(score.square().mean() - 1) * (score.numel() / 2) ** 0.5 < 4.5


def test_a_likelihood_without_a_mean_is_shown_alike_at_every_call(batch):
    vae = image_vae(decoder=Meanless)
    first = reconstruct(vae, batch).x
    torch.randn(1)
    assert torch.equal(reconstruct(vae, batch).x, first)


# ── Decoding and reconstructing ──────────────────────────────────────────────────────────────


def test_decoding_is_the_mean_of_the_likelihood_row_by_row(vae, batch):
    z = torch.randn(9, 2)
    torch.testing.assert_close(decode(vae, {"z": z}, batch).x, means(vae, z))


def test_a_reconstruction_is_decoded_from_the_posterior_mean(vae, batch):
    with torch.no_grad():
        z = vae.encoder(batch.x).mean
    torch.testing.assert_close(posterior_means(vae, batch)["z"], z)
    torch.testing.assert_close(reconstruct(vae, batch).x, means(vae, z))


def test_a_reconstruction_by_a_hierarchy_does_not_hang_on_chance():
    program, x = Hierarchy(), torch.randn(4, 5)
    first = reconstruct(program, Batch(x)).x
    torch.randn(1)
    assert torch.equal(reconstruct(program, Batch(x)).x, first)


def test_given_latents_of_a_hierarchy_decide_the_rest():
    program, x = Hierarchy(), torch.randn(4, 5)
    z1 = torch.randn(6, 3)
    with torch.no_grad():
        expected = program.decode(z1)
    torch.testing.assert_close(decode(program, {"z1": z1}, Batch(x)).x, expected)


def test_latents_left_out_are_drawn_from_the_prior():
    program = Hierarchy()
    z2 = torch.zeros(3000, 2)
    with torch.no_grad():
        centre = program.decode(program.down(z2[0]))
        spread = 0.5 * program.decode.weight.square().sum(1).sqrt()
    found = decode(program, {"z2": z2}, Batch(torch.zeros(1, 5))).x
    torch.testing.assert_close(found.mean(0), centre, atol=0.1, rtol=0)
    torch.testing.assert_close(found.std(0), spread, atol=0.05, rtol=0)


# ── Lines, traversals, the plane ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("steps", [2, 5])
def test_lines_run_from_the_one_reconstruction_to_the_other(vae, batch, steps):
    end = Batch(1 - batch.x)
    found = interpolate(vae, batch, end, steps=steps).x
    assert found.shape == (4, steps, *SHAPE)
    torch.testing.assert_close(found[:, 0], reconstruct(vae, batch).x)
    torch.testing.assert_close(found[:, -1], reconstruct(vae, end).x)


def test_the_middle_of_a_line_is_decoded_from_the_middle(vae, batch):
    end = Batch(1 - batch.x)
    z = (posterior_means(vae, batch)["z"] + posterior_means(vae, end)["z"]) / 2
    middle = interpolate(vae, batch, end, steps=3).x[:, 1]
    torch.testing.assert_close(middle, means(vae, z))


class Shades(nn.Module):
    """One of three means, and a shift of it: p(x | c, z) = N(2 c + z, 1)."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(x.new_ones(3)))
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(2.0 * c.unsqueeze(-1) + z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=-50 * (x / 2 - torch.arange(3.0)).square()))
            pyro.sample("z", dist.Normal(x - 2 * (x / 2).round(), 0.1).to_event(1))


def test_whole_numbers_change_half_way_along_a_line():
    start, end = Batch(torch.tensor([[0.1]])), Batch(torch.tensor([[4.5]]))
    found = interpolate(Shades(), start, end, steps=5).x.flatten()
    torch.testing.assert_close(found, torch.tensor([0.1, 0.2, 4.3, 4.4, 4.5]))


def test_a_traversal_moves_one_dimension_and_holds_the_others(batch):
    vae = image_vae(latents=3)
    found = traverse(vae, batch, dims=[2, 0], steps=5, reach=2.0).x
    assert found.shape == (2, 5, *SHAPE)
    z = posterior_means(vae, Batch(batch.x[:1]))["z"].repeat(10, 1)
    z[:5, 2] = z[5:, 0] = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    torch.testing.assert_close(found.flatten(0, 1), means(vae, z))


def test_a_traversal_takes_all_dimensions_unless_told(batch):
    assert traverse(image_vae(latents=3), batch).x.shape == (3, 9, *SHAPE)


def test_a_traversal_of_what_is_not_there_is_refused(vae, batch):
    with pytest.raises(InputError, match=r"no latent site 'zed'.*Take one of z"):
        traverse(vae, batch, site="zed")
    for dims in ([2], [-1]):
        with pytest.raises(InputError, match="dimensions 0 to 1"):
            traverse(vae, batch, dims=dims)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda vae, x: sample(vae, x, 0), "count is 0"),
        (lambda vae, x: sample(vae, x, 2.5), "count is 2.5"),
        (lambda vae, x: sample(vae, x[:0], 3), "There is no example"),
        (lambda vae, x: sample(vae, "digits", 3), "class str are no tensor"),
        (lambda vae, x: interpolate(vae, x, x, steps=0), "steps is 0"),
        (lambda vae, x: interpolate(vae, x, x[:2]), "4 examples to start from and 2 to arrive"),
        (lambda vae, x: traverse(vae, x, steps=0), "steps is 0"),
        (lambda vae, x: traverse(vae, x, dims=[]), "dimensions 0 to 1"),
        (lambda vae, x: traverse(vae, x, dims=[0.5]), "dims is 0.5"),
        (lambda vae, x: manifold(vae, x, side=0), "side is 0"),
        (lambda vae, x: impute(vae, x, count=0), "count is 0"),
        (lambda vae, x: impute(vae, x, num_samples=1.5), "num_samples is 1.5"),
        (
            lambda vae, x: decode(vae, {"Z": torch.zeros(2, 2)}, x),
            "no latent 'Z'. Take some of z.$",
        ),
        (
            lambda vae, x: decode(vae, {"z": torch.zeros(2, 3)}, x),
            r"has the shape \(2,\), and values of shape \(2, 3\)",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(call, words, vae, batch):
    with pytest.raises(InputError, match=words):
        call(vae, batch.x)


def test_latents_of_unequal_rows_are_refused(batch):
    given = {"z1": torch.zeros(2, 3), "z2": torch.zeros(4, 2)}
    with pytest.raises(InputError, match=r"\{'z1': 2, 'z2': 4\}"):
        decode(Hierarchy(), given, torch.zeros(1, 5))


def test_examples_may_be_arrays_and_numbers_numpys(vae, batch):
    count, z = np.int64(3), np.zeros((2, 2), dtype=np.float32)
    assert torch.equal(sample(vae, batch.x.numpy(), count).x, sample(vae, batch, 3).x)
    assert torch.equal(reconstruct(vae, batch.x.double()).x, reconstruct(vae, batch).x)
    assert torch.equal(reconstruct(vae, batch.x.byte()).x, reconstruct(vae, batch).x)
    found = decode(vae, {"z": z}, batch.x)
    assert torch.equal(found.x, decode(vae, {"z": torch.from_numpy(z)}, batch).x)


def test_the_plane_is_laid_out_as_on_a_plot(vae, batch):
    found = manifold(vae, batch, side=5).x
    assert found.shape == (5, 5, *SHAPE)
    axis = dist.Normal(0.0, 1.0).icdf(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    for row, column in ((0, 0), (0, 4), (4, 1), (2, 2), (3, 0)):
        z = torch.stack([axis[column], axis[4 - row]])
        torch.testing.assert_close(found[row, column], means(vae, z))


def test_a_plane_needs_two_dimensions_of_a_site_that_is_there(vae, batch):
    with pytest.raises(InputError, match="has 3 dimensions"):
        manifold(image_vae(latents=3), batch)
    with pytest.raises(InputError, match="no latent site 'zed'"):
        manifold(vae, batch, site="zed")


def test_what_a_program_observes_flattened_comes_out_as_the_images_went_in(vae, batch):
    class Flattening(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.guide = BernoulliDecoder(MLP((2,), (6,))), vae.guide

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", vae.prior())
                pyro.sample("x", self.decoder(z), obs=x.flatten(1))

    program = Flattening()
    assert sample(program, batch, 5).x.shape == (5, *SHAPE)
    z = torch.randn(5, 2)
    expected = means(program, z).reshape(5, *SHAPE)
    torch.testing.assert_close(decode(program, {"z": z}, batch).x, expected)


class Rows(nn.Module):
    """Five rows within an example, in a plate to the left of that of the examples."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            top = pyro.sample("top", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("rows", 5, dim=-2):
                z = pyro.sample("z", dist.Normal(top.sum(-1), 1.0))
                pyro.sample("x", dist.Normal(10 * z + top[..., 0], 1.0), obs=x.T)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("top", dist.Normal(x[:, :2], self.scale).to_event(1))
            with pyro.plate("rows", 5, dim=-2):
                pyro.sample("z", dist.Normal(x.T, self.scale))


def test_rows_of_an_example_stay_its_own():
    program, x = Rows(), torch.arange(15.0).reshape(3, 5)
    one = Batch(x)
    found = posterior_means(program, one)
    assert torch.equal(found["z"], x)
    expected = 10 * x + x[:, :1]
    torch.testing.assert_close(reconstruct(program, one).x, expected)
    torch.testing.assert_close(encode(program, [Batch(x[:1]), Batch(x[1:])]).means["z"], x)
    assert sample(program, one, 7).x.shape == (7, 5)

    ends = Batch(x[:2]), Batch(x[1:])
    shares = torch.linspace(0, 1, 4)[None, :, None]
    line = torch.lerp(expected[:2, None], expected[1:, None], shares)
    torch.testing.assert_close(interpolate(program, *ends, steps=4).x, line)

    moved = traverse(program, one, site="top", steps=3, reach=2.0).x
    assert torch.equal(moved[0, :, 0], torch.tensor([-2.0, 0.0, 2.0]))
    assert torch.equal(moved[1], expected[:1].expand(3, 5))


def test_latents_of_another_layout_than_examples_first_are_refused():
    """The site's own layout has the rows of an example before the examples."""
    given = {"top": torch.zeros(5, 2), "z": torch.zeros(5, 3)}
    words = r"shape \(5,\), and .*\(5, 3\).*Give .*\('N', 5\)\.$"
    with pytest.raises(InputError, match=words):
        decode(Rows(), given, torch.zeros(1, 5))


def test_data_of_whole_numbers_are_interpolated_between():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Poisson(z.exp()).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal((x + 0.5).log(), self.scale).to_event(1))

    x = torch.tensor([[1, 2], [7, 0]])
    found = interpolate(Counts(), Batch(x[:1]), Batch(x[1:]), steps=3).x
    means = (x + 0.5).log()
    expected = torch.stack([means[0], means.mean(0), means[1]]).exp()
    torch.testing.assert_close(found[0], expected)
    grid = manifold(Counts(), Batch(x), side=3).x
    assert torch.equal(grid[1, 1], torch.ones(2))


def test_a_traversal_of_whole_numbers_is_refused():
    class Codes(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(2, 4))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(torch.ones(2, 4)).to_event(1))
                pyro.sample("x", dist.Normal(z.float(), 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Categorical(logits=self.logits).to_event(1))

    with pytest.raises(InputError, match="'z' holds whole numbers"):
        traverse(Codes(), Batch(torch.zeros(1, 2)))


@pytest.mark.parametrize("verb", [sample, reconstruct, traverse, manifold])
def test_what_a_program_notes_is_not_drawn(vae, batch, verb):
    class Noting(nn.Module):
        def __init__(self):
            super().__init__()
            self.vae, self.guide = vae, vae.guide

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.deterministic("twice", 2 * pyro.sample("z", self.vae.prior()))
                pyro.sample("x", self.vae.decoder(z / 2), obs=x)

    arguments = (5,) if verb is sample else ()
    found, expected = (verb(program, batch, *arguments).x for program in (Noting(), vae))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("verb", [sample, reconstruct, interpolate, traverse, manifold])
def test_double_precision_works_throughout(verb):
    with float64():
        vae = image_vae(decoder=GaussianDecoder)
        batch = Batch(torch.randn(4, *SHAPE))
    arguments = {sample: (3,), interpolate: (batch,)}.get(verb, ())
    assert verb(vae, batch, *arguments).x.dtype == torch.float64


def test_a_mask_and_a_scale_do_not_change_what_is_generated(vae, batch):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = vae
            self.model = poutine.mask(poutine.scale(vae.model, scale=3.0), mask=False)
            self.guide = vae.guide

    assert torch.equal(sample(Wrapped(), batch, 5).x, sample(vae, batch, 5).x)

r"""Likelihoods of counts: genes of a cell, words of a document.

The size of an example, its total count, is part of what $z$ says. With `latent_size=True` the last
dimension of z says it, and a model of the user's own may pass it: `decoder(z, size=x.sum(-1))`.
Then the network says proportions alone, as in scVI.
Counts are left as they are (`preprocessing=AsIs()`); an encoder takes their logarithm inside its
network, `Log1p`.
"""

__all__ = [
    "MultinomialDecoder",
    "NegativeBinomialDecoder",
    "PoissonDecoder",
    "ZeroInflatedNegativeBinomialDecoder",
]

from collections.abc import Callable
from typing import ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import check_whole
from pyrovae.decoders.positive import Positive
from pyrovae.distributions import Multinomial, NegativeBinomial, Poisson, ZeroInflated
from pyrovae.errors import InputError
from pyrovae.networks import event_rank, halves, smooth_clamp

# Bounds on log μ and on the logit of a further zero, and the floor of θ: not felt by any data.
LOG_MEAN_BOUNDS = (-30.0, 30.0)
MIN_CONCENTRATION = 1e-4
GATE_LOGIT_BOUNDS = (-15.0, 15.0)
# Examples of equal sizes start with this spread of their logarithms.
MIN_SIZE_SCALE = 0.01


class _OfSizes(nn.Module):
    """A decoder of counts, some of whose examples may be larger than others.

    Raises:
        InputError: By its forward pass, if a size is passed although the latent has one.
    """

    values: ClassVar[str] = "counts"

    def __init__(self, net: nn.Module, *, latent_size: bool) -> None:
        super().__init__()

        self.net = net
        self.latent_size = latent_size
        self.size = _LatentSize() if latent_size else None

    @property
    def start_at(self) -> Callable[[Tensor], Self] | None:
        """What sets the sizes to those of examples $(N, x)$ and returns the decoder, if any."""
        return None if self.size is None else self._start_at

    def _start_at(self, x: Tensor) -> Self:
        assert self.size is not None
        self.size.start_at(x.flatten(1).nansum(1))
        return self

    def _outputs(self, z: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the network puts out, and the log of the size where there is one."""
        if self.size is None:
            return self.net(z), None if size is None else size.log()
        if size is not None:
            raise InputError(
                "A size is passed to a decoder that takes it from the latent.",
                "Leave one out: the argument size, or latent_size=True.",
            )
        return self.net(z[..., :-1]), self.size(z)


class PoissonDecoder(_OfSizes):
    r"""The likelihood $p(x \mid z) = \prod_i \mathrm{Poisson}(x_i \mid \mu_i(z))$.

    The network's output $\eta$ is $\log \mu$, or with a size $s$ that of
    $\mu = s \, \mathrm{softmax}(\eta)$.

    Args:
        net: A network mapping $(*, D)$ to $\eta$, with shape $(*, x)$.
        latent_size: Whether the last dimension of z is the size of an example, lognormal under a
            standard normal prior, and the network is given the others.

    References:
        On the challenges of learning with inference networks on sparse, high-dimensional data
        (Krishnan et al., 2018), arXiv:1710.06085.
    """

    def __init__(self, net: nn.Module, *, latent_size: bool = False) -> None:
        super().__init__(net, latent_size=latent_size)

    @staticmethod
    def net_shape(x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network must put out for one observation."""
        return x_shape

    def forward(self, z: Tensor, size: Tensor | None = None) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$.

        Args:
            z: The latent, with shape $(*, D)$.
            size: The expected total of each example, with shape $(*)$.
        """
        rank = event_rank(self.net)
        output, log_size = self._outputs(z, size)

        return Poisson(_log_mean(output, log_size, rank).exp()).to_event(rank)


class NegativeBinomialDecoder(_OfSizes):
    r"""The likelihood $p(x \mid z) = \prod_i \mathrm{NB}(x_i \mid \mu_i(z), \theta_i)$.

    A Poisson whose rate varies: $\mathrm{Var}(x_i) = \mu_i + \mu_i^2 / \theta_i$, with one
    learned $\theta$ for each feature. The network's output is read as in `PoissonDecoder`.

    Args:
        net: A network mapping $(*, D)$ to $\eta$, with shape $(*, x)$.
        x_shape: The shape of one observation.
        latent_size: Whether the last dimension of z is the size of an example, lognormal under a
            standard normal prior, and the network is given the others.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018),
        https://doi.org/10.1038/s41592-018-0229-2.
    """

    def __init__(
        self, net: nn.Module, x_shape: tuple[int, ...], *, latent_size: bool = False
    ) -> None:
        super().__init__(net, latent_size=latent_size)

        self.x_shape = tuple(x_shape)
        self.concentration = _concentration(self.x_shape)

    @staticmethod
    def net_shape(x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network must put out for one observation."""
        return x_shape

    def forward(self, z: Tensor, size: Tensor | None = None) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$.

        Args:
            z: The latent, with shape $(*, D)$.
            size: The expected total of each example, with shape $(*)$.
        """
        rank = len(self.x_shape)
        output, log_size = self._outputs(z, size)
        log_mean = _log_mean(output, log_size, rank)

        return _negative_binomial(log_mean, self.concentration()).to_event(rank)


class ZeroInflatedNegativeBinomialDecoder(_OfSizes):
    r"""The likelihood $p(x \mid z) = \prod_i \pi_i 1_{x_i = 0} + (1 - \pi_i) \mathrm{NB}(x_i)$.

    With the negative binomial of `NegativeBinomialDecoder`, and further zeros of probability
    $\pi_i(z)$.

    Args:
        net: A network mapping $(*, D)$ to $\eta$, as in `PoissonDecoder`, and the logits of
            $\pi$, joined along the first dimension of an observation: $(*, 2 X)$ for vectors.
        x_shape: The shape of one observation.
        latent_size: Whether the last dimension of z is the size of an example, lognormal under a
            standard normal prior, and the network is given the others.

    Raises:
        InputError: In `forward`, if the network's two maps are not of one size.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018),
        https://doi.org/10.1038/s41592-018-0229-2.
    """

    def __init__(
        self, net: nn.Module, x_shape: tuple[int, ...], *, latent_size: bool = False
    ) -> None:
        super().__init__(net, latent_size=latent_size)

        self.x_shape = tuple(x_shape)
        self.concentration = _concentration(self.x_shape)

    @staticmethod
    def net_shape(x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network must put out for one observation."""
        return (2 * x_shape[0], *x_shape[1:])

    def forward(self, z: Tensor, size: Tensor | None = None) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$.

        Args:
            z: The latent, with shape $(*, D)$.
            size: The expected total of each example before further zeros, with shape $(*)$.
        """
        rank = len(self.x_shape)
        output, log_size = self._outputs(z, size)
        output, gate_logits = halves(output, -rank)
        counts = _negative_binomial(_log_mean(output, log_size, rank), self.concentration())
        gate_logits = smooth_clamp(gate_logits, *GATE_LOGIT_BOUNDS)

        return ZeroInflated(counts, gate_logits=gate_logits).to_event(rank)


class MultinomialDecoder(nn.Module):
    r"""The likelihood $p(x \mid z, n) = \mathrm{Mult}(x \mid n, \mathrm{softmax}(\eta(z)))$.

    It is conditional on the total $n = \sum_i x_i$, which it takes from $x$ itself: of what is
    counted it says the proportions, and not how much there is. So are the ELBO and $\log p(x)$.

    Args:
        net: A network mapping $(*, D)$ to the logits $(*, X)$.
        total: The total of what is drawn, and of the mean.

    Raises:
        InputError: If the total is below 1, or the network puts out no vectors.

    References:
        Variational Autoencoders for Collaborative Filtering (Liang et al., 2018),
        arXiv:1802.05814.
    """

    values: ClassVar[str] = "counts"

    def __init__(self, net: nn.Module, *, total: int = 1000) -> None:
        super().__init__()

        check_whole(total=total)
        if event_rank(net) != 1:
            raise InputError(
                "The features that a multinomial counts are a vector, and the network puts out "
                f"{event_rank(net)} dimensions.",
                "Give vectors, or take a PoissonDecoder.",
            )

        self.net = net
        self.total = total

    @staticmethod
    def net_shape(x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network must put out for one observation."""
        return x_shape

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        return Multinomial(self.total, logits=self.net(z))


class _LatentSize(nn.Module):
    r"""The size $s = e^{\mu + \sigma z_D}$ of an example, $\mu$ and $\sigma$ learned.

    Under a standard normal prior it is lognormal.
    """

    def __init__(self) -> None:
        super().__init__()

        self.loc = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        """Its logarithm, with shape $(*)$, by the last dimension of latents $(*, D)$."""
        return self.loc + self.log_scale.exp() * z[..., -1]

    @torch.no_grad()
    def start_at(self, sizes: Tensor) -> None:
        """Sets it to what sizes $(N,)$ have in the mean and the spread of their logarithms."""
        scale, loc = torch.std_mean(sizes.clamp(min=1.0).log(), correction=0)
        self.loc.copy_(loc)
        self.log_scale.copy_(scale.clamp(min=MIN_SIZE_SCALE).log())


def _log_mean(output: Tensor, log_size: Tensor | None, rank: int) -> Tensor:
    """The log of the mean count: the output itself, or the size shared out by its softmax."""
    if log_size is not None:
        dims = tuple(range(-rank, 0))
        log_size = log_size.reshape(*log_size.shape, *[1] * rank)
        output = log_size + output - output.logsumexp(dims, keepdim=True)
    return smooth_clamp(output, *LOG_MEAN_BOUNDS)


def _concentration(shape: tuple[int, ...]) -> Positive:
    return Positive("concentration", 1.0, learn=True, low=MIN_CONCENTRATION, shape=shape)


def _negative_binomial(log_mean: Tensor, concentration: Tensor) -> NegativeBinomial:
    return NegativeBinomial(concentration, logits=log_mean - concentration.log())

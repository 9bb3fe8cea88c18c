r"""Encoders of bits and of one-hot codes, by three kinds of gradient.

The plain ones have none through their draws: Pyro's `Trace_ELBO` takes that of the score,
unbiased and of high variance. The straight-through ones draw the same and borrow the gradient
of a relaxation, of low variance and biased. The relaxed ones draw the relaxation itself, with
its own gradient, and go with a relaxed prior.
"""

__all__ = [
    "BernoulliEncoder",
    "CategoricalEncoder",
    "RelaxedBernoulliEncoder",
    "RelaxedCategoricalEncoder",
    "StraightThroughBernoulliEncoder",
    "StraightThroughCategoricalEncoder",
]

from typing import ClassVar

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.checks import check_finite
from pyrovae.distributions import (
    OneHotGroups,
    RelaxedBernoulli,
    RelaxedOneHotGroups,
    StraightThroughBernoulli,
    StraightThroughOneHotGroups,
    check_classes,
)
from pyrovae.networks import smooth_clamp

# Bounds on logits. A bit that is wrong once in 20,000 times costs no reconstruction, and the
# relaxations keep clear of the ends of floating point.
LOGIT_BOUNDS = (-10.0, 10.0)


class _Bits(nn.Module):
    """A network that puts out the logits of bits."""

    latents: ClassVar[str] = "bits"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()

        self.net = net

    @staticmethod
    def net_shape(latent_dim: int) -> tuple[int, ...]:
        """What the network must put out for one example."""
        return (latent_dim,)

    def logits(self, x: Tensor) -> Tensor:
        """The logits of every bit, with shape $(*, D)$."""
        return smooth_clamp(self.net(x), *LOGIT_BOUNDS)


class _Codes(nn.Module):
    """A network that puts out the logits of one-hot codes."""

    latents: ClassVar[str] = "codes"

    def __init__(self, net: nn.Module, *, classes: int = 10) -> None:
        super().__init__()

        check_classes(getattr(net, "out_shape", (classes,))[-1], classes)
        self.net = net
        self.classes = classes

    @staticmethod
    def net_shape(latent_dim: int, *, classes: int = 10) -> tuple[int, ...]:
        """What the network must put out for one example.

        Raises:
            InputError: If the latent dimensions cannot be divided into codes.
        """
        check_classes(latent_dim, classes)
        return (latent_dim,)

    def logits(self, x: Tensor) -> Tensor:
        """The logits of every code's classes, with shape $(*, G, K)$."""
        return smooth_clamp(self.net(x), *LOGIT_BOUNDS).unflatten(-1, (-1, self.classes))


class BernoulliEncoder(_Bits):
    r"""The encoder $q(z \mid x) = \prod_d \mathrm{Bernoulli}(z_d \mid \sigma(\eta_d(x)))$.

    Its gradient is that of the score. Its prior is one of bits, such as `BernoulliPrior`.

    Args:
        net: A network mapping $(*, x)$ to the logits $\eta$, $(*, D)$, which are kept smoothly
            within (-10, 10).
    """

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        return dist.Bernoulli(logits=self.logits(x)).to_event(1)


class CategoricalEncoder(_Codes):
    r"""The encoder $q(z \mid x) = \prod_g \mathrm{Categorical}(z_g \mid \eta_g(x))$ of codes.

    The codes are one-hot, and laid end to end. Its gradient is that of the score. Its prior is
    one of as many classes, such as `CategoricalPrior`.

    Args:
        net: A network mapping $(*, x)$ to the logits $\eta$, $(*, D)$, which are kept smoothly
            within (-10, 10).
        classes: The number $K$ of classes of each of the $D / K$ codes.

    Raises:
        InputError: If the network's output cannot be divided into codes.
    """

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        return OneHotGroups(self.logits(x))


class StraightThroughBernoulliEncoder(_Bits):
    r"""`BernoulliEncoder` with the gradient of a relaxation.

    Draws and log-probabilities are those of bits, and so is the bound; its gradient is biased.

    Args:
        net: A network mapping $(*, x)$ to the logits $\eta$, $(*, D)$, which are kept smoothly
            within (-10, 10).
        temperature: The temperature $\tau > 0$ of the relaxation: lower is less biased, and
            varies more.

    Raises:
        InputError: If the temperature is not above 0 and finite.

    References:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), arXiv:1611.01144.
    """

    def __init__(self, net: nn.Module, *, temperature: float = 0.5) -> None:
        super().__init__(net)

        check_finite(above=0, temperature=temperature)
        self.temperature = temperature

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        return StraightThroughBernoulli(self.logits(x), self.temperature).to_event(1)


class StraightThroughCategoricalEncoder(_Codes):
    r"""`CategoricalEncoder` with the gradient of a relaxation.

    Draws and log-probabilities are those of codes, and so is the bound; its gradient is biased.

    Args:
        net: A network mapping $(*, x)$ to the logits $\eta$, $(*, D)$, which are kept smoothly
            within (-10, 10).
        classes: The number $K$ of classes of each of the $D / K$ codes.
        temperature: The temperature $\tau > 0$ of the relaxation: lower is less biased, and
            varies more.

    Raises:
        InputError: If the network's output cannot be divided into codes, or the temperature is
            not above 0 and finite.

    References:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), arXiv:1611.01144.
    """

    def __init__(self, net: nn.Module, *, classes: int = 10, temperature: float = 0.5) -> None:
        super().__init__(net, classes=classes)

        check_finite(above=0, temperature=temperature)
        self.temperature = temperature

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        return StraightThroughOneHotGroups(self.logits(x), self.temperature)


class RelaxedBernoulliEncoder(_Bits):
    r"""The encoder of relaxed bits in (0, 1), binary Concrete variables.

    Its prior is relaxed too, a `RelaxedBernoulliPrior`: draws are no bits.

    Args:
        net: A network mapping $(*, x)$ to the logits $\eta$, $(*, D)$, which are kept smoothly
            within (-10, 10).
        temperature: The temperature $\tau > 0$.

    Raises:
        InputError: If the temperature is not above 0 and finite.

    References:
        The Concrete Distribution (Maddison et al., 2017), arXiv:1611.00712.
    """

    def __init__(self, net: nn.Module, *, temperature: float = 0.5) -> None:
        super().__init__(net)

        check_finite(above=0, temperature=temperature)
        self.temperature = temperature

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        return RelaxedBernoulli(self.logits(x), self.temperature).to_event(1)


class RelaxedCategoricalEncoder(_Codes):
    r"""The encoder of relaxed one-hot codes, Concrete variables on simplices.

    Its prior is relaxed too, a `RelaxedCategoricalPrior`: draws are no codes.

    Args:
        net: A network mapping $(*, x)$ to the logits $\eta$, $(*, D)$, which are kept smoothly
            within (-10, 10).
        classes: The number $K$ of classes of each of the $D / K$ codes.
        temperature: The temperature $\tau > 0$.

    Raises:
        InputError: If the network's output cannot be divided into codes, or the temperature is
            not above 0 and finite.

    References:
        The Concrete Distribution (Maddison et al., 2017), arXiv:1611.00712.
    """

    def __init__(self, net: nn.Module, *, classes: int = 10, temperature: float = 0.5) -> None:
        super().__init__(net, classes=classes)

        check_finite(above=0, temperature=temperature)
        self.temperature = temperature

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        return RelaxedOneHotGroups(self.logits(x), self.temperature)

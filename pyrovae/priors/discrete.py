"""Priors of bits and of one-hot codes, and of their relaxations."""

__all__ = [
    "BernoulliPrior",
    "CategoricalPrior",
    "RelaxedBernoulliPrior",
    "RelaxedCategoricalPrior",
]

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import check_finite, check_whole
from pyrovae.distributions import (
    OneHotGroups,
    RelaxedBernoulli,
    RelaxedOneHotGroups,
    check_classes,
)


class _Bits(nn.Module):
    """Logits of independent bits, which start even."""

    logits: Tensor

    def __init__(self, latent_dim: int, *, learn_logits: bool = False) -> None:
        super().__init__()

        check_whole(latent_dim=latent_dim)
        self.latent_dim = latent_dim
        self.learn_logits = learn_logits
        _hold_logits(self, torch.zeros(latent_dim))


class _Codes(nn.Module):
    """Logits of one-hot codes, whose classes start even."""

    logits: Tensor

    def __init__(self, latent_dim: int, *, classes: int = 10, learn_logits: bool = False) -> None:
        super().__init__()

        check_classes(latent_dim, classes)
        self.latent_dim = latent_dim
        self.classes = classes
        self.learn_logits = learn_logits
        _hold_logits(self, torch.zeros(latent_dim // classes, classes))


def _hold_logits(prior: nn.Module, logits: Tensor) -> None:
    if prior.learn_logits:
        prior.logits = nn.Parameter(logits)
    else:
        prior.register_buffer("logits", logits, persistent=False)


class BernoulliPrior(_Bits):
    r"""The prior $p(z) = \prod_d \mathrm{Bernoulli}(z_d \mid \pi_d)$ of D bits.

    Args:
        latent_dim: The number $D$ of bits.
        learn_logits: Whether the logits of $\pi$ are parameters; else $\pi = \tfrac12$.

    Raises:
        InputError: If there is no bit.
    """

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        return dist.Bernoulli(logits=self.logits).to_event(1)


class CategoricalPrior(_Codes):
    r"""The prior $p(z) = \prod_g \mathrm{Categorical}(z_g \mid \pi_g)$ of one-hot codes.

    A code takes up as many latent dimensions as it has classes: there are $G = D / K$ of them.

    Args:
        latent_dim: The number $D$ of latent dimensions, a multiple of the classes.
        classes: The number $K$ of classes of each code.
        learn_logits: Whether the logits of $\pi$ are parameters; else $\pi = 1 / K$.

    Raises:
        InputError: If the latent dimensions cannot be divided into codes.

    Example:
        >>> CategoricalPrior(6, classes=3)().mean
        tensor([0.3333, 0.3333, 0.3333, 0.3333, 0.3333, 0.3333])
    """

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        return OneHotGroups(self.logits)


class RelaxedBernoulliPrior(_Bits):
    r"""The prior of D relaxed bits in (0, 1), binary Concrete variables.

    At a low temperature they are nearly bits. The model is the relaxed one: its log p(x) is not
    that of bits.

    Args:
        latent_dim: The number $D$ of relaxed bits.
        temperature: The temperature $\tau > 0$.
        learn_logits: Whether the logits are parameters; else they are 0.

    Raises:
        InputError: If there is no bit, or the temperature is not above 0 and finite.

    References:
        The Concrete Distribution (Maddison et al., 2017), arXiv:1611.00712.
    """

    def __init__(
        self, latent_dim: int, *, temperature: float = 0.5, learn_logits: bool = False
    ) -> None:
        super().__init__(latent_dim, learn_logits=learn_logits)

        check_finite(above=0, temperature=temperature)
        self.temperature = temperature

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        return RelaxedBernoulli(self.logits, self.temperature).to_event(1)


class RelaxedCategoricalPrior(_Codes):
    r"""The prior of relaxed one-hot codes, Concrete variables on simplices.

    A code takes up as many latent dimensions as it has classes: there are $G = D / K$ of them.
    The model is the relaxed one: its log p(x) is not that of one-hot codes.

    Args:
        latent_dim: The number $D$ of latent dimensions, a multiple of the classes.
        classes: The number $K$ of classes of each code.
        temperature: The temperature $\tau > 0$.
        learn_logits: Whether the logits are parameters; else they are 0.

    Raises:
        InputError: If the latent dimensions cannot be divided into codes, or the temperature is
            not above 0 and finite.

    References:
        The Concrete Distribution (Maddison et al., 2017), arXiv:1611.00712.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        classes: int = 10,
        temperature: float = 0.5,
        learn_logits: bool = False,
    ) -> None:
        super().__init__(latent_dim, classes=classes, learn_logits=learn_logits)

        check_finite(above=0, temperature=temperature)
        self.temperature = temperature

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        return RelaxedOneHotGroups(self.logits, self.temperature)

r"""What a bound makes of the KL of its latents: free bits, a capacity, a balance.

Each is a weight on every latent's KL term, read from the batch's own KL and then held fixed: so
it means the same under every bound, in its log-weights as in an exact KL. The gradients are
those of the published objectives, and so is the value.

A control reads the KL at weight 1: the sum over all that one example has of a latent, the mean
over the batch. What it makes of that is then weighted by the program as the KL itself would be,
dimension by dimension where beta has one number for each: free bits under beta cost
$\sum_j \beta_j \max(\lambda, \mathrm{KL}_j)$.

A warm-up of `fit` multiplies the KL by a share that rises from 0 to 1. A control may know of it.
"""

__all__ = ["BalancedKL", "Capacity", "Control", "FreeBits", "written"]

import copy
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from pyrovae.bounds.draws import Weights
from pyrovae.checks import check_finite
from pyrovae.errors import InputError


class Controlled(NamedTuple):
    """The weights of latents' KL terms, and what each adds to the loss of an example.

    A weight is a number, or has the shape of the latent's KL. A constant has that shape: it is
    weighted by the program as the KL is.
    """

    weights: Weights
    constants: Weights = MappingProxyType({})


class Control(Protocol):
    """A rule for the weights of KL terms."""

    def __call__(self, kls: Mapping[str, Tensor]) -> Controlled:
        """The weights, for each latent's mean KL in nats: (D,) where it has one per dimension."""
        ...


class _Control:
    takes_warmup: ClassVar[bool] = False
    """Whether a warm-up is what it says of the control, and no weight on the KL besides."""
    _share: Tensor | None = None

    def in_warmup(self, share: Tensor) -> Self:
        """The control in a warm-up, of which a share is over: a tensor that rises from 0 to 1."""
        made = copy.copy(self)
        made._share = share
        return made

    def __repr__(self) -> str:
        return written(self, vars(self))


class FreeBits(_Control):
    r"""A KL term that costs nothing below a number of nats: $\sum_j \max(\lambda, \mathrm{KL}_j)$.

    The KL of a dimension, or of a latent, is its mean over the examples of the batch that are not
    masked, plates within an example summed.

    Args:
        nats: The nats $\lambda$ that each is free to carry.
        per_dim: Whether each dimension of a latent has them, or each latent as a whole.

    Raises:
        InputError: If the nats are negative or not finite.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        arXiv:1606.04934, appendix C.8.
    """

    def __init__(self, nats: float = 0.1, *, per_dim: bool = True) -> None:
        check_finite(least=0, nats=nats)

        self.nats = nats
        self.per_dim = per_dim

    def __call__(self, kls: Mapping[str, Tensor]) -> Controlled:
        """Weight 0 where the KL is below its free nats, 1 elsewhere."""
        if self.per_dim and (whole := [name for name, kl in kls.items() if kl.dim() == 0]):
            raise InputError(
                f"The KL of the latent {whole[0]!r} is no sum over its dimensions.",
                "Give FreeBits per_dim=False (--kl.no-per-dim).",
            )
        parts = {name: kl if self.per_dim else kl.sum() for name, kl in kls.items()}
        weights = {name: (kl > self.nats).to(kl.dtype) for name, kl in parts.items()}
        unpaid = {name: self.nats * (1 - weight) for name, weight in weights.items()}
        if not self.per_dim:
            unpaid = {name: nats * _shares(kls[name])[0] for name, nats in unpaid.items()}
        return Controlled(weights, unpaid)


class Capacity(_Control):
    r"""A KL that is drawn to a number of nats: $\gamma \, |\mathrm{KL} - C|$.

    KL is the mean over the batch, summed over latents. In a warm-up it is the capacity that rises
    from 0, in equal steps, and not the weight of the KL: `fit(..., kl_warmup=100)` raises it over
    100 epochs.

    Args:
        nats: The capacity $C$, at last; a 0-dimensional tensor may be changed between steps.
        strength: The weight $\gamma$.

    References:
        Understanding disentangling in beta-VAE (Burgess et al., 2018), arXiv:1804.03599.
    """

    takes_warmup = True

    def __init__(self, nats: float | Tensor = 25.0, *, strength: float = 1000.0) -> None:
        check_finite(least=0, strength=strength)
        if not isinstance(nats, Tensor):
            check_finite(least=0, nats=nats)

        self.nats = nats
        self.strength = strength

    def __call__(self, kls: Mapping[str, Tensor]) -> Controlled:
        r"""The weight $\gamma$ above the capacity, and $-\gamma$ below it."""
        total = torch.stack([kl.sum() for kl in kls.values()]).sum()
        nats = self.nats if self._share is None else self._share * self.nats
        weight = self.strength * (total - nats).sign()
        free = [-weight * nats * share for share in _shares(*kls.values())]
        return Controlled(dict.fromkeys(kls, weight), dict(zip(kls, free, strict=True)))


class BalancedKL(_Control):
    r"""Weights for the latents of a hierarchy by what each carries: $w_l \propto \mathrm{KL}_l$.

    The mean weight is 1: a latent that carries nothing is not punished for starting to. It is
    meant for a warm-up, and where there is one the weights are 1 when that is over. The paper
    multiplies by the sizes of the latents, too.

    References:
        NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020),
        arXiv:2007.03898, appendix A.
    """

    def __call__(self, kls: Mapping[str, Tensor]) -> Controlled:
        """The weights by the mean KL of each latent."""
        carried = torch.stack([kl.sum() for kl in kls.values()])
        # A little for each, so that latents which all carry nothing are weighted alike.
        carried = carried.clamp(min=0) + 1e-3
        weights = carried / carried.mean()
        if self._share is not None:
            weights = torch.where(self._share < 1, weights, 1.0)
        return Controlled(dict(zip(kls, weights.unbind(), strict=True)))


def written(made: object, told: Mapping[str, Any]) -> str:
    """An object as a call of its class with the public ones of its attributes.

    It is the same in every process, for a run that is resumed tells its bound by it: what Python
    would show by its address is written in the same way, and a function without one.
    """
    shown = [f"{k}={_shown(v)}" for k, v in told.items() if not k.startswith("_")]
    return f"{type(made).__name__}({', '.join(shown)})"


def _shown(value: Any) -> str:
    if type(value).__repr__ is object.__repr__:
        return written(value, getattr(value, "__dict__", {}))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _shares(*kls: Tensor) -> list[Tensor]:
    """The share of each KL, and of each of its dimensions, in their sum; alike where all are 0."""
    carried = [kl.clamp(min=1e-12) for kl in kls]
    whole = torch.stack([kl.sum() for kl in carried]).sum()
    return [kl / whole for kl in carried]

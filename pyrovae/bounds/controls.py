r"""What a bound makes of the KL of its latents: free bits, a capacity, a balance.

Each is a weight on every latent's KL term, read from the batch's own KL and then held fixed: so
it means the same under every bound, in its log-weights as in an exact KL. The gradients are
those of the published objectives, and so is the value.

A warm-up of `fit` multiplies the KL by a share that rises from 0 to 1. A control may know of it.
"""

__all__ = ["BalancedKL", "Capacity", "Control", "FreeBits", "mean_kls"]

import copy
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from pyrovae.bounds.draws import Draw, Weights
from pyrovae.distributions import exact_kl, factorizes
from pyrovae.errors import InputError


class Controlled(NamedTuple):
    """The weights of latents' KL terms, and what is added to the loss of an example."""

    weights: Weights
    constant: Tensor | float = 0.0


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
        told = [f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_")]
        return f"{type(self).__name__}({', '.join(told)})"


class FreeBits(_Control):
    r"""A KL term that costs nothing below a number of nats: $\sum_j \max(\lambda, \mathrm{KL}_j)$.

    The KL of a dimension, or of a latent, is its mean over the batch.

    Args:
        nats: The nats $\lambda$ that each is free to carry.
        per_dim: Whether each dimension of a latent has them, or each latent as a whole.

    Raises:
        InputError: If the nats are negative.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        arXiv:1606.04934, appendix C.8.
    """

    def __init__(self, nats: float = 0.1, *, per_dim: bool = True) -> None:
        if nats < 0:
            raise InputError(f"The free nats are {nats}.", "Give 0 or more.")

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
        unpaid = [self.nats * (1 - weight).sum() for weight in weights.values()]
        return Controlled(weights, sum(unpaid))


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
        if strength < 0:
            raise InputError(f"The strength is {strength}.", "Give 0 or more.")

        self.nats = nats
        self.strength = strength

    def __call__(self, kls: Mapping[str, Tensor]) -> Controlled:
        r"""The weight $\gamma$ above the capacity, and $-\gamma$ below it."""
        total = torch.stack([kl.sum() for kl in kls.values()]).sum()
        nats = self.nats if self._share is None else self._share * self.nats
        weight = self.strength * (total - nats).sign()
        return Controlled(dict.fromkeys(kls, weight), -weight * nats)


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


def mean_kls(draw: Draw) -> dict[str, Tensor]:
    """The KL of each latent at weight 1, averaged over draws and examples, in nats.

    With shape (D,) where prior and posterior both factorise, and () elsewhere.
    """
    return {name: _mean_kl(draw, name).detach() for name in draw.matched}


def _mean_kl(draw: Draw, name: str) -> Tensor:
    q, p = draw.latents[name], draw.prior_site(name)
    exact = name in draw.in_order
    if factorizes(q["fn"]) and factorizes(p["fn"]):
        q_dims, p_dims = q["fn"].base_dist, p["fn"].base_dist
        kl = exact_kl(q_dims, p_dims) if exact else None
        if kl is None:
            kl = q_dims.log_prob(q["value"]) - p_dims.log_prob(p["value"])
        return kl.flatten(0, -2).mean(0)

    kl = exact_kl(q["fn"], p["fn"]) if exact else None
    if kl is None:
        kl = q["fn"].log_prob(q["value"]) - p["fn"].log_prob(p["value"])
    return kl.mean()

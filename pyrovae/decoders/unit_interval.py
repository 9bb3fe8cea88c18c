"""Likelihoods of data in [0, 1]."""

__all__ = ["ContinuousBernoulliDecoder"]

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.distributions import ContinuousBernoulli
from pyrovae.networks import event_rank


class ContinuousBernoulliDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i C(\lambda_i) \lambda_i^{x_i} (1-\lambda_i)^{1-x_i}$.

    A density on [0, 1], with $\lambda = \sigma(\eta(z))$ and $C$ its normalising constant.

    Args:
        net: A network mapping $(*, D)$ to the logits $(*, x)$.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019), arXiv:1907.06845.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()

        self.net = net

    @staticmethod
    def net_shape(x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network must put out for one observation."""
        return x_shape

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        return ContinuousBernoulli(self.net(z)).to_event(event_rank(self.net))

"""Likelihoods of binary data."""

__all__ = ["BernoulliDecoder"]

from typing import ClassVar

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.networks import event_rank


class BernoulliDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i \mathrm{Bernoulli}(x_i \mid \sigma(\eta_i(z)))$.

    It is a likelihood of binary data only. On grey pixels it is not a density (it integrates to
    less than one), so data outside {0, 1} are refused: binarise, or take
    `ContinuousBernoulliDecoder`.

    Args:
        net: A network mapping $(*, D)$ to the logits $(*, x)$.
    """

    values: ClassVar[str] = "binary"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()

        self.net = net

    @staticmethod
    def net_shape(x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network must put out for one observation."""
        return x_shape

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        return dist.Bernoulli(logits=self.net(z)).to_event(event_rank(self.net))

"""Likelihoods of data in [0, 1]."""

__all__ = ["BetaDecoder", "ContinuousBernoulliDecoder"]

from typing import ClassVar

import pyro.distributions as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pyrovae.distributions import Beta, ContinuousBernoulli
from pyrovae.networks import event_rank, halves, smooth_clamp

# Bounds on the logit of a mean and on the log of a concentration: a mean nearer to 0 or 1 than
# any level of 8 bits, and a density narrower than one.
LOGIT_BOUNDS = (-12.0, 12.0)
LOG_CONCENTRATION_BOUNDS = (-3.0, 14.0)


class BetaDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i \mathrm{Beta}(x_i \mid m_i \nu_i, (1 - m_i) \nu_i)$.

    The network's output is read as $(\mathrm{logit} \, m, \log \nu)$, kept smoothly within
    (-12, 12) and (-3, 14). The variance is $m (1 - m) / (\nu + 1)$.

    A density on the open interval (0, 1): at 0 and 1 themselves it is zero or infinite, and data
    that hold them are refused. Dequantised 8-bit images do not.

    Args:
        net: A network mapping $(*, D)$ to the two maps joined along the first dimension of an
            observation: $(*, 2 X)$ for vectors, $(*, 2 C, H, W)$ for images.

    Raises:
        InputError: In `forward`, if the network's two maps are not of one size.

    References:
        Beta Regression for Modelling Rates and Proportions (Ferrari & Cribari-Neto, 2004),
        https://doi.org/10.1080/0266476042000214501.
    """

    values: ClassVar[str] = "unit"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()

        self.net = net

    @staticmethod
    def net_shape(x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network must put out for one observation."""
        return (2 * x_shape[0], *x_shape[1:])

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        rank = event_rank(self.net)
        logit, log_concentration = halves(self.net(z), -rank)
        logit = smooth_clamp(logit, *LOGIT_BOUNDS)
        log_concentration = smooth_clamp(log_concentration, *LOG_CONCENTRATION_BOUNDS)
        towards_one = (log_concentration + F.logsigmoid(logit)).exp()
        towards_zero = (log_concentration + F.logsigmoid(-logit)).exp()

        return Beta(towards_one, towards_zero).to_event(rank)


class ContinuousBernoulliDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i C(\lambda_i) \lambda_i^{x_i} (1-\lambda_i)^{1-x_i}$.

    A density on [0, 1], with $\lambda = \sigma(\eta(z))$ and $C$ its normalising constant.

    Args:
        net: A network mapping $(*, D)$ to the logits $(*, x)$.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019), arXiv:1907.06845.
    """

    values: ClassVar[str] = "unit"

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

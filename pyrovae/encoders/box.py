"""Encoders over a box."""

__all__ = ["BetaEncoder"]

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.distributions import StretchedBeta, check_box
from pyrovae.networks import halves, smooth_clamp

# Bounds on log(α - 1) and log(β - 1): from all but the uniform distribution to a standard
# deviation of a thousandth of the box.
LOG_EXCESS_BOUNDS = (-7.0, 12.0)


class BetaEncoder(nn.Module):
    r"""The encoder $q(z \mid x) = \prod_d \mathrm{Beta}(z_d \mid \alpha_d, \beta_d)$ on a box.

    Over the box $[a, b]^D$ of a `UniformPrior`, from which the KL is known. The network's output
    is read as $(\log (\alpha - 1), \log (\beta - 1))$, kept smoothly within (-7, 12): every
    posterior has one peak, and near $\alpha = \beta = 1$ it is the prior.

    Args:
        net: A network mapping $(*, x)$ to $(*, 2 D)$.
        low: The lower end $a$ of every dimension.
        high: The upper end $b$.

    Raises:
        InputError: If `low` is not below `high`, or one is infinite; at the first call, if the
            size of the network's output is odd.

    References:
        Implicit Reparameterization Gradients (Figurnov et al., 2018), arXiv:1805.08498.
    """

    def __init__(self, net: nn.Module, *, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()

        check_box(low, high)
        self.net = net
        self.low = low
        self.high = high

    @staticmethod
    def net_shape(latent_dim: int) -> tuple[int, ...]:
        """What the network must put out for one example."""
        return (2 * latent_dim,)

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        excess = smooth_clamp(self.net(x), *LOG_EXCESS_BOUNDS).exp()
        alpha, beta = halves(1 + excess)

        return StretchedBeta(alpha, beta, self.low, self.high).to_event(1)

"""Gaussian encoders."""

__all__ = ["GaussianEncoder"]

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.encoders.outputs import LOG_SCALE_BOUNDS
from pyrovae.networks import halves, smooth_clamp


class GaussianEncoder(nn.Module):
    r"""The encoder $q(z \mid x) = \mathcal{N}(z \mid \mu(x), \mathrm{diag}(\sigma^2(x)))$.

    The network's output is read as $(\mu, \log \sigma)$, with $\log \sigma$ kept smoothly
    within (-7, 3.5).

    Args:
        net: A network mapping $(*, x)$ to $(*, 2 D)$.

    Raises:
        InputError: In `forward`, if the network's outputs fit no $D$.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), arXiv:1312.6114.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()

        self.net = net

    @staticmethod
    def net_shape(latent_dim: int) -> tuple[int, ...]:
        """What the network must put out for one example."""
        return (2 * latent_dim,)

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        loc, log_scale = halves(self.net(x))

        return dist.Normal(loc, smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).exp()).to_event(1)

"""Encoders that are mixtures."""

__all__ = ["MixtureEncoder"]

from functools import partial

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.checks import check_whole
from pyrovae.distributions import NormalMixture
from pyrovae.encoders.outputs import LOG_SCALE_BOUNDS, check_outputs, latent_dim_of
from pyrovae.networks import smooth_clamp


class MixtureEncoder(nn.Module):
    r"""The encoder $q(z \mid x) = \sum_k \pi_k \, \mathcal{N}(z \mid \mu_k, S_k)$.

    All of $\pi$, $\mu$ and the diagonal $S_k = \mathrm{diag}(\sigma_k^2)$ depend on $x$, and all
    are trained through the draws themselves, as `NormalMixture` says. The network's output is
    read as $(\log \pi, \mu, \log \sigma)$, the components one after the other, with $\log \sigma$
    kept smoothly within (-7, 3.5). The KL has no closed form, and is estimated by draws.

    Args:
        net: A network mapping $(*, x)$ to $(*, K (1 + 2 D))$.
        components: The number $K$ of components.

    Raises:
        InputError: If there are fewer than two components, or the network's outputs fit no $D$.

    References:
        Automatic Differentiation Variational Inference with Mixtures
        (Morningstar et al., 2021), arXiv:2003.01687.
    """

    def __init__(self, net: nn.Module, *, components: int = 5) -> None:
        super().__init__()

        check_whole(least=2, components=components)
        check_outputs(net, partial(self.net_shape, components=components))

        self.net = net
        self.components = components

    @staticmethod
    def net_shape(latent_dim: int, *, components: int = 5) -> tuple[int, ...]:
        """What the network must put out for one example.

        Raises:
            InputError: If there are fewer than two components.
        """
        check_whole(least=2, components=components)
        return (components * (1 + 2 * latent_dim),)

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        output = self.net(x)
        net_shape = partial(self.net_shape, components=self.components)
        each = self.components * latent_dim_of(output.shape[-1:], net_shape)
        logits, *moments = output.split([self.components, each, each], dim=-1)
        loc, log_scale = (moment.unflatten(-1, (self.components, -1)) for moment in moments)
        component = dist.Normal(loc, smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).exp())

        return NormalMixture(dist.Categorical(logits=logits), component.to_event(1))

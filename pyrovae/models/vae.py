r"""The variational autoencoder."""

__all__ = ["VAE"]

import pyro
from torch import Tensor, nn

from pyrovae.handlers import kl_weight, register


class VAE(nn.Module):
    r"""A variational autoencoder: $z \sim p(z)$, $x \sim p_\theta(x \mid z)$, $q_\phi(z \mid x)$.

    $$\mathcal{L} = E_{q(z | x)}[\log p(x | z)] - \beta \, \mathrm{KL}(q(z | x) \,\|\, p(z))$$

    For $\beta = 1$ it bounds $\log p(x)$ from below. Nats, summed over the dimensions of x and z.

    Args:
        prior: A module returning $p(z)$.
        decoder: A module mapping $z$ to $p(x \mid z)$.
        encoder: A module mapping $x$ to $q(z \mid x)$.
        beta: The weight $\beta \ge 0$ of the KL term in the training loss. Evaluation reports
            every bound at weight 1.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), arXiv:1312.6114.
        beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl.
    """

    def __init__(
        self, prior: nn.Module, decoder: nn.Module, encoder: nn.Module, beta: float = 1.0
    ) -> None:
        super().__init__()

        self.prior = prior
        self.decoder = decoder
        self.encoder = encoder
        self.beta = beta

    def model(self, x: Tensor) -> None:
        r"""The generative story $p(z) \, p(x \mid z)$, for x of shape $(N, x)$."""
        register(self)

        with pyro.plate("data", len(x)):
            with kl_weight(self.beta):
                z = pyro.sample("z", self.prior())

            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> None:
        r"""The approximate posterior $q(z \mid x)$, for x of shape $(N, x)$."""
        register(self)

        with pyro.plate("data", len(x)), kl_weight(self.beta):
            pyro.sample("z", self.encoder(x))

r"""The plain autoencoder."""

__all__ = ["Autoencoder"]

import pyro
import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.checks import check_whole
from pyrovae.distributions import ImproperUniform
from pyrovae.handlers import register
from pyrovae.programs import check_parts


class Autoencoder(nn.Module):
    r"""A plain autoencoder: the networks of a VAE with neither prior nor noise.

    $$\mathcal{L} = \log p_\theta(x \mid \mu_\phi(x)), \qquad \mu_\phi(x) = E_{q_\phi}[z \mid x]$$

    As a program its prior is flat on $\mathbb{R}^D$, which is improper, and its guide puts all
    mass at the encoder's mean. So it can be trained, and reconstructs and interpolates; what
    needs a distribution over z it refuses: samples, and $\log p(x)$, which is undefined.

    Args:
        latent_dim: The number $D$ of latent dimensions.
        decoder: A module mapping $z$ to $p(x \mid z)$.
        encoder: A module mapping $x$ to $q(z \mid x)$, of which the mean alone is used.

    Raises:
        InputError: If a part is no module, or there is no latent dimension.

    References:
        Reducing the dimensionality of data with neural networks (Hinton & Salakhutdinov, 2006).
    """

    def __init__(self, latent_dim: int, decoder: nn.Module, encoder: nn.Module) -> None:
        super().__init__()

        check_whole(latent_dim=latent_dim)
        check_parts(decoder=decoder, encoder=encoder)

        self.latent_dim = latent_dim
        self.decoder = decoder
        self.encoder = encoder

    def model(self, x: Tensor) -> None:
        r"""The likelihood $p(x \mid z)$ under a flat density of z, for x of shape $(N, x)$."""
        register(self)

        flat = ImproperUniform(constraints.real_vector, (), (self.latent_dim,))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", flat)
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> None:
        r"""The code $z = \mu(x)$, for x of shape $(N, x)$."""
        register(self)

        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.encoder(x).mean, event_dim=1))

r"""The variational autoencoder."""

__all__ = ["VAE"]

from collections.abc import Sequence

import pyro
import torch
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.handlers import kl_weight, register
from pyrovae.programs import check_parts


class VAE(nn.Module):
    r"""A variational autoencoder: $z \sim p(z)$, $x \sim p_\theta(x \mid z)$, $q_\phi(z \mid x)$.

    $$\mathcal{L} = E_{q(z | x)}[\log p(x | z)] - \beta \, \mathrm{KL}(q(z | x) \,\|\, p(z))$$

    For $\beta = 1$ it bounds $\log p(x)$ from below. Nats, summed over the dimensions of x and z.

    Args:
        prior: A module returning $p(z)$.
        decoder: A module mapping $z$ to $p(x \mid z)$.
        encoder: A module mapping $x$ to $q(z \mid x)$.
        beta: The weight $\beta \ge 0$ of the KL term in the training loss, or one for each
            latent dimension. Evaluation reports every bound at weight 1.

    Raises:
        InputError: If a part is no module, or a weight is negative or not finite.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), arXiv:1312.6114.
        beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl.
    """

    def __init__(
        self,
        prior: nn.Module,
        decoder: nn.Module,
        encoder: nn.Module,
        beta: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()

        check_parts(prior=prior, decoder=decoder, encoder=encoder)

        self.prior = prior
        self.decoder = decoder
        self.encoder = encoder
        self.beta = beta
        given = torch.as_tensor(beta)
        if not (given.ge(0) & given.isfinite()).all():
            raise InputError(
                f"A beta of {beta} weighs no KL.", "Give finite numbers of 0 or more."
            )
        # One number stays a number: TraceEnum_ELBO compares the scales of sites.
        weights = None if isinstance(beta, int | float) else torch.tensor(beta)
        self.register_buffer("_weights", weights, persistent=False)

    @property
    def _weight(self) -> float | Tensor:
        return self.beta if self._weights is None else self._weights  # pyright: ignore

    def model(self, x: Tensor) -> None:
        r"""The generative story $p(z) \, p(x \mid z)$, for x of shape $(N, x)$."""
        register(self)

        with pyro.plate("data", len(x)):
            with kl_weight(self._weight):
                z = pyro.sample("z", self.prior())

            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> None:
        r"""The approximate posterior $q(z \mid x)$, for x of shape $(N, x)$."""
        register(self)

        with pyro.plate("data", len(x)), kl_weight(self._weight):
            pyro.sample("z", self.encoder(x))

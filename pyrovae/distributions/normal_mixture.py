"""Mixtures of normal distributions whose draws carry gradients."""

__all__ = ["NormalMixture"]

import math

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.nn.functional import pad


class NormalMixture(dist.MixtureSameFamily):
    r"""The density $p(z) = \sum_k \pi_k \prod_i \mathcal{N}(z_i \mid \mu_{ki}, \sigma_{ki}^2)$.

    Its draws are differentiable in every parameter, the weights included. With $F_i$ the
    distribution function of $z_i$ given $z_1, \dots, z_{i-1}$, a draw solves $F(z; \theta) = u$
    for uniform $u$, whatever way it was drawn, and so moves with the parameters as

    $$\frac{dz}{d\theta} = -\Big(\frac{\partial F}{\partial z}\Big)^{-1}
    \frac{\partial F}{\partial \theta}, \qquad
    F_i = \sum_k w_{ki} \, \Phi\Big(\frac{z_i - \mu_{ki}}{\sigma_{ki}}\Big), \qquad
    w_{ki} \propto \pi_k \prod_{j < i} \mathcal{N}(z_j \mid \mu_{kj}, \sigma_{kj}^2).$$

    This is unbiased, but of a variance that grows without bound as the components move apart:
    weight can only flow from one to the other through where there are hardly any draws. torch's
    mixture has no such gradient, and that of Pyro's `MixtureOfDiagNormals` is wrong in the
    weights.

    Args:
        mixture_distribution: A Categorical of batch shape $(*)$ over K components.
        component_distribution: A Normal of batch shape $(*, K)$ and event shape $(D,)$.

    References:
        Stochastic Backpropagation through Mixture Density Distributions (Graves, 2016),
        arXiv:1607.05690.
        Implicit Reparameterization Gradients (Figurnov et al., 2018), arXiv:1805.08498.
    """

    has_rsample = True

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws, with the gradient of the equation above."""
        with torch.no_grad():
            z = self.sample(sample_shape)

        component = self.component_distribution.base_dist
        step = _displacement(z, self.mixture_distribution.logits, component.loc, component.scale)
        # The step is zero; its gradient is not.
        return z - (step - step.detach())


def _displacement(z: Tensor, logits: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r"""$(\partial F / \partial z)^{-1} F(z; \theta)$ with the inverse held fixed: (*, D).

    Args:
        z: Draws, without gradients, with shape (*, D).
        logits: $\log \pi$, with shape (*, K).
        loc: $\mu$, with shape (*, K, D).
        scale: $\sigma$, with shape (*, K, D).
    """
    component = dist.Normal(loc, scale, validate_args=False)
    z = z.unsqueeze(-2)
    standardised = (z - loc) / scale
    log_density = component.log_prob(z)
    # The sum over j < i alone: the weights of z_i do not depend on z_i itself.
    before = pad(log_density[..., :-1].cumsum(-1), (1, 0))
    weights = (logits.unsqueeze(-1) + before).softmax(-2)

    with torch.no_grad():
        upper = (weights * _cdf(standardised)).sum(-2, keepdim=True) > 0.5
    # In the upper half Φ - 1, which changes no derivative and cancels no digits.
    cdf = torch.where(upper, -_cdf(-standardised), _cdf(standardised))
    total = (weights * cdf).sum(-2)

    with torch.no_grad():
        density = (weights * log_density.exp()).sum(-2).unsqueeze(-1)
        slope = -standardised / scale
        excess = weights * (cdf - total.unsqueeze(-2))
        # Row i of the Jacobian, over its own diagonal, which is the density of z_i.
        jacobian = excess.mT @ slope / density

    return torch.linalg.solve_triangular(
        jacobian, total.unsqueeze(-1) / density, upper=False, unitriangular=True
    ).squeeze(-1)


def _cdf(value: Tensor) -> Tensor:
    r"""$\Phi$, exact in the lower tail, where torch's own has no digits left in float32."""
    return 0.5 * torch.erfc(-value / math.sqrt(2))

"""The KL from a correlated Gaussian to a factorised one, which torch lacks."""

__all__: list[str] = []

import math

from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    register_kl,
)


@register_kl(LowRankMultivariateNormal, Independent)
@register_kl(MultivariateNormal, Independent)
def _kl(q: MultivariateNormal | LowRankMultivariateNormal, p: Independent) -> Tensor:
    r"""$-H(q) - E_q[\log p(z)]$, of which the second term asks for q's marginal moments alone."""
    base = p.base_dist
    if not isinstance(base, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError

    squares = (q.variance + (q.mean - base.loc).square()) / base.scale.square()
    log_density = -0.5 * (squares + math.log(2 * math.pi)) - base.scale.log()

    return -q.entropy() - log_density.sum(-1)

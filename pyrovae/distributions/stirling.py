r"""What is left of log-densities of large numbers once the large terms have cancelled on paper.

$\log \Gamma(x)$ is of the order of $x \log x$, and a log-density takes such terms from one
another: for counts of $10^5$ float32 then keeps no better than 0.1 nats of each. In Loader's
form every term is as small as what it says.

References:
    Fast and Accurate Computation of Binomial Probabilities (Loader, 2000).
"""

__all__ = ["HALF_LOG_TWO_PI", "deviance", "stirling_error"]

import math

import torch
from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
# From here on four terms of the series are exact, in float64 too.
LARGE = 16.0


def stirling_error(x: Tensor) -> Tensor:
    r"""$\delta(x) = \log \Gamma(x + 1) - (x + \tfrac12) \log x + x - \tfrac12 \log 2 \pi$.

    Args:
        x: Positive numbers.
    """
    small, large = x.clamp(max=LARGE), x.clamp(min=LARGE)
    closed = torch.lgamma(small + 1) - (small + 0.5) * small.log() + small - HALF_LOG_TWO_PI
    square = large**-2
    series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))) / large

    return torch.where(x < LARGE, closed, series)


def deviance(x: Tensor, log_ratio: Tensor) -> Tensor:
    r"""$x (e^r - 1 - r) = m - x + x \log (x / m)$, for $r = \log (m / x)$; it is never negative.

    Args:
        x: What was found.
        log_ratio: The log of what was expected over what was found.
    """
    return x * (torch.expm1(log_ratio) - log_ratio)

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
# Of the odd powers of 1 / x, from the first. From here on what is left out is below 1e-13.
SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
FAR = 8.0


def stirling_error(x: Tensor) -> Tensor:
    r"""$\delta(x) = \log \Gamma(x + 1) - (x + \tfrac12) \log x + x - \tfrac12 \log 2 \pi$.

    By its series in $1 / x$, below 8 that at $x + 8$: $\Gamma(x + 9)$ is $\Gamma(x + 1)$ times
    $(x + 1) \cdots (x + 8)$. So neither $\log \Gamma$ is computed nor its derivative, of which
    compiled code takes three times as long.

    Args:
        x: Positive numbers.
    """
    is_near, near = x < FAR, x.clamp(max=FAR)
    further = near + FAR
    y = torch.where(is_near, further, x)
    square, series = y**-2, SERIES[-1]
    for coefficient in SERIES[-2::-1]:
        series = series * square + coefficient

    # (x + i) (x + 9 - i) is x (x + 9) + i (9 - i).
    ends, fourth = near * (near + 9), further.square().square()
    log_product = (
        ((ends + 8) * (ends + 14) / fourth) * ((ends + 18) * (ends + 20) / fourth)
    ).log()
    shift = (near + 0.5) * torch.log1p(FAR / near) - FAR - log_product

    return series / y + torch.where(is_near, shift, 0.0)


def deviance(x: Tensor, log_ratio: Tensor) -> Tensor:
    r"""$x (e^r - 1 - r) = m - x + x \log (x / m)$, for $r = \log (m / x)$; it is never negative.

    Args:
        x: What was found.
        log_ratio: The log of what was expected over what was found.
    """
    return x * (torch.expm1(log_ratio) - log_ratio)

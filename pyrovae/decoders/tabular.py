"""Likelihoods of tables of mixed types."""

__all__ = ["TabularDecoder"]

import math
from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.decoders.positive import check_scales
from pyrovae.distributions import Codes, MixedColumns, NanMasked
from pyrovae.errors import InputError
from pyrovae.networks import smooth_clamp

REAL, BINARY = 0, 2


class TabularDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i p_i(x_i \mid z)$ of a row of a table.

    A column is told by the number of its codes, and real numbers have none:

    | codes | $x_i$ | $p_i(x_i \mid z)$ |
    |---|---|---|
    | 0 | a real number, best standardised | $\mathcal{N}(\mu_i(z), \sigma_i^2)$ |
    | 2 | 0 or 1 | $\mathrm{Bernoulli}(\mathrm{sigmoid}(\eta_i(z)))$ |
    | $K \ge 3$ | a code $0, \ldots, K - 1$ | $\mathrm{Categorical}(\mathrm{softmax}(\eta_i(z)))$ |

    Every $\sigma_i$ is a parameter of its own.

    A NaN is a missing entry: it contributes nothing to the log-probability, which is that of the
    entries observed. The mean of a row has the most probable code where a column has codes.

    Args:
        net: A network mapping $(*, D)$ to the parameters of all columns, joined in a vector: a
            mean, a logit, or $K$ logits for each.
        columns: The number of codes of each column.
        min_scale: The floor of every $\sigma_i$. Without one a column of rounded numbers has no
            largest likelihood; for steps of $\Delta$ take $\Delta / \sqrt{12}$.
        max_scale: The ceiling of every $\sigma_i$.

    Raises:
        InputError: If there is no column, or one of a single code or of less than none; or if the
            floor is not above 0, or the ceiling not above it and finite.

    References:
        Handling Incomplete Heterogeneous Data using VAEs (Nazabal et al., 2020),
        arXiv:1807.03653.
    """

    values: ClassVar[str] = "columns"
    order: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        columns: Sequence[int],
        min_scale: float = 1e-2,
        max_scale: float = 1e2,
    ) -> None:
        super().__init__()

        if not columns or any(codes < 0 or codes == 1 for codes in columns):
            raise InputError(
                f"The columns {tuple(columns)} are not all real (0) or of 2 or more codes.",
                "Give one number for each column, and leave out those with a single value.",
            )
        check_scales(min_scale, max_scale)
        self.net = net
        self.columns = tuple(columns)
        self.min_scale = min_scale
        self.max_scale = max_scale

        # Columns of one kind are decoded together, real ones first.
        self.kinds = sorted(set(self.columns))
        places = [i for kind in self.kinds for i, codes in enumerate(columns) if codes == kind]
        self.widths = [self.columns.count(kind) * _width(kind) for kind in self.kinds]
        self.register_buffer("order", torch.tensor(places), persistent=False)
        self.log_scale = nn.Parameter(torch.zeros(self.columns.count(REAL)))

    @staticmethod
    def net_shape(x_shape: tuple[int, ...], *, columns: Sequence[int]) -> tuple[int, ...]:
        """What the network must put out for one row.

        Raises:
            InputError: If there are not as many columns as a row has entries.
        """
        if x_shape != (len(columns),):
            raise InputError(
                f"There are {len(columns)} columns, and an observation is of shape {x_shape}.",
                "Give the number of codes of each entry of a row, 0 for real numbers.",
            )
        return (sum(_width(codes) for codes in columns),)

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        parts = self.net(z).split(self.widths, -1)
        groups = [self._group(kind, part) for kind, part in zip(self.kinds, parts, strict=True)]

        return MixedColumns([NanMasked(group) for group in groups], self.order)

    def _group(self, kind: int, part: Tensor) -> Distribution:
        """The distribution of all columns of one kind."""
        if kind == REAL:
            bounds = math.log(self.min_scale), math.log(self.max_scale)
            return dist.Normal(part, smooth_clamp(self.log_scale, *bounds).exp())
        if kind == BINARY:
            return dist.Bernoulli(logits=part)
        return Codes(logits=part.unflatten(-1, (-1, kind)))


def _width(codes: int) -> int:
    """The number of parameters that a column takes from the network."""
    return 1 if codes in (REAL, BINARY) else codes

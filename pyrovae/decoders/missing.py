"""Missing entries under other likelihoods."""

__all__ = ["NanMaskedDecoder"]

from collections.abc import Callable
from typing import Self

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import Independent

from pyrovae.distributions import NanMasked
from pyrovae.errors import InputError


class NanMaskedDecoder(nn.Module):
    r"""The likelihood of what was observed: $p(x_o \mid z) = \prod_{i \in o} p(x_i \mid z)$.

    It is another decoder's, with the entries of $x$ that are missing, written as NaN, left out of
    the product. Where values are missing at random, the bound on $\log p(x_o)$ is the bound to
    train on. The encoder needs to be told of them as well, as by `NanMaskedInput`.

    Args:
        decoder: A decoder whose likelihood factorises over the entries of $x$.

    Raises:
        InputError: In `forward`, if it is not made of single numbers by `Independent`.

    References:
        Handling Incomplete Heterogeneous Data using VAEs (Nazabal et al., 2020),
        arXiv:1807.03653.
        MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei &
        Frellsen, 2019), arXiv:1812.02633.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()

        self.decoder = decoder

    @property
    def start_at(self) -> Callable[[Tensor], Self] | None:
        """What begins the other decoder at examples, and returns this one, if it begins at any."""
        start_at = getattr(self.decoder, "start_at", None)
        return None if start_at is None else self._start_at

    def _start_at(self, x: Tensor) -> Self:
        self.decoder.start_at(x)  # pyright: ignore[reportCallIssue]
        return self

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        likelihood = self.decoder(z)
        if not isinstance(likelihood, Independent):
            raise InputError(
                f"The {type(likelihood).__name__} likelihood of a {type(self.decoder).__name__} "
                "is not an Independent one, of which single entries can be left out.",
                "Take one that is, such as GaussianDecoder, or a TabularDecoder as it stands.",
            )
        return NanMasked(likelihood.base_dist).to_event(likelihood.reinterpreted_batch_ndims)

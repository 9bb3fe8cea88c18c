"""Likelihoods of real data with heavier tails than a Gaussian's."""

__all__ = ["LaplaceDecoder", "StudentTDecoder"]

from typing import ClassVar

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.decoders.positive import Positive
from pyrovae.distributions import StudentT
from pyrovae.networks import event_rank

# The floor of a learned number of degrees of freedom: above it there is a mean.
MIN_DF = 1.0


class LaplaceDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i \mathrm{Laplace}(x_i \mid \mu_i(z), s)$, one $s$.

    The density of one number is $e^{-|x - \mu| / s} / 2 s$.

    Args:
        net: A network mapping $(*, D)$ to the median $(*, x)$.
        scale: The scale $s$, or where it starts if it is learned; the standard deviation is
            $\sqrt 2 s$.
        learn_scale: Whether $s$ is a parameter.
        min_scale: The floor of a learned $s$, as in `GaussianDecoder`.

    Raises:
        InputError: If the scale is infinite or not above its floor, or a learned one has a floor
            of 0 or less.
    """

    values: ClassVar[str] = "real"

    def __init__(
        self,
        net: nn.Module,
        *,
        scale: float = 1.0,
        learn_scale: bool = False,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()

        self.net = net
        self.scale = scale
        self.learn_scale = learn_scale
        self.min_scale = min_scale
        self.shared_scale = Positive(
            "scale", scale, learn=learn_scale, low=min_scale, floor="min_scale"
        )

    @staticmethod
    def net_shape(x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network must put out for one observation."""
        return x_shape

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        rank = event_rank(self.net)
        return dist.Laplace(self.net(z), self.shared_scale(rank)).to_event(rank)


class StudentTDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i t_\nu(x_i \mid \mu_i(z), s)$, robust to outliers.

    Its tails fall as $|x - \mu|^{-\nu - 1}$; as $\nu$ grows it becomes a Gaussian.

    Args:
        net: A network mapping $(*, D)$ to the median $(*, x)$.
        df: The degrees of freedom $\nu$, or where they start if they are learned.
        learn_df: Whether $\nu$ is a parameter, above 1.
        scale: The scale $s$, or where it starts if it is learned; the standard deviation is
            $s \sqrt{\nu / (\nu - 2)}$.
        learn_scale: Whether $s$ is a parameter.
        min_scale: The floor of a learned $s$, as in `GaussianDecoder`.

    Raises:
        InputError: If the scale or the degrees of freedom are infinite or not above their floor,
            or a learned scale has a floor of 0 or less.

    References:
        Student-t Variational Autoencoder for Robust Density Estimation (Takahashi et al., 2018),
        https://doi.org/10.24963/ijcai.2018/374.
    """

    values: ClassVar[str] = "real"

    def __init__(
        self,
        net: nn.Module,
        *,
        df: float = 4.0,
        learn_df: bool = False,
        scale: float = 1.0,
        learn_scale: bool = False,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()

        self.net = net
        self.df = df
        self.learn_df = learn_df
        self.scale = scale
        self.learn_scale = learn_scale
        self.min_scale = min_scale
        self.shared_df = Positive("df", df, learn=learn_df, low=MIN_DF)
        self.shared_scale = Positive(
            "scale", scale, learn=learn_scale, low=min_scale, floor="min_scale"
        )

    @staticmethod
    def net_shape(x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network must put out for one observation."""
        return x_shape

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        rank = event_rank(self.net)
        likelihood = StudentT(self.shared_df(rank), self.net(z), self.shared_scale(rank))
        return likelihood.to_event(rank)

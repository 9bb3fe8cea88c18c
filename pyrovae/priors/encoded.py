"""Priors that are mixtures of what an encoder makes of inputs."""

__all__ = ["ExemplarPrior", "VampPrior"]

import warnings
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import check_whole
from pyrovae.distributions import Mixture
from pyrovae.errors import InputError


class VampPrior(nn.Module):
    r"""The prior $p(z) = \sum_k \pi_k \, q(z \mid u_k)$, of pseudo-inputs $u_k$ that are learned.

    With data for the $u_k$ it would be the aggregated posterior, the prior under which the bound
    is largest. The pseudo-inputs start at random, and `start_at` sets them to examples, as the
    command line does.

    Every step scores each draw under each $q(z \mid u_k)$. Of Gaussians that is a product of
    matrices. Of a flow, `SplineFlowEncoder` or, an element at a time, `IAFEncoder`, it is $K$
    passes for every draw, which is warned of.

    Args:
        encoder: The encoder $q$ of the same program, the object itself: it is trained as a part
            of the prior too. It is of real inputs, since a pseudo-input is learned: symbols and
            categories, through which no gradient reaches it, are for an `ExemplarPrior`.
        x_shape: The shape of one observation.
        components: The number $K$ of pseudo-inputs.
        bounded: Whether to keep the pseudo-inputs within (0, 1), for data that are; else they
            are free.
        learn_weights: Whether the $\pi_k$ are learned; else they are all $1 / K$.

    Raises:
        InputError: If there is no component.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), arXiv:1705.07120.
    """

    logits: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        x_shape: Sequence[int],
        *,
        components: int = 500,
        bounded: bool = True,
        learn_weights: bool = False,
    ) -> None:
        super().__init__()

        check_whole(components=components)

        cost = getattr(encoder, "slow_density", None)
        if cost is not None:
            warnings.warn(
                f"A VampPrior scores every draw under all {components} distributions of its "
                f"encoder, and under one of {type(encoder).__name__} that takes {cost}: steps "
                "will be slow. Take fewer components, or GaussianEncoder, whose densities are one "
                "product of matrices.",
                stacklevel=2,
            )
        self.encoder = encoder
        self.x_shape = tuple(x_shape)
        self.components = components
        self.bounded = bounded
        self.learn_weights = learn_weights
        self.free_inputs = nn.Parameter(torch.randn(components, *self.x_shape))
        logits = torch.zeros(components)
        if learn_weights:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits, persistent=False)

    @property
    def latent_dim(self) -> int:
        """The number $D$ of latent dimensions, which the encoder knows."""
        return self().event_shape[0]

    @property
    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs $u$, with shape $(K, x)$."""
        return self.free_inputs.sigmoid() if self.bounded else self.free_inputs

    def start_at(self, x: Tensor) -> "VampPrior":
        r"""Sets the pseudo-inputs to $K$ examples drawn at random, and returns the prior.

        Args:
            x: At least $K$ examples, with shape $(N, x)$. Where the pseudo-inputs are bounded,
                those at 0 and 1 become 0.01 and 0.99, from which they can still move. An entry
                that is missing, NaN, starts at the mean of those observed.

        Raises:
            InputError: If they are too few, or of another shape.
        """
        if x.shape[1:] != self.x_shape or len(x) < self.components:
            raise InputError(
                f"Examples of shape {tuple(x.shape)} cannot be {self.components} pseudo-inputs of "
                f"shape {self.x_shape}.",
                "Give more examples, of the shape of the data, or take fewer components.",
            )
        x = _as_real(x)
        chosen = x[torch.randperm(len(x))[: self.components].to(x.device)]
        chosen = torch.where(chosen.isnan(), x.nanmean(0).nan_to_num(0.0), chosen)
        with torch.no_grad():
            self.free_inputs.copy_(chosen.logit(eps=0.01) if self.bounded else chosen)
        return self

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        weights = dist.Categorical(logits=self.logits)

        return Mixture(weights, self.encoder(self.pseudo_inputs))


class ExemplarPrior(nn.Module):
    r"""The prior $p(z) = \tfrac1N \sum_n \mathcal{N}(z \mid \mu(x_n), \sigma^2 I)$ of examples.

    $\mu$ is the mean of the encoder, and $\sigma$ is learned, from 1. In training each step takes
    a random subset of the $x_n$. That loses nothing but tightness: for the mean $\hat p$ over a
    subset $E \log \hat p(z) \le \log p(z)$, so that what is maximised still bounds the evidence
    from below. In evaluation it is the mixture of all.

    The published prior of an example that is trained on leaves that example out, and takes its
    nearest neighbours in latent space. A prior that is not told $x$ can do neither. So an example
    can find itself among the exemplars, and log-probabilities of training data are flattered by
    it; those of other data are not.

    Args:
        encoder: The encoder of the same program, the object itself: it is trained as a part of
            the prior too. Its distributions need a mean.
        exemplars: Training examples, with shape $(N, x)$, or only that shape, for weights that
            are to be loaded: the examples are saved with the weights.
        components: The number of exemplars in a step of training.
        keep: The largest $N$. Of more exemplars so many are drawn at random and kept, since all
            are encoded whenever the prior is evaluated, and saved in every checkpoint.

    Raises:
        InputError: If there is no exemplar, or a number is less than 1.

    References:
        Exemplar VAE: Linking Generative Models, Nearest Neighbor Retrieval, and Data
        Augmentation (Norouzi et al., 2020), arXiv:2004.04795.
    """

    inputs: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        exemplars: Tensor | Sequence[int],
        *,
        components: int = 500,
        keep: int = 5000,
    ) -> None:
        super().__init__()

        given = exemplars if isinstance(exemplars, Tensor) else torch.zeros(tuple(exemplars))
        if given.dim() < 2:
            raise InputError(
                f"Exemplars of shape {tuple(given.shape)} are no batch of examples.",
                "Give a tensor of shape (N, x).",
            )
        check_whole(exemplars=len(given), components=components, keep=keep)
        if len(given) > keep:
            given = given[torch.randperm(len(given))[:keep].to(given.device)]

        self.encoder = encoder
        # Only the shape: a configuration is no place for data.
        self.exemplars = tuple(given.shape)
        self.components = components
        self.keep = keep
        self.register_buffer("inputs", _as_real(given.detach().clone()))
        self.log_scale = nn.Parameter(torch.zeros(()))

    @property
    def latent_dim(self) -> int:
        """The number $D$ of latent dimensions, which the encoder knows."""
        return self().event_shape[0]

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$.

        Raises:
            InputError: If the encoder's distributions have no mean.
        """
        inputs = self.inputs
        if self.training and self.components < len(inputs):
            rows = torch.randperm(len(inputs), device=inputs.device)[: self.components]
            inputs = inputs[rows]

        try:
            loc = self.encoder(inputs).mean
        except NotImplementedError as error:
            raise InputError(
                "An ExemplarPrior is of the means of its encoder's distributions, and those of "
                f"{type(self.encoder).__name__} have none that is known.",
                "Take GaussianEncoder (--encoder gaussian), or a VampPrior (--prior vamp), which "
                "needs no means.",
            ) from error
        weights = dist.Categorical(logits=loc.new_zeros(len(loc)))

        return Mixture(weights, dist.Normal(loc, self.log_scale.exp()).to_event(1))


def _as_real(x: Tensor) -> Tensor:
    """Examples as networks take them: bits and whole numbers as real ones."""
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())

r"""The exchange between the backward pass and the update, where several processes train."""

__all__ = ["Exchange"]

from collections.abc import Iterable

import torch
from torch import Tensor

from pyrovae.ranks import Ranks
from pyrovae.svi.passes import Outcome, laid_out_as


class Exchange:
    r"""Sums over the processes what each found on its share of a batch.

    With shares $w_r$ of the batch's rows, loss and gradient are $\sum_r w_r L_r$ and
    $\sum_r w_r \nabla L_r$: those of the whole batch, where the loss is a mean over its
    examples, and terms of no one example, such as the KL of a global latent, count once. Loss
    and gradients travel in one flat tensor.

    Args:
        ranks: The processes.

    Attributes:
        share: What part of the batch's rows this process has, to be set before each step.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.share = 1.0

    def __call__(self, found: Outcome) -> Outcome:
        """What a step found on the whole batch."""
        parts = [*found.gradients, found.loss.to(found.gradients[0].dtype)]
        flat = torch.cat([part.detach().reshape(-1) for part in parts])
        # A share of no row stands in with a row of another one, whose numbers are not to count.
        flat = flat * self.share if self.share else torch.zeros_like(flat)
        self.ranks.sum(flat)
        *gradients, loss = flat.split([part.numel() for part in parts])
        norm = torch.linalg.vector_norm(flat[:-1])
        pairs = zip(found.parameters.values(), gradients, strict=True)
        laid_out = [laid_out_as(p, g.view(p.shape).to(p.dtype)) for p, g in pairs]
        return Outcome(found.parameters, loss.reshape(()).to(found.loss.dtype), norm, laid_out)

    def fail(self, parameters: Iterable[Tensor]) -> None:
        """Tells the others of a step that failed here: to them it is one that is not finite."""
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        self.ranks.sum(flat.new_full((len(flat) + 1,), torch.nan))

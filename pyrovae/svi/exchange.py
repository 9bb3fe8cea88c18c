r"""The exchange between the backward pass and the update, where several processes train."""

__all__ = ["Exchange"]

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrovae.ranks import Ranks
from pyrovae.svi.passes import Outcome, laid_out_as


class Exchange:
    r"""Sums over the processes what each found on its share of a batch.

    With shares $w_r$ of the batch's rows, loss and gradient are $\sum_r w_r L_r$ and
    $\sum_r w_r \nabla L_r$: those of the whole batch, where the loss is a mean over its
    examples, and terms of no one example, such as the KL of a global latent, count once. A
    parameter has a gradient where it has one in any of the processes: which of them use it may
    depend on their rows. All of it travels in one flat tensor.

    Args:
        ranks: The processes.
        parameters: What they train, by name, in the same order in all of them.

    Attributes:
        share: What part of the batch's rows this process has, to be set before each step.
    """

    def __init__(self, ranks: Ranks, parameters: Mapping[str, Tensor]) -> None:
        self.ranks = ranks
        self.share = 1.0
        self._parameters = parameters

    def __call__(self, found: Outcome) -> Outcome:
        """What a step found on the whole batch."""
        trained = self._trained()
        pairs = zip(found.parameters.values(), found.gradients, strict=True)
        own = {id(parameter): gradient for parameter, gradient in pairs}
        flat = _flat(trained, own, found.loss.detach())
        # A share of no row stands in with a row of another one, whose numbers are not to count.
        flat = flat * self.share if self.share else torch.zeros_like(flat)
        self.ranks.sum(flat)

        sizes = [parameter.numel() for parameter in trained.values()]
        *gradients, used, loss = flat.split([*sizes, len(trained), 1])
        # Where this process has a gradient of each nobody has more, and a GPU is not waited for.
        is_used = [True] * len(trained) if len(own) == len(trained) else (used != 0).tolist()
        parameters: dict[str, Tensor] = {}
        summed: list[Tensor] = []
        for (name, p), gradient, kept in zip(trained.items(), gradients, is_used, strict=True):
            if kept:
                parameters[name] = p
                whole = gradient.view(p.shape).to(p.dtype)
                summed.append(_like(own.get(id(p)), laid_out_as(p, whole)))
        norm = torch.linalg.vector_norm(flat[: sum(sizes)])
        return Outcome(parameters, loss.reshape(()).to(found.loss.dtype), norm, summed)

    def fail(self) -> None:
        """Tells the others of a step that failed here: to them it is one that is not finite."""
        trained = self._trained()
        self.ranks.sum(_flat(trained, {}, torch.tensor(torch.nan)))

    def _trained(self) -> dict[str, Tensor]:
        return {name: p for name, p in self._parameters.items() if p.requires_grad}


def _like(own: Tensor | None, whole: Tensor) -> Tensor:
    """The gradient of all processes, sparse where this one's is, as its optimizer may need it."""
    return whole if own is None or not own.is_sparse else whole.to_sparse(own.sparse_dim())


def _flat(trained: Mapping[str, Tensor], own: Mapping[int, Tensor], loss: Tensor) -> Tensor:
    """The gradient of each parameter, for each whether it has one, and the loss, as a vector."""
    gradients = [own.get(id(parameter)) for parameter in trained.values()]
    vectors = [
        p.new_zeros(p.numel()) if gradient is None else _dense(gradient.detach()).reshape(-1)
        for p, gradient in zip(trained.values(), gradients, strict=True)
    ]
    first = next(iter(trained.values()))
    used = first.new_ones(len(trained))
    for i, gradient in enumerate(gradients):
        if gradient is None:
            used[i] = 0
    return torch.cat([*vectors, used, loss.reshape(1).to(used)])


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient

"""Noise that turns logits into draws."""

__all__ = ["gumbel", "logistic"]

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions.utils import clamp_probs


def logistic(shape: Sequence[int], like: Tensor) -> Tensor:
    r"""Logistic noise: $\eta + L > 0$ with probability $\sigma(\eta)$."""
    return clamp_probs(torch.rand(*shape, dtype=like.dtype, device=like.device)).logit()


def gumbel(shape: Sequence[int], like: Tensor) -> Tensor:
    r"""Gumbel noise: $\eta_k + G_k$ is largest with probability $\mathrm{softmax}(\eta)_k$."""
    u = clamp_probs(torch.rand(*shape, dtype=like.dtype, device=like.device))
    return -(-u.log()).log()

"""A bound's loss with its gradients, parameter by parameter."""

import torch

from pyrovae.handlers import unregistered


def loss_and_gradients(bound, program, *args, seed=0):
    """The loss of a bound and its gradient in every parameter of a program."""
    torch.manual_seed(seed)
    with unregistered():
        loss = bound.differentiable_loss(program.model, program.guide, *args)
    names, parameters = zip(*program.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
    return loss.detach(), dict(zip(names, found, strict=True))

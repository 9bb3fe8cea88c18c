"""Kernels that update parameters of equal options at once, on the state of their optimizer."""

__all__ = ["KERNELS", "NOTHING", "Kernel", "Slot", "is_hooked"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor
from torch.optim import SGD, Adam, AdamW
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

# What an optimizer that keeps no state, such as SGD without momentum, keeps of a parameter.
NOTHING: dict[str, Any] = {}


@dataclass
class Slot:
    """A parameter, and where its optimizer keeps what it knows of it."""

    parameter: Tensor
    owner: TorchOptimizer
    number: int
    group: dict[str, Any]
    state: dict[str, Any]

    def holds(self) -> bool:
        """Whether the optimizer still keeps its state there: loading one puts it elsewhere.

        And whether nobody has come to want to be called at its steps.
        """
        owner = self.owner
        if owner.state.get(self.parameter, NOTHING) is not self.state or is_hooked(owner):
            return False
        groups = owner.param_groups
        return self.number < len(groups) and groups[self.number] is self.group


def is_hooked(owner: Any) -> bool:
    """Whether somebody wants to be called at every step of an optimizer, or has replaced it."""
    if owner._optimizer_step_pre_hooks or owner._optimizer_step_post_hooks:
        return True
    own = vars(owner).get("step")
    # A scheduler counts the steps of its optimizer so.
    return own is not None and not hasattr(own, "_wrapped_by_lr_sched")


@dataclass(frozen=True)
class Kernel:
    """How to update parameters whose options agree.

    Attributes:
        options: The names of the options, the learning rate first.
        asks: The names of what else `supports` asks about.
        supports: Whether the kernel does what these options ask for, given a parameter's state.
        apply: Called with the options, the slots, their gradients, and whether to do nothing.
        more: What else must agree.
        begin: Called with all slots before a step, whose options it may change.
        freezes: Whether it can be told to do nothing.
    """

    options: tuple[str, ...]
    asks: tuple[str, ...]
    supports: Callable[[dict[str, Any], dict[str, Any]], bool]
    apply: Callable[..., None]
    more: Callable[[Slot], Any] = lambda slot: None
    begin: Callable[[Sequence[Slot]], None] | None = None
    freezes: bool = True

    def told(self, slot: Slot) -> tuple[Any, ...]:
        """What an update by this depends on besides tensors, of a parameter."""
        values = [*map(slot.group.get, self.options), *map(slot.group.get, self.asks)]
        # Of a list, which may be changed in place, what it holds now.
        values = [tuple(value) if type(value) is list else value for value in values]
        return (*values, self.more(slot))


def _supports_adam(group: dict[str, Any], state: dict[str, Any]) -> bool:
    return "exp_avg" in state and not group["differentiable"] and _plain_rate(group)


def _supports_coupled_adam(group: dict[str, Any], state: dict[str, Any]) -> bool:
    return not group.get("decoupled_weight_decay", False) and _supports_adam(group, state)


def _plain_rate(group: dict[str, Any]) -> bool:
    return not isinstance(group["lr"], Tensor)


def _adam_with(function: Any) -> Callable[..., None]:
    def apply(
        options: tuple[Any, ...],
        slots: Sequence[Slot],
        gradients: Sequence[Tensor],
        frozen: Tensor | None,
    ) -> None:
        lr, (beta1, beta2), eps, weight_decay, amsgrad, maximize, _ = options
        function(
            [slot.parameter for slot in slots],
            list(gradients),
            [slot.state["exp_avg"] for slot in slots],
            [slot.state["exp_avg_sq"] for slot in slots],
            [slot.state["max_exp_avg_sq"] for slot in slots] if amsgrad else [],
            [slot.state["step"] for slot in slots],
            fused=True,
            found_inf=frozen,
            amsgrad=amsgrad,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            maximize=maximize,
        )

    return apply


def _decay_rates(slots: Sequence[Slot]) -> None:
    """Lets the rate of each group decay, once however its parameters are then told apart."""
    for group in {id(slot.group): slot.group for slot in slots}.values():
        group["lr"] *= group["lrd"]


def _clipped_adam(
    options: tuple[Any, ...],
    slots: Sequence[Slot],
    gradients: Sequence[Tensor],
    frozen: Tensor | None,
) -> None:
    """Pyro's Adam with clipped gradients and a decaying rate.

    It is Adam but for epsilon, which it adds before the correction of the bias and not after.
    """
    lr, (beta1, beta2), eps, weight_decay, clip_norm, step = options
    for slot in slots:
        slot.state["step"] += 1
    parameters = [slot.parameter for slot in slots]
    steps = torch.full((len(slots),), float(step), device=parameters[0].device)
    adam(
        parameters,
        [gradient.clamp(-clip_norm, clip_norm) for gradient in gradients],
        [slot.state["exp_avg"] for slot in slots],
        [slot.state["exp_avg_sq"] for slot in slots],
        [],
        list(steps.unbind()),
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=weight_decay,
        eps=eps / math.sqrt(1 - beta2 ** (step + 1)),
        maximize=False,
    )


def _supports_sgd(group: dict[str, Any], state: dict[str, Any]) -> bool:
    moving = group["momentum"] == 0 or state.get("momentum_buffer") is not None
    return moving and not group["differentiable"] and _plain_rate(group)


def _sgd(
    options: tuple[Any, ...],
    slots: Sequence[Slot],
    gradients: Sequence[Tensor],
    frozen: Tensor | None,
) -> None:
    lr, momentum, dampening, weight_decay, nesterov, maximize, _ = options
    sgd(
        [slot.parameter for slot in slots],
        list(gradients),
        [slot.state.get("momentum_buffer") for slot in slots],
        fused=True,
        found_inf=frozen,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        maximize=maximize,
    )


_ADAM_OPTIONS = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")
KERNELS: dict[type[TorchOptimizer], Kernel] = {
    Adam: Kernel(
        _ADAM_OPTIONS,
        ("differentiable", "decoupled_weight_decay"),
        _supports_coupled_adam,
        _adam_with(adam),
    ),
    AdamW: Kernel(_ADAM_OPTIONS, ("differentiable",), _supports_adam, _adam_with(adamw)),
    ClippedAdam: Kernel(
        ("lr", "betas", "eps", "weight_decay", "clip_norm"),
        ("centered_variance",),
        lambda group, state: "exp_avg" in state and not group["centered_variance"],
        _clipped_adam,
        more=lambda slot: slot.state.get("step"),
        begin=_decay_rates,
        freezes=False,  # it counts its steps in Python
    ),
    SGD: Kernel(
        ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"),
        ("differentiable",),
        _supports_sgd,
        _sgd,
    ),
}

r"""One update of all parameters at once, for optimizers that can be merged.

Pyro's optimizers make a torch optimizer for each parameter, and torch's steps through Python for
each. Adam, AdamW, ClippedAdam and SGD run here as one fused kernel over all parameters of equal
options, on the very state that the optimizers hold: `get_state`, `state_dict`, schedulers and
states loaded from elsewhere find what they would have found. Other optimizers make their own
step, and so does every optimizer for a parameter that it has not met yet.
"""

__all__ = ["Optimizer", "Update", "is_recordable"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.dct_adam import DCTAdam
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim import SGD, Adam, AdamW
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd
from torch.utils.weak import WeakTensorKeyDictionary

from pyrovae.errors import InputError

Optimizer = PyroOptim | TorchOptimizer
# What an optimizer that keeps no state, such as SGD without momentum, keeps of a parameter.
_NOTHING: dict[str, Any] = {}
# What each optimizer has met, and has had no gradient yet: several programs may share one.
_idle_of: WeakKeyDictionary[Any, WeakTensorKeyDictionary] = WeakKeyDictionary()


@dataclass
class _Slot:
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
        if owner.state.get(self.parameter, _NOTHING) is not self.state or _hooked(owner):
            return False
        groups = owner.param_groups
        return self.number < len(groups) and groups[self.number] is self.group


class Update:
    """Applies gradients to parameters through an optimizer.

    Args:
        optimizer: One of Pyro's or of torch's.
        rates_on_device: Whether updates that can be frozen read learning rates on the device, as
            `follow_rates` has left them there: so a recorded one can be given others.
    """

    def __init__(self, optimizer: Optimizer, *, rates_on_device: bool = False) -> None:
        self.optimizer = optimizer
        self._idle = _idle_of.setdefault(optimizer, WeakTensorKeyDictionary())
        self._slots: list[_Slot] = []
        # What the options of the slots were when they were last told apart, and which are alike.
        self._told: list[tuple[Any, ...]] = []
        self._alike: dict[tuple[Any, ...], list[int]] = {}
        self._rates: dict[int, tuple[dict[str, Any], Tensor]] | None = None
        if rates_on_device:
            self._rates = {}

    def trains(self, parameter: Tensor) -> bool:
        """Whether the optimizer is for a parameter; one of torch's is for those it was given."""
        if isinstance(self.optimizer, PyroOptim):
            return True
        groups = self.optimizer.param_groups
        return any(p is parameter for group in groups for p in group["params"])

    def goes_on(self, parameter: Tensor) -> bool:
        """Whether a parameter is updated where its gradient is zero.

        In Pyro's `SVI` one that has had a gradient has one of zeros ever after, and its momentum
        goes on. An optimizer of torch's own leaves it as it is.
        """
        is_met = isinstance(self.optimizer, PyroOptim) and parameter in self.optimizer.optim_objs
        return is_met and parameter not in self._idle

    def meet(self, parameters: Sequence[Tensor]) -> None:
        """Tells an optimizer of Pyro's of parameters of a step that have no gradient yet.

        As under Pyro's `SVI` it makes theirs, and their rates decay from then on.
        """
        optimizer = self._plain_pyro()
        if optimizer is None:
            return
        store = pyro.get_param_store()
        known = [p for p in parameters if store.param_name(p) is not None and p.grad is None]
        for parameter in known:
            self._idle[parameter] = True
        optimizer(known)

    def goes_by_rows(self, parameter: Tensor) -> bool:
        """Whether an update is of the rows that a plate has drawn, as noted on the parameter."""
        optimizer = self.optimizer
        if not isinstance(optimizer, PyroOptim) or optimizer.pt_optim_constructor is not DCTAdam:
            return False
        options = optimizer.pt_optim_args
        is_aware = callable(options) or options.get("subsample_aware", False)
        return is_aware and bool(getattr(parameter, "_pyro_subsample", None))

    def can_be_frozen(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor] = ()
    ) -> bool:
        """Whether an update can be told on the device that it is not to be made."""
        kernel = self._kernel(parameters, gradients)
        return kernel is not None and kernel.freezes

    @torch.no_grad()
    def __call__(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        frozen: Tensor | None = None,
    ) -> None:
        """Updates the parameters in place.

        Args:
            parameters: The parameters.
            gradients: One for each.
            frozen: One on the device if nothing is to be changed, or else zero.
        """
        kernel = self._kernel(parameters, gradients)
        if kernel is None:
            self._let_it_step(parameters, gradients)
            return

        slots = self._slots
        for slot in slots:
            # A scheduler warns unless its optimizer has stepped.
            slot.owner._opt_called = True  # pyright: ignore[reportAttributeAccessIssue]
        if kernel.begin is not None:
            kernel.begin(slots)
            self._tell_apart(kernel, [kernel.told(slot) for slot in slots])
        for options, numbers in self._alike.items():
            members, theirs = [slots[n] for n in numbers], [gradients[n] for n in numbers]
            kernel.apply(options, members, theirs, frozen)

    def follow_rates(self) -> None:
        """Brings the learning rates that the optimizer has now to the device."""
        for group, rate in (self._rates or {}).values():
            rate.fill_(group["lr"])

    def memory(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """What an update reads and writes besides gradients."""
        slots = self._find(parameters)
        kept = [value for slot in slots for value in (*slot.state.values(), self._rate(slot))]
        return [*parameters, *(value for value in kept if isinstance(value, Tensor))]

    def settings(self, parameters: Sequence[Tensor]) -> list[Any]:
        """What an update does besides, as by its recording: all but the learning rates."""
        names = [
            set(_KERNELS[type(slot.owner)].options) - {"lr"} for slot in self._find(parameters)
        ]
        return [
            {name: slot.group[name] for name in own}
            for slot, own in zip(self._slots, names, strict=True)
        ]

    def _rate(self, slot: _Slot) -> float | Tensor:
        """The learning rate of a parameter, on its device if it is to be."""
        rates, group = self._rates, slot.group
        if rates is None:
            return group["lr"]
        if id(group) not in rates:
            # Torch's kernels read them as such, whatever the parameters are.
            rate = torch.tensor(group["lr"], dtype=torch.float32, device=slot.parameter.device)
            rates[id(group)] = group, rate
        return rates[id(group)][1]

    def _kernel(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> "_Kernel | None":
        """What updates all of them at once; None where the optimizer has to step by itself."""
        # The kernels are for neither.
        if any(g.is_sparse for g in gradients) or any(p.is_complex() for p in parameters):
            return None
        slots = self._find(parameters)
        kernel = _KERNELS.get(type(slots[0].owner)) if slots else None
        if kernel is None:
            return None
        told = [kernel.told(slot) for slot in slots]
        if told != self._told:
            if not all(kernel.supports(slot.group, slot.state) for slot in slots):
                return None
            self._tell_apart(kernel, told)
        return kernel

    def _tell_apart(self, kernel: "_Kernel", told: list[tuple[Any, ...]]) -> None:
        """Finds the numbers of the slots that share their options."""
        rate = self._rate if kernel.freezes else _rate_of
        self._told, self._alike = told, {}
        for number, (slot, of_slot) in enumerate(zip(self._slots, told, strict=True)):
            others = of_slot[1 : len(kernel.options)]
            options = (rate(slot), *others, kernel.more(slot))
            self._alike.setdefault(options, []).append(number)

    def _let_it_step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            self._check_name(parameter)
            self._idle.pop(parameter, None)
            parameter.grad = gradient
        with torch.enable_grad():
            if isinstance(self.optimizer, PyroOptim):
                self.optimizer(list(parameters))
            else:
                self.optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    def _check_name(self, parameter: Tensor) -> None:
        """Refuses a parameter without a name where the optimizer's options depend on names.

        Raises:
            InputError: If Pyro's store does not have the parameter.
        """
        by_name = isinstance(self.optimizer, PyroOptim) and callable(self.optimizer.pt_optim_args)
        if by_name and pyro.get_param_store().param_name(parameter) is None:
            raise InputError(
                "The optimizer's options depend on the names of parameters, and Pyro's store has "
                f"none for one of shape {tuple(parameter.shape)}.",
                "Call pyro.module in the model or the guide, or give the optimizer a dictionary.",
            )

    def _find(self, parameters: Sequence[Tensor]) -> list[_Slot]:
        """A slot for each parameter; none at all where the optimizer has to step by itself."""
        if not self._is_found(parameters):
            self._slots, self._told = self._look_up(parameters), []
        return self._slots

    def _is_found(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the slots are theirs, and the optimizer has them still as it had."""
        held, optimizer = self._slots, self.optimizer
        if len(held) != len(parameters):
            return False
        made: Any = None
        clips: Any = _NOTHING
        if isinstance(optimizer, PyroOptim):
            made, clips = optimizer.optim_objs, optimizer.grad_clip
        for slot, parameter in zip(held, parameters, strict=True):
            if slot.parameter is not parameter or not slot.holds():
                return False
            if made is not None and _plain(made.get(parameter)) is not slot.owner:
                return False
            if clips.get(parameter) is not None:
                return False
        return True

    def _look_up(self, parameters: Sequence[Tensor]) -> list[_Slot]:
        slots = []
        for parameter in parameters:
            self._idle.pop(parameter, None)
            owner = self._owner(parameter)
            if owner is None or _hooked(owner):
                return []
            number, group = next(
                (number, group)
                for number, group in enumerate(owner.param_groups)
                if any(p is parameter for p in group["params"])
            )
            state = owner.state.get(parameter, _NOTHING)
            if isinstance(step := state.get("step"), Tensor):
                # Saved by an optimizer that was not fused, it is on the CPU.
                state["step"] = step.to(parameter.device)
            slots.append(_Slot(parameter, owner, number, group, state))
        return slots if len({type(slot.owner) for slot in slots}) == 1 else []

    def _plain_pyro(self) -> PyroOptim | None:
        """The optimizer, if it is one of Pyro's and has no step of its own."""
        optimizer = self.optimizer
        plain = (PyroOptim.__call__, PyroLRScheduler.__call__)
        if isinstance(optimizer, PyroOptim) and type(optimizer).__call__ in plain:
            return optimizer
        return None

    def _owner(self, parameter: Tensor) -> TorchOptimizer | None:
        """The torch optimizer of a parameter."""
        if not isinstance(self.optimizer, PyroOptim):
            return self.optimizer
        optimizer = self._plain_pyro()
        if optimizer is None:
            return None
        owner = optimizer.optim_objs.get(parameter)
        if owner is None or optimizer.grad_clip.get(parameter) is not None:
            return None
        return _plain(owner)


def is_recordable(optimizer: TorchOptimizer) -> bool:
    """Whether updates by an optimizer can be recorded, once each parameter has had one."""
    kernel = _KERNELS.get(type(optimizer))
    return kernel is not None and kernel.freezes and not _hooked(optimizer)


def _plain(owner: Any) -> Any:
    """An optimizer of torch's: a scheduler holds its own."""
    return getattr(owner, "optimizer", owner)


def _hooked(owner: Any) -> bool:
    """Whether somebody wants to be called at every step of an optimizer, or has replaced it."""
    if owner._optimizer_step_pre_hooks or owner._optimizer_step_post_hooks:
        return True
    own = vars(owner).get("step")
    # A scheduler counts the steps of its optimizer so.
    return own is not None and not hasattr(own, "_wrapped_by_lr_sched")


def _rate_of(slot: _Slot) -> Any:
    return slot.group["lr"]


# ── The kernels ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Kernel:
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
    more: Callable[[_Slot], Any] = lambda slot: None
    begin: Callable[[Sequence[_Slot]], None] | None = None
    freezes: bool = True

    def told(self, slot: _Slot) -> tuple[Any, ...]:
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
        slots: Sequence[_Slot],
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


def _decay_rates(slots: Sequence[_Slot]) -> None:
    """Lets the rate of each group decay, once however its parameters are then told apart."""
    for group in {id(slot.group): slot.group for slot in slots}.values():
        group["lr"] *= group["lrd"]


def _clipped_adam(
    options: tuple[Any, ...],
    slots: Sequence[_Slot],
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
    slots: Sequence[_Slot],
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
_KERNELS: dict[type[TorchOptimizer], _Kernel] = {
    Adam: _Kernel(
        _ADAM_OPTIONS,
        ("differentiable", "decoupled_weight_decay"),
        _supports_coupled_adam,
        _adam_with(adam),
    ),
    AdamW: _Kernel(_ADAM_OPTIONS, ("differentiable",), _supports_adam, _adam_with(adamw)),
    ClippedAdam: _Kernel(
        ("lr", "betas", "eps", "weight_decay", "clip_norm"),
        ("centered_variance",),
        lambda group, state: "exp_avg" in state and not group["centered_variance"],
        _clipped_adam,
        more=lambda slot: slot.state.get("step"),
        begin=_decay_rates,
        freezes=False,  # it counts its steps in Python
    ),
    SGD: _Kernel(
        ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"),
        ("differentiable",),
        _supports_sgd,
        _sgd,
    ),
}

r"""One update of all parameters at once, for optimizers that can be merged.

Pyro's optimizers make a torch optimizer for each parameter, and torch's steps through Python for
each. Adam, AdamW, ClippedAdam and SGD run here as one fused kernel over all parameters of equal
options, on the very state that the optimizers hold: `get_state`, `state_dict`, schedulers and
states loaded from elsewhere find what they would have found. Other optimizers make their own
step, and so does every optimizer for a parameter that it has not met yet.
"""

__all__ = ["Optimizer", "Update", "is_recordable"]

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.dct_adam import DCTAdam
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer
from torch.utils.weak import WeakTensorKeyDictionary

from pyrovae.errors import InputError
from pyrovae.svi.kernels import KERNELS, NOTHING, Kernel, Slot, is_hooked

Optimizer = PyroOptim | TorchOptimizer
# What each optimizer has met, and has had no gradient yet: several programs may share one.
_idle_of: WeakKeyDictionary[Any, WeakTensorKeyDictionary] = WeakKeyDictionary()


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
        self._slots: list[Slot] = []
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
            set(KERNELS[type(slot.owner)].options) - {"lr"} for slot in self._find(parameters)
        ]
        return [
            {name: slot.group[name] for name in own}
            for slot, own in zip(self._slots, names, strict=True)
        ]

    def _rate(self, slot: Slot) -> float | Tensor:
        """The learning rate of a parameter, on its device if it is to be."""
        rates, group = self._rates, slot.group
        if rates is None:
            return group["lr"]
        if id(group) not in rates:
            # Torch's kernels read them as such, whatever the parameters are.
            rate = torch.tensor(group["lr"], dtype=torch.float32, device=slot.parameter.device)
            rates[id(group)] = group, rate
        return rates[id(group)][1]

    def _kernel(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Kernel | None:
        """What updates all of them at once; None where the optimizer has to step by itself."""
        # The kernels are for neither.
        if any(g.is_sparse for g in gradients) or any(p.is_complex() for p in parameters):
            return None
        slots = self._find(parameters)
        kernel = KERNELS.get(type(slots[0].owner)) if slots else None
        if kernel is None:
            return None
        told = [kernel.told(slot) for slot in slots]
        if told != self._told:
            if not all(kernel.supports(slot.group, slot.state) for slot in slots):
                return None
            self._tell_apart(kernel, told)
        return kernel

    def _tell_apart(self, kernel: Kernel, told: list[tuple[Any, ...]]) -> None:
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

    def _find(self, parameters: Sequence[Tensor]) -> list[Slot]:
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
        clips: Any = NOTHING
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

    def _look_up(self, parameters: Sequence[Tensor]) -> list[Slot]:
        slots = []
        for parameter in parameters:
            self._idle.pop(parameter, None)
            owner = self._owner(parameter)
            if owner is None or is_hooked(owner):
                return []
            number, group = next(
                (number, group)
                for number, group in enumerate(owner.param_groups)
                if any(p is parameter for p in group["params"])
            )
            state = owner.state.get(parameter, NOTHING)
            if isinstance(step := state.get("step"), Tensor):
                # Saved by an optimizer that was not fused, it is on the CPU.
                state["step"] = step.to(parameter.device)
            slots.append(Slot(parameter, owner, number, group, state))
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
    kernel = KERNELS.get(type(optimizer))
    return kernel is not None and kernel.freezes and not is_hooked(optimizer)


def _plain(owner: Any) -> Any:
    """An optimizer of torch's: a scheduler holds its own."""
    return getattr(owner, "optimizer", owner)


def _rate_of(slot: Slot) -> Any:
    return slot.group["lr"]

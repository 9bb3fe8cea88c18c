r"""Which plan serves a call, and by which back end it is run.

A plan is made at the first call of its kind, and again where modules or parameters are no longer
what it was made for.
"""

__all__ = ["Planner"]

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.poutine import runtime

from pyrovae.errors import InputError
from pyrovae.svi.backends import ENGINES, choose, default_engine
from pyrovae.svi.estimators import Estimate
from pyrovae.svi.passes import Call
from pyrovae.svi.plans import Plan

# Beyond so many kinds of arguments, or states of a program, capturing costs more than it saves.
MOST_KINDS = 8
# So many steps as a graph take about as long as compiling does.
COMPILE_AFTER = 2000


class Planner:
    """The plans of a program, by the kinds of its calls.

    Args:
        estimate: From the arguments of a call to a loss and its surrogate.
        engine: The back end, as of a `Stepper`.
        warn: Called with the reason where another back end is taken.

    Raises:
        InputError: If there is no such engine.
    """

    def __init__(
        self,
        estimate: Estimate,
        *,
        engine: str | None,
        warn: Callable[[str], None],
    ) -> None:
        if engine is not None and engine not in ENGINES:
            raise InputError(f"There is no engine {engine!r}.", f"Take one of {list(ENGINES)}.")
        self.engine = engine
        # Whether a graph of the program was found to be other than it, as any other may be then.
        self.is_distrusted = False
        self._estimate = estimate
        self._warn = warn
        self._plans: dict[Any, list[Plan]] = {}

    @property
    def engines(self) -> list[str]:
        """The back ends in use, one for each plan."""
        return [plan.engine for plans in self._plans.values() for plan in plans]

    def distrust(self) -> None:
        """Runs all further steps in Python, whatever their kind."""
        self.is_distrusted = True
        for plans in self._plans.values():
            for plan in plans:
                plan.run, plan.engine = None, "eager"

    def known(self, call: Call) -> Plan | None:
        """The plan of a call, if there is one that still holds."""
        plans = (
            self._plans.get((call.kind, *_modes_of_torch()), ()) if call.kind is not None else ()
        )
        return next((plan for plan in plans if plan.is_current() and plan.is_alive()), None)

    def plan_for(
        self, call: Call, make: Callable[[Call], Plan], engine: str | None = None
    ) -> Plan:
        """The plan of a call, made if there is none.

        Args:
            call: The call.
            make: Makes a plan.
            engine: A back end for its kind alone, for which a plan is made in any case.
        """
        kind = self._kind_of(call)
        if engine is not None:
            self._plans.pop(kind, None)  # a plan that is there has its back end
        plans = self._plans.setdefault(kind, [])
        for plan in plans:
            if plan.is_current():
                if plan.is_alive():
                    self._compile_in_time(plan, call)
                    return plan
                plans.remove(plan)
                break

        others = [plan for plan in plans if plan.differs_in_what_is_held()]
        plan = make(call)
        wanted = engine or self.engine or "graph"
        if plan.unseen is not None and wanted != "eager":
            self._warn(f"A graph does not see that {plan.unseen}: steps run in Python.")
        elif len(plans) >= MOST_KINDS:
            self._warn_of_states(plans.pop(0))
        elif kind is not None and plan.parameters:
            self._choose(plan, call, wanted, others)
            for other in others:
                if other.graph is plan.graph is not None:  # it goes on in this one
                    plans.remove(other)
        plans.append(plan)
        return plan

    def _kind_of(self, call: Call) -> Any:
        """What keys the plan of a call; None for all those that are not worth a capture."""
        if self.engine == "eager":
            return None
        if call.kind is None:
            self._warn("An argument that is no tensor cannot be hashed: steps run in Python.")
            return None
        if runtime._PYRO_STACK:
            self._warn(
                "A graph does not see a handler of Pyro's round a step: such steps run in Python. "
                "Put it round the model and the guide."
            )
            return None
        kind = call.kind, *_modes_of_torch()
        if kind not in self._plans and len(self._plans) >= MOST_KINDS:
            self._warn(
                f"More than {MOST_KINDS} kinds of arguments: further ones are run in Python. Pad "
                "batches and sequences to a few shapes, and give numbers that change as tensors."
            )
            return None
        return kind

    def _warn_of_states(self, plan: Plan) -> None:
        """Says what of a program was something else for more plans than are worth it."""
        what = "modules or parameters are" if plan.changed is None else f"{plan.changed!r} is"
        self._warn(
            f"More than {MOST_KINDS} times {what} something else than before: further steps run "
            "in Python. Change a tensor in place, such as a buffer, whose values a graph reads."
        )

    def _compile_in_time(self, plan: Plan, call: Call) -> None:
        """Compiles a graph that nobody asked for in particular, once it has been run for long."""
        due = plan.taken == COMPILE_AFTER and not plan.tried
        if self.engine is None and plan.engine == "graph" and due:
            plan.tried = True
            device = next(iter(plan.parameters.values())).device
            if default_engine(device) != "graph":
                plan.taken = 0  # what is new is checked anew
                self._choose(plan, call, default_engine(device))

    def _choose(self, plan: Plan, call: Call, engine: str, others: Sequence[Plan] = ()) -> None:
        if engine != "eager" and not self.is_distrusted:
            choose(plan, call, self._estimate, engine, self._warn, others)


def _modes_of_torch() -> tuple[Any, ...]:
    """What torch is set to do that a graph has in it: the default type, and that of autocast."""
    default = torch.get_default_dtype()
    if not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda"):
        return (default,)
    kinds = [name for name in ("cpu", "cuda") if torch.is_autocast_enabled(name)]
    return default, *((name, torch.get_autocast_dtype(name)) for name in kinds)

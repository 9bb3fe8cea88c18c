"""What all bounds share: they run a program, weigh its draws, and are Pyro's `ELBO` objects."""

__all__ = ["Bound", "joined", "refusal_of", "shared_out", "weighs_kl", "with_gradient"]

import math
from abc import abstractmethod
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae.bounds.controls import Control, written
from pyrovae.bounds.draws import Draw
from pyrovae.bounds.pairs import Pair
from pyrovae.checks import check_whole
from pyrovae.errors import InputError

_OF_PYRO = frozenset(signature(PyroELBO.__init__).parameters) - {"num_particles"}


def with_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    """A tensor of one value and the gradient of another."""
    return value.detach() + surrogate - surrogate.detach()


class Bound(PyroELBO):
    r"""A bound on $\log p(x)$ of each example, by K draws from the guide.

    It is one of Pyro's `ELBO` objects: `fit`, `CompiledSVI` and `pyro.infer.SVI` take it. Unlike
    theirs it never waits for the device, and a subsampled plate multiplies each example's bound
    rather than its log-weights. One object belongs to one program.

    Latents g that all examples share, outside their plate, have a term of their own. What is
    bounded is the evidence of all N examples together,
    $E_{q(g)}[\sum_n \mathcal{L}_n(g)] - \mathrm{KL}(q(g) \,\|\, p(g))$, by draws of the examples
    given g. A bound whose K draws weigh one another has one g for all of them. Controls of the KL
    weigh that of examples alone; beta, and the weight that a warm-up raises, both. Examples are
    told apart by the plate `data`, or, where there is none, by all that the observed sites share.

    Args:
        num_particles: The number K of draws for each example.
        kl: What is made of the latents' KL: `FreeBits`, `Capacity`, `BalancedKL`, or a function
            like them.
        vectorize_particles: Whether the draws are one more dimension on the left; else the
            program runs K times.
        max_plate_nesting: The depth of the program's plates, if it is not to be found out.

    Raises:
        InputError: If there are fewer draws than the bound needs, or `kl` is no control; at the
            first step, if there are plates and none tells examples apart, a draw carries no
            gradient and the bound needs it, or a control of the KL finds none of examples.
    """

    least_particles = 1
    needs_gradients = False
    """Whether the draws of an example's latents must carry gradients, reparametrised."""
    needs_shared_gradients = True
    """And those of latents that all examples share."""
    holds_shared = False
    """Whether an example's draws have one draw of these latents in common, or one each."""

    def __init__(
        self,
        num_particles: int = 1,
        *,
        kl: Control | None = None,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
    ) -> None:
        given = {f"num_particles of {type(self).__name__}": num_particles}
        check_whole(least=self.least_particles, **given)
        if kl is not None and (isinstance(kl, type) or not callable(kl)):
            raise InputError(
                f"The kl of {type(self).__name__} is {kl!r}, which is no control of it.",
                "Give FreeBits(), Capacity() or BalancedKL(), or a function like them.",
            )
        super().__init__(
            num_particles=num_particles,
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
        )
        self.kl = kl
        self._shared: frozenset[str] | None = None

    def __repr__(self) -> str:
        own = {k: v for k, v in vars(self).items() if k not in _OF_PYRO and v is not None}
        return written(self, own)

    @property
    def kl_share(self) -> float:
        """What the bound itself multiplies the latents' KL by: 0 leaves nothing to weigh."""
        return 1.0

    @abstractmethod
    def _estimate(self, draws: list[Draw]) -> Tensor:
        """The bounds of all examples, whose gradient is the estimator's."""

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The negative bound, summed over examples; its gradient is the estimator's."""
        draws = self._draws(Pair(model, guide, args, kwargs))
        self._check(draws[0])
        constant = self._control(draws)
        bounds = self._estimate(draws)
        examples = draws[0].layout.scale * (bounds - constant).sum()
        return -examples - self._estimate_shared(draws)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The negative bound, summed over examples, as a number."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The same, its gradient added to that of every parameter."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def forget(self) -> None:
        """Forgets what was found out of a program, so that it may serve another one."""
        self._shared = None

    def _estimate_shared(self, draws: list[Draw]) -> Tensor | float:
        r"""$-\mathrm{KL}(q(g) \,\|\, p(g))$ of the latents that all examples share."""
        if not draws[0].shared:
            return 0.0
        return -joined([draw.kl_of(draw.shared, exact=False) for draw in draws]).mean()

    def _draws(self, pair: Pair) -> list[Draw]:
        """The program once, under a plate of particles, or as often as there are particles."""
        if self.num_particles == 1:
            return [self._draw(pair)]
        if not self.vectorize_particles:
            first = self._draw(pair)
            if self.holds_shared:
                first.check_order()
            # Draws are of the same examples.
            once = {**first.subsamples, **(first.shared_values if self.holds_shared else {})}
            again = pair.holding(once)
            return [first, *(self._draw(again) for _ in range(self.num_particles - 1))]

        unknown = self.holds_shared and self._shared is None
        if unknown or self.max_plate_nesting == math.inf:
            self._look(pair)
        draw = self._draw_together(pair)
        if self.holds_shared and draw.layout.shared != self._shared:
            self._look(pair)  # at a program of other latents
            draw = self._draw_together(pair)
        if self.holds_shared:
            draw.check_held()
        return [draw]

    def _draw_together(self, pair: Pair) -> Draw:
        """All K draws, those of what examples share in common where the bound holds them."""
        once = self._shared if self.holds_shared and self._shared else ()
        dim = -int(self.max_plate_nesting)
        return self._draw(pair.of_particles(self.num_particles, dim, but=once))

    def _look(self, pair: Pair) -> None:
        """Finds out what the program's latents and plates are, and leaves the noise as it was."""
        devices = {a.device for a in pair.args if isinstance(a, Tensor) and a.is_cuda}
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            layout = self._draw(pair).layout
        self._shared = layout.shared
        if self.max_plate_nesting == math.inf:
            self.max_plate_nesting = layout.depth

    def _draw(self, pair: Pair) -> Draw:
        guide_trace = pair.run_guide()
        model_trace = pair.run_model(guide_trace)
        return Draw.of(model_trace, guide_trace)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """A trace of the model on the guide's draws, and that of the guide, as Pyro's have it."""
        draw = self._draw(Pair(model, guide, args, kwargs))
        return draw.model_trace, draw.guide_trace

    def _check(self, draw: Draw) -> None:
        """Refuses draws that the bound cannot be had of."""
        for name, site in draw.without_gradient.items():
            shared = name in draw.layout.shared
            needed = self.needs_shared_gradients if shared else self.needs_gradients
            # One whose distribution is not learned has none to carry.
            if needed and draw.log_density([site]).requires_grad:
                raise refusal_of(self, name, shared=shared)

    def _control(self, draws: list[Draw]) -> Tensor | float:
        """Weighs the latents' KL as the control says; what it adds to every example's loss."""
        if self.kl is None:
            return 0.0
        names = draws[0].matched
        if not names:
            raise InputError(
                f"{self.kl!r} weighs the KL of latents of examples, and the program has none.",
                "Give no kl.",
            )
        means = {n: torch.stack([draw.mean_kl(n) for draw in draws]).mean(0) for n in names}
        weights, constants = self.kl(means)
        for draw in draws:
            draw.weights = weights
        return self.kl_share * draws[0].charge(constants)


def refusal_of(bound: object, name: str, *, shared: bool) -> InputError:
    """What a bound says that needs gradients of a latent whose draws carry none.

    Args:
        bound: The bound, one of Pyro's as well.
        name: The latent.
        shared: Whether all examples share it.
    """
    return InputError(
        f"{type(bound).__name__} needs draws that carry gradients, and those of the latent "
        f"{name!r} are discrete or not reparametrised.",
        "Take ELBO (--bound elbo), which does not, or a guide whose draws do."
        if shared
        else "Take VIMCO, ReweightedWakeSleep or ELBO (--bound vimco, reweighted-wake-sleep or "
        "elbo), which do not, or an encoder whose draws do.",
    )


def shared_out(share: Tensor, value: Tensor) -> Tensor:
    """The sum over draws of a value by their shares; a draw without one counts as nothing.

    One that excludes x has the log-weight minus infinity, and the share 0.
    """
    return torch.where(share > 0, share * value, 0.0).sum(0)


def weighs_kl(bound: object) -> bool:
    """Whether there is a KL in what a bound maximises, for beta and a warm-up to weigh."""
    return not isinstance(bound, Bound) or bool(bound.kl_share)


def joined(terms: list[Tensor]) -> Tensor:
    """A term of every draw, with shape (K, plates)."""
    return terms[0] if len(terms) == 1 else torch.cat(terms)

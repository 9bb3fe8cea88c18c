"""Monitoring: the bound that is measured at the end of every epoch."""

__all__ = ["Monitor", "check_weights"]

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch

from pyrovae.data import Batch, Examples
from pyrovae.errors import NonFiniteError
from pyrovae.programs import Program, as_module, evaluating
from pyrovae.randomness import generator, seeded
from pyrovae.ranks import Ranks
from pyrovae.runs import WORDS
from pyrovae.structure import Structure
from pyrovae.terms import sum_terms

# How many examples the training ELBO of an epoch is measured on, at most. Without a validation set
# to compare with it is a tenth of them, where that is enough: they are measured in Python, and all
# of them took as long as four fifths of an epoch that was compiled (scVI's model of 3,350 cells).
MOST_EXAMPLES = 10_000
ENOUGH_EXAMPLES = 1_000
# And how many of their values are kept from one epoch to the next, rather than made anew.
MOST_VALUES = 2**25


class Monitor:
    """The examples that a run in training is measured on, their noise the same every time.

    The validation set, and of the training set as many examples, so that the two compare; a tenth
    of the training set where there is no other.

    Args:
        splits: The examples under train and, where there are any, valid.
        seed: The seed of the draws, and of which training examples these are.
        ranks: The processes that share them.
    """

    def __init__(self, splits: Mapping[str, Examples], seed: int, ranks: Ranks) -> None:
        self.seed = seed
        self.ranks = ranks
        self.device = splits["train"].device
        self.missing = {name: split.missing for name, split in splits.items()}
        names = [name for name in ("train", "valid") if name in splits]
        tenth = max(len(splits["train"]) // 10, ENOUGH_EXAMPLES)
        most = min(len(splits["valid"]) if "valid" in splits else tenth, MOST_EXAMPLES)
        self._batches = {name: self._chosen(splits[name], name, most) for name in names}

    def measure(self, program: Program, structure: Structure, epoch: int) -> dict[str, float]:
        """The ELBO at weight 1 by one draw for each example, and its terms, held-out if can be.

        Without a bound on log p(x) there is the log-likelihood alone. Of latents that all
        examples share one draw is taken for each batch, and their KL, of no one example, is a
        number of its own.

        Raises:
            NonFiniteError: If the bound is NaN, or infinite for data that a stream has made so,
                naming the epoch and the data.
        """
        found: dict[str, float] = {}
        for name, batches in self._batches.items():
            with (
                evaluating(program),
                seeded(self.seed, "monitor", name, *self.ranks.key, device=self.device),
            ):
                sums = sum_terms(program, batches(), structure)
            *totals, count = self.ranks.sum(sums).tolist()
            elbo, log_likelihood, kl, global_kl = (total / count for total in totals)
            if not math.isfinite(elbo):
                self._check(program, name, elbo, epoch)
            found["log_likelihood"] = log_likelihood
            if structure.has_bound:
                found |= {"kl": kl, f"{name}_elbo": elbo}
            if structure.has_global_kl:
                found["global_kl"] = global_kl
        return found

    def _check(self, program: Program, name: str, elbo: float, epoch: int) -> None:
        """Says why a bound is not finite, where that is not the program's to say."""
        check_weights(program, f"After epoch {epoch}")
        missing = self.missing[name]
        wrong = (b.x.isinf() if missing else ~b.x.isfinite() for b in self._batches[name]())
        of_data = any(bool(found.any()) for found in wrong)
        (of_data,) = self.ranks.ask(of_data)()
        if of_data or math.isnan(elbo):
            why = ", which hold values that are not finite" if of_data else ""
            raise NonFiniteError(
                f"After epoch {epoch} the bound of the {WORDS[name]} data is {elbo}{why}.",
                "Mend these data." if of_data else "Try a lower learning rate.",
            )

    def _chosen(self, examples: Examples, name: str, most: int) -> Callable[[], Iterable[Batch]]:
        """The batches of this process's share of a split."""
        rows = torch.arange(len(examples))
        if name == "train":
            # Any of them: data may be sorted.
            order = torch.randperm(len(rows), generator=generator(self.seed, "monitor"))
            rows = order[:most].sort().values
        rows = self.ranks.rows(rows)
        if not len(rows):
            return list
        if examples.streams or len(rows) * math.prod(examples.x_shape) > MOST_VALUES:
            return partial(examples.chosen, rows, examples.block)

        kept = list(examples.chosen(rows, examples.block))
        return lambda: kept


def check_weights(program: Program, when: str) -> None:
    """Refuses weights that are not finite, which an optimizer can make of gradients that are.

    Raises:
        NonFiniteError: Naming the parameter.
    """
    for name, parameter in as_module(program).named_parameters():
        if not parameter.isfinite().all():
            raise NonFiniteError(
                f"{when} the parameter {name!r} is not finite.",
                "What was saved before it stands; try a lower learning rate.",
            )

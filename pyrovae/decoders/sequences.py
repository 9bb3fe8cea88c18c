"""Likelihoods of sequences of symbols."""

__all__ = ["RecurrentTextDecoder"]

from collections.abc import Callable
from typing import ClassVar, Literal

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrovae.checks import check_whole
from pyrovae.decoders.drawn import DrawnScorer
from pyrovae.distributions import Autoregressive
from pyrovae.drawn import weight_ranks
from pyrovae.errors import InputError
from pyrovae.networks.layers import Embedding
from pyrovae.networks.recurrent import LinearSteps, State, begin_at, make_recurrent, recur


class RecurrentTextDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_t \mathrm{Categorical}(x_t \mid x_{<t}, z)$ of text.

    A GRU or an LSTM reads the symbols so far. What the network makes of z is where its state
    starts, and a part of every input.

    Args:
        net: A network mapping $(*, D)$ to $(*, \text{hidden})$.
        x_shape: The shape (T,) of one text: whole numbers 0 .. symbols - 1, of any type.
        symbols: The number of symbols; 256 are bytes.
        embedding: The dimension that symbols are embedded in.
        hidden: The width of the state.
        cell: What reads them, gru or lstm.
        word_dropout: The share of symbols that it is not shown while training, so that it has to
            ask z. What it predicts is never dropped; the training loss is then that of the
            weakened decoder, and every other number that of the whole one.

    Raises:
        InputError: If x is no sequence, a size is below 1, there is no such cell, or the share is
            not in [0, 1].

    References:
        Generating Sentences from a Continuous Space (Bowman et al., 2016), arXiv:1511.06349.
    """

    values: ClassVar[str] = "symbols"

    def __init__(
        self,
        net: nn.Module,
        x_shape: tuple[int, ...],
        *,
        symbols: int = 256,
        embedding: int = 64,
        hidden: int = 256,
        cell: Literal["gru", "lstm"] = "gru",
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__()

        if len(x_shape) != 1:
            raise InputError(
                f"A RecurrentTextDecoder is for sequences, and x has the shape {tuple(x_shape)}.",
                "Give symbols of shape (T,).",
            )
        check_whole(symbols=symbols, embedding=embedding)
        if not 0 <= word_dropout <= 1:
            raise InputError(f"word_dropout is {word_dropout}.", "Give a share in [0, 1].")

        self.net = net
        self.x_shape = tuple(x_shape)
        self.symbols = symbols
        self.embedding = embedding
        self.hidden = hidden
        self.cell = cell
        self.word_dropout = word_dropout

        # One more than there are symbols: what stands before the first, and for a dropped one.
        self.embed = Embedding(symbols + 1, embedding)
        self.recurrent = make_recurrent(cell, embedding + hidden, hidden)
        self.read_out = LinearSteps(hidden, symbols)
        self._ranks = weight_ranks(self, besides="net")

    @staticmethod
    def net_shape(x_shape: tuple[int, ...], *, hidden: int = 256) -> tuple[int, ...]:
        """What the network must put out for one text.

        Raises:
            InputError: If that is nothing.
        """
        check_whole(hidden=hidden)
        return (hidden,)

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        # The h of a cell is in (-1, 1).
        scorer = DrawnScorer(self, self._ranks)
        context, batch_shape = scorer.expand(self.net(z).tanh(), 1)

        return Autoregressive(scorer, context, batch_shape, self.x_shape, self.symbols)

    def logits(self, value: Tensor, context: Tensor) -> Tensor:
        """The logits of every symbol given those before it: $(*, T)$ to $(*, T, S)$."""
        before = F.pad(value.long()[..., :-1], (1, 0), value=self.symbols)
        if self.training and self.word_dropout:
            dropped = torch.rand(before.shape, device=before.device) < self.word_dropout
            before = before.masked_fill(dropped, self.symbols)
        states, _ = self._read(before, context, begin_at(self.recurrent, context))

        return self.read_out(states)

    def generate(self, context: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Texts $(*, T)$, symbol by symbol."""
        first = (*context.shape[:-1], 1)
        symbol = torch.full(first, self.symbols, device=context.device)
        state, text = begin_at(self.recurrent, context), []
        for _ in range(self.x_shape[0]):
            states, state = self._read(symbol, context, state)
            symbol = draw(self.read_out(states))
            text.append(symbol)

        return torch.cat(text, -1)

    def _read(self, symbols: Tensor, context: Tensor, state: State) -> tuple[Tensor, State]:
        """The states over symbols, $(*, t, H)$, and what is left after the last of them."""
        given = context.unsqueeze(-2).expand(*symbols.shape, -1)

        return recur(self.recurrent, torch.cat([self.embed(symbols), given], -1), state)

"""Recurrent networks."""

__all__ = ["RecurrentDecoderNet", "RecurrentEncoderNet", "TokenEncoderNet"]

import math
from collections.abc import Sequence

from torch import Tensor, nn


class RecurrentEncoderNet(nn.Module):
    r"""A GRU over a sequence, $(*, T, F) \to (*, \text{out})$: a linear read-out of its end.

    Args:
        in_shape: The shape (T, F) of one sequence: T steps of F numbers.
        out_shape: The shape of one output.
        hidden: The width of the state.
        bidirectional: Whether a second GRU reads the sequence from its end; the read-out is of
            both.

    References:
        Learning Phrase Representations using RNN Encoder-Decoder (Cho et al., 2014),
        arXiv:1406.1078.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        hidden: int = 128,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()

        self.in_shape = tuple(in_shape)
        self.out_shape = tuple(out_shape)
        self.hidden = hidden
        self.bidirectional = bidirectional

        self.recurrent = nn.GRU(
            self.in_shape[1], hidden, batch_first=True, bidirectional=bidirectional
        )
        self.read_out = nn.Linear((1 + bidirectional) * hidden, math.prod(self.out_shape))

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, T, F)$ to $(*, out)$."""
        _, ends = self.recurrent(x.reshape(-1, *self.in_shape))
        end = ends.transpose(0, 1).flatten(1)

        return self.read_out(end).reshape(*x.shape[:-2], *self.out_shape)


class RecurrentDecoderNet(nn.Module):
    r"""A GRU that makes a sequence, $(*, \text{in}) \to (*, T, F)$: at every step it is fed z.

    Args:
        in_shape: The shape of one input.
        out_shape: The shape (T, F) of one sequence.
        hidden: The width of the state.
    """

    def __init__(
        self, in_shape: Sequence[int], out_shape: Sequence[int], *, hidden: int = 128
    ) -> None:
        super().__init__()

        self.in_shape = tuple(in_shape)
        self.out_shape = tuple(out_shape)
        self.hidden = hidden

        self.recurrent = nn.GRU(math.prod(self.in_shape), hidden, batch_first=True)
        self.read_out = nn.Linear(hidden, self.out_shape[1])

    def forward(self, z: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, T, F)$."""
        flat = z.flatten(-len(self.in_shape))
        each = flat.reshape(-1, 1, flat.shape[-1]).expand(-1, self.out_shape[0], -1)
        states, _ = self.recurrent(each)

        return self.read_out(states).reshape(*flat.shape[:-1], *self.out_shape)


class TokenEncoderNet(nn.Module):
    r"""A GRU over embedded symbols, $(*, T) \to (*, \text{out})$.

    Args:
        in_shape: The shape (T,) of one sequence of whole numbers 0 .. symbols - 1, of any type.
        out_shape: The shape of one output.
        symbols: The number of symbols; 256 are bytes.
        embedding: The dimension that symbols are embedded in.
        hidden: The width of the state.
        bidirectional: As in `RecurrentEncoderNet`.

    Example:
        >>> import torch
        >>> TokenEncoderNet((9,), (4,))(torch.zeros(2, 5, 9)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        symbols: int = 256,
        embedding: int = 64,
        hidden: int = 128,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()

        self.in_shape = tuple(in_shape)
        self.out_shape = tuple(out_shape)
        self.symbols = symbols
        self.embedding = embedding
        self.hidden = hidden
        self.bidirectional = bidirectional

        (length,) = self.in_shape
        self.embed = nn.Embedding(symbols, embedding)
        self.net = RecurrentEncoderNet(
            (length, embedding), out_shape, hidden=hidden, bidirectional=bidirectional
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, T)$ to $(*, out)$."""
        # A number that is no symbol is for the likelihood to refuse, by its support, and not to
        # end the process as an index out of range does on a GPU.
        return self.net(self.embed(x.long().clamp(0, self.symbols - 1)))

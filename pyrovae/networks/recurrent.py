"""Recurrent networks."""

__all__ = [
    "LinearSteps",
    "RecurrentDecoderNet",
    "RecurrentEncoderNet",
    "State",
    "TokenEncoderNet",
    "begin_at",
    "make_recurrent",
    "recur",
]

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pyrovae.checks import check_whole, whole
from pyrovae.errors import InputError
from pyrovae.networks.layers import Embedding, Linear
from pyrovae.networks.missing import values_and_mask
from pyrovae.networks.sizes import as_sizes

Layer = nn.GRU | nn.LSTM
_CELLS: Mapping[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}
# What a layer carries from step to step: (h,) of a GRU, and (h, c) of an LSTM.
State = tuple[Tensor, ...]


class RecurrentEncoderNet(nn.Module):
    r"""A GRU or an LSTM over a sequence, $(*, T, F) \to (*, \text{out})$: a read-out of its end.

    With `missing`, NaN stands for a number that is missing, and beside the numbers of a step the
    network reads which of them were observed. A sequence ends with the last step of which
    anything was, and what comes after, as in sequences of several lengths that are padded to the
    longest (`pyrovae.data.pad_sequences`), is not read, in either direction.

    Args:
        in_shape: The shape (T, F) of one sequence: T steps of F numbers.
        out_shape: The shape of one output.
        hidden: The width of the state.
        cell: gru or lstm.
        bidirectional: Whether a second one reads the sequence from its end; the linear read-out
            is of both.
        missing: Whether numbers may be missing, and sequences end before the last step.

    Raises:
        InputError: If there is no such cell, a sequence is not of shape (T, F), or a size is
            below 1.

    References:
        Learning Phrase Representations using RNN Encoder-Decoder (Cho et al., 2014),
        arXiv:1406.1078.
        Long Short-Term Memory (Hochreiter & Schmidhuber, 1997).

    Example:
        >>> RecurrentEncoderNet((9, 3), (4,), cell="lstm")(torch.zeros(2, 5, 9, 3)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        hidden: int = 128,
        cell: Literal["gru", "lstm"] = "gru",
        bidirectional: bool = False,
        missing: bool = False,
    ) -> None:
        super().__init__()

        self.in_shape = as_sizes("in_shape", in_shape, dims="T, F")
        self.out_shape = as_sizes("out_shape", out_shape)
        self.hidden = hidden
        self.cell = cell
        self.bidirectional = bidirectional
        self.missing = missing

        _, features = self.in_shape
        read = (1 + missing) * features
        self.recurrent = make_recurrent(cell, read, hidden, bidirectional=bidirectional)
        self.read_out = Linear((1 + bidirectional) * hidden, math.prod(self.out_shape))

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, T, F)$ to $(*, out)$."""
        if self.missing:
            given = torch.cat(values_and_mask(x), -1)
            end = _ends(self.recurrent, given, _lengths(~x.isnan()))
        else:
            _, (end, *_) = recur(self.recurrent, x)

        return self.read_out(end).unflatten(-1, self.out_shape)


class RecurrentDecoderNet(nn.Module):
    r"""A GRU or an LSTM that makes a sequence, $(*, \text{in}) \to (*, T, F)$, fed z at each step.

    Args:
        in_shape: The shape of one input.
        out_shape: The shape (T, F) of one sequence; or (k T, F) for k numbers instead of each,
            those of the same kind side by side, as likelihoods with k parameters read them.
        hidden: The width of the state.
        cell: gru or lstm.
        steps: The number T of steps; as many as `out_shape` says if None.

    Raises:
        InputError: If there is no such cell, a sequence is not of shape (T, F), a size is below
            1, or the steps do not divide the rows of `out_shape`.

    Example:
        >>> RecurrentDecoderNet((2,), (9, 3), cell="lstm")(torch.zeros(5, 2)).shape
        torch.Size([5, 9, 3])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        hidden: int = 128,
        cell: Literal["gru", "lstm"] = "gru",
        steps: int | None = None,
    ) -> None:
        super().__init__()

        rows, features = as_sizes("out_shape", out_shape, dims="T, F")
        length = rows if steps is None else steps
        if length < 1 or rows % length:
            raise InputError(
                f"An output of {rows} rows is none of {steps} steps.",
                "Give steps that divide the rows.",
            )
        self.in_shape = as_sizes("in_shape", in_shape)
        self.out_shape = tuple(out_shape)
        self.hidden = hidden
        self.cell = cell
        self.steps = steps

        self.length = length
        self.recurrent = make_recurrent(cell, math.prod(self.in_shape), hidden)
        self.read_out = LinearSteps(hidden, rows // length * features)

    def forward(self, z: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, T, F)$."""
        flat = z.flatten(-len(self.in_shape)).unsqueeze(-2)
        states, _ = recur(self.recurrent, flat.expand(*flat.shape[:-2], self.length, -1))

        # One kind of numbers after another: (*, T, k F) -> (*, k, T, F) -> (*, k T, F).
        kinds = self.read_out(states).unflatten(-1, (-1, self.out_shape[1]))
        return kinds.transpose(-3, -2).flatten(-3, -2)


class TokenEncoderNet(nn.Module):
    r"""A GRU or an LSTM over embedded symbols, $(*, T) \to (*, \text{out})$.

    Args:
        in_shape: The shape (T,) of one sequence of whole numbers 0 .. symbols - 1, of any type.
        out_shape: The shape of one output.
        symbols: The number of symbols; 256 are bytes.
        embedding: The dimension that symbols are embedded in.
        hidden: The width of the state.
        cell: gru or lstm.
        bidirectional: As in `RecurrentEncoderNet`.

    Raises:
        InputError: If there is no such cell, a sequence is not of shape (T,), or a size is below
            1.

    Example:
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
        cell: Literal["gru", "lstm"] = "gru",
        bidirectional: bool = False,
    ) -> None:
        super().__init__()

        self.in_shape = as_sizes("in_shape", in_shape, dims="T")
        self.out_shape = as_sizes("out_shape", out_shape)
        check_whole(symbols=symbols, embedding=embedding)
        self.symbols = symbols
        self.embedding = embedding
        self.hidden = hidden
        self.cell = cell
        self.bidirectional = bidirectional

        (length,) = self.in_shape
        self.embed = Embedding(symbols, embedding)
        self.net = RecurrentEncoderNet(
            (length, embedding), out_shape, hidden=hidden, cell=cell, bidirectional=bidirectional
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, T)$ to $(*, out)$."""
        # A number that is no symbol is for the likelihood to refuse, by its support, and not to
        # end the process as an index out of range does on a GPU.
        return self.net(self.embed(x.long().clamp(0, self.symbols - 1)))


# ── Layers ───────────────────────────────────────────────────────────────────────────────────


def make_recurrent(cell: str, features: int, hidden: int, *, bidirectional: bool = False) -> Layer:
    """Torch's layer of a cell.

    Raises:
        InputError: If there is no such cell, or no state.
    """
    # Torch's layers take no whole numbers but Python's.
    hidden = whole("hidden", hidden)
    if cell not in _CELLS:
        raise InputError(f"There is no cell {cell!r}.", f"Take {' or '.join(_CELLS)}.")
    return _CELLS[cell](features, hidden, batch_first=True, bidirectional=bidirectional)


def begin_at(layer: Layer, value: Tensor) -> State:
    """The state of a layer all of which is one value."""
    return (value, value) if isinstance(layer, nn.LSTM) else (value,)


def recur(layer: Layer, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    r"""The states of a layer over sequences.

    Those of a GRU are computed by torch's own. An LSTM takes its steps one by one, as the kernel
    that torch has for it on a CPU, oneDNN's, cannot be captured together with its gradient; and
    so does whatever has a draw of its weights for each particle.

    Args:
        layer: A layer of `make_recurrent`, its weights of any batch dimensions.
        x: The sequences, with shape $(*, T, F)$.
        state: What it begins with, each part with shape $(*, H)$; zeros if None.

    Returns:
        The state $h$ of every step, $(*, T, H)$, and what is left after the last one, each part
        with shape $(*, H)$. Of two directions both are side by side.
    """
    if isinstance(layer, nn.GRU) and all(map(_is_one_draw, layer.all_weights)):
        return _torch_gru(layer, x, state)

    begin = None if state is None else tuple(part.unsqueeze(-2) for part in state)
    found = [
        _unrolled(layer, weights, x, begin, backwards=bool(direction))
        for direction, weights in enumerate(layer.all_weights)
    ]
    states, left = zip(*found, strict=True)
    ends = zip(*left, strict=True)
    return torch.cat(states, -1), tuple(torch.cat(parts, -1).squeeze(-2) for parts in ends)


def _lengths(observed: Tensor) -> Tensor:
    """The number of steps up to the last one of which anything was observed: (*, T, F) to (*,)."""
    steps = torch.arange(1, observed.shape[-2] + 1, device=observed.device)
    return torch.where(observed.any(-1), steps, 0).amax(-1)


def _ends(layer: Layer, x: Tensor, lengths: Tensor) -> Tensor:
    """The state after the last step of sequences that are padded, both directions side by side.

    It is what a packed sequence of torch's would leave, whose lengths are read on the CPU. The
    second direction is a first one over the steps turned round, up to each one's own end. A
    sequence of no step leaves the state that it began with, zero.
    """
    lengths = lengths[..., None, None]
    steps = torch.arange(x.shape[-2], device=x.device).unsqueeze(-1)
    turned = (lengths - 1 - steps).clamp(min=0).expand(x.shape)

    ends = []
    for direction, weights in enumerate(layer.all_weights):
        states = _one_direction(layer, weights, x.gather(-2, turned) if direction else x)
        last = (lengths - 1).clamp(min=0).expand(*states.shape[:-2], 1, states.shape[-1])
        ends.append(torch.where(lengths > 0, states.gather(-2, last), 0.0).squeeze(-2))
    return torch.cat(ends, -1)


def _one_direction(layer: Layer, weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """The states of one direction, (*, T, H), from zero on."""
    # On a GPU torch's own wants the weights of both directions in one piece.
    if isinstance(layer, nn.LSTM) or not _is_one_draw(weights) or x.is_cuda:
        return _unrolled(layer, weights, x, None, backwards=False)[0]
    flat = x.reshape(-1, *x.shape[-2:])
    begin = x.new_zeros(1, len(flat), layer.hidden_size)
    states, _ = torch.gru(flat, begin, list(weights), True, 1, 0.0, False, False, True)
    return states.reshape(*x.shape[:-1], layer.hidden_size)


def _is_one_draw(weights: Sequence[Tensor]) -> bool:
    return [weight.dim() for weight in weights] == [2, 2, 1, 1]


def _torch_gru(layer: nn.GRU, x: Tensor, state: State | None) -> tuple[Tensor, State]:
    batch_shape = x.shape[:-2]
    begin = None if state is None else state[0].reshape(1, -1, layer.hidden_size)
    states, ends = layer(x.reshape(-1, *x.shape[-2:]), begin)
    flat = (states, ends.transpose(0, 1).flatten(1))
    states, end = (part.reshape(*batch_shape, *part.shape[1:]) for part in flat)

    return states, (end,)


def _unrolled(
    layer: Layer, weights: Sequence[Tensor], x: Tensor, state: State | None, *, backwards: bool
) -> tuple[Tensor, State]:
    """One direction, step by step; time stays a dimension, of one step."""
    to_gates, from_state, bias, state_bias = weights
    fed = _affine(x, to_gates, bias).split(1, -2)
    if state is None:
        state = begin_at(layer, fed[0].new_zeros(*fed[0].shape[:-1], layer.hidden_size))
    step = _lstm if isinstance(layer, nn.LSTM) else _gru

    states = []
    for given in reversed(fed) if backwards else fed:
        state = step(given, _affine(state[0], from_state, state_bias), state)
        states.append(state[0])
    return torch.cat(states[::-1] if backwards else states, -2), state


class LinearSteps(nn.Linear):
    """torch's linear layer at every step of a sequence, of weights with any batch dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps $(*, T, in)$ to $(*, T, out)$."""
        weight, bias = self.weight, self.bias
        if weight.dim() == 2 and bias.dim() == 1:
            return super().forward(input)
        return _affine(input, weight, bias)


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""$W x + b$ at every step, $(*, t, F)$ to $(*, t, \text{gates})$."""
    return x @ weight.mT + bias.unsqueeze(-2)


def _gru(given: Tensor, recalled: Tensor, state: State) -> State:
    r"""$h \leftarrow n + u \odot (h - n)$, with $n = \tanh(a_n + r \odot b_n)$."""
    (reset, update, new), (h,) = given.chunk(3, -1), state
    old_reset, old_update, old_new = recalled.chunk(3, -1)
    n = torch.tanh(new + torch.sigmoid(reset + old_reset) * old_new)
    return (n + torch.sigmoid(update + old_update) * (h - n),)


def _lstm(given: Tensor, recalled: Tensor, state: State) -> State:
    r"""$c \leftarrow f \odot c + i \odot \tanh g$, and $h \leftarrow o \odot \tanh c$."""
    enter, forget, new, show = (given + recalled).chunk(4, -1)
    c = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(c), c

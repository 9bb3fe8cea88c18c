"""Networks that read observations with missing entries, written as NaN."""

__all__ = ["NanMaskedInput", "TabularInput", "values_and_mask"]

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrovae.errors import InputError


class NanMaskedInput(nn.Module):
    r"""A network of $x$ with missing entries: $\mathrm{net}([x \odot m, m])$.

    The mask $m$ is one where an entry was observed. It follows the values, zero where they are
    missing, along the first dimension of an observation: a vector becomes twice as long, an image
    has twice the channels. Of sequences a `RecurrentEncoderNet` takes them step by step, by
    `missing=True` and without this.

    Args:
        net: A network whose input has room for both: $(2 X,)$, or $(2 C, H, W)$.

    Raises:
        InputError: If the first dimension of its input is odd.

    Example:
        >>> from pyrovae.networks import MLP
        >>> net = NanMaskedInput(MLP((6,), (4,)))
        >>> net.in_shape, net(torch.tensor([0.5, torch.nan, 1.0])).shape
        ((3,), torch.Size([4]))
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()

        double, *rest = net.in_shape  # pyright: ignore
        if double % 2:
            raise InputError(
                f"An input of shape {(double, *rest)} has no room for values and their mask.",
                "Give a network that takes twice the features, or the channels, of the data.",
            )
        self.net = net
        self.in_shape = (double // 2, *rest)
        self.out_shape = net.out_shape

    @staticmethod
    def net_shape(x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network must take for one observation."""
        return (2 * x_shape[0], *x_shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, in)$, some of it NaN, to $(*, out)$."""
        return self.net(torch.cat(values_and_mask(x), -len(self.in_shape)))


class TabularInput(nn.Module):
    r"""A network of a row of a table of mixed types, some of it missing.

    A real number becomes two features, its value (zero where it is missing) and whether it was
    observed; one of $K$ codes becomes $K$ features, of which the code's is one (none where it is
    missing).

    Args:
        net: A network whose input is `TabularInput.net_shape(x_shape, columns=columns)`.
        columns: The number of codes of each column, 0 for real numbers, as in `TabularDecoder`.

    Raises:
        InputError: If the network's input is of another size.

    Example:
        >>> from pyrovae.networks import MLP
        >>> net = TabularInput(MLP((7,), (4,)), columns=(0, 3, 2))
        >>> net(torch.tensor([0.5, 2.0, torch.nan])).shape
        torch.Size([4])
    """

    real: Tensor
    column: Tensor
    code: Tensor

    def __init__(self, net: nn.Module, *, columns: Sequence[int]) -> None:
        super().__init__()

        self.net = net
        self.columns = tuple(columns)
        self.in_shape = (len(self.columns),)
        self.out_shape = net.out_shape
        needed = self.net_shape(self.in_shape, columns=columns)
        if net.in_shape != needed:
            raise InputError(
                f"The columns {self.columns} become {needed[0]} features, and the network takes "
                f"an input of shape {net.in_shape}.",
                "Give it the shape TabularInput.net_shape(x_shape, columns=columns).",
            )
        pairs = [(i, code) for i, codes in enumerate(columns) for code in range(codes)]
        buffers = {
            "real": [i for i, codes in enumerate(columns) if codes == 0],
            "column": [i for i, _ in pairs],
            "code": [code for _, code in pairs],
        }
        for name, values in buffers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.long), persistent=False)

    @staticmethod
    def net_shape(x_shape: tuple[int, ...], *, columns: Sequence[int]) -> tuple[int, ...]:
        """What the network must take for one row.

        Raises:
            InputError: If there are not as many columns as a row has entries.
        """
        if x_shape != (len(columns),):
            raise InputError(
                f"There are {len(columns)} columns, and an observation is of shape {x_shape}.",
                "Give the number of codes of each entry of a row, 0 for real numbers.",
            )
        return (sum(codes or 2 for codes in columns),)

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, columns)$, some of it NaN, to $(*, out)$."""
        numbers = values_and_mask(x.index_select(-1, self.real))
        # NaN equals no code.
        codes = x.index_select(-1, self.column) == self.code
        return self.net(torch.cat([*numbers, codes.to(x.dtype)], -1))


def values_and_mask(x: Tensor) -> tuple[Tensor, Tensor]:
    """The values, zero where they are missing, and one where they are not."""
    observed = ~x.isnan()
    return torch.where(observed, x, 0.0), observed.to(x.dtype)

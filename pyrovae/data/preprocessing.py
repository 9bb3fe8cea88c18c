r"""Preprocessing: from the data's own units to the x that a program sees, and back.

Each is a small frozen object, stored in the run and applied to whatever data a later command is
given. One that needs noise is a pure function of it: uniform on [0, 1), of the data's shape.
A NaN, which stands for a missing entry, is one before and after.
"""

__all__ = [
    "AsIs",
    "Binarize",
    "Dequantize",
    "Preprocessing",
    "Standardize",
    "extent",
    "observed",
]

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.data.mapped import MappedRows
from pyrovae.data.rows import Rows, blocks
from pyrovae.data.sparse import SparseRows
from pyrovae.devices import send
from pyrovae.errors import InputError

BINARIZE_MODES = ("threshold", "static", "dynamic")


class Preprocessing(ABC):
    """What the rest of the package asks of a preprocessing."""

    @property
    def needs_noise(self) -> bool:
        """Whether `apply` takes noise."""
        return False

    @property
    def redraws(self) -> bool:
        """Whether training draws the noise anew at every visit of an example.

        Validation and test never do: there an example's noise is a function of its index.
        """
        return False

    @property
    def log_cell_volume(self) -> float | None:
        r"""The log-volume in x of one discrete value of the data, None where they are real.

        $\log P(\text{data}) \ge \log p(x) + \text{dims} \times$ this (Theis et al., 2016,
        arXiv:1511.01844).
        """
        return None

    @property
    @abstractmethod
    def summary(self) -> str:
        """A phrase for the first lines of a run."""

    def check(self, raw: Rows) -> None:
        """Refuses data that are not of the units it was made for.

        Raises:
            InputError: Naming the range, or the shape, of the data.
        """
        return

    @abstractmethod
    def apply(self, raw: Tensor, noise: Tensor | None) -> Tensor:
        """The program's x, in float32."""

    @abstractmethod
    def invert(self, x: Tensor) -> Tensor:
        """Back to the data's own units."""


def observed(raw: Rows) -> Iterator[Tensor]:
    """The entries that are not missing, in blocks; integers, of which none can be, as they are.

    Of sparse rows they are those that are kept, and a zero for all others.
    """
    if isinstance(raw, SparseRows):
        yield torch.zeros(1)
    for block in blocks(raw):
        yield block[~block.isnan()] if block.is_floating_point() else block


def extent(raw: Rows) -> tuple[float, float]:
    """The least and the greatest of the entries that are not missing, if there are any."""
    low, high = math.inf, -math.inf
    for seen in observed(raw):
        if seen.numel():
            least, greatest = seen.aminmax()
            low, high = min(low, least.item()), max(high, greatest.item())
    return low, high


def _check_range(raw: Rows, maximum: float, summary: str) -> None:
    if raw.dtype == torch.uint8 and maximum >= 255:
        return  # whatever they are; and they may be more than memory holds
    low, high = extent(raw)
    if low < 0 or high > maximum:
        raise InputError(
            f"The data have values from {low:.3g} to {high:.3g}, and are to be {summary} on a "
            f"scale from 0 to {maximum:.3g}.",
            "Give data in the units that the run was trained in.",
        )


@dataclass(frozen=True)
class AsIs(Preprocessing):
    """The data as they are."""

    @property
    def summary(self) -> str:
        """A phrase for the first lines of a run."""
        return "as they are"

    def apply(self, raw: Tensor, noise: Tensor | None) -> Tensor:
        """The same values, integers in float32."""
        return raw if raw.is_floating_point() else raw.float()

    def invert(self, x: Tensor) -> Tensor:
        """The same values."""
        return x


@dataclass(frozen=True)
class Binarize(Preprocessing):
    r"""Grey values in [0, maximum] made binary.

    `threshold` asks whether the value is above one half; `static` and `dynamic` draw
    $x \sim \mathrm{Bernoulli}(\text{value} / \text{maximum})$, once, or anew at every visit.

    Args:
        mode: One of threshold, static, dynamic.
        maximum: The value that stands for one: 255 for 8-bit images.
    """

    mode: str
    maximum: float = 255.0

    def __post_init__(self) -> None:
        if self.mode not in BINARIZE_MODES:
            raise InputError(
                f"There is no binarisation {self.mode!r}.",
                f"Take one of {', '.join(BINARIZE_MODES)}.",
            )

    @property
    def needs_noise(self) -> bool:
        """Whether values are drawn."""
        return self.mode != "threshold"

    @property
    def redraws(self) -> bool:
        """Whether training draws them anew at every visit."""
        return self.mode == "dynamic"

    @property
    def summary(self) -> str:
        """A phrase for the first lines of a run."""
        return f"binarised ({self.mode})"

    def check(self, raw: Rows) -> None:
        """Refuses values outside [0, maximum]."""
        _check_range(raw, self.maximum, self.summary)

    def apply(self, raw: Tensor, noise: Tensor | None) -> Tensor:
        """Zeros and ones, and NaN where an entry is missing."""
        probability = raw / self.maximum
        # 0.5 rather than the mean: P(noise < p) = p, and p > 0.5 is the threshold.
        x = (probability > (0.5 if noise is None else noise)).float()
        return torch.where(probability.isnan(), math.nan, x)

    def invert(self, x: Tensor) -> Tensor:
        """Probabilities back to the grey scale."""
        return x * self.maximum


@dataclass(frozen=True)
class Dequantize(Preprocessing):
    r"""Integers 0 .. levels - 1 spread over (0, 1): $x = (\text{value} + u) / \text{levels}$.

    With $u \sim U[0, 1)$ a density of x bounds the probability of the integers from below.

    Args:
        levels: The number of integers: 256 for 8-bit images.
    """

    levels: int = 256

    @property
    def needs_noise(self) -> bool:
        """The fraction of a level that is added."""
        return True

    @property
    def redraws(self) -> bool:
        """The fractions are drawn anew at every visit."""
        return True

    @property
    def log_cell_volume(self) -> float:
        """One integer is 1 / levels wide."""
        return -math.log(self.levels)

    @property
    def summary(self) -> str:
        """A phrase for the first lines of a run."""
        return f"{self.levels} levels dequantised to (0, 1)"

    def check(self, raw: Rows) -> None:
        """Refuses values outside 0 .. levels - 1."""
        _check_range(raw, self.levels - 1, self.summary)

    def apply(self, raw: Tensor, noise: Tensor | None) -> Tensor:
        """Values in (0, 1)."""
        assert noise is not None
        # Noise is a multiple of 2^-24, and none of it is half of one; a sum just under `levels`
        # may round up to it. At 0 and 1 themselves a density on (0, 1) may be infinite.
        return ((raw + noise) / self.levels).clamp(2**-25 / self.levels, 1 - 2**-24)

    def invert(self, x: Tensor) -> Tensor:
        """The integers, as real numbers in [0, levels - 1]."""
        return (x * self.levels - 0.5).clamp(0, self.levels - 1)


@dataclass(frozen=True, eq=False)
class Standardize(Preprocessing):
    r"""Real values to mean zero and standard deviation one: $x = (\text{value} - m) / s$.

    Densities and bounds are then of the standardised values: subtract $\sum_i \log s_i$ for
    those of the data in their own units.

    Args:
        mean: The training mean, of the shape of one observation or broadcasting to it.
        scale: The training standard deviation, likewise.
    """

    mean: Tensor
    scale: Tensor

    @property
    def summary(self) -> str:
        """A phrase for the first lines of a run."""
        return "standardised by the training moments"

    @classmethod
    def of(cls, raw: Rows, *, columns: Sequence[int] | None = None) -> "Standardize":
        """The moments of vectors (N, X) and sequences (N, T, X) feature by feature, of images over
        all pixels.

        They are those of the entries observed.

        Args:
            raw: The training data.
            columns: For a table, the number of codes of each column, 0 for real numbers, as in
                `TabularDecoder`: columns of codes stay as they are.
        """
        mean, scale = raw.moments() if isinstance(raw, SparseRows) else _moments(raw)
        # A constant feature stays where it is rather than becoming 0 / 0; so does an unseen one.
        scale = torch.where(scale > 0, scale, 1.0)
        mean = mean.nan_to_num(0.0)
        if columns is not None:
            has_codes = torch.tensor([codes > 0 for codes in columns], device=raw.device)
            mean, scale = mean.masked_fill(has_codes, 0.0), scale.masked_fill(has_codes, 1.0)
        return cls(mean.float(), scale.float())

    def check(self, raw: Rows) -> None:
        """Refuses observations of other numbers than those that the moments are of."""
        own, given = tuple(self.mean.shape), tuple(raw.shape[1:])
        if any(m not in (1, size) for m, size in zip(own[::-1], given[::-1], strict=False)):
            raise InputError(
                f"The data are of shape {given}, and the moments to standardise them by {own}.",
                "Give data of the shape of those that were trained on.",
            )

    def apply(self, raw: Tensor, noise: Tensor | None) -> Tensor:
        """Standardised values."""
        return (raw.float() - send(self.mean, raw.device)) / send(self.scale, raw.device)

    def invert(self, x: Tensor) -> Tensor:
        """The data's own units."""
        return x * send(self.scale, x.device) + send(self.mean, x.device)


def _moments(raw: Tensor | MappedRows) -> tuple[Tensor, Tensor]:
    dims = list(range(raw.dim() if raw.dim() > 3 else raw.dim() - 1))
    if isinstance(raw, MappedRows):
        return _moments_by_blocks(raw, dims)
    values = raw.double()
    mean = values.nanmean(dims)
    return mean, (values - mean).square().nanmean(dims).sqrt()


def _moments_by_blocks(raw: MappedRows, dims: list[int]) -> tuple[Tensor, Tensor]:
    """The same of what is not read as a whole; a sum in another order has other last bits."""
    total = count = squares = torch.zeros((), dtype=torch.float64)
    for block in blocks(raw):
        total = total + block.double().nansum(dims)
        count = count + (~block.isnan()).sum(dims)
    mean = total / count
    for block in blocks(raw):
        squares = squares + block.double().sub_(mean).square_().nansum(dims)
    return mean, (squares / count).sqrt()

"""Assembly: the parts of a program, made as others need them."""

__all__ = ["Assembly"]

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae import catalogue
from pyrovae.building.choices import Choice, called, values_of
from pyrovae.building.nets import MakeNetwork, Shape
from pyrovae.data import AsIs, Binarize, Data, Dequantize
from pyrovae.decoders import NanMaskedDecoder
from pyrovae.encoders import GaussianEncoder
from pyrovae.errors import InputError
from pyrovae.networks import (
    Centred,
    Log1p,
    NanMaskedInput,
    Scaled,
    TabularInput,
    TokenEncoderNet,
)

# A part with a method `start_at` is given so many training examples to begin at.
MOST_TO_START_AT = 10_000
# Likelihoods over levels have an output or a bin for each.
MOST_LEVELS = 2**16


@dataclass
class Assembly:
    """The parts of one program, made as others need them."""

    data: Data
    latent_dim: int
    encode: MakeNetwork
    decode: MakeNetwork
    choices: Mapping[str, Choice]
    masks: bool = False
    reads_missing: bool = False
    made: dict[str, nn.Module] = field(default_factory=dict)
    making: list[str] = field(default_factory=list)

    def part(self, kind: str) -> nn.Module:
        """A part of the program, made where it is not yet.

        Raises:
            InputError: If making it needs the part itself.
        """
        if kind in self.making:
            names = " and ".join(self.choices[k].name for k in self.making)
            raise InputError(f"The parts {names} need each other.", "Take another one of the two.")
        if kind not in self.made:
            self.making.append(kind)
            part = self._started(self._make(kind))
            leaves_out = self.masks and kind == "decoder"
            self.made[kind] = NanMaskedDecoder(part) if leaves_out else part
            self.making.remove(kind)
        return self.made[kind]

    def _make(self, kind: str) -> nn.Module:
        choice = self.choices[kind]
        cls = choice.resolve(kind)
        options = {**self._defaults(kind, cls), **choice.options}
        parameters = signature(cls).parameters.values()
        needs = [p.name for p in parameters if p.default is p.empty and p.name not in options]
        needs.sort(key="net".__eq__)  # last: how large it is the others may say
        supplied = {name: self._supply(kind, name, cls, options) for name in needs}
        return called(cls, supplied, options)

    def _supply(self, kind: str, name: str, cls: Any, options: Mapping[str, Any]) -> Any:
        """What a constructor's argument without a default stands for.

        Raises:
            InputError: If nothing in a program goes by that name.
        """
        if name == "net":
            return self._net(kind, cls, options)
        if name == "encoder" and kind == "encoder":
            return GaussianEncoder(self._encode(GaussianEncoder.net_shape(self.latent_dim)))
        if name in self.choices:
            return self.part(name)
        supplied: dict[str, Callable[[], Any]] = {
            "latent_dim": lambda: self.latent_dim,
            "x_shape": lambda: self.data.x_shape,
            "exemplars": lambda: self._examples(len(self.data.train)),
            "columns": lambda: self._codes,
        }
        if name not in supplied:
            raise InputError(
                f"The {kind} {self.choices[kind].name} needs {name!r}, which nothing supplies.",
                f"Give it a default, or take {', '.join(sorted(catalogue.SUPPLIED))}.",
            )
        return supplied[name]()

    def _net(self, kind: str, cls: Any, options: Mapping[str, Any]) -> nn.Module:
        """A network that puts out what a class reads.

        Raises:
            InputError: If the class does not say what that is.
        """
        if not hasattr(cls, "net_shape"):
            size = "x_shape" if kind == "decoder" else "latent_dim"
            raise InputError(
                f"The {kind} {self.choices[kind].name} is given a net, and does not say what the "
                "net puts out.",
                f"Give it a static method net_shape({size}) that returns the shape for one "
                "example, a tuple.",
            )
        event = self.data.x_shape if kind == "decoder" else self.latent_dim
        _, *known = signature(cls.net_shape).parameters
        parameters = signature(cls).parameters.values()
        own = {p.name: p.default for p in parameters if p.default is not p.empty}
        given = {**own, **options, "columns": self._codes}
        shape = cls.net_shape(event, **{k: v for k, v in given.items() if k in known})
        if kind != "decoder":
            return self._encode(shape)
        # One dimension of a latent that says the size of its example is not for the network.
        taken = bool(given.get("latent_size"))
        if taken and self._latents != "real":
            raise InputError(
                f"The latent is one of {self._latents}, whose last dimension is no size.",
                "Leave latent_size out, or take an encoder of real numbers, such as gaussian.",
            )
        return self._decode(shape, self.latent_dim - taken)

    @property
    def _latents(self) -> str:
        """What the encoder's latents are."""
        return getattr(self.choices["encoder"].resolve("encoder"), "latents", "real")

    def _decode(self, shape: Shape, latent_dim: int) -> nn.Module:
        """A network of the latent, brought to the scale that its weights start for.

        Raises:
            InputError: If nothing of the latent is left for it.
        """
        if latent_dim < 1:
            raise InputError(
                "The only dimension of the latent says the size of an example.",
                "Give a latent_dim of 2 or more.",
            )
        net = self.decode((latent_dim,), shape)
        latents = self._latents
        if latents == "bits":
            return Centred(net, levels=2)
        if latents == "codes":
            return Scaled(net, factor=math.sqrt(self.part("encoder").classes))  # pyright: ignore
        if latents == "unit vectors":
            return Scaled(net, factor=math.sqrt(self.latent_dim))
        return net

    def _encode(self, shape: Shape) -> nn.Module:
        """A network of the data, as they are or as what its values are asks for."""
        values = values_of(self.choices["decoder"])
        if values == "symbols":
            cell = self.choices["decoder"].options.get("cell", "gru")
            symbols = self._count("symbols")
            return TokenEncoderNet(self.data.x_shape, shape, symbols=symbols, cell=cell)
        if values == "columns":
            taken = TabularInput.net_shape(self.data.x_shape, columns=self._codes)
            return TabularInput(self.encode(taken, shape), columns=self._codes)
        net = self._encode_numbers(shape)
        if values == "counts":
            return Log1p(net)
        if values == "levels":
            cls = self.choices["decoder"].resolve("decoder")
            named = "classes" if "classes" in signature(cls).parameters else "levels"
            return Centred(net, levels=self._count(named))
        return net

    def _encode_numbers(self, shape: Shape) -> nn.Module:
        """A network of the data as numbers, told of those that are missing where some are."""
        if self.reads_missing or not self.masks:
            return self.encode(self.data.x_shape, shape)
        return NanMaskedInput(self.encode(NanMaskedInput.net_shape(self.data.x_shape), shape))

    @property
    def _codes(self) -> tuple[int, ...]:
        """The number of codes of each column of a table."""
        return tuple(column.codes for column in self.data.columns or ())

    def _count(self, name: str) -> int:
        """How many levels or symbols there are: as many as was said, or as the data show."""
        said = self.choices["decoder"].options.get(name)
        return self.largest + 1 if said is None else said

    @cached_property
    def largest(self) -> int:
        """The largest of the data's whole numbers.

        Raises:
            InputError: If they begin below 0, or are too many to have an output each.
        """
        splits = self.data.splits.values()
        batches = (b.x for split in splits for b in split.in_order(split.block))
        ranges = [x.nan_to_num(nan=0.0).aminmax() for x in batches]
        least, most = min(r.min for r in ranges).item(), max(r.max for r in ranges).item()
        if least < 0 or most >= MOST_LEVELS:
            raise InputError(
                f"The decoder {self.choices['decoder'].name} is of levels 0, 1, 2, ... up to "
                f"{MOST_LEVELS:,}, and the data go from {least:g} to {most:g}.",
                "Take a decoder of real values, such as gaussian, or number the levels from 0.",
            )
        return int(most)

    def _started(self, part: nn.Module) -> nn.Module:
        """The part, with the weights that are to begin at examples set to some.

        Raises:
            InputError: If they are of codes, through which an encoder has no gradient.
        """
        start_at = getattr(part, "start_at", None)
        if start_at is None:
            return part
        symbols = values_of(self.choices["decoder"]) == "symbols"
        if symbols or any(self._codes):
            raise InputError(
                f"A {type(part).__name__} learns inputs, and "
                f"{'symbols' if symbols else 'categories'} cannot be learned.",
                "Take --prior exemplar, whose inputs are training examples, or another prior, "
                "such as --prior gaussian-mixture.",
            )
        return start_at(self._examples(MOST_TO_START_AT))

    def _examples(self, most: int) -> Tensor:
        """Training examples, a random choice of them where there are more than wanted."""
        train = self.data.train
        rows = torch.randperm(len(train))[:most] if len(train) > most else torch.arange(len(train))
        return next(train.chosen(rows, len(rows))).x

    def _within_unit(self) -> bool:
        """Whether the program's x lies within [0, 1]."""
        if isinstance(self.data.preprocessing, Binarize | Dequantize):
            return True
        as_given = isinstance(self.data.preprocessing, AsIs)
        # A likelihood of values within [0, 1] has no others, whatever the data were taken for.
        is_unit = values_of(self.choices["decoder"]) == "unit"
        return as_given and (is_unit or self.data.values in ("binary", "unit"))

    def _defaults(self, kind: str, cls: Any) -> dict[str, Any]:
        """What is used where nothing is said, as the catalogue lists it.

        It is of our own constructors: what another says of its defaults holds.
        """
        if not getattr(cls.__init__, "__module__", "").startswith("pyrovae."):
            return {}
        of = values_of(self.choices["decoder"]) if kind == "decoder" else kind
        known = signature(cls).parameters.keys()
        fixed = catalogue.SET_BY_KIND.get(kind, {})
        found = {n: self._from_data(n) for n in catalogue.FROM_DATA.get(of, {}).keys() & known}
        if self.data.columns is not None:
            found.pop("min_scale", None)  # its numbers are no levels
        return {n: fixed[n] for n in fixed.keys() & known} | found

    def _from_data(self, name: str) -> Any:
        """A default that is in the data: bounds, a learned scale's floor, levels."""
        if name == "bounded":
            return self._within_unit()
        if name == "min_scale":
            given = self.data.preprocessing
            levels = given.levels if isinstance(given, Dequantize) else 256
            # The standard deviation of a uniform over one level of the data.
            return 1 / levels / math.sqrt(12)
        return self.largest + 1

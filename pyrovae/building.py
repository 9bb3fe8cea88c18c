"""Building a VAE out of words, for the command line.

The Python API takes parts as objects; only here does a word stand for a class. A part says by
the names of its constructor's arguments what it needs: a network, the latent dimension, the shape
of the data, or another part of the same program.
"""

__all__ = [
    "OF_SEQUENCES",
    "WHOLE",
    "Choice",
    "build_bound",
    "build_vae",
    "default_decoder",
    "values_of",
]

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae import catalogue, networks, user_files
from pyrovae.bounds import ELBO, Bound
from pyrovae.checks import check_whole
from pyrovae.data import AsIs, Binarize, Data, Dequantize
from pyrovae.decoders import NanMaskedDecoder
from pyrovae.encoders import GaussianEncoder
from pyrovae.errors import InputError, shorten
from pyrovae.models import VAE
from pyrovae.networks import (
    Centred,
    Log1p,
    NanMaskedInput,
    Scaled,
    TabularInput,
    TokenEncoderNet,
)
from pyrovae.parts import ACTIVATIONS, check_number
from pyrovae.programs import evaluating

Shape = tuple[int, ...]
MakeNetwork = Callable[[Shape, Shape], nn.Module]

# Networks of images, and of sequences, alone.
OF_IMAGES = frozenset({"conv", "residual-conv"})
OF_SEQUENCES = frozenset({"gru", "lstm"})
# A part with a method `start_at` is given so many training examples to begin at.
MOST_TO_START_AT = 10_000
# Likelihoods over levels have an output or a bin for each.
MOST_LEVELS = 2**16
# The decoders of values that say all of it.
OF_VALUES = {"counts": "negative-binomial", "columns": "tabular"}
# What a likelihood's values are that reach the program as the whole numbers they are.
WHOLE = frozenset({"levels", "counts", "symbols"})


@dataclass(frozen=True)
class Choice:
    """A class by its word, or as `file.py:Class`, and options of its constructor."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def resolve(self, kind: str) -> Callable[..., Any]:
        """The class; of a network that of the encoder's.

        Raises:
            InputError: If there is no such word, file or class.
        """
        if user_files.is_own_file(self.name):
            return user_files.load(*user_files.split(self.name, kind.capitalize()))
        entry = catalogue.find(kind, self.name)
        folder = "bounds" if kind == "kl" else f"{kind}s"
        return getattr(import_module(f"pyrovae.{folder}"), entry.class_name)


def default_decoder(data: Data) -> str:
    """That of binary data, of counts or of tables; else a Gaussian with a learned shared scale."""
    if data.values in OF_VALUES:
        return OF_VALUES[data.values]
    binary = data.values == "binary" or isinstance(data.preprocessing, Binarize)
    return "bernoulli" if binary else "gaussian"


def values_of(decoder: Choice) -> str:
    """What the values of a likelihood are; see `pyrovae.decoders`."""
    values = getattr(decoder.resolve("decoder"), "values", "real")
    whole = values == "binary" and decoder.options.get("levels", 2) > 2
    return "levels" if whole else values


def build_bound(bound: Choice | None, kl: Choice | None) -> Bound | None:
    """The bound that the words name, or None where they name none.

    Raises:
        InputError: If a word names nothing, or an option is out of range.
    """
    if bound is None and kl is None:
        return None
    make = ELBO if bound is None else bound.resolve("bound")
    options = {} if bound is None else dict(bound.options)
    if kl is not None:
        options["kl"] = _called(kl.resolve("kl"), {}, kl.options)
    return _called(make, {}, options)


def build_vae(
    data: Data,
    *,
    prior: Choice = Choice("standard-normal"),
    encoder: Choice = Choice("gaussian"),
    decoder: Choice | None = None,
    network: Choice | str = "mlp",
    hidden: int | None = None,
    latent_dim: int = 50,
    beta: float = 1.0,
) -> VAE:
    """A VAE for a data set, of the parts that the words name.

    Where entries of the data are missing, the decoder leaves them out, by `NanMaskedDecoder`, and
    the encoder is told of them, by `NanMaskedInput` or, of sequences, by a recurrent network that
    reads them step by step; those of tables do so by themselves.

    Raises:
        InputError: If a word names no part, a size is not positive, the networks are for images
            or for sequences and the data are not, a column of a table is of no kind for the
            decoder, entries are missing that the decoder cannot leave out, or two parts need each
            other.
    """
    check_whole(latent_dim=latent_dim, hidden=hidden)
    if not 0 <= beta < math.inf:
        raise InputError(f"beta is {beta}.", "Give a finite number of 0 or more.")

    network = Choice(network) if isinstance(network, str) else network
    decoder = decoder or Choice(default_decoder(data))
    _check_columns(data, decoder)
    _check_levels(data, decoder)
    lacking = None if values_of(decoder) == "columns" else _first_missing(data)
    masks = lacking is not None
    reads_missing = masks and "missing" in signature(network.resolve("network")).parameters
    if reads_missing:
        network = replace(network, options={"missing": True, **network.options})
    encode, decode = _networks(network, hidden, data.x_shape)
    choices = {"prior": prior, "encoder": encoder, "decoder": decoder}
    assembly = _Assembly(
        data, latent_dim, encode, decode, choices, masks=masks, reads_missing=reads_missing
    )
    vae = VAE(
        prior=assembly.part("prior"),
        decoder=assembly.part("decoder"),
        encoder=assembly.part("encoder"),
        beta=beta,
    )
    if lacking is not None:
        _check_masks(vae, data, decoder, lacking)
    return vae


def _networks(
    network: Choice, hidden: int | None, x_shape: Shape
) -> tuple[MakeNetwork, MakeNetwork]:
    """The networks of an encoder and of a decoder, as functions of their shapes.

    Raises:
        InputError: If there are none of that name, they are not for data of this shape, or have
            no hidden layer of which a width is given.
    """
    encoder = decoder = network.resolve("network")
    if network.name in catalogue.NETWORKS:
        decoder = getattr(networks, catalogue.NETWORKS[network.name][1])
    _check_shape(network.name, x_shape)
    options = {**catalogue.SET_BY_WORD.get(network.name, {}), **network.options}
    if hidden is not None:
        options["hidden"] = _widths(encoder, hidden, network)
    shared = _shared(options, encoder, decoder)
    if network.name in OF_SEQUENCES:
        shared["steps"] = x_shape[0]
    return partial(_network, encoder, options), partial(_network, decoder, shared)


def _network(
    cls: Callable[..., Any], options: Mapping[str, Any], in_shape: Shape, out_shape: Shape
) -> nn.Module:
    """A network of one class, for one input and one output."""
    return _called(cls, {"in_shape": in_shape, "out_shape": out_shape}, options)


def _widths(cls: Callable[..., Any], hidden: int, network: Choice) -> int | tuple[int, ...]:
    """The widths of a network's hidden layers, all alike and as many as by its default."""
    parameters = signature(cls).parameters
    if "hidden" not in parameters:
        raise InputError(
            f"The network {network.name} has no hidden layer whose width could be given.",
            "Leave --hidden out, or take another, such as conv.",
        )
    if "hidden" in network.options:
        raise InputError("The hidden layers are given twice.", "Leave one of the two out.")
    default = parameters["hidden"].default
    return (hidden,) * len(default) if isinstance(default, tuple) else hidden


def _shared(
    options: Mapping[str, Any], encoder: Callable[..., Any], decoder: Callable[..., Any]
) -> dict[str, Any]:
    """The options that a decoder's network has too, its layers backwards where they differ."""
    first, second = (
        {name: parameter.default for name, parameter in signature(cls).parameters.items()}
        for cls in (encoder, decoder)
    )
    same = {name for name in first.keys() & second.keys() if first[name] == second[name]}
    turned = {n for n in (first.keys() & second.keys()) - same if isinstance(first[n], tuple)}
    if turned & options.keys():
        # Layers of which one thing is said are the encoder's in all else, too.
        options = {**{name: first[name] for name in turned}, **options}
    backwards = {name: tuple(options[name])[::-1] for name in turned & options.keys()}
    return {name: options[name] for name in same & options.keys()} | backwards


def _check_shape(network: str, x_shape: Shape) -> None:
    """Refuses networks of images, or of sequences, for other data."""
    if network in OF_IMAGES and len(x_shape) != 3:
        raise InputError(
            f"Convolutions need images, and the data are of shape {x_shape}.",
            "Take --network mlp.",
        )
    if network in OF_SEQUENCES and len(x_shape) != 2:
        raise InputError(
            f"A {network.upper()} needs sequences (N, T, X), and an observation is of shape "
            f"{x_shape}.",
            "Take --network mlp, or load them with sequences=True.",
        )


def _check_columns(data: Data, decoder: Choice) -> None:
    """Refuses a likelihood of other values for a column that it gives no probability.

    Raises:
        InputError: Naming the column, or if a likelihood of columns is to be one of no table.
    """
    values, columns = values_of(decoder), data.columns or ()
    if values == "columns" and not columns:
        raise InputError(
            f"The {decoder.name} decoder is of tables, and the data are none.",
            "Give a .csv or .tsv file.",
        )
    if values == "columns" or not columns:
        return
    for column in columns:
        if column.categories and column.kind != values:
            raise InputError(
                f"The column {column.name!r} is {column.kind}, and the {decoder.name} decoder "
                "takes none such.",
                'Take --decoder tabular, or say "ignore" of the column in a file that --columns '
                "names.",
            )


def _check_levels(data: Data, decoder: Choice) -> None:
    """Refuses two levels, the default of a likelihood that can have more, for data of more.

    Raises:
        InputError: Naming how many there are.
    """
    takes_levels = "levels" in signature(decoder.resolve("decoder")).parameters
    given = data.preprocessing
    if takes_levels and values_of(decoder) == "binary" and isinstance(given, Dequantize):
        raise InputError(
            f"The {decoder.name} decoder is of 2 levels, and the data are of {given.levels}.",
            f"Give it all of them (--decoder.levels {given.levels}), or binarise the data "
            "(--binarize dynamic).",
        )


def _first_missing(data: Data) -> str | None:
    """What says of the first entry that is missing, or of its column; None where none is."""
    if data.train.missing and data.train.streams:
        return "Entries may be missing"
    for split in data.splits.values() if data.train.missing else ():
        for rows in torch.arange(len(split)).split(split.block):
            found = split.raw(rows).x.isnan().nonzero()
            if len(found):
                row, *entry = found[0].tolist()
                if data.columns is not None:
                    return f"The column {data.columns[entry[0]].name!r} has missing entries"
                name = rows[row].item() if split.names is None else split.names[rows[row]]
                place = entry[0] if len(entry) == 1 else tuple(entry)
                return f"Entry {place} of example {name} is missing"
    return None


def _check_masks(vae: VAE, data: Data, decoder: Choice, lacking: str) -> None:
    """Refuses a likelihood that cannot leave entries out.

    Raises:
        InputError: Naming an entry that is missing, or its column.
    """
    try:
        with evaluating(vae):
            vae.decoder(vae.encoder(data.train.head(1).x).sample())
    except InputError as error:
        of = "tabular" if data.columns else "gaussian or bernoulli"
        raise InputError(
            f"{lacking}, and the {decoder.name} decoder, which is none of single entries, cannot "
            "leave it out.",
            f"Take one that is, such as --decoder {of}, or fill in what is missing.",
        ) from error


@dataclass
class _Assembly:
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
        return _called(cls, supplied, options)

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


def _called(
    cls: Callable[..., Any], supplied: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    given = {name: _meant(cls, name, value) for name, value in options.items()}
    for name, value in {**supplied, **given}.items():
        for number in value if isinstance(value, tuple) else (value,):
            check_number(name, number)
    try:
        return cls(**supplied, **given)
    except InputError:
        raise
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{cls.__name__} cannot be made of {sorted(options)} ({shorten(error)}).",
            "pyrovae train --help has the options of every part; an argument of a class of your "
            "own is one if it has a default.",
        ) from error


def _meant(cls: Callable[..., Any], name: str, value: Any) -> Any:
    """An option, a nonlinearity by its word as the class."""
    parameter = signature(cls).parameters.get(name)
    if parameter is None or not isinstance(parameter.default, type):
        return value
    named = {word.lower(): activation for word, activation in ACTIVATIONS.items()}
    return named.get(value, value)

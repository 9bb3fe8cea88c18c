"""Refusals: data and a likelihood that do not go together, said in words of a choice."""

__all__ = ["check_columns", "check_levels", "check_masks", "first_missing"]

from inspect import signature

import torch

from pyrovae.building.choices import Choice, values_of
from pyrovae.data import Data, Dequantize
from pyrovae.errors import InputError
from pyrovae.models import VAE
from pyrovae.programs import evaluating


def check_columns(data: Data, decoder: Choice) -> None:
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


def check_levels(data: Data, decoder: Choice) -> None:
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


def first_missing(data: Data) -> str | None:
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


def check_masks(vae: VAE, data: Data, decoder: Choice, lacking: str) -> None:
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

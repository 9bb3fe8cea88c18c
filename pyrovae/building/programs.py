"""Programs and bounds of the parts that words name."""

__all__ = ["build_bound", "build_vae"]

import math
from dataclasses import replace
from inspect import signature

from pyrovae.bounds import ELBO, Bound
from pyrovae.building.assembly import Assembly
from pyrovae.building.choices import Choice, called, default_decoder, values_of
from pyrovae.building.nets import networks_of
from pyrovae.building.refusals import check_columns, check_levels, check_masks, first_missing
from pyrovae.checks import check_whole
from pyrovae.data import Data
from pyrovae.errors import InputError
from pyrovae.models import VAE

_PRIOR, _ENCODER = Choice("standard-normal"), Choice("gaussian")


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
        options["kl"] = called(kl.resolve("kl"), {}, kl.options)
    return called(make, {}, options)


def build_vae(
    data: Data,
    *,
    prior: Choice = _PRIOR,
    encoder: Choice = _ENCODER,
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
    check_columns(data, decoder)
    check_levels(data, decoder)
    lacking = None if values_of(decoder) == "columns" else first_missing(data)
    masks = lacking is not None
    reads_missing = masks and "missing" in signature(network.resolve("network")).parameters
    if reads_missing:
        network = replace(network, options={"missing": True, **network.options})
    encode, decode = networks_of(network, hidden, data.x_shape)
    choices = {"prior": prior, "encoder": encoder, "decoder": decoder}
    assembly = Assembly(
        data, latent_dim, encode, decode, choices, masks=masks, reads_missing=reads_missing
    )
    vae = VAE(
        prior=assembly.part("prior"),
        decoder=assembly.part("decoder"),
        encoder=assembly.part("encoder"),
        beta=beta,
    )
    if lacking is not None:
        check_masks(vae, data, decoder, lacking)
    return vae

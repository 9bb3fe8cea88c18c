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

from pyrovae.building.choices import WHOLE, Choice, default_decoder, values_of
from pyrovae.building.nets import OF_SEQUENCES
from pyrovae.building.programs import build_bound, build_vae

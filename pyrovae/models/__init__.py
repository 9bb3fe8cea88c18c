"""Models: each one short Pyro program that samples from the parts it is given."""

__all__ = ["VAE", "Autoencoder"]

from pyrovae.models.autoencoder import Autoencoder
from pyrovae.models.vae import VAE

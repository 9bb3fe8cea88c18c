"""Models: each one short Pyro program that samples from the parts it is given."""

__all__ = ["VAE"]

from pyrovae.models.vae import VAE

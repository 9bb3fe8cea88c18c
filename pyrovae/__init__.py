"""Variational autoencoders as probabilistic programs, in Pyro."""

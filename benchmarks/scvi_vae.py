"""scVI in scvi-tools: its `SCVI`, trained as it trains, and its networks as a program of ours."""

import logging
import time
import warnings

import anndata
import pyro
import pyro.distributions as dist
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from pyrovae.distributions import NegativeBinomial, ZeroInflated

LATENTS = 10

scvi.settings.verbosity = logging.WARNING
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
# Of Lightning's, about workers and tables of arguments.
warnings.filterwarnings("ignore", module="lightning|scvi|docrep")
warnings.filterwarnings("ignore", message=".*(does not have many workers|max_epochs).*")


def scvi_of(x):
    """ScVI with what it is by default, for counts of cells that are in order of their splits."""
    cells = anndata.AnnData(x.numpy())
    scvi.model.SCVI.setup_anndata(cells)
    return scvi.model.SCVI(cells, n_latent=LATENTS)


class Program(nn.Module):
    """scVI's networks with its prior, posterior and likelihood: counts given a cell's total."""

    def __init__(self, module):
        super().__init__()
        self.encoder, self.decoder, self.log_theta = module.z_encoder, module.decoder, module.px_r

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("x", self.counts(z, x.sum(-1)), obs=x)

    def guide(self, x):
        hidden = self.encoder.encoder(x.log1p(), x.new_zeros(len(x), 1))
        variance = self.encoder.var_encoder(hidden).exp() + self.encoder.var_eps
        with pyro.plate("data", len(x)):
            q = dist.Normal(self.encoder.mean_encoder(hidden), variance.sqrt())
            pyro.sample("z", q.to_event(1))

    def counts(self, z, size):
        # Its batch normalisation takes cells alone: further dimensions of draws are put in line.
        flat = z.flatten(0, -2)
        hidden = self.decoder.px_decoder(flat, flat.new_zeros(len(flat), 1))
        hidden = hidden.unflatten(0, z.shape[:-1])
        log_share = self.decoder.px_scale_decoder[0](hidden).log_softmax(-1)
        log_mean = size.log()[..., None] + log_share
        counts = NegativeBinomial(self.log_theta.exp(), logits=log_mean - self.log_theta)
        gate = self.decoder.px_dropout_decoder(hidden)
        return ZeroInflated(counts, gate_logits=gate).to_event(1)


class Clock(Callback):
    """When each epoch of training ended."""

    def __init__(self):
        self.times = []

    def on_train_epoch_end(self, *_):
        self.times.append(time.perf_counter())


def train(model, epochs, shares, *, clock=None, **plan):
    """Trains as scvi-tools does.

    Args:
        model: What `scvi_of` returns.
        epochs: The number of epochs, or None for as many as it takes by itself.
        shares: The shares of the cells that are for training and for validation.
        clock: What is told the end of each epoch.
        plan: Further arguments: `early_stopping`, `plan_kwargs`.
    """
    model.train(
        max_epochs=epochs,
        accelerator="cpu",
        train_size=shares[0],
        validation_size=shares[1],
        shuffle_set_split=False,
        enable_progress_bar=False,
        logger=False,
        callbacks=[] if clock is None else [clock],
        **plan,
    )


def parameters_of(model):
    """The parameters of the networks, without those that its plan does not train."""
    return [p for p in model.module.parameters() if p.requires_grad]


def log_evidence(model, indices, samples):
    """By its own `get_marginal_ll`: log p(x) of each cell, with shape (N,)."""
    with torch.no_grad():
        return model.get_marginal_ll(
            indices=indices, n_mc_samples=samples, n_mc_samples_per_pass=50, return_mean=False
        )

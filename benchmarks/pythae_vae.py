"""The VAEs in pythae: its `VAE` with our networks, trained as its `BaseTrainer` does."""

import logging
import tempfile
import time

import torch.nn.functional as F
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback
from torch import nn
from vae import HIDDEN, LATENTS, PIXELS, convolutional

logging.getLogger(BaseTrainer.__module__).setLevel(logging.WARNING)


class Encoder(BaseEncoder):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(PIXELS, HIDDEN)
        self.loc, self.log_var = nn.Linear(HIDDEN, LATENTS), nn.Linear(HIDDEN, LATENTS)

    def forward(self, x):
        hidden = F.softplus(self.hidden(x.flatten(1)))
        return ModelOutput(embedding=self.loc(hidden), log_covariance=self.log_var(hidden))


class Decoder(BaseDecoder):
    """pythae's `bce` takes probabilities."""

    def __init__(self):
        super().__init__()
        self.hidden, self.pixels = nn.Linear(LATENTS, HIDDEN), nn.Linear(HIDDEN, PIXELS)

    def forward(self, z):
        return ModelOutput(reconstruction=self.pixels(F.softplus(self.hidden(z))).sigmoid())


class Convolutions(BaseEncoder):
    def __init__(self):
        super().__init__()
        self.net = convolutional().encoder

    def forward(self, x):
        loc, log_var = self.net(x)
        return ModelOutput(embedding=loc, log_covariance=log_var)


class Deconvolutions(BaseDecoder):
    def __init__(self):
        super().__init__()
        self.net = convolutional().decoder

    def forward(self, z):
        return ModelOutput(reconstruction=self.net(z).sigmoid())


def trainer(x, batch_size, rate, device):
    """A trainer as `train` leaves it before its first epoch, without folder or progress bar."""
    shape = tuple(x.shape[1:])
    config = VAEConfig(input_dim=shape, latent_dim=LATENTS, reconstruction_loss="bce")
    parts = (Encoder(), Decoder()) if shape == (PIXELS,) else (Convolutions(), Deconvolutions())
    model = VAE(config, *parts)
    with tempfile.TemporaryDirectory() as folder:
        told = BaseTrainerConfig(
            output_dir=folder,
            learning_rate=rate,
            per_device_train_batch_size=batch_size,
            optimizer_cls="Adam",
            no_cuda=device == "cpu",
        )
        made = BaseTrainer(model, BaseDataset(x, x.new_zeros(len(x))), training_config=told)
    made.set_optimizer()
    made.set_scheduler()
    made.callback_handler = CallbackHandler([TrainingCallback()], model)
    return made


def with_weights(vae):
    """The model with the weights of the dense VAE of `vae.py`, whose scales are no variances."""
    config = VAEConfig(input_dim=(PIXELS,), latent_dim=LATENTS, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder())
    encoder, decoder = model.encoder, model.decoder
    encoder.hidden.load_state_dict(vae.encoder.hidden.state_dict())
    encoder.loc.load_state_dict(vae.encoder.loc.state_dict())
    scales = vae.encoder.log_scale.state_dict()
    encoder.log_var.load_state_dict({name: 2 * value for name, value in scales.items()})
    decoder.hidden.load_state_dict(vae.decoder[0].state_dict())
    decoder.pixels.load_state_dict(vae.decoder[2].state_dict())
    return model


def step(x, rate, device):
    """One pass of the body of the loop in `BaseTrainer.train_step`, on one batch."""
    made = trainer(x, len(x), rate, device)
    inputs = {"data": x.to(device)}
    made.model.train()

    def take():
        found = made.model(inputs, epoch=1, dataset_size=len(x), uses_ddp=False)
        made._optimizers_step(found)
        return found.loss.item()

    return take


def epochs(images, batch_size, rate, device):
    """A turn is `BaseTrainer.train_step`, an epoch of grey images through its DataLoader."""
    made = trainer(images.flatten(1) / 255, batch_size, rate, device)
    taken = 0

    def turn():
        nonlocal taken
        taken += 1
        start = time.perf_counter()
        made.train_step(taken)
        return time.perf_counter() - start

    return turn

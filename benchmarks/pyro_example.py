"""An epoch of MNIST: pyrovae's fit beside the VAE of Pyro's own examples, in the same minutes.

Both train 784-400-50 softplus networks with Adam at 1e-3 on the 60,000 training images, in
batches of 128. Pyro's script is written out here as it stands in `examples/vae/vae.py` of Pyro
1.9: its model, guide, `SVI` and `Trace_ELBO`, torchvision's MNIST through a DataLoader, and
grey pixels given to a Bernoulli without validation. pyrovae's arm draws binary pixels anew in
every batch and checks every loss and gradient. An epoch's time is that of its 469 steps, data
included; what either does before the first step or after the last is not in it.

    python benchmarks/pyro_example.py [--data-dir DIR] [--rounds 5]
"""

import argparse
import statistics
import time
from datetime import date

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import pyrovae
from pyrovae.data import Binarize, Examples
from pyrovae.devices import describe_environment

HIDDEN, LATENTS, BATCH = 400, 50, 128


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc21 = nn.Linear(LATENTS, HIDDEN), nn.Linear(HIDDEN, 784)
        self.softplus, self.sigmoid = nn.Softplus(), nn.Sigmoid()

    def forward(self, z):
        return self.sigmoid(self.fc21(self.softplus(self.fc1(z))))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, HIDDEN)
        self.fc21, self.fc22 = nn.Linear(HIDDEN, LATENTS), nn.Linear(HIDDEN, LATENTS)
        self.softplus = nn.Softplus()

    def forward(self, x):
        hidden = self.softplus(self.fc1(x.reshape(-1, 784)))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class PyroVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], LATENTS, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], LATENTS, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            pixels = dist.Bernoulli(self.decoder(z), validate_args=False).to_event(1)
            pyro.sample("obs", pixels, obs=x.reshape(-1, 784))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


class Images(datasets.MNIST):
    """torchvision's MNIST of images that are in memory: its items are made as they are there."""

    def __init__(self, images):
        self.data, self.targets = images, torch.zeros(len(images), dtype=torch.long)
        self.transform, self.target_transform = transforms.ToTensor(), None


def pyro_epochs(images, device="cpu"):
    """Pyro's example, an epoch at every call."""
    loader = DataLoader(
        Images(images), batch_size=BATCH, shuffle=True, num_workers=0, pin_memory=device == "cuda"
    )
    vae, store = PyroVAE().to(device), {"params": {}, "constraints": {}}
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), loss=Trace_ELBO())

    def epoch():
        with pyro.get_param_store().scope(store):
            start = time.perf_counter()
            for x, _ in loader:
                svi.step(x.to(device))
            return time.perf_counter() - start

    return epoch


def pyrovae_epochs(images, engine, *, whole=False, device="cpu", **options):
    """fit, an epoch at every call.

    Args:
        images: The grey images, (N, 28, 28), a byte per pixel.
        engine: The back end of the steps.
        whole: Whether the seconds are those of the whole call, and not those of its steps.
        device: What it trains on.
        options: Further ones of `fit`.
    """
    train = Examples(images[:, None], preprocessing=Binarize("dynamic"))
    vae = pyrovae.VAE(
        pyrovae.StandardNormal(LATENTS),
        pyrovae.BernoulliDecoder(
            pyrovae.MLP((LATENTS,), train.x_shape, hidden=(HIDDEN,), activation=nn.Softplus)
        ),
        pyrovae.GaussianEncoder(
            pyrovae.MLP(train.x_shape, (2 * LATENTS,), hidden=(HIDDEN,), activation=nn.Softplus)
        ),
    )

    def epoch():
        start = time.perf_counter()
        run = pyrovae.fit(
            vae,
            train,
            epochs=1,
            batch_size=BATCH,
            engine=engine,
            device=device,
            progress=False,
            **options,
        )
        return time.perf_counter() - start if whole else run.metrics[0]["seconds"]

    return epoch


def mnist(data_dir):
    """The 60,000 training images."""
    data = pyrovae.load_data("mnist", data_dir=data_dir)
    both = [split.raw(list(range(len(split)))).x for split in (data.train, data.valid)]
    return torch.cat(both).squeeze(1)


def main(data_dir, rounds):
    images = mnist(data_dir)
    arms = {
        "Pyro's example": pyro_epochs(images),
        "pyrovae.fit": pyrovae_epochs(images, "inductor"),
    }
    for arm in arms.values():
        arm()  # a first epoch warms up, and is not counted
    seconds = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            seconds[name].append(arm())

    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    environment = describe_environment(torch.device("cpu"))
    print(f"{date.today()}, {environment['hardware']}, torch {environment['torch']}")
    for name, found in seconds.items():
        each = ", ".join(f"{s:.2f}" for s in found)
        print(f"{name:16} {statistics.median(found):.2f} s an epoch (median of {each})")
    print(f"ratio            {statistics.median(ratios):.2f} (median of {rounds} pairs)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="../shared/data", help="where MNIST/raw lies")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    main(given.data_dir, given.rounds)

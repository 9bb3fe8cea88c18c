"""The VAEs of the benchmarks: a Pyro program, the same loss by hand, and its least arithmetic.

The dense one is the network of Pyro's `examples/vae`: an encoder 784-400-(50, 50), a decoder
50-400-784, softplus between. The convolutional one has the networks that
`pyrovae train --network conv` builds. Pixels are Bernoulli variables given by their logits.
"""

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn

import pyrovae

PIXELS, HIDDEN, LATENTS = 784, 400, 50


class VAE(nn.Module):
    def __init__(self, encoder, decoder, latents):
        super().__init__()
        self.encoder, self.decoder, self.latents = encoder, decoder, latents

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            zero = x.new_zeros(len(x), self.latents)
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
            pixels = dist.Bernoulli(logits=self.decoder(z)).to_event(x.dim() - 1)
            pyro.sample("x", pixels, obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def negative_elbo(self, x):
        """The same loss without Pyro, its KL term in closed form, as one writes it by hand."""
        loc, log_scale = self.encoder(x)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        misfit = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 2 * log_scale - 1).sum()
        return misfit + kl


class TwoHeads(nn.Module):
    def __init__(self, latents):
        super().__init__()
        self.hidden = nn.Linear(PIXELS, HIDDEN)
        self.loc, self.log_scale = nn.Linear(HIDDEN, latents), nn.Linear(HIDDEN, latents)

    def forward(self, x):
        hidden = F.softplus(self.hidden(x))
        return self.loc(hidden), self.log_scale(hidden)


class Halves(nn.Module):
    """A network whose output is the means and then the logarithms of the scales."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).chunk(2, dim=-1)


def dense(latents=LATENTS):
    decoder = nn.Sequential(nn.Linear(latents, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, PIXELS))
    return VAE(TwoHeads(latents), decoder, latents)


def convolutional():
    shape = (1, 28, 28)
    encoder = Halves(pyrovae.ConvNet(shape, (2 * LATENTS,)))
    return VAE(encoder, pyrovae.DeconvNet((LATENTS,), shape), LATENTS)


def binary(*shape):
    return (torch.rand(shape) < 0.5).float()


def matrix_products(batch, device):
    """A step that is the matrix products of the dense VAE's forward and backward pass alone."""
    widths = [
        (PIXELS, HIDDEN),
        (HIDDEN, LATENTS),
        (HIDDEN, LATENTS),
        (LATENTS, HIDDEN),
        (HIDDEN, PIXELS),
    ]
    layers = []
    for wide, narrow in widths:
        x, y = torch.randn(batch, wide, device=device), torch.randn(batch, narrow, device=device)
        weight, bias = torch.randn(narrow, wide, device=device), torch.randn(narrow, device=device)
        layers.append((x, weight, bias, y, torch.empty_like(x), torch.empty_like(weight)))

    def step():
        for x, weight, bias, y, _, _ in layers:
            torch.addmm(bias, x, weight.t(), out=y)
        for index, (x, weight, _, y, of_x, of_weight) in enumerate(layers):
            torch.mm(y.t(), x, out=of_weight)
            if index > 0:  # the data need no gradient
                torch.mm(y, weight, out=of_x)

    return step


def convolutions(batch, device):
    """A step that is the convolutions and matrix products of the convolutional VAE alone."""
    vae, calls = convolutional().to(device), []

    def note(layer, given, found):
        calls.append((layer, given[0].detach(), torch.randn_like(found)))

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    hooks = [m.register_forward_hook(note) for m in vae.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        vae.decoder(vae.encoder(torch.randn(batch, 1, 28, 28, device=device))[0])
    for hook in hooks:
        hook.remove()

    @torch.no_grad()
    def step():
        for index, (layer, x, of_y) in enumerate(calls):
            layer(x)
            _backward(layer, x, of_y, of_x=index > 0)  # the data need no gradient

    return step


def _backward(layer, x, of_y, *, of_x):
    """The gradients of a layer's weight, bias and, if wanted, input."""
    if isinstance(layer, nn.Linear):
        return of_y.t() @ x, of_y.sum(0), of_y @ layer.weight if of_x else None
    return torch.ops.aten.convolution_backward(
        of_y,
        x,
        layer.weight,
        [len(layer.bias)],
        layer.stride,
        layer.padding,
        layer.dilation,
        isinstance(layer, nn.ConvTranspose2d),
        layer.output_padding,
        layer.groups,
        [of_x, True, True],
    )

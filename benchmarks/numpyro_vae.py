"""The VAEs in NumPyro, after its own `examples/vae.py`.

The dense one takes many steps in one `lax.scan`. Those of the convolutional one are jitted one by
one: in a scan XLA takes several times as long for convolutions on a CPU. Its channels are last.
"""

import time
from functools import partial

import jax
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.example_libraries import stax
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
from vae import HIDDEN, LATENTS, PIXELS


def heads():
    scale = stax.serial(stax.Dense(LATENTS), stax.Exp)
    return stax.serial(stax.FanOut(2), stax.parallel(stax.Dense(LATENTS), scale))


def dense_encoder():
    return stax.serial(stax.Dense(HIDDEN), stax.Softplus, heads())


def dense_decoder():
    return stax.serial(stax.Dense(HIDDEN), stax.Softplus, stax.Dense(PIXELS))


def convolution(channels, stride=1):
    return stax.Conv(channels, (3, 3), (stride, stride), "SAME")


def reshape(*shape):
    return (lambda _, given: ((given[0], *shape), ())), (
        lambda _, x, **kwargs: x.reshape(len(x), *shape)
    )


def convolutional_encoder():
    """That of `pyrovae.ConvNet`."""
    layers = [convolution(32), convolution(64, 2), convolution(64), convolution(64)]
    with_relu = [part for layer in layers for part in (layer, stax.Relu)]
    return stax.serial(*with_relu, stax.Flatten, stax.Dense(32), stax.Relu, heads())


def convolutional_decoder():
    """That of `pyrovae.DeconvNet`."""
    coarse = [stax.Dense(14 * 14 * 64), stax.Relu, reshape(14, 14, 64)]
    enlarge = stax.ConvTranspose(32, (3, 3), (2, 2), "SAME")
    return stax.serial(*coarse, enlarge, stax.Relu, convolution(1))


def program(encoder, decoder):
    """The model and the guide of these networks."""

    def model(x):
        decode = numpyro.module("decoder", decoder(), (len(x), LATENTS))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal().expand([LATENTS]).to_event(1))
            pixels = dist.Bernoulli(logits=decode(z)).to_event(x.ndim - 1)
            numpyro.sample("x", pixels, obs=x)

    def guide(x):
        encode = numpyro.module("encoder", encoder(), x.shape)
        with numpyro.plate("data", len(x)):
            loc, scale = encode(x)
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


DENSE = program(dense_encoder, dense_decoder)
CONVOLUTIONAL = program(convolutional_encoder, convolutional_decoder)


def svi(rate, networks=DENSE):
    return SVI(*networks, numpyro.optim.Adam(rate), Trace_ELBO())


def backend():
    """The kind of device that jax computes on: cpu or gpu."""
    return jax.default_backend()


def single_steps(x, rate, seed, networks):
    """Takes so many steps on one batch, each a call of its own."""
    x, algorithm = jax.numpy.asarray(x), svi(rate, networks)
    state, update = algorithm.init(random.key(seed), x), jax.jit(algorithm.update)

    def run(count):
        nonlocal state
        for _ in range(count):
            state, _ = update(state, x)
        jax.block_until_ready(state)

    return run


def steps(x, rate, seed):
    """Takes so many steps on one batch."""
    x, algorithm = jax.numpy.asarray(x), svi(rate)
    state = algorithm.init(random.key(seed), x)

    @partial(jax.jit, static_argnums=2)
    def scan(state, x, count):
        return lax.scan(lambda state, _: algorithm.update(state, x), state, length=count)[0]

    def run(count):
        nonlocal state
        state = jax.block_until_ready(scan(state, x, count))

    return run


def with_weights(vae):
    """The parameters with the weights of the dense VAE of `vae.py`."""

    def layer(linear):
        weight, bias = (value.detach().cpu().numpy() for value in (linear.weight, linear.bias))
        return jax.numpy.asarray(weight.T), jax.numpy.asarray(bias)

    both = [(), [layer(vae.encoder.loc), [layer(vae.encoder.log_scale), ()]]]
    return {
        "encoder$params": [layer(vae.encoder.hidden), (), both],
        "decoder$params": [layer(vae.decoder[0]), (), layer(vae.decoder[2])],
    }


def evidence(vae, x, samples, seed):
    """Measures log p(x) of each image in one jitted call, and returns the mean."""
    bound = RenyiELBO(alpha=0.0, num_particles=samples)
    x, parameters = jax.numpy.asarray(x), with_weights(vae)

    @jax.jit
    def losses(key):
        keys = random.split(key, len(x))
        return lax.map(lambda kx: bound.loss(kx[0], parameters, *DENSE, kx[1][None]), (keys, x))

    return lambda: -float(jax.block_until_ready(losses(random.key(seed))).mean())


def epochs(images, batch_size, rate, seed):
    """A turn is an epoch of grey images, binarised anew at every visit; batches by one scan."""
    images, algorithm = jax.numpy.asarray(images.reshape(-1, PIXELS)), svi(rate)
    count = len(images) // batch_size * batch_size
    first = algorithm.init(random.key(seed), jax.numpy.zeros((batch_size, PIXELS)))
    state = first, random.key(seed + 1)

    @jax.jit
    def epoch(carry, images):
        def step(carry, rows):
            state, key = carry
            key, now = random.split(key)
            x = random.bernoulli(now, images[rows] / 255.0).astype(float)
            state, loss = algorithm.update(state, x)
            return (state, key), loss

        state, key = carry
        key, now = random.split(key)
        order = random.permutation(now, len(images))
        whole = order[:count].reshape(-1, batch_size)
        carry, _ = lax.scan(step, (state, key), whole)
        return step(carry, order[count:])[0] if count < len(images) else carry

    def turn():
        nonlocal state
        start = time.perf_counter()
        state = jax.block_until_ready(epoch(state, images))
        return time.perf_counter() - start

    return turn

"""The dense VAE in NumPyro, after its own `examples/vae.py`: many steps in one `lax.scan`."""

import time
from functools import partial

import jax
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.example_libraries import stax
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
from vae import HIDDEN, LATENTS, PIXELS


def encoder():
    scale = stax.serial(stax.Dense(LATENTS), stax.Exp)
    heads = stax.parallel(stax.Dense(LATENTS), scale)
    return stax.serial(stax.Dense(HIDDEN), stax.Softplus, stax.FanOut(2), heads)


def decoder():
    return stax.serial(stax.Dense(HIDDEN), stax.Softplus, stax.Dense(PIXELS))


def model(x):
    decode = numpyro.module("decoder", decoder(), (len(x), LATENTS))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal().expand([LATENTS]).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)


def guide(x):
    encode = numpyro.module("encoder", encoder(), x.shape)
    with numpyro.plate("data", len(x)):
        loc, scale = encode(x)
        numpyro.sample("z", dist.Normal(loc, scale).to_event(1))


def svi(rate):
    return SVI(model, guide, numpyro.optim.Adam(rate), Trace_ELBO())


def backend():
    """The kind of device that jax computes on: cpu or gpu."""
    return jax.default_backend()


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
        weight = linear.weight.detach().numpy().T
        return jax.numpy.asarray(weight), jax.numpy.asarray(linear.bias.detach().numpy())

    heads = [layer(vae.encoder.loc), [layer(vae.encoder.log_scale), ()]]
    return {
        "encoder$params": [layer(vae.encoder.hidden), (), (), heads],
        "decoder$params": [layer(vae.decoder[0]), (), layer(vae.decoder[2])],
    }


def evidence(vae, x, samples, seed):
    """Measures log p(x) of each image in one jitted call, and returns the mean."""
    bound = RenyiELBO(alpha=0.0, num_particles=samples)
    x, parameters = jax.numpy.asarray(x), with_weights(vae)

    @jax.jit
    def losses(key):
        keys = random.split(key, len(x))
        return lax.map(
            lambda kx: bound.loss(kx[0], parameters, model, guide, kx[1][None]), (keys, x)
        )

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

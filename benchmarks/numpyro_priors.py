"""The VAE of `priors.py` in NumPyro, for two priors: many steps in one `lax.scan`."""

from functools import partial

import jax
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.example_libraries import stax
from numpyro.infer import SVI, Trace_ELBO

PIXELS, HIDDEN, LATENTS, COMPONENTS = 784, 400, 40, 100


def standard_normal():
    return dist.Normal().expand([LATENTS]).to_event(1)


def mixture():
    shape = (COMPONENTS, LATENTS)
    logits = numpyro.param("logits", jax.numpy.zeros(COMPONENTS))
    loc = numpyro.param("loc", random.normal(random.key(0), shape))
    log_scale = numpyro.param("log_scale", jax.numpy.zeros(shape))
    component = dist.Normal(loc, jax.numpy.exp(log_scale)).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), component)


PRIORS = {"standard normal": standard_normal, "mixture of 100 Gaussians": mixture}


def dense(width):
    return stax.serial(stax.Dense(HIDDEN), stax.Elementwise(jax.nn.silu), stax.Dense(width))


def steps(name, x, rate, seed):
    """Takes so many steps on one batch."""

    def model(x):
        decode = numpyro.module("decoder", dense(PIXELS), (len(x), LATENTS))
        prior = PRIORS[name]()
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x):
        encode = numpyro.module("encoder", dense(2 * LATENTS), x.shape)
        with numpyro.plate("data", len(x)):
            loc, log_scale = jax.numpy.split(encode(x), 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jax.numpy.exp(log_scale)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(rate), Trace_ELBO())
    x = jax.numpy.asarray(x)
    state = svi.init(random.key(seed), x)

    @partial(jax.jit, static_argnums=2)
    def scan(state, x, count):
        return lax.scan(lambda state, _: svi.update(state, x), state, length=count)[0]

    def run(count):
        nonlocal state
        state = jax.block_until_ready(scan(state, x, count))

    return run

"""The VAE of `priors.py` in NumPyro, for four priors: many steps in one `lax.scan`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.example_libraries import stax
from numpyro.infer import SVI, Trace_ELBO

PIXELS, HIDDEN, LATENTS = 784, 400, 40
COMPONENTS, PSEUDO_INPUTS = 100, 500
LAYERS, LAYER_HIDDEN = 8, 128


def dense(hidden, width):
    layers = [layer for h in hidden for layer in (stax.Dense(h), stax.elementwise(jax.nn.silu))]
    return stax.serial(*layers, stax.Dense(width))


def encoder(count):
    encode = numpyro.module("encoder", dense([HIDDEN], 2 * LATENTS), (count, PIXELS))

    def posterior(x):
        loc, log_scale = jnp.split(encode(x), 2, axis=-1)
        return dist.Normal(loc, jnp.exp(log_scale)).to_event(1)

    return posterior


# ── Priors ───────────────────────────────────────────────────────────────────────────────────


class RealNVP(dist.Distribution):
    """A standard normal pushed through affine couplings, of which only the density is needed."""

    support = dist.constraints.real_vector

    def __init__(self, nets):
        self.nets = nets
        super().__init__(event_shape=(LATENTS,))

    def log_prob(self, value):
        log_det = 0.0
        for i, net in reversed(list(enumerate(self.nets))):
            first, second = jnp.split(value, 2, axis=-1)
            stays, bent = (second, first) if i % 2 else (first, second)
            shift, raw = jnp.split(net(stays), 2, axis=-1)
            log_scale = 2.0 * jnp.tanh(raw / 2.0)
            moved = (bent - shift) * jnp.exp(-log_scale)
            log_det -= log_scale.sum(-1)
            value = jnp.concatenate((moved, stays) if i % 2 else (stays, moved), axis=-1)
        return dist.Normal().log_prob(value).sum(-1) + log_det


def standard_normal():
    return dist.Normal().expand([LATENTS]).to_event(1)


def mixture():
    shape = (COMPONENTS, LATENTS)
    logits = numpyro.param("logits", jnp.zeros(COMPONENTS))
    loc = numpyro.param("loc", random.normal(random.key(0), shape))
    log_scale = numpyro.param("log_scale", jnp.zeros(shape))
    component = dist.Normal(loc, jnp.exp(log_scale)).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), component)


def vamp():
    free = numpyro.param("free", random.normal(random.key(0), (PSEUDO_INPUTS, PIXELS)))
    weights = dist.Categorical(logits=jnp.zeros(PSEUDO_INPUTS))
    return dist.MixtureSameFamily(weights, encoder(PSEUDO_INPUTS)(jax.nn.sigmoid(free)))


def real_nvp():
    net = dense([LAYER_HIDDEN, LAYER_HIDDEN], LATENTS)
    return RealNVP([numpyro.module(f"net{i}", net, (LATENTS // 2,)) for i in range(LAYERS)])


PRIORS = {
    "standard normal": standard_normal,
    "mixture of 100 Gaussians": mixture,
    "VampPrior of 500 pseudo-inputs": vamp,
    "RealNVP": real_nvp,
}


# ── Steps ────────────────────────────────────────────────────────────────────────────────────


def steps(name, x, rate, seed):
    """Takes so many steps on one batch."""

    def model(x):
        decode = numpyro.module("decoder", dense([HIDDEN], PIXELS), (len(x), LATENTS))
        prior = PRIORS[name]()
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x):
        posterior = encoder(len(x))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", posterior(x))

    svi = SVI(model, guide, numpyro.optim.Adam(rate), Trace_ELBO())
    x = jnp.asarray(x)
    state = svi.init(random.key(seed), x)

    @partial(jax.jit, static_argnums=2)
    def scan(state, x, count):
        return lax.scan(lambda state, _: svi.update(state, x), state, length=count)[0]

    def run(count):
        nonlocal state
        state = jax.block_until_ready(scan(state, x, count))

    return run

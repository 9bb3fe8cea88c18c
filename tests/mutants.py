"""The classic bugs of VAEs, each planted in a copy of the package.

`python mutants.py` tests every copy, and prints a line of JSON for each: which bug, whether the
tests found it, and what they said. It imports torch, Pyro and pytest once, runs no operation of
theirs, and forks for each bug.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "pyrovae"
KILLERS = ("test_exact.py", "test_preprocessing.py", "test_programs.py")
UNCHANGED = "nothing at all"
# What the children share: importing these is most of the time that a test run takes.
ONCE = (
    "numpy.random",
    "pyro.infer",
    "pytest",
    "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.utils.data",
)


class Mutant(NamedTuple):
    """A bug: what it is, and the text of the file that it replaces."""

    name: str
    file: str
    old: str
    new: str

    def plant(self, package: Path) -> None:
        """Writes the bug into a copy of the package.

        Raises:
            LookupError: If the text stands there not exactly once.
        """
        path = package / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            found = text.count(self.old)
            raise LookupError(f"{self.file} holds {found} times the text {self.old!r}")
        path.write_text(text.replace(self.old, self.new))


ENCODED = "dist.Normal(loc, smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).exp()).to_event(1)"


def sampler(name: str, eps: str) -> Mutant:
    """A guide that draws loc + scale * eps with the wrong noise."""
    new = f"""_Wrong(loc, smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).exp()).to_event(1)


class _Wrong(dist.Normal):
    def rsample(self, sample_shape=()):
        eps = (self.loc + self.scale).detach().clone().normal_()
        return self.loc + self.scale * ({eps})"""
    return Mutant(name, "encoders/gaussian.py", ENCODED, new)


MUTANTS = [
    # The guide and its sampler.
    Mutant(
        "the variance is the scale of q",
        "encoders/gaussian.py",
        "smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).exp()",
        "smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).mul(2).exp()",
    ),
    Mutant(
        "the log-variance is the log-scale of q",
        "encoders/gaussian.py",
        "smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).exp()",
        "smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).mul(0.5).exp()",
    ),
    Mutant("q lacks to_event", "encoders/gaussian.py", ".exp()).to_event(1)", ".exp())"),
    Mutant(
        "mean and scale swapped", "encoders/gaussian.py", "loc, log_scale =", "log_scale, loc ="
    ),
    sampler("the noise is shared over the batch", "eps[..., :1, :].expand_as(eps)"),
    sampler("the noise is shared over dimensions", "eps[..., :1].expand_as(eps)"),
    sampler("the noise is shared over particles", "eps[:1].expand_as(eps)"),
    sampler("the noise is one", "eps * 0 + 1"),
    sampler("the noise has scale 0.01", "eps * 0.01"),
    sampler("z is the mean of q", "eps * 0"),
    sampler("half the scale in the sampler", "eps * 0.5"),
    # The likelihood.
    Mutant(
        "the variance is the scale of p(x | z)",
        "decoders/gaussian.py",
        "dist.Normal(self.net(z), self.shared_scale())",
        "dist.Normal(self.net(z), self.shared_scale().square())",
    ),
    Mutant(
        "the likelihood has unit scale",
        "decoders/gaussian.py",
        "dist.Normal(self.net(z), self.shared_scale())",
        "dist.Normal(self.net(z), self.shared_scale() * 0 + 1)",
    ),
    Mutant(
        "an image is a batch of rows",
        "decoders/binary.py",
        "dist.Bernoulli(logits=self.net(z)).to_event(event_rank(self.net))",
        "dist.Bernoulli(logits=self.net(z)).to_event(1)",
    ),
    Mutant(
        "means and log-scales split along the wrong axis",
        "decoders/gaussian.py",
        "chunk(2, dim=-rank)",
        "chunk(2, dim=-1)",
    ),
    Mutant(
        "the variance is the scale of every pixel",
        "decoders/gaussian.py",
        "dist.Normal(loc, log_scale.exp()).to_event(rank)",
        "dist.Normal(loc, log_scale.mul(2).exp()).to_event(rank)",
    ),
    Mutant(
        "cross-entropy passes for a density",
        "decoders/unit_interval.py",
        "ContinuousBernoulli(self.net(z))",
        "__import__('pyro').distributions.Bernoulli(logits=self.net(z), validate_args=False)",
    ),
    Mutant(
        "two sigmoids",
        "decoders/binary.py",
        "dist.Bernoulli(logits=self.net(z))",
        "dist.Bernoulli(logits=self.net(z).sigmoid())",
    ),
    Mutant(
        "a learned scale has no floor",
        "decoders/positive.py",
        "log_value = smooth_floor(log_value, math.log(self.low))",
        "log_value = log_value + 0",
    ),
    # The prior.
    Mutant(
        "the prior is twice as wide",
        "priors/factorized.py",
        "Normal(self.loc, 1.0)",
        "Normal(self.loc, 2.0)",
    ),
    Mutant(
        "the variance is the scale of the learned prior",
        "priors/factorized.py",
        "return dist.Normal(self.loc, self.log_scale.exp())",
        "return dist.Normal(self.loc, self.log_scale.mul(2).exp())",
    ),
    Mutant(
        "the mixture forgets its weights",
        "priors/mixtures.py",
        "Categorical(logits=self.logits)",
        "Categorical(logits=self.logits * 0)",
    ),
    # The program.
    Mutant(
        "beta is missing in the model",
        "models/vae.py",
        "            with kl_weight(self._weight):\n",
        "            with kl_weight(1.0):\n",
    ),
    Mutant(
        "beta is missing in the guide",
        "models/vae.py",
        'with pyro.plate("data", len(x)), kl_weight(self._weight):',
        'with pyro.plate("data", len(x)), kl_weight(1.0):',
    ),
    Mutant(
        "beta weights the likelihood too",
        "handlers.py",
        'if msg["is_observed"] or isinstance',
        "if isinstance",
    ),
    Mutant(
        "a weight replaces the scale instead of multiplying it",
        "handlers.py",
        'msg["scale"] = msg["scale"] * self.weight',
        'msg["scale"] = self.weight',
    ),
    Mutant(
        "two models share their names",
        "handlers.py",
        'f"{type(module).__name__}_{next(_numbers)}"',
        "type(module).__name__",
    ),
    Mutant("data outside the support pass", "programs.py", "if inside.all():", "if True:"),
    Mutant(
        "dropout stays on in evaluations",
        "programs.py",
        "module.training = False",
        "module.training = True",
    ),
    Mutant(
        "a subsampled plate passes for the whole",
        "programs.py",
        'getattr(frame, "full_size", None) or frame.size',
        "frame.size",
    ),
    # The terms of the bound.
    Mutant(
        "the likelihood is averaged over pixels",
        "terms.py",
        "return _keep(log_prob, particle_dim, data_dim)",
        'return _keep(log_prob / site["fn"].event_shape.numel(), particle_dim, data_dim)',
    ),
    Mutant(
        "the sites inside a plate are averaged",
        "terms.py",
        "value.sum(others) if others",
        "value.mean(others) if others",
    ),
    Mutant(
        "the sign of the KL",
        "terms.py",
        "self.log_likelihood + self.log_prior - self.log_posterior",
        "self.log_likelihood - self.log_prior + self.log_posterior",
    ),
    Mutant(
        "log q is missing",
        "terms.py",
        "self.log_likelihood + self.log_prior - self.log_posterior",
        "self.log_likelihood + self.log_prior",
    ),
    Mutant(
        "a short last batch counts as much as the others",
        "terms.py",
        "[term.sum() for term in each]).double().cpu()\n        count += len(batch.x)",
        "[term.mean() for term in each]).double().cpu()\n        count += 1",
    ),
    Mutant(
        "the arguments of the KL swapped",
        "distributions/factors.py",
        "kl_divergence(q.expand(shape), p.expand(shape))",
        "kl_divergence(p.expand(shape), q.expand(shape))",
    ),
    Mutant("masks are ignored", "terms.py", 'if site["mask"] is not None:', "if False:"),
    Mutant(
        "scales are counted",
        "terms.py",
        'log_prob = site["fn"].log_prob(site["value"])',
        'log_prob = site["scale"] * site["fn"].log_prob(site["value"])',
    ),
    Mutant(
        "the latent means are draws",
        "terms.py",
        'return torch.where(torch.isfinite(mean), mean, site["value"])',
        'return site["value"]',
    ),
    # Evaluation.
    Mutant(
        "importance sampling without log K",
        "evaluation.py",
        "log_weight.logsumexp(0) - math.log(num_samples)",
        "log_weight.logsumexp(0)",
    ),
    Mutant(
        "importance sampling averages logarithms",
        "evaluation.py",
        "log_weight.logsumexp(0) - math.log(num_samples)",
        "log_weight.mean(0)",
    ),
    Mutant(
        "more draws than asked",
        "evaluation.py",
        "min(at_once, num_samples - done)",
        "at_once",
    ),
    Mutant(
        "the KL has the wrong sign", "evaluation.py", '"kl": log_likelihood - elbo', '"kl": elbo'
    ),
    Mutant(
        "batches stand for their examples",
        "evaluation.py",
        "torch.cat(parts).cpu()",
        "torch.stack([part.mean(0) for part in parts]).cpu()",
    ),
    Mutant(
        "a short last chunk of draws weighs as much as the others",
        "evaluation.py",
        "_add(kl_per_dim, terms.kl_per_dim, share=count / num_samples)",
        "_add(kl_per_dim, terms.kl_per_dim, share=at_once / num_samples)",
    ),
    Mutant(
        "every batch gets the same noise",
        "evaluation.py",
        'seeded(seed, "evaluate", index,',
        'seeded(seed, "evaluate",',
    ),
    Mutant(
        "the error is that of one draw",
        "evaluation.py",
        "relative.std(0) / math.sqrt(len(relative))",
        "relative.std(0)",
    ),
    Mutant("nats pass for bits", "evaluation.py", "-nats / math.log(2)", "-nats"),
    Mutant(
        "the cell volume is added twice over the dimensions",
        "evaluation.py",
        "/ self.dims + self.log_cell_volume",
        "/ self.dims + self.log_cell_volume * self.dims",
    ),
    Mutant(
        "active units by their scale",
        "evaluation.py",
        "m.var(0, correction=0)",
        "m.std(0, correction=0)",
    ),
    Mutant(
        "active units against the latents' own spread",
        "evaluation.py",
        '"latent_means": latent_means',
        '"latent_means": {n: m + torch.randn_like(m) for n, m in latent_means.items()}',
    ),
    Mutant(
        "the tail index without its prior", "evaluation.py", "(k * size + 5) / (size + 10)", "k"
    ),
    Mutant(
        "the tail index of the weights' logarithms",
        "evaluation.py",
        "(top[:-1] - top[0]).exp() - (top[-1] - top[0]).exp()",
        "top[:-1] - top[-1]",
    ),
    # Data.
    Mutant(
        "binarisation inverted", "data/preprocessing.py", "(probability > (", "(probability < ("
    ),
    Mutant(
        "the sign of the cell volume",
        "data/preprocessing.py",
        "return -math.log(self.levels)",
        "return math.log(self.levels)",
    ),
    Mutant(
        "dequantised over one level too few",
        "data/preprocessing.py",
        "((raw + noise) / self.levels)",
        "((raw + noise) / (self.levels - 1))",
    ),
    Mutant(
        "standardised by the variance",
        "data/preprocessing.py",
        "scale = (values - mean).square().nanmean(dims).sqrt()",
        "scale = (values - mean).square().nanmean(dims)",
    ),
    # Networks.
    Mutant(
        "the clamp has no ceiling",
        "networks/bounded.py",
        "return high - F.softplus(high - smooth_floor(value, low))",
        "return smooth_floor(value, low)",
    ),
    Mutant(
        "the clamp is hard",
        "networks/bounded.py",
        "return high - F.softplus(high - smooth_floor(value, low))",
        "return value.clamp(low, high)",
    ),
]


# ── Testing them ─────────────────────────────────────────────────────────────────────────────


def outcome_of(mutant: Mutant | None) -> dict[str, object]:
    """Runs the tests, in this process, on a copy of the package; it cannot be run twice."""
    import pytest

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pyrovae"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            mutant.plant(package)
        sys.dont_write_bytecode = True
        sys.path.insert(0, folder)
        import pyrovae

        assert Path(pyrovae.__file__).is_relative_to(folder), pyrovae.__file__

        output = io.StringIO()
        killers = [str(TESTS / name) for name in KILLERS]
        options = [
            "-x",
            "-q",
            "--tb=line",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(TESTS.parent),
        ]
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = pytest.main([*killers, *options])

    lines = [line for line in output.getvalue().splitlines() if line.startswith("FAILED")]
    return {"code": int(code), "said": lines[0] if lines else output.getvalue()[-2000:]}


def in_child(mutant: Mutant | None, outcome: Path) -> int:
    """Forks a process that tests one copy and writes what it found to a file."""
    child = os.fork()
    if child == 0:
        try:
            found = outcome_of(mutant)
        except BaseException:
            found = {"code": -1, "said": traceback.format_exc()}
        outcome.write_text(json.dumps(found))
        os._exit(0)
    return child


def main(workers: int = 2) -> None:
    """Tests the unchanged package and every mutant."""
    for name in ONCE:
        import_module(name)

    waiting: list[Mutant | None] = [None, *MUTANTS]
    running: dict[int, tuple[str, Path]] = {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < workers:
                mutant = waiting.pop(0)
                outcome = Path(folder) / str(len(waiting))
                name = mutant.name if mutant else UNCHANGED
                running[in_child(mutant, outcome)] = (name, outcome)

            child, _ = os.wait()
            name, outcome = running.pop(child)
            found = outcome.read_text() if outcome.exists() else '{"code": -1, "said": "it died"}'
            print(json.dumps({"name": name, **json.loads(found)}), flush=True)


if __name__ == "__main__":
    main()

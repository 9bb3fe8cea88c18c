"""The classic bugs of VAEs, each planted in a copy of the package.

`python mutants.py` runs on every copy the one test that is to find its bug, and prints a line of
JSON for each: which bug, whether the test found it, and what it said. It imports torch, Pyro and
pytest once, runs no operation of theirs, and forks for each bug.
"""

import compileall
import contextlib
import gc
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
UNCHANGED = "nothing at all"
# What the children share: importing these is most of the time that a test run takes.
ONCE = (
    "PIL.Image",
    "_pytest.doctest",
    "numpy.random",
    "pdb",
    "pyro.infer",
    "pytest",
    "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.utils.data",
)


class Mutant(NamedTuple):
    """A bug: what it is, the text of the file that it replaces, and the test that finds it."""

    name: str
    file: str
    old: str
    new: str
    killer: str

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


def sampler(name: str, eps: str, killer: str) -> Mutant:
    """A guide that draws loc + scale * eps with the wrong noise."""
    new = f"""_Wrong(loc, smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).exp()).to_event(1)


class _Wrong(dist.Normal):
    def rsample(self, sample_shape=()):
        eps = (self.loc + self.scale).detach().clone().normal_()
        return self.loc + self.scale * ({eps})"""
    return Mutant(name, "encoders/gaussian.py", ENCODED, new, killer)


MUTANTS = [
    # The guide and its sampler.
    Mutant(
        "the variance is the scale of q",
        "encoders/gaussian.py",
        "smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).exp()",
        "smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).mul(2).exp()",
        "test_exact.py::test_every_particle_weighs_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "the log-variance is the log-scale of q",
        "encoders/gaussian.py",
        "smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).exp()",
        "smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).mul(0.5).exp()",
        "test_exact.py::test_every_particle_weighs_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "q lacks to_event",
        "encoders/gaussian.py",
        ".exp()).to_event(1)",
        ".exp())",
        "test_exact.py::test_every_particle_weighs_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "mean and scale swapped",
        "encoders/gaussian.py",
        "loc, log_scale =",
        "log_scale, loc =",
        "test_exact.py::test_every_particle_weighs_the_evidence_at_the_exact_posterior",
    ),
    sampler(
        "the noise is shared over the batch",
        "eps[..., :1, :].expand_as(eps)",
        "test_exact.py::test_guide_draws_are_independent_over_rows_dimensions_and_particles",
    ),
    sampler(
        "the noise is shared over dimensions",
        "eps[..., :1].expand_as(eps)",
        "test_exact.py::test_guide_draws_are_independent_over_rows_dimensions_and_particles",
    ),
    sampler(
        "the noise is shared over particles",
        "eps[:1].expand_as(eps)",
        "test_exact.py::test_the_analytic_kl_bound_is_the_closed_form[exact]",
    ),
    sampler(
        "the noise is one",
        "eps * 0 + 1",
        "test_exact.py::test_the_analytic_kl_bound_is_the_closed_form[exact]",
    ),
    sampler(
        "the noise has scale 0.01",
        "eps * 0.01",
        "test_exact.py::test_the_analytic_kl_bound_is_the_closed_form[exact]",
    ),
    sampler(
        "z is the mean of q",
        "eps * 0",
        "test_exact.py::test_the_analytic_kl_bound_is_the_closed_form[exact]",
    ),
    sampler(
        "half the scale in the sampler",
        "eps * 0.5",
        "test_exact.py::test_the_analytic_kl_bound_is_the_closed_form[exact]",
    ),
    # The likelihood.
    Mutant(
        "the variance is the scale of p(x | z)",
        "decoders/gaussian.py",
        "dist.Normal(self.net(z), self.shared_scale(rank))",
        "dist.Normal(self.net(z), self.shared_scale(rank).square())",
        "test_exact.py::test_every_particle_weighs_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "the likelihood has unit scale",
        "decoders/gaussian.py",
        "dist.Normal(self.net(z), self.shared_scale(rank))",
        "dist.Normal(self.net(z), self.shared_scale(rank) * 0 + 1)",
        "test_exact.py::test_every_particle_weighs_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "an image is a batch of rows",
        "decoders/binary.py",
        "dist.Bernoulli(logits=self.net(z)).to_event(event_rank(self.net))",
        "dist.Bernoulli(logits=self.net(z)).to_event(1)",
        "test_exact.py::test_bernoulli_probabilities_sum_to_one[shape1]",
    ),
    Mutant(
        "means and log-scales split along the wrong axis",
        "decoders/gaussian.py",
        "halves(self.net(z), -rank)",
        "halves(self.net(z), -1)",
        "test_exact.py::test_terms_are_those_of_one_particle_and_one_example_alone[PixelwiseGaussianDecoder-mlp]",
    ),
    Mutant(
        "the variance is the scale of every pixel",
        "decoders/gaussian.py",
        "dist.Normal(loc, log_scale.exp()).to_event(rank)",
        "dist.Normal(loc, log_scale.mul(2).exp()).to_event(rank)",
        "test_exact.py::test_pixelwise_scales_stay_between_their_floor_and_their_ceiling",
    ),
    Mutant(
        "cross-entropy passes for a density",
        "decoders/unit_interval.py",
        "ContinuousBernoulli(self.net(z))",
        "__import__('pyro').distributions.Bernoulli(logits=self.net(z), validate_args=False)",
        "test_exact.py::test_densities_integrate_to_one[ContinuousBernoulliDecoder-2-0.0-1.0]",
    ),
    Mutant(
        "two sigmoids",
        "decoders/binary.py",
        "dist.Bernoulli(logits=self.net(z))",
        "dist.Bernoulli(logits=self.net(z).sigmoid())",
        "test_exact.py::test_terms_are_those_of_one_particle_and_one_example_alone[BernoulliDecoder-mlp]",
    ),
    Mutant(
        "a learned scale has no floor",
        "decoders/positive.py",
        "log_value = smooth_floor(log_value, math.log(self.low))",
        "log_value = log_value + 0",
        "test_exact.py::test_a_learned_scale_starts_where_it_is_told_and_stays_above_its_floor",
    ),
    # The prior.
    Mutant(
        "the prior is twice as wide",
        "priors/factorized.py",
        "Normal(self.loc, 1.0)",
        "Normal(self.loc, 2.0)",
        "test_exact.py::test_every_particle_weighs_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "the variance is the scale of the learned prior",
        "priors/factorized.py",
        "return dist.Normal(self.loc, self.log_scale.exp())",
        "return dist.Normal(self.loc, self.log_scale.mul(2).exp())",
        "test_exact.py::test_terms_are_those_of_one_particle_and_one_example_alone[BernoulliDecoder-mlp]",
    ),
    Mutant(
        "the mixture forgets its weights",
        "priors/mixtures.py",
        "Categorical(logits=self.logits)",
        "Categorical(logits=self.logits * 0)",
        "test_exact.py::test_a_mixture_prior_is_the_weighted_sum_of_its_gaussians",
    ),
    # The program.
    Mutant(
        "beta is missing in the model",
        "models/vae.py",
        "            with kl_weight(self._weight):\n",
        "            with kl_weight(1.0):\n",
        "test_exact.py::test_beta_weights_the_kl_alone[Trace_ELBO]",
    ),
    Mutant(
        "beta is missing in the guide",
        "models/vae.py",
        'with pyro.plate("data", len(x)), kl_weight(self._weight):',
        'with pyro.plate("data", len(x)), kl_weight(1.0):',
        "test_exact.py::test_beta_weights_the_kl_alone[Trace_ELBO]",
    ),
    Mutant(
        "beta weights the likelihood too",
        "handlers.py",
        'if msg["is_observed"] or isinstance',
        "if isinstance",
        "test_exact.py::test_a_weight_round_the_whole_program_multiplies_beta[0.0-Trace_ELBO]",
    ),
    Mutant(
        "a weight replaces the scale instead of multiplying it",
        "handlers.py",
        'msg["scale"] = msg["scale"] * self.weight',
        'msg["scale"] = self.weight',
        "test_exact.py::test_a_weight_round_the_whole_program_multiplies_beta[0.25-Trace_ELBO]",
    ),
    Mutant(
        "two models share their names",
        "handlers.py",
        'f"{type(module).__name__}_{next(_numbers)}"',
        "type(module).__name__",
        "test_exact.py::test_beta_weights_the_kl_alone[Trace_ELBO]",
    ),
    Mutant(
        "data outside the support pass",
        "supports.py",
        "if inside.all():",
        "if True:",
        "test_programs.py::test_data_outside_the_support_are_refused_with_example_and_remedy[BernoulliDecoder-Bernoulli]",
    ),
    Mutant(
        "dropout stays on in evaluations",
        "programs.py",
        "module.training = False",
        "module.training = True",
        "test_programs.py::test_evaluating_leaves_no_trace[False]",
    ),
    Mutant(
        "a subsampled plate passes for the whole",
        "structure.py",
        'getattr(frame, "full_size", None) or frame.size',
        "frame.size",
        "test_programs.py::test_a_subsampled_plate_is_known_by_its_full_size_and_evaluates_alike",
    ),
    # The terms of the bound.
    Mutant(
        "the likelihood is averaged over pixels",
        "terms.py",
        'log_prob = site["fn"].log_prob(site["value"])',
        'log_prob = site["fn"].log_prob(site["value"]) / site["fn"].event_shape.numel()',
        "test_exact.py::test_every_particle_weighs_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "the sites inside a plate are averaged",
        "terms.py",
        "value.sum(others) if others",
        "value.mean(others) if others",
        "test_exact.py::test_a_plate_inside_data_is_summed[-1]",
    ),
    Mutant(
        "the sign of the KL",
        "terms.py",
        "self.log_likelihood + self.log_prior - self.log_posterior",
        "self.log_likelihood - self.log_prior + self.log_posterior",
        "test_exact.py::test_every_particle_weighs_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "log q is missing",
        "terms.py",
        "self.log_likelihood + self.log_prior - self.log_posterior",
        "self.log_likelihood + self.log_prior",
        "test_exact.py::test_every_particle_weighs_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "a graph draws less noise than the program, where nothing reads a draw",
        "capture.py",
        "module.graph.eliminate_dead_code()",
        "module.graph.eliminate_dead_code(lambda node: node.op in ('placeholder', 'output'))",
        "test_capture.py::test_what_no_result_depends_on_is_not_done_but_for_draws",
    ),
    Mutant(
        "a short last batch counts as much as the others",
        "terms.py",
        "    return torch.cat([torch.stack(sums).double(), of_each.double() * len(batch.x)])",
        "    sums = [total / len(batch.x) for total in sums]\n"
        "    return torch.cat([torch.stack(sums).double(), of_each.double()])",
        "test_exact.py::test_means_over_batches_are_means_over_examples[5]",
    ),
    Mutant(
        "the arguments of the KL swapped",
        "distributions/factors.py",
        "kl_divergence(q.expand(shape), p.expand(shape))",
        "kl_divergence(p.expand(shape), q.expand(shape))",
        "test_exact.py::test_kl_per_dimension_is_the_closed_form",
    ),
    Mutant(
        "masks are ignored",
        "terms.py",
        'if site["mask"] is not None:',
        "if False:",
        "test_exact.py::test_evaluation_counts_masks",
    ),
    Mutant(
        "scales are counted",
        "terms.py",
        'log_prob = site["fn"].log_prob(site["value"])',
        'log_prob = site["scale"] * site["fn"].log_prob(site["value"])',
        "test_exact.py::test_evaluation_is_at_weight_one_whatever_beta[0.0]",
    ),
    Mutant(
        "the latent means are draws",
        "terms.py",
        'return torch.where(torch.isfinite(mean), mean, site["value"])',
        'return site["value"]',
        "test_exact.py::test_latent_means_are_those_of_the_guide",
    ),
    # Evaluation.
    Mutant(
        "importance sampling without log K",
        "evaluation.py",
        "log_weight.logsumexp(0) - math.log(num_samples)",
        "log_weight.logsumexp(0)",
        "test_exact.py::test_evaluation_is_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "importance sampling averages logarithms",
        "evaluation.py",
        "log_weight.logsumexp(0) - math.log(num_samples)",
        "log_weight.mean(0)",
        "test_exact.py::test_the_bounds_are_ordered_and_tighten_to_the_evidence",
    ),
    Mutant(
        "more draws than asked",
        "evaluation.py",
        "min(at_once, num_samples - done)",
        "at_once",
        "test_exact.py::test_evaluation_is_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "the KL has the wrong sign",
        "evaluation.py",
        '"kl": log_likelihood - elbo',
        '"kl": elbo',
        "test_exact.py::test_evaluated_elbo_splits_into_likelihood_and_kl",
    ),
    Mutant(
        "batches stand for their examples",
        "evaluation.py",
        "torch.cat(parts).cpu()",
        "torch.stack([part.mean(0) for part in parts]).cpu()",
        "test_exact.py::test_evaluation_is_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "a short last chunk of draws weighs as much as the others",
        "evaluation.py",
        "_add(kl_per_dim, terms.kl_per_dim, share=count / num_samples)",
        "_add(kl_per_dim, terms.kl_per_dim, share=at_once / num_samples)",
        "test_exact.py::test_kl_per_dimension_is_the_closed_form",
    ),
    Mutant(
        "every batch gets the same noise",
        "evaluation.py",
        'seeded(seed, "evaluate", index,',
        'seeded(seed, "evaluate",',
        "test_exact.py::test_evaluation_draws_anew_for_every_batch",
    ),
    Mutant(
        "the error is that of one draw",
        "evaluation.py",
        "relative.std(0) / math.sqrt(len(relative))",
        "relative.std(0)",
        "test_exact.py::test_the_reported_error_is_the_spread_over_independent_estimates",
    ),
    Mutant(
        "nats pass for bits",
        "evaluation.py",
        "-nats / math.log(2)",
        "-nats",
        "test_exact.py::test_fair_coins_cost_one_bit_each",
    ),
    Mutant(
        "the cell volume is added twice over the dimensions",
        "evaluation.py",
        "/ self.dims + self.log_cell_volume",
        "/ self.dims + self.log_cell_volume * self.dims",
        "test_exact.py::test_uniform_bytes_cost_as_many_bits_as_they_have[3]",
    ),
    Mutant(
        "active units by their scale",
        "evaluation.py",
        "m.var(0, correction=0)",
        "m.std(0, correction=0)",
        "test_exact.py::test_a_unit_is_active_above_a_variance_of_one_hundredth[0.0099-0]",
    ),
    Mutant(
        "active units against the latents' own spread",
        "evaluation.py",
        '"latent_means": latent_means',
        '"latent_means": {n: m + torch.randn_like(m) for n, m in latent_means.items()}',
        "test_exact.py::test_latent_means_are_those_of_the_guide",
    ),
    Mutant(
        "the tail index without its prior",
        "evaluation.py",
        "(k * size + 5) / (size + 10)",
        "k",
        "test_exact.py::test_pareto_k_is_that_of_pyros_fit[25]",
    ),
    Mutant(
        "the tail index of the weights' logarithms",
        "evaluation.py",
        "(top[:-1] - top[0]).exp() - (top[-1] - top[0]).exp()",
        "top[:-1] - top[-1]",
        "test_exact.py::test_pareto_k_is_that_of_pyros_fit[25]",
    ),
    # Data.
    Mutant(
        "binarisation inverted",
        "data/preprocessing.py",
        "(probability > (",
        "(probability < (",
        "test_preprocessing.py::test_a_pixel_is_one_with_the_probability_of_its_grey_value[static]",
    ),
    Mutant(
        "the sign of the cell volume",
        "data/preprocessing.py",
        "return -math.log(self.levels)",
        "return math.log(self.levels)",
        "test_exact.py::test_uniform_bytes_cost_as_many_bits_as_they_have[3]",
    ),
    Mutant(
        "dequantised over one level too few",
        "data/preprocessing.py",
        "((raw + noise) / self.levels)",
        "((raw + noise) / (self.levels - 1))",
        "test_preprocessing.py::test_dequantised_integers_are_where_they_belong_and_come_back[16]",
    ),
    Mutant(
        "standardised by the variance",
        "data/preprocessing.py",
        "return mean, (values - mean).square().nanmean(dims).sqrt()",
        "return mean, (values - mean).square().nanmean(dims)",
        "test_preprocessing.py::test_moments_are_those_of_what_was_observed[(200, 3)]",
    ),
    # Networks.
    Mutant(
        "the clamp has no ceiling",
        "networks/bounded.py",
        "return high - F.softplus(high - smooth_floor(value, low))",
        "return smooth_floor(value, low)",
        "test_exact.py::test_every_particle_weighs_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "the clamp is hard",
        "networks/bounded.py",
        "return high - F.softplus(high - smooth_floor(value, low))",
        "return value.clamp(low, high)",
        "test_exact.py::test_every_particle_weighs_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "an LSTM forgets where it is to remember",
        "networks/recurrent.py",
        "enter, forget, new, show =",
        "forget, enter, new, show =",
        "test_networks.py::test_states_and_gradients_are_those_of_torch[lstm-False]",
    ),
    Mutant(
        "states of the way back are left as they were met",
        "networks/recurrent.py",
        "torch.cat(states[::-1] if backwards else states, -2), state",
        "torch.cat(states, -2), state",
        "test_networks.py::test_states_and_gradients_are_those_of_torch[lstm-True]",
    ),
    Mutant(
        "the norm of weights is over all particles",
        "networks/layers.py",
        "dim=(-3, -2, -1), keepdim=True",
        "dim=tuple(range(1, weight.dim())), keepdim=True",
        "test_networks.py::test_weights_of_each_particle_act_as_in_a_loop[True-weight norm]",
    ),
    Mutant(
        "a balance outlives its warm-up",
        "bounds/controls.py",
        "torch.where(self._share < 1, weights, 1.0)",
        "torch.where(self._share < 2, weights, 1.0)",
        "test_bounds.py::test_a_balance_is_over_with_its_warmup",
    ),
    # Bounds and their gradients.
    Mutant(
        "a loss is the mean over examples",
        "bounds/base.py",
        "(bounds - constant).sum()",
        "(bounds - constant).mean()",
        "test_bounds.py::test_at_the_exact_posterior_every_bound_is_the_evidence[bound0]",
    ),
    Mutant(
        "IWAE without log K",
        "bounds/importance.py",
        "return log_weight.logsumexp(0) - math.log(len(log_weight))",
        "return log_weight.logsumexp(0)",
        "test_bounds.py::test_at_the_exact_posterior_every_bound_is_the_evidence[bound1]",
    ),
    Mutant(
        "the weights leave the posterior out",
        "bounds/draws.py",
        "return self.log_likelihood + self.log_prior - self.log_posterior",
        "return self.log_likelihood + self.log_prior",
        "test_bounds.py::test_at_the_exact_posterior_every_bound_is_the_evidence[bound1]",
    ),
    Mutant(
        "a face of a relaxed code has the density of what lies within",
        "distributions/relaxed.py",
        "inside = y > ROUNDING - DEPTH",
        "inside = y > -2 * DEPTH",
        "test_discrete.py::test_ratios_of_relaxed_codes_are_right_when_they_are_sharp",
    ),
    Mutant(
        "what a distribution masks has no score",
        "bounds/draws.py",
        'return unmasked(unweighted(site["fn"])).log_prob(site["value"])',
        'return unweighted(site["fn"]).log_prob(site["value"])',
        "test_bounds.py::test_a_mask_of_a_distribution_is_as_one_of_its_site[<lambda>-True0-entries]",
    ),
    Mutant(
        "a plate round that of the examples is taken for theirs",
        "programs.py",
        'return value.movedim(data_frame(site).dim - site["fn"].event_dim, 0)',
        "return value",
        "test_generation.py::test_rows_of_an_example_stay_its_own",
    ),
    Mutant(
        "a graph goes on with what a script has changed",
        "svi/plans.py",
        "return self.run is None or self.changed is None",
        "return True",
        "test_svi.py::test_what_a_script_changes_of_a_module_keys_a_capture[a number]",
    ),
    Mutant(
        "a dimension that no plate has is that of draws",
        "bounds/layouts.py",
        "for dim in range(-len(shape), 1 - self.depth):",
        "for dim in range(-len(shape), -self.depth):",
        "test_shared_bounds.py::test_a_program_without_a_plate_has_no_examples_to_take_for_draws",
    ),
    Mutant(
        "DReG shares its weights over the examples",
        "bounds/paths.py",
        "share = log_weight.detach().softmax(0)",
        "share = log_weight.detach().softmax(-1)",
        "test_bounds.py::test_gradients_of_one_bound_have_one_expectation[path1-plain1]",
    ),
    Mutant(
        "DReG multiplies by its weights once",
        "bounds/paths.py",
        "return gradient * share[(...,) + (None,) * rank]",
        "return gradient",
        "test_bounds.py::test_gradients_of_one_bound_have_one_expectation[path1-plain1]",
    ),
    Mutant(
        "the score stays in a gradient along paths",
        "bounds/paths.py",
        "return log_q - self.gradient_of_score(self.latents)",
        "return log_q",
        "test_bounds.py::test_along_paths_the_guide_has_no_gradient_at_the_exact_posterior[bound0]",
    ),
    Mutant(
        "VIMCO averages the signals of its draws",
        "bounds/importance.py",
        "bound + (signal * score).sum(0)",
        "bound + (signal * score).mean(0)",
        "test_bounds.py::test_gradients_of_discrete_draws_are_those_of_the_sum_over_all[bound0-2]",
    ),
    Mutant(
        "VIMCO keeps a draw in what it is compared with",
        "bounds/importance.py",
        "means = torch.where(own, 0.0, log_weight.unsqueeze(0)).sum(1) / (count - 1)",
        "means = log_weight.mean(0).expand_as(log_weight)",
        "test_bounds.py::test_the_signal_of_a_draw_is_what_it_adds_to_the_others",
    ),
    Mutant(
        "a wake draw carries a gradient",
        "bounds/wake_sleep.py",
        'fixed = run.at({n: s["value"].detach() for',
        'fixed = run.at({n: 1 * s["value"] for',
        "test_bounds.py::test_a_wake_draw_is_held_where_it_is",
    ),
    Mutant(
        "sleep takes the real x for its dream",
        "bounds/wake_sleep.py",
        'leaves[place] = site["value"]',
        "pass",
        "test_bounds.py::test_wake_follows_the_weights_and_sleep_the_dreams",
    ),
    Mutant(
        "DReG squares what a weight of the KL leaves over",
        "bounds/paths.py",
        "else self.log_density(fixed)",
        "else self._total(list(map(self.log_prob, fixed)))",
        "test_gradients.py::test_paths_are_weighted_as_the_kl_is[0.3-DReG-IWAE-4]",
    ),
    Mutant(
        "a guide that is run again drops out anew",
        "bounds/pairs.py",
        "with self._noise.given_again():",
        "if True:",
        "test_gradients.py::test_a_guide_that_is_run_again_has_the_noise_of_its_draws"
        "[dropout-DReG]",
    ),
    Mutant(
        "the score of a draw is weighted",
        "distributions/weighted.py",
        "ScoreParts(log_prob, self.base.log_prob(x), 0)",
        "ScoreParts(log_prob, log_prob, 0)",
        "test_gradients.py::test_pyros_score_of_a_draw_knows_no_weight_of_a_dimension[theirs0]",
    ),
    Mutant(
        "total correlation by marginals of the joint",
        "bounds/aggregate.py",
        "log_marginals = (log_q_dims.logsumexp(1) - count).sum(-1)",
        "log_marginals = log_q_dims.logsumexp(1).sum(-1) - count",
        "test_bounds.py::test_the_total_correlation_is_that_of_the_batch",
    ),
    Mutant(
        "the aggregate posterior is each draw's own",
        "bounds/aggregate.py",
        "log_aggregate = log_q_dims.sum(-1).logsumexp(1) - count",
        'log_aggregate = q["fn"].log_prob(q["value"])',
        "test_bounds.py::test_the_total_correlation_is_that_of_the_batch",
    ),
    Mutant(
        "MMD counts each draw's distance from itself",
        "bounds/aggregate.py",
        "others = 1 - torch.eye",
        "others = 1 - 0 * torch.eye",
        "test_bounds.py::test_a_mean_discrepancy_is_its_definition",
    ),
    Mutant(
        "free bits pay for what is free",
        "bounds/controls.py",
        "(kl > self.nats).to(kl.dtype)",
        "(kl > -1).to(kl.dtype)",
        "test_bounds.py::test_free_bits_stop_the_gradient_of_what_is_free",
    ),
    Mutant(
        "shares of a batch count alike",
        "svi/exchange.py",
        "flat * self.share if self.share else torch.zeros_like(flat)",
        "flat / self.ranks.size",
        "test_ranks.py::test_two_shares_give_the_gradient_of_their_batch[7]",
    ),
    Mutant(
        "a process updates what it has used itself, and nothing that another has",
        "svi/exchange.py",
        "else (used != 0).tolist()",
        "else [id(p) in own for p in trained.values()]",
        "test_ranks.py::test_a_parameter_has_the_gradient_that_another_process_found",
    ),
    Mutant(
        "a row that stands in for a share counts",
        "svi/exchange.py",
        "flat * self.share if self.share else torch.zeros_like(flat)",
        "flat * self.share",
        "test_ranks.py::test_a_row_that_does_not_count_may_be_infinite",
    ),
    Mutant(
        "each process draws its own global latent",
        "handlers.py",
        'or any(frame.name == self.plate for frame in msg["cond_indep_stack"])',
        "or True",
        "test_ranks.py::test_latents_outside_the_plate_are_drawn_alike",
    ),
    Mutant(
        "a capacity pushes away",
        "bounds/controls.py",
        "self.strength * (total - nats).sign()",
        "self.strength * (nats - total).sign()",
        "test_bounds.py::test_a_capacity_is_where_the_kl_is_drawn_to[2.0]",
    ),
    Mutant(
        "a balance favours what carries less",
        "bounds/controls.py",
        "weights = carried / carried.mean()",
        "weights = carried.mean() / carried",
        "test_bounds.py::test_a_balance_favours_what_carries_more",
    ),
    Mutant(
        "a subsampled plate multiplies the log-weights",
        "bounds/draws.py",
        'factor = site["scale"] / (1.0 if self._is_shared(site) else self.layout.scale)',
        'factor = site["scale"]',
        "test_bounds.py::test_a_subsampled_plate_multiplies_the_bound_and_not_the_weights[<lambda>3]",
    ),
    Mutant(
        "the KL of what all examples share counts for every one of them",
        "bounds/draws.py",
        'factor = site["scale"] / (1.0 if self._is_shared(site) else self.layout.scale)',
        'factor = site["scale"] / self.layout.scale',
        "test_shared_bounds.py::test_what_pyro_has_too_is_the_same[ours0-theirs0-Shifted-None]",
    ),
    Mutant(
        "importance weights of an example by draws of what all of them share",
        "bounds/importance.py",
        "    needs_gradients = True\n    holds_shared = True",
        "    needs_gradients = True\n    holds_shared = False",
        "test_shared_bounds.py::test_draws_one_after_the_other_are_as_good_as_together"
        "[IWAE-normal]",
    ),
    # Flows.
    Mutant(
        "the sign of a coupling's log-determinant on the way back",
        "distributions/bijections.py",
        "return x, -log_det",
        "return x, log_det",
        "test_flows.py::test_a_bijection_is_inverted_and_its_determinant_is_that_of_its_jacobian[affine-False]",
    ),
    Mutant(
        "a coupling layer is inverted in the wrong order",
        "distributions/bijections.py",
        "return (value - shift) * (-log_scale).exp(), -log_scale",
        "return value * (-log_scale).exp() - shift, -log_scale",
        "test_flows.py::test_a_bijection_is_inverted_and_its_determinant_is_that_of_its_jacobian[affine-False]",
    ),
    Mutant(
        "a spline without its determinant",
        "distributions/bijections.py",
        "torch.where(inside, -log_slope if back else log_slope, 0.0)",
        "torch.where(inside, 0 * log_slope, 0.0)",
        "test_flows.py::test_a_bijection_is_inverted_and_its_determinant_is_that_of_its_jacobian[spline-False]",
    ),
    Mutant(
        "the sign of an autoregressive log-determinant",
        "distributions/bijections.py",
        "(gate * x + (1 - gate) * mean).flip(-1), F.logsigmoid(logit).sum(-1)",
        "(gate * x + (1 - gate) * mean).flip(-1), -F.logsigmoid(logit).sum(-1)",
        "test_flows.py::test_a_bijection_is_inverted_and_its_determinant_is_that_of_its_jacobian[iaf-0]",
    ),
    Mutant(
        "an inverse forgets that the order was turned round",
        "distributions/bijections.py",
        "        y = y.flip(-1)\n",
        "",
        "test_flows.py::test_a_bijection_is_inverted_and_its_determinant_is_that_of_its_jacobian[iaf-0]",
    ),
    Mutant(
        "a stack of flows keeps the pair that other weights mapped",
        "distributions/stacks.py",
        "            vars(owner)[name] = tensor\n        self.forget()",
        "            vars(owner)[name] = tensor",
        "test_flows.py::test_weights_that_have_changed_are_those_of_the_next_distribution[orders]",
    ),
    Mutant(
        "a stack of flows forgets its own draw",
        "priors/flows.py",
        "if self._mapped_by is not weights:",
        "if True:",
        "test_flows.py::test_the_own_draw_of_a_stack_costs_one_pass_and_has_its_gradients",
    ),
    Mutant(
        "a flow's order is the one it was made with, whatever was loaded",
        "distributions/stacks.py",
        "            vars(owner)[name] = tensor\n",
        "            pass\n",
        "test_flows.py::test_all_that_transforms_hold_is_saved_and_loaded[order]",
    ),
    Mutant(
        "an order goes back as before another was loaded",
        "distributions/stacks.py",
        "own.pop(name, None)  # a property, worked out when it is asked for",
        "pass",
        "test_flows.py::test_all_that_transforms_hold_is_saved_and_loaded[order]",
    ),
    # Priors by an encoder.
    Mutant(
        "a VampPrior forgets its weights",
        "priors/encoded.py",
        "dist.Categorical(logits=self.logits)",
        "dist.Categorical(logits=self.logits * 0)",
        "test_priors.py::test_a_vamp_prior_is_the_mixture_by_hand[gaussian-True]",
    ),
    Mutant(
        "a mixture is a sum without weights",
        "distributions/mixture.py",
        "(self.mixture_distribution.logits + log_probs).logsumexp(-1)",
        "log_probs.logsumexp(-1)",
        "test_priors.py::test_an_exemplar_prior_is_the_mixture_by_hand[gaussian]",
    ),
    Mutant(
        "exemplars are left out in evaluations",
        "priors/encoded.py",
        "if self.training and self.components < len(inputs)",
        "if self.components < len(inputs)",
        "test_priors.py::test_an_exemplar_prior_is_the_mixture_by_hand[gaussian]",
    ),
    # Likelihoods.
    Mutant(
        "the last level ends at its cell",
        "distributions/discretized_logistic.py",
        "torch.where(last, 0.0, below)",
        "below",
        "test_levels.py::test_all_levels_sum_to_one_wherever_the_logistic_lies[torch.float64-1e-14]",
    ),
    Mutant(
        "a level's cell is two wide",
        "distributions/discretized_logistic.py",
        "F.logsigmoid((value + 0.5 - self.loc) / self.scale)",
        "F.logsigmoid((value + 1.5 - self.loc) / self.scale)",
        "test_levels.py::test_all_levels_sum_to_one_wherever_the_logistic_lies[torch.float64-1e-14]",
    ),
    Mutant(
        "a logistic's scale is in levels and its location is not",
        "decoders/levels.py",
        "return half * (1 + loc), half * log_scale.exp()",
        "return half * (1 + loc), log_scale.exp()",
        "test_levels.py::test_the_network_speaks_of_a_scale_from_minus_one_to_one",
    ),
    Mutant(
        "further zeros by the probability of none",
        "decoders/counts.py",
        "ZeroInflated(counts, gate_logits=gate_logits)",
        "ZeroInflated(counts, gate_logits=-gate_logits)",
        "test_counts.py::test_further_zeros_are_those_of_the_gate",
    ),
    Mutant(
        "the odds pass for the mean of a negative binomial",
        "decoders/counts.py",
        "logits=log_mean - concentration.log()",
        "logits=log_mean",
        "test_counts.py::test_the_variance_of_a_negative_binomial_is_that_of_its_concentration",
    ),
    Mutant(
        "the constant of the continuous Bernoulli at twice its argument",
        "distributions/continuous_bernoulli.py",
        "(value - 0.5) - _log_sinhc(self.logits / 2)",
        "(value - 0.5) - _log_sinhc(self.logits)",
        "test_exact.py::test_densities_integrate_to_one[ContinuousBernoulliDecoder-2-0.0-1.0]",
    ),
    Mutant(
        "a missing entry counts as some value",
        "distributions/nan_masked.py",
        "return torch.where(missing, 0.0, self.base_dist.log_prob(whole))",
        "return self.base_dist.log_prob(whole)",
        "test_tabular.py::test_it_is_the_masked_normal_of_pyro",
    ),
    Mutant(
        "a missing entry poisons the gradient",
        "distributions/nan_masked.py",
        "whole = torch.where(missing, _some_value(self.base_dist.support, value), value)",
        "whole = value",
        "test_tabular.py::test_any_distribution_of_single_numbers_can_leave_entries_out[normal]",
    ),
    # Spheres and discrete latents.
    Mutant(
        "the area of a sphere of one dimension less",
        "distributions/spherical.py",
        "return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)",
        "return math.log(2) + (dim - 1) / 2 * math.log(math.pi) - math.lgamma((dim - 1) / 2)",
        "test_spherical.py::test_the_uniform_density_is_one_over_the_area",
    ),
    Mutant(
        "von Mises-Fisher without its normaliser",
        "distributions/von_mises_fisher.py",
        "return -2 * self.concentration * h + log_scale - log_area(self.event_shape[0])",
        "return -2 * self.concentration * h - log_area(self.event_shape[0])",
        "test_spherical.py::test_a_density_integrates_to_one_and_has_its_moments[VonMisesFisher-3-1.0]",
    ),
    Mutant(
        "the power spherical density of another dimension",
        "distributions/spherical.py",
        "alpha = self.concentration.double() + self.beta\n        uniform",
        "alpha = self.concentration.double() + 2 * self.beta\n        uniform",
        "test_spherical.py::test_a_density_integrates_to_one_and_has_its_moments[PowerSpherical-3-1.0]",
    ),
    Mutant(
        "straight-through draws are soft",
        "distributions/straight_through.py",
        "return hard + (soft - soft.detach())",
        "return soft",
        "test_discrete.py::test_straight_through_draws_are_hard_and_score_their_probability[bits]",
    ),
    Mutant(
        "straight-through draws let no gradient through",
        "distributions/straight_through.py",
        "return hard + (soft - soft.detach())",
        "return hard + 0 * soft",
        "test_discrete.py::test_straight_through_gradients_are_those_of_the_relaxation[bits-False]",
    ),
    # Measuring.
    Mutant(
        "the prior is missing in an importance weight",
        "terms.py",
        "self.log_likelihood + self.log_prior - self.log_posterior",
        "self.log_likelihood - self.log_posterior",
        "test_exact.py::test_every_particle_weighs_the_evidence_at_the_exact_posterior",
    ),
    Mutant(
        "dequantised data are measured without their cells",
        "evaluation.py",
        "/ self.dims + self.log_cell_volume",
        "/ self.dims",
        "test_exact.py::test_uniform_bytes_cost_as_many_bits_as_they_have[3]",
    ),
    Mutant(
        "the tail index of the smallest weights",
        "evaluation.py",
        "log_weight.double().topk(size + 1, dim=0, sorted=True)",
        "log_weight.double().topk(size + 1, dim=0, sorted=True, largest=False)",
        "test_exact.py::test_pareto_k_is_that_of_pyros_fit[25]",
    ),
    Mutant(
        "too few draws have a tail index",
        "evaluation.py",
        "if size < 5:",
        "if size < 1:",
        "test_exact.py::test_pareto_k_of_too_few_draws_is_unknown",
    ),
]


# ── Testing them ─────────────────────────────────────────────────────────────────────────────


def outcome_of(mutant: Mutant | None, compiled: Path) -> dict[str, object]:
    """Runs a bug's test, or all of these on none, on a copy; a process cannot do it twice."""
    import pytest

    with tempfile.TemporaryDirectory() as folder:
        package = shutil.copytree(compiled, Path(folder) / "pyrovae")
        if mutant is not None:
            mutant.plant(package)
        sys.dont_write_bytecode = True
        sys.path.insert(0, folder)
        import pyrovae

        assert Path(pyrovae.__file__).is_relative_to(folder), pyrovae.__file__

        output = io.StringIO()
        killers = {bug.killer for bug in MUTANTS} if mutant is None else {mutant.killer}
        options = [
            "-x",
            "-q",
            "-o",
            "addopts=",
            "--tb=line",
            "--assert=plain",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(TESTS.parent),
        ]
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = pytest.main([*(str(TESTS / name) for name in sorted(killers)), *options])

    lines = [line for line in output.getvalue().splitlines() if line.startswith("FAILED")]
    return {"code": int(code), "said": lines[0] if lines else output.getvalue()[-2000:]}


def in_child(mutant: Mutant | None, compiled: Path, outcome: Path) -> int:
    """Forks a process that tests one copy and writes what it found to a file."""
    child = os.fork()
    if child == 0:
        try:
            found = outcome_of(mutant, compiled)
        except BaseException:
            found = {"code": -1, "said": traceback.format_exc()}
        outcome.write_text(json.dumps(found))
        os._exit(0)
    return child


def main(workers: int = 2) -> None:
    """Tests the unchanged package and every mutant."""
    for name in ONCE:
        import_module(name)
    # The children need not look for garbage in, and so copy, what is there already.
    gc.freeze()

    waiting: list[Mutant | None] = [None, *MUTANTS]
    running: dict[int, tuple[str, Path]] = {}
    with tempfile.TemporaryDirectory() as folder:
        compiled = shutil.copytree(PACKAGE, Path(folder) / "compiled")
        compileall.compile_dir(compiled, quiet=1)
        while waiting or running:
            while waiting and len(running) < workers:
                mutant = waiting.pop(0)
                outcome = Path(folder) / str(len(waiting))
                name = mutant.name if mutant else UNCHANGED
                running[in_child(mutant, compiled, outcome)] = (name, outcome)

            child, _ = os.wait()
            name, outcome = running.pop(child)
            found = outcome.read_text() if outcome.exists() else '{"code": -1, "said": "it died"}'
            print(json.dumps({"name": name, **json.loads(found)}), flush=True)


if __name__ == "__main__":
    main()

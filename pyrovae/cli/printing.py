"""The numbers of an evaluation, in words."""

__all__ = ["noun", "print_numbers"]

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyrovae.evaluation import Evaluation

COLLAPSE = (
    "the latents carry no information (posterior collapse); try a longer --kl-warmup, a lower "
    "--lr or a smaller --beta"
)


def noun(x_shape: tuple[int, ...]) -> str:
    """What one observation is called."""
    return "image" if len(x_shape) == 3 else "example"


def print_numbers(found: "Evaluation", noun: str) -> None:
    """Prints an evaluation's numbers, with their errors and what they rest on."""
    numbers = found.summary()
    heavy = numbers["pareto_k_above_0.7"]
    for label, key in (("test ELBO", "elbo"), ("log p(x)", "log_evidence")):
        error = "" if numbers[f"{key}_se"] is None else f"+- {numbers[f'{key}_se']:.2f} "
        print(f"{label:12} {numbers[key]:10.2f} {error}nats per {noun}")
    print(f"{'active units':12} {found.active_units:7d} of {found.latent_dims}")
    if found.collapsed:
        print(f"             warning: {COLLAPSE}")
    if found.bits_per_dim is not None:
        kind = "" if found.log_cell_volume == 0 else " (of the dequantised data: an upper bound)"
        print(f"{'bits per dim':12} {found.bits_per_dim:10.3f}{kind}")
    print(
        f"             by {found.num_samples} importance samples for each of "
        f"{found.num_examples} {noun}s, in {found.seconds:.1f} s; +- is one standard error "
        "over them"
    )
    print(
        f"             Monte Carlo error of log p(x) {found.monte_carlo_error:.3f}; "
        + (
            "k-hat: too few samples to tell"
            if heavy is None
            else f"k-hat above 0.7 for {heavy:.0%}"
        )
    )

"""The report of a run: which numbers, pictures and facts stand on its page, and in what words."""

__all__ = ["write_report"]

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pyrovae import plots
from pyrovae.data import Examples
from pyrovae.evaluation import Evaluation
from pyrovae.page import Section, write_page
from pyrovae.plots import Picture


def write_report(
    path: Path,
    *,
    config: Mapping[str, Any],
    environment: Mapping[str, str],
    splits: Mapping[str, Examples],
    measured: str,
    metrics: list[dict[str, Any]],
    evaluation: Evaluation | None,
    pictures: Mapping[str, Picture],
) -> Path:
    """Writes the report of a run.

    Args:
        path: The file, ending in .html.
        config: What the run was told.
        environment: The versions and the hardware that trained it.
        splits: Its examples.
        measured: The word for the examples that were measured: test, validation or training.
        metrics: One record for each epoch.
        evaluation: What was measured, or None of a program without a bound on log p(x).
        pictures: Pictures under their headings, in order.
    """
    program = config["program"]
    name = program.get("part") or program.get("function") or program.get("class")
    epochs = f"{len(metrics)} epoch{'s' if len(metrics) != 1 else ''}"

    return write_page(
        path,
        title=config["data"]["name"],
        lead=f"{name}, trained for {epochs}.",
        facts=_facts(config, splits),
        numbers=(
            _likelihood(config, splits, metrics)
            if evaluation is None
            else _numbers(evaluation, measured)
        ),
        sections=[
            Section(
                "Training",
                f"The {'log-likelihood' if evaluation is None else 'ELBO at weight 1'} by one "
                "draw for each example, whatever the training loss.",
                plots.curves(metrics),
            ),
            *(Section(title, f"{p.caption}.", p.figure) for title, p in pictures.items()),
            *(() if evaluation is None else _evaluation_sections(evaluation, measured)),
        ],
        provenance=_provenance(config, environment, metrics),
    )


def _facts(config: Mapping[str, Any], splits: Mapping[str, Examples]) -> dict[str, str]:
    preprocessing = next(iter(splits.values())).preprocessing
    sizes = " / ".join(f"{len(split):,}" for split in splits.values())
    return {
        "Data": f"{config['data']['name']}, {preprocessing.summary}",
        "Splits": f"{sizes} ({' / '.join(splits)})",
        "Parameters": f"{config['parameters']:,}",
    }


def _likelihood(
    config: Mapping[str, Any], splits: Mapping[str, Examples], metrics: list[dict[str, Any]]
) -> list[tuple[str, str, str]]:
    """What is left without a bound on log p(x)."""
    kept = metrics[config.get("best_epoch", len(metrics)) - 1]
    of = "Validation" if "valid" in splits else "Training"
    note = "nats per example; there is no bound on log p(x)"
    if "log_likelihood" not in kept:
        return []  # a run of before there was one
    return [(f"{of} log p(x | z)", f"{kept['log_likelihood']:.2f}", note)]


def _numbers(found: Evaluation, measured: str) -> list[tuple[str, str, str]]:
    summary = found.summary()
    numbers = [
        (label, f"{summary[key]:.2f}", f"{_plus_minus(summary[f'{key}_se'])}nats per example")
        for label, key in ((f"{measured.capitalize()} ELBO", "elbo"), ("log p(x)", "log_evidence"))
    ]
    if found.latent_dims:
        note = "of {} latent dimensions" + (": posterior collapse" if found.collapsed else "")
        active = (str(found.active_units), note.format(found.latent_dims))
        numbers.append(("Active units", *active))
    if found.global_kl is not None:
        note = "nats in all, of what all examples share"
        numbers.append(("Shared KL", f"{found.global_kl:.2f}", note))
    if found.bits_per_dim is not None:
        kind = "discrete data" if found.log_cell_volume == 0 else "dequantised: an upper bound"
        numbers.append(("Bits per dim", f"{found.bits_per_dim:.3f}", kind))
    return numbers


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f"± {error:.2f} "


def _evaluation_sections(found: Evaluation, measured: str) -> list[Section]:
    return [*_latent_sections(found, measured), _evidence_section(found, measured)]


def _latent_sections(found: Evaluation, measured: str) -> list[Section]:
    # A vector of labels has no colour.
    labels = None if found.labels is None or found.labels.dim() > 1 else found.labels
    sections = [
        Section(
            f"Latent space of {site}",
            f"The posterior means of {len(means):,} {measured} examples.",
            plots.latent_scatter(means, labels),
        )
        for site, means in found.latent_means.items()
    ]
    if found.kl_per_dim:
        text = "Above the line a dimension carries information; the others equal the prior."
        sections.append(Section("KL per dimension", text, plots.kl_bars(found.kl_per_dim)))
    return sections


def _evidence_section(found: Evaluation, measured: str) -> Section:
    share = found.summary()["pareto_k_above_0.7"]
    heavy = "an untold share" if share is None else f"{share:.0%}"
    text = (
        f"log p(x) by {found.num_samples:,} importance samples for each of "
        f"{found.num_examples:,} {measured} examples, and the ELBO that bounds it. The Monte "
        f"Carlo error of the mean is {found.monte_carlo_error:.3f} nats. Pareto k-hat is above "
        f"0.7 for {heavy} of the examples: there the estimate is still a lower bound, and loose."
    )
    text = text if found.warning is None else f"{text} {found.warning}"
    return Section("Evidence per example", text, plots.weights(found))


def _provenance(
    config: Mapping[str, Any], environment: Mapping[str, str], metrics: list[dict[str, Any]]
) -> dict[str, str]:
    told = {key: value for key, value in config["training"].items() if value is not None}
    engine = config.get("engine", {})  # a run made before engines were recorded has none
    return {
        "command": config.get("command", "pyrovae.fit(...)"),
        "Training": ", ".join(f"{key} {value}" for key, value in told.items()),
        "Engine": ", ".join(str(engine[key]) for key in ("name", "precision") if key in engine),
        "Data sha256": str(config["data"]["fingerprint"]),
        "Seconds of training": f"{sum(record['seconds'] for record in metrics):.1f}",
        "Written": f"{datetime.now():%Y-%m-%d %H:%M}",
        **{key.capitalize(): value for key, value in environment.items()},
    }

"""Mixtures of sources in the output of a plan: a column of weights for each source, and a line."""

from __future__ import annotations

from typing import Any

from scalelab.sweep.mixture import drawn_tokens
from scalelab.sweep.plan import Plan
from scalelab.sweep.planned_run import PlannedRun
from scalelab.sweep.repeats import epochs_by_source
from scalelab.sweep.run_spec import RunSpec
from scalelab.units import format_quantity


def source_columns(plan: Plan) -> list[str]:
    """Return the sources whose weights differ between runs, as columns of the plan."""
    weights = {tuple(source.weight for source in row.spec.mixture) for row in plan.rows}
    return [source.name for source in plan.data.sources] if len(weights) > 1 else []


def weight_cells(spec: RunSpec) -> list[str]:
    """Return the weight of each source for its column; no source is a dot."""
    return [f"{source.weight:.3f}" if source.weight else "." for source in spec.mixture]


def mixture_words(plan: Plan) -> str:
    """Return the line about the sources: unique tokens, weight where all runs have the same."""
    facts = plan.data
    weights = {tuple(source.weight for source in row.spec.mixture) for row in plan.rows}
    each = [
        f"{source.name} {format_quantity(source.n_train_tokens)}"
        + (f" (weight {source.weight:g})" if len(weights) == 1 else "")
        for source in facts.sources
    ]
    held_out = sorted({source.n_eval_tokens for source in facts.sources})
    about = "about " if facts.is_estimated else ""
    return (
        f"sources: {about}{', '.join(each)} training tokens ({facts.tokenizer}), "
        f"{' or '.join(map(format_quantity, held_out))} held out of each"
    )


def mixture_json(plan: Plan, row: PlannedRun) -> list[dict[str, Any]]:
    """Return the sources of a run for JSON: weight, planned tokens and epochs."""
    tokens, epochs = drawn_tokens(row.spec), epochs_by_source(row.spec, plan.data)
    return [
        {
            "source": source.name,
            "weight": source.weight,
            "n_tokens": tokens[source.name],
            "epochs": epochs[source.name],
        }
        for source in row.spec.mixture
    ]

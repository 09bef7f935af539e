"""Saved tuning laws, and their use as the learning-rate and batch rule of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scalelab.errors import NotIdentifiedError, UsageError
from scalelab.records.files import write_atomically
from scalelab.records.sweep_dir import Results
from scalelab.sweep.spec import SweepSpec
from scalelab.theory.schedule import DEFAULT_BATCH_RULE
from scalelab.theory.tuned import PREFIX, TunedConstants, constants_from_law

LAW_FILE = "tuned.json"


def save_law(results: Results, name: str, content: Mapping[str, Any]) -> None:
    """Save the result of a tuning in its sweep folder."""
    path = results.sweep(name) / LAW_FILE
    write_atomically(path, json.dumps(content, indent=1), durable=True)


def load_constants(results: Results, name: str) -> TunedConstants:
    """Return the constants of a tuning's law.

    Raises
    ------
    UsageError
        If there is no such tuning.
    NotIdentifiedError
        If its runs do not determine a law of N and D.
    SpecError
        If its file cannot be used.
    """
    try:
        content = json.loads((results.sweep(name) / LAW_FILE).read_text(encoding="utf-8"))
        law, codes = content["law"], {warning["code"] for warning in content["warnings"]}
    except FileNotFoundError:
        known = sorted(path.parent.name for path in (results.path / "sweeps").glob(f"*/{LAW_FILE}"))
        raise UsageError(
            f"the rule {PREFIX}{name} without a tuning {name!r} in {results.path}",
            f"one of {', '.join(PREFIX + one for one in known)}" if known else "a finished tuning",
            f"Run `scalelab tune --name {name} ..` first, or set its results folder with "
            "--results.",
        ) from None
    except (ValueError, KeyError, TypeError):
        return constants_from_law(name, {})
    if law is None or "collinear" in codes:
        raise NotIdentifiedError(
            f"the rule {PREFIX}{name}, whose runs do not determine a law of N and D",
            "a tuning with cells that differ in N and in D",
            f"Run `scalelab tune --name {name} ..` with more trials or other values of N and D.",
        )
    return constants_from_law(name, law)


def with_tuned_rule(sweep: SweepSpec, results: Results) -> SweepSpec:
    """Return the sweep with the constants of its ``tuned:NAME`` rule filled in.

    A tuned learning rate also sets the batch, unless the sweep sets its own.

    Raises
    ------
    UsageError, NotIdentifiedError, SpecError
        As `load_constants`.
    """
    train = sweep.train
    name = train.tuned_name()
    if name is None or train.tuned is not None:
        return sweep
    constants = load_constants(results, name)
    changes: dict[str, Any] = {"tuned": constants}
    takes_batch = train.batch_rule == DEFAULT_BATCH_RULE and train.batch_seqs is None
    if takes_batch and train.lr_rule.startswith(PREFIX) and constants.batch_tokens is not None:
        changes["batch_rule"] = PREFIX + name
    tuned = train.model_copy(update=changes)
    tuned.find_lr_rule()
    tuned.find_batch_rule()
    return sweep.model_copy(update={"train": tuned})

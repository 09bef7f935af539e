"""The law that a tuning left behind, as the rule of a sweep."""

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
    """Write the answer of a tuning beside its runs."""
    path = results.sweep(name) / LAW_FILE
    write_atomically(path, json.dumps(content, indent=1), durable=True)


def load_constants(results: Results, name: str) -> TunedConstants:
    """Return the constants of a tuning.

    Raises
    ------
    UsageError
        When there is no such tuning.
    NotIdentifiedError
        When its runs did not determine a law of N and D.
    SpecError
        When its file does not hold together.
    """
    try:
        content = json.loads((results.sweep(name) / LAW_FILE).read_text(encoding="utf-8"))
        law, codes = content["law"], {warning["code"] for warning in content["warnings"]}
    except FileNotFoundError:
        known = sorted(path.parent.name for path in (results.path / "sweeps").glob(f"*/{LAW_FILE}"))
        raise UsageError(
            f"the rule {PREFIX}{name}, which {results.path} does not have",
            f"one of {', '.join(PREFIX + one for one in known)}" if known else "a finished tuning",
            f"Run `scalelab tune --name {name} ..` first, or name its folder with --results.",
        ) from None
    except (ValueError, KeyError, TypeError):
        return constants_from_law(name, {})
    if law is None or "collinear" in codes:
        raise NotIdentifiedError(
            f"the rule {PREFIX}{name}, whose runs do not determine a law of N and D",
            "a tuning with cells that differ in N and in D",
            f"Run `scalelab tune --name {name} ..` with more trials, sizes or tokens.",
        )
    return constants_from_law(name, law)


def with_tuned_rule(sweep: SweepSpec, results: Results) -> SweepSpec:
    """Return the sweep with the constants of its ``tuned:NAME`` rule written in.

    A tuned learning rate brings its batch along where the sweep names no batch of its own.

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

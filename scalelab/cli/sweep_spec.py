"""What the options of a sweep and of a tuning have in common: a specification, and asking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from scalelab.errors import UsageError

if TYPE_CHECKING:
    from scalelab.launch.proposal import Proposal
    from scalelab.sweep.spec import SweepSpec


def ask(proposal: Proposal, *, as_json: bool, n_times: int = 1) -> None:
    """Let a person agree to what takes long; refuse it where nobody can be asked.

    Parameters
    ----------
    proposal : Proposal
    as_json : bool
    n_times : int
        How often every run of the plan is trained, each time with other hyperparameters.

    Raises
    ------
    UsageError
        When it takes more than an hour and there is nobody to ask, or a launch would refuse it.
    """
    import sys

    from scalelab.launch.proposal import ASK_ABOVE_S
    from scalelab.units import format_duration

    proposal.plan.refuse_repeats(allow_repeats=proposal.sweep.allow_repeats)
    if n_times * proposal.cost.wall_s <= ASK_ABOVE_S:
        return
    duration = format_duration(n_times * proposal.cost.wall_s)
    if not as_json and sys.stdin.isatty() and sys.stderr.isatty():
        if not typer.confirm(f"This takes about {duration} here. Start?", err=True):
            raise typer.Abort
        return
    raise UsageError(
        f"a plan of about {duration} on this machine, without --yes",
        "--yes for a plan of more than an hour",
        "Look at it with --dry-run, use --launcher slurm, or choose budgets that fit.",
    )


def sweep_from_options(content: dict[str, Any]) -> SweepSpec:
    """Return the sweep that options describe; those not given are left out.

    Raises
    ------
    UsageError
        When one is out of its range.
    """
    from scalelab.sweep.spec import sweep_from_mapping

    given = {key: value for key, value in content.items() if value is not None}
    return sweep_from_mapping(given, source="the options")


def data_table(
    paths: list[str] | None,
    tokenizer: str | None,
    field: str | None,
    column: str | None,
    eval_tokens: str | None,
) -> dict[str, Any]:
    """Return the ``[data]`` table of the options."""
    from scalelab.units import parse_quantity

    table = {
        "paths": tuple(paths) if paths else None,
        "tokenizer": tokenizer,
        "field": field,
        "column": column,
        "eval_tokens": eval_tokens
        and round(parse_quantity(eval_tokens, what="number of held-out tokens")),
    }
    return {key: value for key, value in table.items() if value is not None}


def train_table(
    seq_len: int | None,
    batch_seqs: int | None,
    lr: float | None,
    lr_rule: str | None,
    schedule: str | None,
    precision: str | None,
    seeds: str | None,
) -> dict[str, Any]:
    """Return the ``[train]`` table of the options."""
    table = {
        "seq_len": seq_len,
        "batch_seqs": batch_seqs,
        "lr": lr,
        "lr_rule": lr_rule,
        "schedule": schedule,
        "precision": precision,
        "seeds": _seeds(seeds),
    }
    return {key: value for key, value in table.items() if value is not None}


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"seeds {text!r}", "whole numbers such as 0,1,2", "Write them so."
        ) from None

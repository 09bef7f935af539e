"""A user's program in the output of a plan: its commands, data, version, and conventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scalelab.cli.output import console, verbatim
from scalelab.launch.programs.ready import RenderedRun
from scalelab.launch.proposal import Proposal
from scalelab.sweep.plan import Plan
from scalelab.sweep.program_table import shown_command
from scalelab.sweep.run_size import REPORTED, run_size
from scalelab.theory.accounting import DEFAULT_FLOP_CONVENTION
from scalelab.units import format_flops, format_quantity

_FLOP_WORDS = {
    DEFAULT_FLOP_CONVENTION: f"{DEFAULT_FLOP_CONVENTION} (causal attention and head included)",
    REPORTED: f"{REPORTED} (flops_per_token of the table of sizes)",
    "6nd": "6nd (6 x parameters x tokens)",
}


def flop_convention(plan: Plan) -> str:
    """Return the convention of a plan's FLOPs."""
    found = {run_size(row.spec).flop_convention for row in plan.rows}
    return " or ".join(sorted(found)) or DEFAULT_FLOP_CONVENTION


def flop_words(plan: Plan) -> str:
    """Return the convention of a plan's FLOPs in words."""
    return " or ".join(_FLOP_WORDS[name] for name in flop_convention(plan).split(" or "))


def data_words(plan: Plan) -> str:
    """Return the line about the data of a program that has its own."""
    facts = plan.data
    unique = facts.n_train_tokens
    tokens = "unknown number of" if unique is None else format_quantity(unique)
    return f"data: {tokens} unique tokens (tokenizer {facts.tokenizer}), {facts.fingerprint}"


def program_words(proposal: Proposal) -> str:
    """Return the line about the program that trains the runs; empty for the built-in trainer."""
    program = _program_of(proposal)
    if program is None or proposal.execution.program is None:
        return ""
    how = proposal.execution.program
    numbers = sorted({max(1, n) for n in proposal.gpus.values()}) or [proposal.execution.n_devices]
    devices = f"; {' or '.join(map(str, numbers))} devices a run" if numbers[-1] > 1 else ""
    return (
        f"program: version {program.version} in {how.cwd}; log {program.reader}; N by "
        f"{program.size_by}; launcher {how.launcher}{devices}"
    )


def print_commands(commands: Sequence[RenderedRun]) -> None:
    """Print the command of each example run, with its environment and its files."""
    out = console()
    for each in commands:
        title = (
            f"command of {each.row.spec.run_id} (N {format_quantity(each.row.n_params)}, "
            f"{format_flops(each.row.flops)} FLOPs):"
        )
        out.print(title, soft_wrap=True)
        env = [f"{name}={value}" for name, value in each.rendered.env.items()]
        words = ("env", *env, *each.rendered.argv) if env else each.rendered.argv
        verbatim(f"  {shown_command(words)}", out)
        for path, text in each.rendered.files.items():
            lines = len(text.splitlines())
            out.print(f"  writes {path}, {lines} lines", markup=False, soft_wrap=True)


def program_as_json(proposal: Proposal) -> dict[str, Any] | None:
    """Return the program of a plan for ``--json``; None for the built-in trainer."""
    program = _program_of(proposal)
    if program is None:
        return None
    return {
        "version": program.version,
        "reader": program.reader,
        "size_by": program.size_by,
        "data_fingerprint": proposal.plan.data.fingerprint,
        "commands": [
            {
                "run_id": each.row.spec.run_id,
                "argv": list(each.rendered.argv),
                "env": dict(each.rendered.env),
                "files": dict(each.rendered.files),
            }
            for each in proposal.commands
        ],
    }


def _program_of(proposal: Proposal) -> Any:
    return next((row.spec.program for row in proposal.plan.rows), None)

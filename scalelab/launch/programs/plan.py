"""What planning needs to know of a program: its identity, and the facts about its data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scalelab.errors import UsageError
from scalelab.launch.programs.source import container_identity, data_fingerprint, program_version
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.program import ProgramSpec
from scalelab.sweep.program_checks import unused_settings
from scalelab.sweep.program_table import ProgramTable
from scalelab.sweep.run_size import NO_SHAPE
from scalelab.sweep.spec import SweepSpec

UNDECLARED = "undeclared"
UNKNOWN = "unknown"


def identity_of(
    table: ProgramTable, results: Path, *, version: str = "", is_dry_run: bool
) -> ProgramSpec:
    """Return what a program computes, with the version of its files now.

    A dry run accepts a folder that does not exist; the version is then `UNKNOWN`. ``version``, if
    given, is that of an earlier plan.
    """
    try:
        version = version or program_version(table, results)
    except UsageError:
        if not is_dry_run:
            raise
        version = UNKNOWN
    return table.spec(version=version, container=container_identity(table.container))


def has_prepared_text(table: ProgramTable) -> bool:
    """Say whether the program trains on the tokens of ``[data]``."""
    return "train_data" in table.used() and not table.train_data


def program_facts(table: ProgramTable, text: DataFacts | None) -> DataFacts:
    """Return the facts about a program's data, with ``text`` that of ``[data]`` if it trains on it.

    Raises
    ------
    UsageError
        If runs are planned by shape and no vocabulary size is known.
    """
    if text is not None:
        return replace(text, vocab_size=table.vocab_size or text.vocab_size)
    if not table.vocab_size and table.size.by != "table":
        raise UsageError(
            "[program] without vocab_size",
            "the vocabulary of the program's data, which the size of its models depends on",
            "Add for example vocab_size = 50304, or size = {by = 'table', table = 'sizes.csv'}.",
        )
    execution = table.execution()
    train = data_fingerprint(execution.train_data) if table.train_data else UNDECLARED
    held_out = data_fingerprint(execution.eval_data) if table.eval_data else UNDECLARED
    return DataFacts(
        fingerprint=train or UNKNOWN,
        eval_fingerprint=held_out or UNKNOWN,
        tokenizer=table.tokenizer or UNDECLARED,
        vocab_size=table.vocab_size or NO_SHAPE.vocab_size,
        n_train_tokens=None if table.unique_tokens is None else round(table.unique_tokens),
        n_eval_tokens=0,
        is_estimated=None in (train, held_out),
    )


def program_notes(sweep: SweepSpec, table: ProgramTable) -> tuple[str, ...]:
    """Return warnings about what a sweep sets or does not declare for its program."""
    notes = []
    if not table.train_data and not has_prepared_text(table):
        notes.append(
            "the program's data is not declared: scalelab cannot see that it changed. Add "
            "program.train_data."
        )
    if table.unique_tokens is None and not has_prepared_text(table):
        notes.append(
            "the number of epochs is not checked. Add program.unique_tokens, for example '9B'."
        )
    unused = unused_settings(sweep, table)
    if unused:
        names = ", ".join(f"train.{name}" for name in unused)
        notes.append(
            f"the command has no placeholder for {names}: the value is recorded, and the program "
            "does not receive it."
        )
    if not table.checkpoint:
        notes.append(
            "the program has no checkpoint: an interrupted run starts from the beginning. Add "
            "program.checkpoint and program.resume."
        )
    return tuple(notes)

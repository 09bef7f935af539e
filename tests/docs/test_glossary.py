"""The glossary has every term that the command line prints."""

import re
from pathlib import Path

import click
import pytest
import typer

from scalelab.cli.main import app

GLOSSARY = Path(__file__).parents[2] / "docs/glossary.md"
HEADINGS = re.findall(r"^(\S.*)\n:   ", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
TERMS = {part.casefold() for heading in HEADINGS for part in re.split(r", | and ", heading)}

# One word for one thing: the vocabulary of messages, tables and help texts.
VOCABULARY = """
accepted attempt, adaptive sweep, array, attempt, attempt note, batch, batched runs, bootstrap,
bracketed minimum, budget, calibration, cell, checkpoint, cluster, collect, compute-optimal,
confidence interval, convention,
cooldown branch, CRPS, diverged, edge minimum, envelope, epoch, evaluation set, excess loss,
extrapolation,
extrapolation inflation, failed, fit, fitted range, form, grid, held-out rows,
intent, interval, irreducible
loss, isoFLOP curve, job, job failure, job group, launcher, law, learning rate, level, live
status, loss, micro-batch, misfit, not identified, objective, outlier, parametrization, plan,
posterior, prediction interval, preempted, prune, pruned, registered forecast, replay, replicate,
residual, resume, retry, rule, run, run pool, schedule, seed, sequence, shape, shape table, size,
snapshot, span, speed-up, status, step, sweep, target, tensor parallel, token, tracker, trial,
trunk, warm-up, wave, worker, WSD ladder
"""
# Names, examples and placeholders in capitals that are not terms.
NOT_TERMS = {
    "ARGS",
    "COMMAND",
    "NAME",
    "OPTIONS",
    "OURS",
    "THEIRS",
    "PATH",
    "PATHS",
    "RUN",
    "LOW",
    "HIGH",
    "TYPE",
    "COLUMN",
    "CONDITION",
    "DIR",
    "FILE",
    "OK",
    "NO_COLOR",
    "KEY",
    "VALUE",
    "SWEEP",
    "AND",
    "OR",
    "NULL",
    "US",
    "ID",
    "MM",
    "SS",
}


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, click.Command]]:
    found = [(" ".join(path), command)]
    for name, child in getattr(command, "commands", {}).items():
        found += commands(child, (*path, name))
    return found


COMMANDS = commands(typer.main.get_command(app))


def help_of(command: click.Command) -> str:
    texts = [command.help or ""]
    texts += [getattr(parameter, "help", None) or "" for parameter in command.params]
    return "\n".join(texts)


def abbreviations(text: str) -> set[str]:
    """Return the words in capitals of a help text, code in quotes and examples left out."""
    text = re.sub(r"`[^`]*`|Example:.*", " ", text)
    text = re.sub(r"--[\w-]+|\S*[=/]\S*", " ", text)
    return set(re.findall(r"(?<![\w.-])([A-Z][A-Z0-9&]*[A-Z0-9])s?(?![\w-])", text))


def test_the_whole_vocabulary_is_in_the_glossary():
    words = {" ".join(word.split()).casefold() for word in VOCABULARY.split(",")}
    assert not words - TERMS


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name or "all" for name, _ in COMMANDS])
def test_every_abbreviation_in_a_help_text_is_in_the_glossary(name, command):
    found = abbreviations(help_of(command)) - NOT_TERMS
    assert not {word for word in found if word.casefold() not in TERMS}


def test_the_search_for_abbreviations_finds_them():
    text = "Save as PDF; ask SLURM for GPUs. Example: `scalelab X`\n--results DIR, A=B, N."
    assert abbreviations(text) == {"PDF", "SLURM", "GPU", "DIR"}
    assert sum(len(abbreviations(help_of(command)) - NOT_TERMS) for _, command in COMMANDS) > 20


def test_every_state_of_a_run_is_in_the_glossary():
    from scalelab.records.states import RUN_STATES

    assert {state.casefold() for state in RUN_STATES} <= TERMS


def test_pages_list_the_states_of_a_run():
    from scalelab.records.states import FILE_STATES, RUN_STATES
    from scalelab.store.schema import RUNS

    architecture = (GLOSSARY.parent / "architecture.md").read_text(encoding="utf-8")
    table = architecture.split("## The states of a run")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE) == list(RUN_STATES.items())
    entry = re.search(r"^State, status\n:   (.*?)\n\n", GLOSSARY.read_text("utf-8"), re.M | re.S)[1]
    assert [state for state in re.findall(r"\w+", entry) if state in RUN_STATES] == list(RUN_STATES)
    (column,) = (column for column in RUNS.columns if column.name == "status")
    assert set(re.findall(r"\w+", column.meaning)) & set(RUN_STATES) == {*FILE_STATES} - {"queued"}


def test_terms_are_in_order_and_each_is_there_once():
    assert len(HEADINGS) > 100
    assert sorted(set(HEADINGS), key=str.casefold) == HEADINGS

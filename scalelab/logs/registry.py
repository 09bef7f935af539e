"""Recognise run logs and read them: a file, or all logs below a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scalelab.errors import DataError, UsageError, did_you_mean
from scalelab.logs.derive import derive
from scalelab.logs.files import read_head, walk
from scalelab.logs.formats.evals import LmEval
from scalelab.logs.formats.event_file import TensorBoard
from scalelab.logs.formats.huggingface import HuggingFace
from scalelab.logs.formats.lingua import Lingua
from scalelab.logs.formats.litgpt import LightningCsv
from scalelab.logs.formats.llmc import LlmC
from scalelab.logs.formats.marin import Marin
from scalelab.logs.formats.megatron import Megatron
from scalelab.logs.formats.mlflow import MlflowFiles, MlflowSql
from scalelab.logs.formats.nanochat import NanoChat
from scalelab.logs.formats.nanogpt import NanoGpt
from scalelab.logs.formats.open_lm import OpenLm
from scalelab.logs.formats.trackio import Trackio
from scalelab.logs.formats.wandb import WandbOffline
from scalelab.logs.formats.wandb_export import WandbExport
from scalelab.logs.types import LoggedRun, LogReader, RawRun

READERS: tuple[LogReader, ...] = (
    HuggingFace(), NanoGpt(), NanoChat(), LlmC(), Megatron(), Lingua(), Marin(), LightningCsv(),
    WandbOffline(), WandbExport(), TensorBoard(), MlflowSql(), MlflowFiles(), Trackio(), OpenLm(),
    LmEval(),
)  # fmt: skip
"""All formats; the first that recognises a file reads it."""

FORMATS = tuple(dict.fromkeys(reader.name for reader in READERS))
TABLE = "table"
"""The value of ``--format`` that reads a file as a table of runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogsRead:
    """The runs below a path.

    Attributes
    ----------
    runs : tuple of LoggedRun
        The runs, in the order of their paths.
    readers : tuple of str
        Titles of the formats.
    problems : tuple of str
        Logs that could not be read, with reasons.
    """

    runs: tuple[LoggedRun, ...]
    readers: tuple[str, ...]
    problems: tuple[str, ...] = ()


def reader_of(path: Path, head: bytes | None = None, format: str | None = None) -> LogReader | None:
    """Return the reader (of this format) that recognises a file, None if none does."""
    head = read_head(path) if head is None else head
    able = (reader for reader in READERS if format in (None, reader.name))
    return next((reader for reader in able if reader.sniff(path, head)), None)


def is_log(path: Path) -> bool:
    """Return whether a path is a run log, or a folder (which may hold some)."""
    return path.is_dir() or (path.is_file() and reader_of(path) is not None)


def checked_format(format: str | None) -> str | None:
    """Return the name of a format that the user wrote.

    Raises
    ------
    UsageError
        If it is not known.
    """
    if format is not None and format not in (*FORMATS, TABLE):
        raise UsageError(
            f"--format {format}",
            f"one of {', '.join((*FORMATS, TABLE))}",
            did_you_mean(format, FORMATS) + "Leave out --format to recognise the file.",
        )
    return format


def read_logs(path: Path, *, format: str | None = None, loss_unit: str | None = None) -> LogsRead:
    """Return the runs of a log file, or of all logs below a folder.

    Parameters
    ----------
    path : Path
        A log file, or a folder.
    format : str, optional
        Name of the format; default: recognised for each file.
    loss_unit : str, optional
        Unit of the loss, one of `scalelab.logs.losses.LOSS_UNITS`; default: by its name.

    Raises
    ------
    UsageError
        If the format or the unit is not known.
    DataError
        If nothing below the path is a run log, or none can be read.
    """
    checked_format(format)
    raw, titles, problems = read_raw(path, format=format)
    logged = [derive(run, loss_unit) for run in raw]
    return LogsRead(
        runs=tuple(_named(_with_evals(logged), path)), readers=titles, problems=problems
    )


def read_raw(
    path: Path, *, format: str | None = None
) -> tuple[tuple[RawRun, ...], tuple[str, ...], tuple[str, ...]]:
    """Return what the logs below a path say, with the parts of a run joined.

    Parameters
    ----------
    path : Path
        A log file, or a folder.
    format : str, optional
        Name of the format; default: recognised for each file.

    Returns
    -------
    runs : tuple of RawRun
    readers : tuple of str
        Titles of the formats.
    problems : tuple of str
        Logs that could not be read, with reasons.

    Raises
    ------
    DataError
        If nothing below the path is a run log, or none can be read.
    """
    found: list[RawRun] = []
    problems: list[str] = []
    titles: dict[str, None] = {}
    for file in walk(path) if path.is_dir() else [path]:
        head = read_head(file)
        reader = reader_of(file, head, format)
        if reader is None and format is not None and not path.is_dir():
            # The user knows better what a single file is; in a folder, most files are no logs.
            reader = next(reader for reader in READERS if reader.name == format)
        if reader is None:
            continue
        try:
            runs = list(reader.read(file))
        except DataError as error:
            if not path.is_dir():
                raise
            problems.append(f"{file.relative_to(path)} left out: {error.given}")
            continue
        found += runs
        if runs:
            titles[reader.title] = None
    if not found:
        raise DataError(
            f"{path}, in which no run log was recognised" if not problems else problems[0],
            f"logs of {', '.join(FORMATS)}; or a table",
            "Name the folder of the runs, or the format of one file with --format.",
        )
    return tuple(_joined(found)), tuple(titles), tuple(problems)


def _joined(parts: Sequence[RawRun]) -> Iterator[RawRun]:
    """Yield whole runs: parts of one run are joined, and the later part's values win."""
    groups: dict[tuple[str, str], list[RawRun]] = {}
    for i, part in enumerate(parts):
        groups.setdefault((part.reader, part.key or f"\0{i}"), []).append(part)
    for group in groups.values():
        whole, *later = sorted(group, key=lambda part: part.order)
        for part in later:
            whole.history.extend(part.history)
            whole.config |= part.config
            whole.summary |= part.summary
            for name in ("steps_done", "planned_steps", "planned_tokens", "n_params",
                         "n_params_kaplan", "tokens_per_step"):  # fmt: skip
                if getattr(part, name) is not None:
                    setattr(whole, name, getattr(part, name))
            whole.status, whole.unfinished = part.status, part.unfinished
            whole.notes += [note for note in part.notes if note not in whole.notes]
        if later:
            whole.notes.append(f"joined from {len(group)} logs of one run")
        yield whole


def _with_evals(runs: list[LoggedRun]) -> list[LoggedRun]:
    """Add the scores of an evaluation to the run of the same name."""
    evals = [run for run in runs if run.reader == LmEval.name]
    others = [run for run in runs if run.reader != LmEval.name]
    left = []
    for scores in evals:
        homes = [
            i
            for i, run in enumerate(others)
            if scores.name == run.name or scores.name in Path(run.path).parts
        ]
        if len(homes) == 1:
            home = others[homes[0]]
            others[homes[0]] = replace(home, final={**scores.final, **home.final})
        else:
            left.append(scores)
    return others + left


def _named(runs: list[LoggedRun], base: Path) -> Iterator[LoggedRun]:
    """Yield the runs with names that differ: equal names get their path."""
    names = [run.name for run in runs]
    taken: set[str] = set()
    for run in runs:
        name = run.name
        if names.count(name) > 1:
            path = Path(run.path)
            inside = path.relative_to(base) if path.is_relative_to(base) and path != base else path
            name = f"{name} ({inside})"
        stem, n = name, 2
        while name in taken:
            name, n = f"{stem} {n}", n + 1
        taken.add(name)
        yield replace(run, name=name)

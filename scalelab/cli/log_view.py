"""Attempts, training curve and worker output of one run."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from scalelab.cli.output import console
from scalelab.errors import DataError
from scalelab.launch.programs.failures import plain_text
from scalelab.records.qualification import name_of
from scalelab.records.run_dir import (
    LOG_FILE,
    PROGRAM_OUTPUT_FILE,
    Attempt,
    RunDir,
    execution_of,
)
from scalelab.records.states import BROKEN
from scalelab.store.status import read_run_status
from scalelab.sweep.execution import CHOICES
from scalelab.units import format_quantity

FOLLOW_INTERVAL_S = 0.5
TAIL_BYTES = 1 << 16
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) != "\t"}
"""Control characters in worker output are shown by their code."""


def show_logs(run: RunDir, *, n_lines: int, follows: bool) -> None:
    """Print a run's attempts, the last rows of its curve, and the last lines of its log.

    Parameters
    ----------
    run : RunDir
    n_lines : int
        Number of rows and lines.
    follows : bool
        Whether to print new lines until the newest attempt has ended.
    """
    out = console()
    out.print(_state_line(run), soft_wrap=True)
    for attempt in run.attempts():
        out.print(_describe(attempt), soft_wrap=True)
    tails = [_Tail(run.path / LOG_FILE)]
    if run.attempts():
        tails += _tails_of(run.attempts()[-1])
    for tail in tails:
        for line in tail.read(last=n_lines, is_last=not follows):
            out.print(line, soft_wrap=True)
    is_active = follows
    while is_active:
        # The state is read before the files, so that the last lines are read too.
        is_active = run.status() in ("running", "planned", "queued")
        newest = run.attempts()[-1].metrics_path if run.attempts() else None
        if newest is not None and newest not in [tail.path for tail in tails]:
            out.print(_describe(run.attempts()[-1]), soft_wrap=True)
            tails += _tails_of(run.attempts()[-1])
        for tail in tails:
            for line in tail.read(is_last=not is_active):
                out.print(line, soft_wrap=True)
        if is_active:
            time.sleep(FOLLOW_INTERVAL_S)
    if follows:
        out.print(_state_line(run), soft_wrap=True)


def _tails_of(attempt: Attempt) -> list[_Tail]:
    """Return the growing files of an attempt: output of the user's program, and the curve."""
    return [
        _Tail(attempt.path / PROGRAM_OUTPUT_FILE, _program_lines),
        _Tail(attempt.metrics_path, _curve_lines),
    ]


def _state_line(run: RunDir) -> str:
    """Return the state of the run, in the words of ``scalelab status``."""
    state = read_run_status(run.path, None, time.time())
    reason = f" ({state.reason})" if state.state == BROKEN else ""
    return f"run {run.run_id}: {state.state}{reason}"


def _describe(attempt: Attempt) -> str:
    note = attempt.read_note()
    parts = [f"attempt {attempt.number}"]
    if note.get("host"):
        job = f", job {note['job_id']}" if note.get("job_id") else ""
        parts.append(f"on {note['host']}{job}")
    execution = execution_of(note)
    if command := note.get("command"):
        parts.append(shlex.join(map(str, command)))
    elif execution.keys() >= set(CHOICES) and not execution.get("program"):
        parts.append(name_of(execution))
    if changed := (note.get("qualification") or {}).get("changed"):
        parts.append(f"changed from {name_of(changed['from'])}: {changed['reason']}")
    source = note.get("resumed_from")
    if source:
        parts.append(f"resumed from step {source.get('step')} of attempt {source.get('attempt')}")
    ended = note.get("ended") or {}
    if ended:
        why = ": ".join(
            str(ended[key]).replace("_", " ") if key == "kind" else str(ended[key])
            for key in ("kind", "reason")
            if ended.get(key)
        )
        parts.append(f"ended {ended.get('status')}{f' ({why})' if why else ''}")
    parts += [f"warning: {w.get('message')}" for w in note.get("warnings") or ()]
    return "; ".join(parts).translate(CONTROLS)


class _Tail:
    """The last lines of a growing file."""

    def __init__(self, path: Path, shown: Callable[[str], Iterable[str]] | None = None) -> None:
        self.path = path
        self._shown = shown or _plain_lines
        self.offset: int | None = None

    def read(self, last: int | None = None, *, is_last: bool = False) -> Iterator[str]:
        """Yield the lines added since the last call; the first call yields the last lines.

        An unfinished line waits for its end, or for the call with ``is_last``.
        """
        try:
            with self.path.open("rb") as file:
                if self.offset is None:
                    self.offset = max(file.seek(0, 2) - TAIL_BYTES, 0)
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(
                f"{self.path}, which cannot be read ({error.strerror})",
                "a readable file",
                f"Make it readable: chmod u+r {self.path}",
            ) from error
        end = len(data) if is_last else data.rfind(b"\n") + 1
        self.offset += end
        lines = list(self._shown(data[:end].decode("utf-8", "replace")))
        yield from lines if last is None else lines[len(lines) - min(last, len(lines)) :]


def _plain_lines(text: str) -> Iterator[str]:
    return (line.translate(CONTROLS) for line in text.splitlines())


def _program_lines(text: str) -> Iterator[str]:
    return (line.translate(CONTROLS) for line in plain_text(text).splitlines())


def _curve_lines(text: str) -> Iterator[str]:
    return map(_curve_line, text[: text.rfind("\n") + 1].splitlines())


def _curve_line(line: str) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        row = json.loads(line)
        parts = [f"step {row['step']:>8,}", f"loss {row['loss_nats']:.4f}"]
        for name, word in (("lr", "lr"), ("grad_norm", "grad")):
            parts += [f"{word} {row[name]:.3g}"] if row.get(name) is not None else []
        if row.get("tokens_per_s"):
            parts.append(f"{format_quantity(row['tokens_per_s'])} tokens/s")
        if row.get("eval_loss_nats"):
            parts.append(f"held-out {row['eval_loss_nats']:.4f}")
        return "  ".join(parts)
    return line.translate(CONTROLS)

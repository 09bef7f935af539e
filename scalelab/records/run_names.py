"""Runs that a user names: by a run ID, its first characters, or the name of their sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scalelab.errors import SHOWN_NAMES, UsageError, did_you_mean
from scalelab.records.files import list_folders
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results
from scalelab.units import plural


def find_run(results: Path, prefix: str) -> RunDir:
    """Return the run whose run_id begins with ``prefix``.

    Raises
    ------
    UsageError
        When no run or several runs match.
    """
    names = list_folders(str(results / "runs"))
    found = _matching(names, prefix)
    if len(found) != 1:
        raise _not_one(results, prefix, names, found, "a run of a launched sweep")
    return RunDir(results / "runs" / found[0])


def find_runs(results: Path, words: Sequence[str]) -> list[RunDir]:
    """Return the runs of sweeps and run IDs, each once, in the order given.

    Raises
    ------
    UsageError
        When a word names neither a sweep nor one run.
    DataError
        When the plan of a sweep cannot be read.
    """
    folder = Results(results)
    sweeps = set(folder.sweep_names())
    names = list_folders(str(results / "runs"))
    found: dict[str, None] = {}
    for word in words:
        if word in sweeps:
            found |= dict.fromkeys(folder.load_plan(word).run_ids)
            continue
        matches = _matching(names, word)
        if len(matches) != 1:
            near = did_you_mean(word, sweeps)
            raise _not_one(results, word, names, matches, "a sweep or a run of it", near)
        found[matches[0]] = None
    return [folder.run(run_id) for run_id in found]


def _matching(names: Sequence[str], prefix: str) -> list[str]:
    found = [name for name in names if prefix and name.startswith(prefix)]
    return [prefix] if prefix in found else found


def _not_one(
    results: Path,
    word: str,
    names: Sequence[str],
    found: Sequence[str],
    otherwise: str,
    near: str = "",
) -> UsageError:
    near = near or did_you_mean(word, [] if found else names)
    shown = ", ".join((found or names)[:SHOWN_NAMES])
    more = ", .." if len(found or names) > SHOWN_NAMES else ""
    return UsageError(
        f"run {word!r}, which matches {plural(len(found), 'run')} in {results / 'runs'}",
        f"the first characters of one of {shown}{more}" if names else otherwise,
        f"{near}Run `scalelab status --json` to list the runs of a sweep.",
    )

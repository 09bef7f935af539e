"""Rows that one law cannot describe together: swept settings, checkpoints, failed runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.errors import UsageError, did_you_mean, listed
from scalelab.logs.losses import plain
from scalelab.records.types import Observations
from scalelab.store.reading import Reading
from scalelab.store.table_source import TableSource, quote
from scalelab.units import plural

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "lr": ("lr", "learning_rate", "max_lr", "peak_lr", "lr_max"),
    "batch": (
        *("batch", "batch_tokens", "batch_seqs", "batch_size", "global_batch_size", "bs"),
        "tokens_per_step",
    ),
    "weight_decay": ("weight_decay", "wd"),
    "warmup": ("warmup", "warmup_steps", "warmup_iters", "warmup_tokens"),
    "seed": ("seed", "random_seed"),
}
"""Settings that a sweep tries at one size, by the names that ``--best-of`` accepts."""

STATUS_NAMES = ("status", "state", "run_status")
BAD_STATUS = ("failed", "crashed", "killed", "diverged", "running", "preempted", "error",
              "errored", "cancelled", "canceled", "unfinished", "aborted", "oom")  # fmt: skip
FEW_CHECKPOINTS = 3
MOST_CHECKED = 200_000
"""Rows that are searched for swept settings; sorting millions of labels takes seconds."""


def find_settings(asked: Sequence[str], columns: Iterable[str], option: str) -> list[str]:
    """Return the columns that the user means by ``lr`` or by a column's own name.

    Raises
    ------
    UsageError
        If there is no such column.
    """
    names = list(columns)
    found = []
    for word in asked:
        usual = {*SETTINGS.get(plain(word), ()), plain(word)}
        hits = [name for name in names if name == word] or [
            name for name in names if plain(name) in usual
        ]
        if not hits:
            raise UsageError(
                f"--{option} {word}",
                f"a column of the table: {', '.join(names)}",
                did_you_mean(word, names) + f"Write for example --{option} lr.",
            )
        found += hits
    return list(dict.fromkeys(found))


def swept_settings(columns: Iterable[str]) -> dict[str, str]:
    """Return the columns that hold settings, and the name of each."""
    known = {name: kind for kind, names in SETTINGS.items() for name in names}
    return {name: known[plain(name)] for name in columns if plain(name) in known}


def settings_as_text(source: TableSource, kept: Sequence[str]) -> list[str]:
    """Return the text columns of settings, most of whose cells are numbers."""
    texts = [
        name
        for name in swept_settings(source.types)
        if source.types[name] == "VARCHAR" and name not in kept
    ]
    return [
        name
        for name in texts
        if source.texts(
            f"SELECT 1 FROM rows HAVING count(TRY_CAST({quote(name)} AS DOUBLE)) "
            f"> count({quote(name)}) / 2"
        )
    ]


def finished_condition(source: TableSource, reading: Reading) -> tuple[list[str], dict[str, str]]:
    """Return the condition that leaves out rows whose status says that they did not finish."""
    if reading.includes_unfinished or source.is_log:
        return [], {}
    listed = ", ".join(f"'{word}'" for word in BAD_STATUS)
    for name, kind in source.types.items():
        if name.lower() not in STATUS_NAMES or kind != "VARCHAR":
            continue
        bad = f"lower(trim({quote(name)})) IN ({listed})"
        counts = source.fetch(
            f"SELECT count(*) FILTER (WHERE {bad}) AS bad, count(*) AS n FROM rows"
        )
        n_bad, n_rows = int(counts["bad"][0]), int(counts["n"][0])
        if 0 < n_bad < n_rows:
            notes: dict[str, str] = {}
            notes["unfinished_rows"] = (
                f"{plural(n_bad, 'row')} of {n_rows:,} left out: their {name} says that the run "
                "did not finish. Keep them with --include-unfinished."
            )
            return [f"coalesce(NOT {bad}, true)"], notes
    return [], {}


def select(
    rows: Observations, marks: Mapping[str, NDArray[np.bool_]], reading: Reading
) -> tuple[Observations, NDArray[np.intp], dict[str, str]]:
    """Return the rows to compare, their positions, and notes on what was done.

    The last checkpoint of each run is taken first, then the mean over seeds, then the best setting.
    """
    kept = np.arange(len(rows))
    notes: dict[str, str] = {}
    if reading.last_of is not None:
        labels = _labels(rows, reading.last_of)
        kept = _first_of([labels], np.argsort(-rows.n_tokens, kind="stable"))
        notes["last_of"] = _said(rows, kept, f"the last checkpoint of each {reading.last_of}")
    chosen = {
        option: find_settings(getattr(reading, option), _able(rows), option.replace("_", "-"))
        for option in ("mean_of", "best_of")
    }
    columns = _able(rows)
    free = {name for names in chosen.values() for name in names}
    others = [name for name in swept_settings(columns) if name not in free]
    if chosen["mean_of"]:
        part = rows.take(kept)
        keys = _keys(part, marks, kept, [*others, *chosen["best_of"]])
        first = _first_of(keys, np.arange(len(part)))
        group = _groups(keys)
        means = np.bincount(group, part.loss_nats) / np.bincount(group)
        rows = replace(rows, loss_nats=rows.loss_nats.copy())
        rows.loss_nats[kept[first]] = means[group[first]]
        notes["mean_of"] = _said(part, first, f"means over {', '.join(chosen['mean_of'])}")
        kept = kept[first]
    if chosen["best_of"]:
        part = rows.take(kept)
        keys = _keys(part, marks, kept, others)
        first = _first_of(keys, np.argsort(part.loss_nats, kind="stable"))
        words = f"the lowest loss over {', '.join(chosen['best_of'])}"
        notes["best_of"] = _said(part, first, words)
        kept = kept[first]
    kept = np.sort(kept)
    notes |= _warnings(rows.take(kept), reading)
    return rows.take(kept), kept, notes


def _able(rows: Observations) -> list[str]:
    return list(rows.extra)


def _labels(rows: Observations, name: str) -> NDArray[np.str_]:
    """Return the run of each row, by the column that names it.

    Raises
    ------
    UsageError
        If there is no such column.
    """
    column = rows.extra.get(name)
    if column is None and rows.cluster is not None:
        column = rows.cluster
    if column is None:
        known = listed(rows.extra, name) or "there is none"
        raise UsageError(
            f"--last-of {name}",
            f"a column that names the run of each row: {known}",
            f"{did_you_mean(name, rows.extra)}Write for example --last-of run.",
        )
    return np.asarray(column).astype(np.str_)


def _keys(
    rows: Observations, marks: Mapping[str, NDArray[np.bool_]], kept: NDArray[np.intp],
    settings: Sequence[str],
) -> list[NDArray[np.generic]]:  # fmt: skip
    sizes = [rows.n_params, rows.n_tokens] if rows.is_sized else [rows.flops]
    columns = [*sizes, *(rows.extra[name] for name in settings)]
    rounded = [_rounded(column) if column.dtype.kind == "f" else column for column in columns]
    return [*rounded, *(mark[kept] for mark in marks.values())]


def _rounded(column: FloatArray) -> FloatArray:
    """Return numbers with seven digits: a size that two programs print differently is one size."""
    mantissa, exponent = np.frexp(column)
    return np.ldexp(np.round(mantissa * 2**24), exponent)


def _groups(keys: Sequence[NDArray[np.generic]]) -> NDArray[np.intp]:
    """Return the number of the group of each row; rows of equal keys form a group."""
    group = np.zeros(len(keys[0]), dtype=np.intp)
    for key in keys:
        part = np.unique(key, return_inverse=True)[1]
        group = np.unique(group * (part.max(initial=0) + 1) + part, return_inverse=True)[1]
    return group


def _first_of(keys: Sequence[NDArray[np.generic]], order: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the position of the first row of each group in this order."""
    group = _groups(keys)[order]
    return order[np.unique(group, return_index=True)[1]]


def _said(rows: Observations, kept: NDArray[np.intp], what: str) -> str:
    return f"{len(kept)} of {plural(len(rows), 'row')} kept: {what}."


def _warnings(rows: Observations, reading: Reading) -> dict[str, str]:
    """Return notes on rows of one size that differ in a setting, and on checkpoints."""
    notes: dict[str, str] = {}
    if not rows.is_sized or not 2 <= len(rows) <= MOST_CHECKED:
        return notes
    no_marks: Mapping[str, NDArray[np.bool_]] = {}
    group = _groups(_keys(rows, no_marks, np.arange(len(rows)), []))
    swept = {}
    for name, kind in swept_settings(rows.extra).items():
        values = np.unique(rows.extra[name], return_inverse=True)[1]
        pairs = np.unique(np.stack([group, values]), axis=1)[0]
        several = np.flatnonzero(np.bincount(pairs) > 1)
        if len(several):
            swept[name] = (kind, int(np.isin(group, several).sum()), len(several))
    seeds = [name for name, (kind, *_) in swept.items() if kind == "seed"]
    kinds = {kind: name for name, (kind, *_) in reversed(swept.items())}
    others = [name for name in swept if name not in seeds and kinds[swept[name][0]] == name]
    if others:
        n_rows, n_sizes = max(swept[name][1:] for name in others)
        ask = f"--best-of {','.join(others)}" + (f" --mean-of {','.join(seeds)}" if seeds else "")
        notes["swept_settings"] = (
            f"{plural(n_rows, 'row')} at {plural(n_sizes, 'size')} (N, D) differ in "
            f"{' and '.join(others)}, which no column of the law describes: it is fitted to good "
            f"and bad settings alike. Keep the best of each size with {ask}."
        )
    elif seeds:
        n_rows, _ = swept[seeds[0]][1:]
        notes["seed_replicates"] = (
            f"{plural(n_rows, 'row')} differ only in {seeds[0]} and count as replicates. Average "
            f"them with --mean-of {seeds[0]}."
        )
    if reading.last_of is None and rows.cluster is not None:
        runs, owner = np.unique(rows.cluster, return_inverse=True)
        points = np.unique(
            np.stack([owner, np.unique(rows.n_tokens, return_inverse=True)[1]]), axis=1
        )
        per_run = np.bincount(points[0], minlength=len(runs))
        if len(runs) >= FEW_CHECKPOINTS and np.median(per_run) >= FEW_CHECKPOINTS:
            notes["checkpoints"] = (
                f"{plural(len(runs), 'run')} have several rows with different tokens. A loss in "
                "the middle of a decaying schedule is too high. Keep the last of each with "
                "--last-of run."
            )
    return notes

"""The verbs that act on the runs of a saved sweep: `cancel`, `keep_pruned`, `replace_diverged`.

They change what the next `resume` does, and train nothing themselves. ``results`` is always the
results folder, and ``name`` a sweep in it, by default the latest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.errors import FIRST_SWEEP, DataError, UsageError

if TYPE_CHECKING:
    from scalelab.launch.cancel import CancelReport
    from scalelab.records.sweep_dir import Results, SavedPlan


def replace_diverged(
    name: str | None = None, *, lr_scale: float, results: str | Path = DEFAULT_RESULTS
) -> SavedPlan:
    """Add a run at a scaled learning rate for each diverged run of a sweep, linked to it.

    Parameters
    ----------
    lr_scale : float
        New learning rate over the old, between 0 and 1.

    Raises
    ------
    UsageError
        If no run diverged, or the scale is out of range.
    """
    from scalelab.launch.replace_diverged import replace_diverged as replace_runs

    return replace_runs(*saved_sweep(name, results), lr_scale)


def keep_pruned(
    name: str | None = None, *, results: str | Path = DEFAULT_RESULTS
) -> tuple[str, ...]:
    """Let the pruned runs of a sweep continue with the next `resume`; return their run_ids.

    They are not pruned again.

    Raises
    ------
    UsageError
        If no run is pruned.
    """
    from scalelab.launch.prune import keep_pruned as keep_runs

    folder, saved = saved_sweep(name, results)
    return keep_runs(saved, folder)


def cancel(
    name: str | None = None,
    *,
    budget: str | float | None = None,
    runs: Sequence[str] | None = None,
    results: str | Path = DEFAULT_RESULTS,
) -> CancelReport:
    """Cancel a sweep or some of its runs. Each run leaves a checkpoint that `resume` uses.

    Parameters
    ----------
    budget : str or float, optional
        Only the runs of this budget, in FLOPs.
    runs : sequence of str, optional
        Only these run_ids.

    Raises
    ------
    UsageError
        If the sweep has no such budget or run.
    """
    from scalelab.launch.cancel import cancel_runs
    from scalelab.units import format_flops, parse_quantity

    folder, saved = saved_sweep(name, results)
    chosen = list(saved.run_ids)
    if budget is not None:
        wanted = format_flops(parse_quantity(budget))
        labels = {r: format_flops(b) for r, b in saved.budgets.items() if b is not None}
        chosen = [run_id for run_id in chosen if labels.get(run_id) == wanted]
        if not chosen:
            raise UsageError(
                f"budget {budget}, which sweep {saved.name!r} does not have",
                f"one of {', '.join(dict.fromkeys(labels.values()))}"
                if labels
                else f"no --budget: the runs of {saved.name!r} have no budget",
                "Choose runs with --run.",
            )
    if runs:
        unknown = sorted(set(runs) - set(saved.run_ids))
        if unknown:
            raise UsageError(
                f"run {unknown[0]!r}, which sweep {saved.name!r} does not have",
                "a run_id of the sweep",
                f"List them with `scalelab status {saved.name}`.",
            )
        chosen = [run_id for run_id in chosen if run_id in runs]
    return cancel_runs(folder, saved.name, chosen)


def launcher_of(name: str | None = None, *, results: str | Path = DEFAULT_RESULTS) -> str:
    """Return the launcher of the last launch of a sweep: ``local`` or ``slurm``.

    Raises
    ------
    DataError
        If there is no such sweep.
    """
    from scalelab.launch.saved_options import saved_options
    from scalelab.sweep.tables import LauncherTable

    folder, saved = saved_sweep(name, results)
    return saved_options(folder, saved.name, LauncherTable).name


def latest_sweep_name(results: str | Path = DEFAULT_RESULTS) -> str:
    """Return the name of the latest sweep.

    Raises
    ------
    DataError
        If the results folder has none.
    """
    from scalelab.records.sweep_dir import Results

    names = Results(Path(results)).sweep_names()
    if not names:
        raise DataError(
            f"no sweep in {results}",
            "a results folder with a sweep",
            f"Launch one with {FIRST_SWEEP}, or set the folder with --results.",
        )
    return names[0]


def saved_sweep(name: str | None, results: str | Path) -> tuple[Results, SavedPlan]:
    """Return the results folder and the plan of a sweep, by default the latest.

    Raises
    ------
    DataError
        If there is no such sweep.
    """
    from scalelab.records.sweep_dir import Results

    folder = Results(Path(results))
    return folder, folder.load_plan(name or latest_sweep_name(results))

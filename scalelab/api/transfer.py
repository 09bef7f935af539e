"""The verb `transfer`: whether the best learning rate stays put over widths and depths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.api.notebook_view import NotebookView
from scalelab.api.sweeps import ignore
from scalelab.units import plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalelab.launch.base import Watcher
    from scalelab.launch.proposal import Proposal
    from scalelab.tune.spec import TuneSpec
    from scalelab.tune.transfer_fit import Cell, Drift

JSON_FILE, FIGURE_FILE = "transfer.json", "transfer.svg"
JSON_SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Transfer(NotebookView):
    """The answer of `transfer`.

    Attributes
    ----------
    name : str
        Name of the sweep.
    cells : tuple of Cell
        Each parametrization and shape, with its losses and its best learning rate.
    drifts : tuple of Drift
        How far the best learning rate moves over the widths and over the depths.
    level : float
        Level of the intervals.
    is_interrupted : bool
        Whether Ctrl-C stopped the runs; the same call continues.
    """

    name: str
    cells: tuple[Cell, ...]
    drifts: tuple[Drift, ...]
    level: float
    is_interrupted: bool

    def _lines(self) -> Iterator[str]:
        yield f"Transfer {self.name}: {plural(len(self.cells), 'cell')}"
        for drift in self.drifts:
            factor = "unknown" if drift.factor is None else f"{drift.factor:.2f}"
            yield f"{drift.parametrization} over {drift.axis}: factor {factor}"

    def to_frame(self) -> pd.DataFrame:
        """Return one row per parametrization and shape with its best learning rate."""
        import pandas as pd

        return pd.DataFrame([asdict(cell) for cell in self.cells])

    def plot(self) -> Figure:
        """Return loss against learning rate, a panel for each parametrization."""
        from scalelab.tune.transfer_figure import transfer_figure

        return transfer_figure(self.cells)

    def to_dict(self) -> dict[str, Any]:
        """Return the answer of ``scalelab tune --transfer --json``; diverged losses are null."""
        return {
            "schema": JSON_SCHEMA,
            "command": "tune",
            "name": self.name,
            "status": "interrupted" if self.is_interrupted else "ok",
            "level": self.level,
            "cells": [
                {
                    **asdict(cell),
                    "losses": [None if loss == float("inf") else loss for loss in cell.losses],
                    "n_diverged": cell.losses.count(float("inf")),
                }
                for cell in self.cells
            ],
            "drifts": [asdict(drift) for drift in self.drifts],
        }


def transfer_proposal(
    spec: TuneSpec,
    proposal: Proposal,
    *,
    results: str | Path = DEFAULT_RESULTS,
    parametrization: str | None = None,
) -> Proposal:
    """Return the proposal of a transfer check from that of ``spec.sweep``.

    Same errors as `scalelab.tune.transfer.proposed`.
    """
    from scalelab.records.sweep_dir import Results
    from scalelab.tune.transfer import proposed

    return proposed(spec, proposal, Results(Path(results)), parametrization)


def transfer(
    spec: TuneSpec,
    proposal: Proposal,
    *,
    results: str | Path = DEFAULT_RESULTS,
    watch: Watcher = ignore,
    level: float = 0.9,
) -> Transfer:
    """Train every shape at every learning rate, and find each shape's best rate.

    The answer and its figure are saved in the folder of the sweep. The same call again continues an
    interrupted check.

    Parameters
    ----------
    spec : TuneSpec
        Its sweep has the shapes and the settings, ``lr`` and ``trials`` the learning rates.
    proposal : Proposal
        From `transfer_proposal`.
    results : str or Path
        The results folder.
    watch : callable, optional
        Receives a `LaunchView` after each change.
    level : float
        Level of the intervals.

    Raises
    ------
    UsageError
        If the sweep or the level cannot be used.
    """
    from scalelab.fit.intervals import check_level
    from scalelab.records.sweep_dir import Results
    from scalelab.report.plots import save_figure
    from scalelab.tune.transfer import cells_of, train
    from scalelab.tune.transfer_fit import drifts

    check_level(level)
    folder = Results(Path(results))
    report = train(spec, proposal, folder, watch)
    cells = tuple(cells_of(proposal, folder, level))
    found = Transfer(
        name=proposal.plan.name,
        cells=cells,
        drifts=tuple(drifts(cells)),
        level=level,
        is_interrupted=report.is_interrupted,
    )
    if not found.is_interrupted:
        place = folder.sweep(found.name)
        (place / JSON_FILE).write_text(json.dumps(found.to_dict(), indent=1) + "\n")
        save_figure(found.plot(), place / FIGURE_FILE)
    return found

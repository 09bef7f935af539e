"""Queries of the dashboard: sweeps, runs, training curves, costs and the content of a file.

They read the DuckDB snapshot or a file. Nothing here writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.records.states import LOST, OPEN

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from scalelab.store.reading import Reading

MAX_CURVE_POINTS = 400
PREVIEW_ROWS = 200
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A sweep or an imported table in a results folder.

    Attributes
    ----------
    name : str
    kind : str
        Kind of the sweep, such as ``isoflop``; ``import`` for an imported table.
    counts : Mapping[str, int]
        Runs by status.
    created_s : float
        Unix time.
    has_experts : bool
        Whether some runs train a mixture of experts.
    has_mixture : bool
        Whether the runs train on different mixtures of sources.
    rows_stamp : str
        Changes when the finished runs or rows change, not with the progress of running ones.
    """

    name: str
    kind: str
    counts: Mapping[str, int] = field(default_factory=dict)
    created_s: float = 0.0
    has_experts: bool = False
    has_mixture: bool = False
    rows_stamp: str = ""

    @property
    def total(self) -> int:
        """Number of runs."""
        return sum(self.counts.values())

    @property
    def is_unfinished(self) -> bool:
        """Whether a run is planned, queued or running."""
        return any(self.counts.get(status, 0) for status in OPEN)


def stamp(results: str | Path) -> str:
    """Return a text that changes with each new snapshot; empty if there is none."""
    from scalelab.store.live import snapshot_path

    return file_stamp(snapshot_path(Path(results)))


def file_stamp(path: str | Path) -> str:
    """Return a text that changes when a file changes; empty if there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return ""
    return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"


def sources(results: str | Path) -> list[Source]:
    """Return sweeps and imports, latest first; empty if there is no snapshot."""
    if not stamp(results):
        return []
    from scalelab.store.live import open_snapshot

    with open_snapshot(Path(results)) as connection:
        planned = connection.execute(
            "SELECT sweep, any_value(kind), max(created_s), coalesce(status, 'planned'), count(*), "
            "coalesce(bool_or(n_experts > 1), false), "
            "bit_xor(hash(run_id, loss_nats, evaluations)) "
            "FROM sweeps LEFT JOIN runs USING (run_id) LEFT JOIN (SELECT run_id, bit_xor(hash("
            "set, kind, loss_nats, bits_per_byte, accuracy, value)) AS evaluations FROM evals "
            "WHERE is_final GROUP BY run_id) USING (run_id) GROUP BY sweep, status"
        ).fetchall()
        mixed = connection.execute(
            "SELECT sweep FROM sweeps JOIN runs USING (run_id) WHERE mixture IS NOT NULL "
            "GROUP BY sweep HAVING count(DISTINCT mixture) > 1"
        ).fetchall()
        imported = connection.execute(
            'SELECT "import", max(imported_s), count(*), bit_xor(hash(line, loss_nats)) '
            'FROM imports GROUP BY "import"'
        ).fetchall()
    found: dict[str, Source] = {}
    for name, kind, created_s, status, count, has_experts, rows in planned:
        before = found.get(name)
        found[name] = Source(
            name=name,
            kind=kind or "sweep",
            counts={**(before.counts if before else {}), status: count},
            created_s=max(created_s or 0.0, before.created_s if before else 0.0),
            has_mixture=(name,) in mixed,
            has_experts=has_experts or (before is not None and before.has_experts),
            rows_stamp=f"{count}-{rows:x}"
            if status == "done"
            else before.rows_stamp
            if before
            else "",
        )
    for name, imported_s, count, rows in imported:
        found.setdefault(
            name,
            Source(
                name=name,
                kind="import",
                counts={"done": count},
                created_s=imported_s or 0.0,
                rows_stamp=f"{imported_s}-{rows:x}",
            ),
        )
    return sorted(found.values(), key=lambda source: (-source.created_s, source.name))


def runs(results: str | Path, sweep: str) -> pd.DataFrame:
    """Return all runs of a sweep, of any status, or the rows of an import.

    Raises
    ------
    DataError
        If there is no snapshot.
    """
    from scalelab.store.live import open_snapshot

    with open_snapshot(Path(results)) as connection:
        table = connection.execute(
            "SELECT s.position, s.budget_flops, coalesce(r.status, 'planned') AS state, "
            "s.run_id AS id, r.* EXCLUDE (run_id, status) "
            "FROM sweeps AS s LEFT JOIN runs AS r USING (run_id) WHERE s.sweep = ? "
            "ORDER BY s.position",
            [sweep],
        ).df()
        if not len(table):
            table = connection.execute(
                "SELECT line AS position, budget_flops, 'done' AS state, "
                "'line ' || line AS id, n_params, n_tokens, loss_nats, flops "
                'FROM imports WHERE "import" = ? ORDER BY line',
                [sweep],
            ).df()
    return table.rename(columns={"id": "run_id", "state": "status"})


def curves(
    results: str | Path, run_ids: Sequence[str], points: int = MAX_CURVE_POINTS
) -> pd.DataFrame:
    """Return the training curves of runs, with at most ``points`` evenly spaced points per run.

    Returns
    -------
    DataFrame
        ``run_id``, ``label``, ``step``, ``tokens``, ``flops`` (default convention), ``loss_nats``,
        ``lr``, ``grad_norm``, ``tokens_per_s``, ``tflops_per_s``, ``mfu``.
    """
    from scalelab.store.live import open_snapshot

    with open_snapshot(Path(results)) as connection:
        return connection.execute(
            """
            WITH numbered AS (
                SELECT a.run_id, m.step, m.tokens, m.loss_nats, m.lr, m.grad_norm, m.tokens_per_s,
                    m.tflops_per_s, m.mfu,
                    row_number() OVER (PARTITION BY a.run_id ORDER BY m.step) AS i,
                    count(*) OVER (PARTITION BY a.run_id) AS n
                FROM attempt_metrics AS m JOIN (
                    SELECT run_id, coalesce(
                        max(attempt) FILTER (attempt = accepted_attempt), max(attempt)
                    ) AS attempt FROM attempts JOIN runs USING (run_id)
                    WHERE list_contains($ids, run_id) GROUP BY run_id
                ) AS a USING (run_id, attempt)
            )
            SELECT c.run_id, substr(c.run_id, 1, 8) AS label, c.step, c.tokens,
                r.flops / r.n_tokens * c.tokens AS flops, c.loss_nats, c.lr, c.grad_norm,
                c.tokens_per_s, c.tflops_per_s, c.mfu
            FROM numbered AS c JOIN runs AS r USING (run_id)
            WHERE c.i = 1 OR c.i = c.n OR c.i % greatest(1, c.n // $points) = 0
            ORDER BY c.run_id, c.step
            """,
            {"ids": list(run_ids), "points": points},
        ).df()


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Rates that convert device-hours to money, energy and CO2.

    Attributes
    ----------
    usd_per_hour : float
        Price of a device-hour.
    watts : float
        Power of a device, for runs without measured energy.
    grams_per_kwh : float
        Carbon intensity of the grid, g CO2-equivalent per kWh.
    """

    usd_per_hour: float
    watts: float
    grams_per_kwh: float


def costs(table: pd.DataFrame, rates: Rates) -> pd.DataFrame:
    """Return compute and cost that were spent, wasted or are planned, one row per budget.

    Parameters
    ----------
    table : DataFrame
        From `runs`.
    rates : Rates

    Returns
    -------
    DataFrame
        ``budget`` (NaN: none) and ``spent_X``, ``wasted_X``, ``planned_X`` for X of ``flops``,
        ``hours``, ``usd``, ``kwh``, ``kg_co2``. Wasted: runs that ended without a result. Planned
        hours use the speed of the finished runs; they are NaN if none is finished.
    """
    import numpy as np
    import pandas as pd

    if not len(table):
        return pd.DataFrame({"budget": []})
    flops = _numbers(table, "flops")
    n_devices = np.nan_to_num(_numbers(table, "n_devices"), nan=1.0)
    hours = n_devices * _numbers(table, "wall_s") / 3600
    kwh = _numbers(table, "energy_j") / JOULES_PER_KWH
    status = table["status"].to_numpy(str)
    tokens, taken = _numbers(table, "n_steps"), _numbers(table, "steps_taken")
    with np.errstate(all="ignore"):
        share = np.where(np.isfinite(taken / tokens), np.minimum(taken / tokens, 1.0), np.nan)
    is_done, is_lost = status == "done", np.isin(status, LOST)
    rate = (
        np.nansum(flops[is_done]) / np.nansum(hours[is_done])
        if np.any(hours[is_done] > 0)
        else math.nan
    )
    kwh = np.where(np.isfinite(kwh), kwh, hours * rates.watts / 1000)
    masks = {"spent": is_done, "wasted": is_lost, "planned": np.isin(status, OPEN)}
    columns: dict[str, NDArray[np.float64]] = {}
    for part, mask in masks.items():
        work = np.where(mask, flops, 0.0)
        if part == "wasted":
            work = work * np.nan_to_num(share)
        time = np.where(mask, hours, 0.0) if part != "planned" else work / rate
        energy = np.where(mask, kwh, 0.0) if part != "planned" else time * rates.watts / 1000
        columns |= {
            f"{part}_flops": work,
            f"{part}_hours": time,
            f"{part}_usd": time * rates.usd_per_hour,
            f"{part}_kwh": energy,
            f"{part}_kg_co2": energy * rates.grams_per_kwh / 1000,
        }
    frame = pd.DataFrame({"budget": _numbers(table, "budget_flops"), **columns})
    return frame.groupby("budget", dropna=False, sort=True).sum(min_count=0).reset_index()


def head(path: str | Path, reading: Reading) -> tuple[pd.DataFrame, int]:
    """Return the first rows of a table file, all cells as text, and its number of rows.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    from scalelab.store.table_files import open_file

    with open_file(Path(path), reading) as source:
        names = list(source.types)
        count = int(source.texts("SELECT count(*) FROM rows")[0])
        listed = ", ".join(_cell(name) for name in names)
        cells = source.fetch(
            f"SELECT {listed}, source_row FROM rows ORDER BY source_row LIMIT {PREVIEW_ROWS}"
        )
        source.count_lines()
        lines = source.lines(cells.pop("source_row").astype("int64"))
    import pandas as pd

    frame = pd.DataFrame({name: cells[name].astype(str) for name in names}, index=lines)
    return frame.rename_axis("line"), count


def has_weights(path: str | Path, reading: Reading) -> bool:
    """Return whether a table file has columns with the weights of several sources.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    from scalelab.store.mixture_runs import WEIGHT_STARTS
    from scalelab.store.table_files import open_file

    with open_file(Path(path), reading) as source:
        names = [name.lower() for name in source.types]
    return any(sum(name.startswith(start) for name in names) > 1 for start in WEIGHT_STARTS[:2])


def read(path: str | Path, mapping: Mapping[str, str], reading: Reading) -> dict[str, Any]:
    """Return the content of a table file: usable rows, rejected rows, conventions and notes.

    Raises
    ------
    DataError, UsageError
        As `scalelab.store.tables.read_table`.
    """
    import pandas as pd

    from scalelab.api.data import frame_of, read_runs

    table = read_runs(path, mapping=mapping, reading=reading)
    return {
        "rows": frame_of(table),
        "rejects": pd.DataFrame(
            {
                "line": [reject.line for reject in table.rejects],
                "column": [reject.column for reject in table.rejects],
                "cell": [reject.value for reject in table.rejects],
                "reason": [reject.reason for reject in table.rejects],
            }
        ),
        "mapping": dict(table.mapping),
        "notes": dict(table.notes),
        "param_convention": table.observations.param_convention,
        "flop_convention": table.observations.flop_convention,
    }


def _numbers(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    import numpy as np
    import pandas as pd

    if name not in table:
        return np.full(len(table), np.nan)
    return pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def _cell(name: str) -> str:
    from scalelab.store.table_source import quote

    return f"coalesce(CAST({quote(name)} AS VARCHAR), '') AS {quote(name)}"

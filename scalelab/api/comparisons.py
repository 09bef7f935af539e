"""Compare sweeps, tables and laws by name: `compare_runs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.forecast.comparing import Source, SourceComparison
    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.law_file import SavedLaw


def compare_runs(
    names: Sequence[str],
    *,
    results: str | Path = DEFAULT_RESULTS,
    mapping: Mapping[str, str] | None = None,
    form: str = "chinchilla",
    bootstrap: BootstrapSpec | int | None = None,
    metric: str | None = None,
    flops: float | None = None,
    level: float = 0.9,
) -> SourceComparison:
    """Compare sweeps, tables and laws: optima, exponents and effective speed-up.

    Parameters
    ----------
    names : sequence of str
        Two to six of: a sweep or import of the results folder, a table (``public:NAME`` or a
        file), a published or saved law. The first is the reference.
    results : str or Path
        The results folder.
    mapping : Mapping[str, str], optional
        Columns of the tables that are files, as in `fit`.
    form : str
        Law that is fitted to the runs.
    bootstrap : BootstrapSpec or int, optional
        Bootstrap replicates of each fit; default 1000.
    metric : str, optional
        Loss of the runs, such as ``"bpb:code"``; default: the held-out loss.
    flops : float, optional
        Compute at which the optima are compared; default: the largest within the runs of all.
    level : float
        Level of every interval.

    Raises
    ------
    UsageError, DataError
        If a name is unknown or repeats, or a table cannot be used.
    """
    from scalelab.forecast.comparing import compare_sources

    sources = [
        _source(name, Path(results), mapping, form, bootstrap, level, metric)
        for name in dict.fromkeys(names)
    ]
    if len(sources) != len(names):
        sources = [each for name in names for each in sources if each.name == name]
    return compare_sources(sources, flops=flops, level=level)


def compare_with(
    name: str,
    report: FitReport,
    others: Sequence[str],
    *,
    results: str | Path = DEFAULT_RESULTS,
    form: str = "chinchilla",
    level: float = 0.9,
) -> SourceComparison:
    """Compare a fit with sweeps, tables and laws by name, as `compare_runs` does.

    Parameters
    ----------
    name : str
        Name of the runs of the fit, which are the reference.
    report : FitReport
    others : sequence of str
        One to five names.
    results, form, level
        As in `compare_runs`.
    """
    from scalelab.forecast.comparing import compare_sources

    sources = [_source(each, Path(results), None, form, None, level) for each in others]
    return compare_sources([source_of(name, report, level), *sources], level=level)


def source_of(name: str, found: FitReport | SavedLaw, level: float = 0.9) -> Source:
    """Return a fit or a law as one of the compared."""
    from scalelab.forecast.comparing import Source
    from scalelab.forecast.fit_report import FitReport

    if isinstance(found, FitReport):
        return Source.of_report(name, found)
    return Source.of_law(name, found, level)


def _source(
    name: str,
    results: Path,
    mapping: Mapping[str, str] | None,
    form: str,
    bootstrap: BootstrapSpec | int | None,
    level: float,
    metric: str | None = None,
) -> Source:
    from scalelab.api.fits import fit
    from scalelab.api.laws import list_laws, load_law
    from scalelab.store.public_tables import PREFIX
    from scalelab.store.reading import Reading

    fitting: dict[str, Any] = {"form": form, "bootstrap": bootstrap, "level": level}
    if metric is not None:
        fitting["reading"] = Reading(metric=metric)
    if name.startswith(PREFIX):
        return source_of(name, fit(name, **fitting))
    sweeps = _sweeps(results)
    if name in sweeps:
        return source_of(name, fit(sweep=name, results=results, **fitting))
    laws = list_laws(results)
    if name in laws:
        return source_of(name, load_law(name, results=results), level)
    if not Path(name).exists():
        known = [*sweeps, *laws]
        raise DataError(
            f"unknown sweep, table or law {name!r}",
            f"public:NAME, a file, a law ({', '.join(laws)}), or a sweep of {results}"
            + (f" ({', '.join(sweeps)})" if sweeps else ""),
            did_you_mean(name, known) + "`scalelab tables` lists the public tables.",
        )
    if name.endswith(".json") and _is_law(name):
        return source_of(Path(name).stem, load_law(name), level)
    return source_of(name, fit(name, mapping=mapping, **fitting))


def _sweeps(results: Path) -> list[str]:
    """Return the sweeps and imports of a results folder; none without a snapshot."""
    from scalelab.store.live import open_snapshot, snapshot_path

    if not snapshot_path(results).exists():
        return []
    with open_snapshot(results) as connection:
        found = connection.execute(
            'SELECT DISTINCT sweep FROM sweeps UNION SELECT DISTINCT "import" FROM imports'
        ).fetchall()
    return sorted(name for (name,) in found)


def _is_law(file: str) -> bool:
    from scalelab.api.laws import load_law

    try:
        load_law(file)
    except DataError:
        return False
    return True

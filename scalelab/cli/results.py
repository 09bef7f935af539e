"""``scalelab collect``, ``import``, ``export``, ``status`` and ``logs``."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalelab.cli.new_scores import (
    key_of,
    new_scores,
    print_scores,
    scored_pairs,
    scores_as_json,
)
from scalelab.cli.options import (
    BEST_HELP,
    DEFAULT_RESULTS,
    FORMAT_HELP,
    LAST_HELP,
    MEAN_HELP,
    UNFINISHED_HELP,
    UNIT_HELP,
    JsonOption,
    ResultsOption,
)
from scalelab.cli.output import console, emit_json, runnable, warn
from scalelab.errors import EXIT_OK, UsageError
from scalelab.units import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalelab.forecast.scores import RunScore
    from scalelab.store.collect import CollectReport
    from scalelab.store.parquet_folder import ParquetReport

WATCH_INTERVAL_S = 2.0


def collect(
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two collections with --watch.")
    ] = 10.0,
    to: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            "--to",
            metavar="parquet DIR",
            help="Also write the tables to DIR as Parquet files, a partition for each sweep; "
            "other engines read them there. Only changed partitions are written again.",
        ),
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Load run folders into DuckDB and publish a snapshot.

    Fits, exports and the dashboard read the snapshot.

    Example: scalelab collect --watch

    Example: scalelab collect --to parquet warehouse/
    """
    from scalelab.store.collect import collect as collect_once
    from scalelab.store.collect import watch as collect_again
    from scalelab.store.parquet_folder import write_parquet

    if to is not None and to[0] != "parquet":
        raise UsageError(f"--to {to[0]}", "parquet and a folder", f"Write --to parquet {to[1]}.")
    scored = scored_pairs(results)
    for report in collect_again(results, interval_s=interval) if watch else [collect_once(results)]:
        if report.is_published or not watch:
            scores = new_scores(results, scored)
            written = None if to is None else write_parquet(results, to[1])
            _show_collected(report, results, scores, written, as_json=as_json)
            scored |= {key_of(each) for each in scores}
    return EXIT_OK


def _show_collected(
    report: CollectReport,
    results: Path,
    scores: Sequence[RunScore],
    written: ParquetReport | None,
    *,
    as_json: bool,
) -> None:
    for problem in report.problems:
        warn(problem)
    if as_json:
        content = {"schema": 1, "command": "collect", **asdict(report)}
        parquet = {} if written is None else {"parquet": asdict(written)}
        emit_json({**content, **parquet, "scores": scores_as_json(scores)})
        return
    parts = [
        plural(report.runs_new, "new run"),
        f"{report.runs_changed:,} changed",
        plural(report.metric_rows_new, "new metric row"),
    ]
    if report.runs_removed:
        parts.append(f"{report.runs_removed:,} removed")
    if report.torn_lines:
        parts.append(f"{plural(report.torn_lines, 'incomplete line')} dropped")
    console().print(
        f"{', '.join(parts)}; {plural(report.runs, 'run')} in {results / 'scalelab.duckdb'} "
        f"({report.wall_s:.2f} s)",
        soft_wrap=True,
    )
    if written is not None:
        console().print(
            f"{written.written:,} of {plural(written.partitions, 'partition')} written as Parquet"
        )
    print_scores(scores)


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="Table of finished runs, or run log or folder of run logs of another trainer.",
            metavar="PATH",
        ),
    ],
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="Columns of the file, as OURS=THEIRS,..: n_params, n_tokens, loss_nats, flops, "
            "budget or cluster from a column or SQL expression; repeatable.",
        ),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="SQL condition on the columns, such as 'flops > 1e18'.")
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help=FORMAT_HELP)] = None,
    loss_unit: Annotated[str | None, typer.Option(help=UNIT_HELP)] = None,
    include_unfinished: Annotated[
        bool, typer.Option("--include-unfinished", help=UNFINISHED_HELP)
    ] = False,
    best_of: Annotated[str | None, typer.Option("--best-of", help=BEST_HELP)] = None,
    mean_of: Annotated[str | None, typer.Option("--mean-of", help=MEAN_HELP)] = None,
    last_of: Annotated[str | None, typer.Option("--last-of", help=LAST_HELP)] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the import; default: the file name.")
    ] = None,
    param_convention: Annotated[
        str, typer.Option(help="How the file counts parameters, such as chinchilla or kaplan.")
    ] = "unstated",
    flop_convention: Annotated[
        str, typer.Option(help="How the file counts FLOPs, such as 6nd or exact.")
    ] = "unstated",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an import that has the same name.")
    ] = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Import runs trained elsewhere.

    PATH is a table, a run log or a folder of run logs; its format is recognised: wandb,
    TensorBoard, MLflow, trackio, Hugging Face, Lightning, litgpt, nanoGPT, nanochat, llm.c,
    Megatron-LM, lingua or marin. N, D and loss are derived from settings and logged values; the
    sources are printed.

    Unusable rows are listed in a file with line and reason.

    Example: scalelab import outputs/ --name llama-sweep

    Or a table: scalelab import runs.csv --map n_params=params,n_tokens=tokens,loss_nats=val_loss
    """
    from scalelab.store.collect import collect as collect_once
    from scalelab.store.importers import REJECTS_FILE, import_table
    from scalelab.store.read_options import ReadOptions, parse_map
    from scalelab.store.reading import reading_of_texts

    scored = scored_pairs(results)
    report = import_table(
        results,
        file,
        ReadOptions(
            mapping=parse_map(mapping or ()),
            where=where,
            param_convention=param_convention,
            flop_convention=flop_convention,
            reading=reading_of_texts(
                format=format,
                loss_unit=loss_unit,
                includes_unfinished=include_unfinished,
                best_of=best_of,
                mean_of=mean_of,
                last_of=last_of,
            ),
        ),
        name=name,
        replaces=replace,
    )
    collected = collect_once(results)
    notes = dict(report.notes)
    sources = [notes.pop(code) for code in ("run_logs", "found_columns") if code in notes]
    warnings = [*notes.values(), *collected.problems]
    if report.n_rejects:
        warnings.insert(
            0,
            f"{plural(report.n_rejects, 'row')} not imported; see the reasons in "
            f"{report.folder / REJECTS_FILE}",
        )
    for warning in warnings:
        warn(warning)
    scores = new_scores(results, scored)
    if as_json:
        content = {"schema": 1, "command": "import", **asdict(report)}
        emit_json({**content, "scores": scores_as_json(scores)})
        return EXIT_OK
    out = console()
    for source in sources:
        out.print(source, soft_wrap=True)
    word = "imported" if report.is_new else "already imported"
    out.print(
        f"{plural(report.n_rows, 'row')} {word} as {report.name} ({report.folder})", soft_wrap=True
    )
    print_scores(scores)
    out.print(runnable(f"Next: scalelab fit --sweep {report.name}"), soft_wrap=True)
    return EXIT_OK


def export(
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="csv, tsv, json, jsonl, parquet or xlsx; default: the ending of --out, or csv.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write, such as runs.csv.gz; default standard output."),
    ] = None,
    table: Annotated[
        str, typer.Option(help="runs, metrics, evals, sweeps, imports, attempts, attempt_metrics.")
    ] = "runs",
    sweep: Annotated[
        str | None, typer.Option(help="Only the runs of this sweep, or the rows of this import.")
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Export a table of the results.

    Formats: CSV, TSV, JSON, JSON lines, Parquet and Excel.

    The ending of FILE chooses the format; .csv.gz and .csv.zst are compressed.

    Example: scalelab export --format csv --sweep demo --out demo.csv
    """
    from scalelab.store.export import export_table

    if out is None and (as_json or (format == "parquet" and sys.stdout.isatty())):
        raise UsageError(
            "--json without --out" if as_json else "parquet on a terminal",
            "a file with --out",
            "Write for example --out runs.parquet.",
        )
    n_rows = export_table(results, table, format, out or sys.stdout.buffer, sweep=sweep)
    if as_json:
        emit_json({"schema": 1, "command": "export", "table": table, "rows": n_rows, "out": out})
    elif out is not None:
        console(stderr=True).print(f"{plural(n_rows, 'row')} of {table} in {out}", soft_wrap=True)
    return EXIT_OK


def status(
    sweep: Annotated[
        str | None, typer.Argument(help="Name of the sweep; default: the latest.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Redraw until every run has ended, or Ctrl-C.")
    ] = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Show the progress of a sweep.

    Runs by state, isoFLOP curves, time left, and what to do next.

    Example: scalelab status demo --watch
    """
    from scalelab.cli.note import note_line
    from scalelab.cli.status_view import advice, render_status
    from scalelab.launch.live_status import LiveStatus
    from scalelab.records.notes import read_notes
    from scalelab.records.states import ACTIVE

    if watch and as_json:
        raise UsageError(
            "--watch with --json",
            "one of them",
            "Use `scalelab status --watch`, or call `scalelab status --json` repeatedly.",
        )
    live = LiveStatus(results, sweep)
    if watch:
        from rich.console import Group
        from rich.live import Live

        with Live(console=console(), auto_refresh=False) as screen:
            while True:
                found = live.read()
                screen.update(Group(render_status(found), *advice(found)), refresh=True)
                if not any(found.counts.get(state) for state in ACTIVE):
                    return EXIT_OK
                time.sleep(WATCH_INTERVAL_S)
    found = live.read()
    notes = read_notes(results, [found.sweep, *(run.run_id for run in found.runs)])
    if as_json:
        told = [asdict(note) for note in notes]
        emit_json({"schema": 1, "command": "status", **asdict(found), "notes": told})
        return EXIT_OK
    console().print(render_status(found))
    for note in notes:
        console().print(f"note {note_line(note)}", markup=False, soft_wrap=True)
    for line in advice(found):
        # Not wrapped: a line break would be part of the copied command.
        console().print(line, soft_wrap=True)
    others = [name for name in live.results.sweep_names() if name != found.sweep]
    if sweep is None and others:
        console().print(f"other sweeps: {', '.join(others)}", soft_wrap=True)
    return EXIT_OK


def logs(
    run: Annotated[str, typer.Argument(help="run_id, or its first characters.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the run ends, or Ctrl-C.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="Lines of curve and log to print first.")
    ] = 20,
    results: ResultsOption = DEFAULT_RESULTS,
) -> int:
    """Show the attempts, training curve and log of a run.

    Curve and log show their last lines.

    Example: scalelab logs 3f9a -f
    """
    from scalelab.cli.log_view import show_logs
    from scalelab.records.run_names import find_run

    show_logs(find_run(results, run), n_lines=lines, follows=follow)
    return EXIT_OK

"""The ``dashboard`` command: a Streamlit server that only this machine can reach."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from scalelab.cli.options import (
    BEST_HELP,
    DEFAULT_RESULTS,
    EXCLUDE_HELP,
    FORMAT_HELP,
    FROM_HELP,
    LAST_HELP,
    MEAN_HELP,
    UNFINISHED_HELP,
    UNIT_HELP,
    MapOption,
    MetricOption,
    ResultsOption,
    given_options,
)
from scalelab.cli.output import warn
from scalelab.errors import DataError, UsageError

DEFAULT_PORT = 8501
LOOPBACK = "127.0.0.1"
PORTS_TRIED = 20
ABOUT_FILE = (
    *("mapping", "format", "loss_unit", "include_unfinished", "best_of", "mean_of", "last_of"),
)
"""Parameters that say how the file of --from is read."""


def dashboard(
    context: typer.Context,
    results: ResultsOption = DEFAULT_RESULTS,
    from_file: Annotated[Path | None, typer.Option("--from", help=FROM_HELP)] = None,
    mapping: MapOption = None,
    format: Annotated[str | None, typer.Option("--format", help=FORMAT_HELP)] = None,
    loss_unit: Annotated[str | None, typer.Option(help=UNIT_HELP)] = None,
    include_unfinished: Annotated[
        bool, typer.Option("--include-unfinished", help=UNFINISHED_HELP)
    ] = False,
    best_of: Annotated[str | None, typer.Option("--best-of", help=BEST_HELP)] = None,
    mean_of: Annotated[str | None, typer.Option("--mean-of", help=MEAN_HELP)] = None,
    last_of: Annotated[str | None, typer.Option("--last-of", help=LAST_HELP)] = None,
    exclude: Annotated[
        str | None, typer.Option("--exclude", help=EXCLUDE_HELP, metavar="RUN,..")
    ] = None,
    metric: MetricOption = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port; default 8501, or the next free port."),
    ] = None,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser.")
    ] = False,
) -> None:
    """Show sweeps, fits and forecasts in the browser.

    Read-only; only this machine can connect.

    Example: scalelab dashboard --from runs.csv
    """
    from scalelab.records.machine import SAFE_PATH
    from scalelab.records.names import names_of_text
    from scalelab.store.public_tables import table_path
    from scalelab.store.read_options import ReadOptions, parse_map
    from scalelab.store.reading import Reading, reading_of_texts

    # Both raise before the server starts.
    ReadOptions(mapping=parse_map(mapping or []))
    reading = reading_of_texts(
        format=format,
        loss_unit=loss_unit,
        includes_unfinished=include_unfinished,
        best_of=best_of,
        mean_of=mean_of,
        last_of=last_of,
    )
    unused = [flag for name, flag in given_options(context).items() if name in ABOUT_FILE]
    if from_file is None and unused:
        raise UsageError(
            f"{unused[0]} without --from",
            "an option about a file together with --from",
            "Name the file, for example --from runs.csv.",
        )
    if from_file is not None and not table_path(from_file).exists():
        raise DataError(
            f"{from_file}, which does not exist",
            "a table, a run log or a folder of run logs",
            "Write its path from the current folder, for example --from data/runs.csv.",
        )
    app = app_path()
    environment = {**os.environ, **SAFE_PATH, "SCALELAB_RESULTS": str(results)}
    if (chosen := Reading(metric=metric).metric) is not None:
        environment["SCALELAB_DASHBOARD_METRIC"] = chosen
    if from_file is not None:
        environment["SCALELAB_DASHBOARD_FILE"] = str(from_file)
        environment["SCALELAB_DASHBOARD_MAP"] = ",".join(mapping or [])
        environment["SCALELAB_DASHBOARD_READING"] = json.dumps(reading.as_dict())
    if exclude is not None:
        names_of_text(exclude)
        environment["SCALELAB_DASHBOARD_EXCLUDE"] = exclude
    if not results.is_dir() and from_file is None:
        warn(
            f"{results} does not exist yet. The page stays empty until you run a sweep or import "
            "a table."
        )
    words = server_words(app, free_port(port), is_headless=not open_browser)
    # This process becomes the server, so that it receives Ctrl-C and other signals.
    os.execve(sys.executable, words, environment)


def app_path() -> Path:
    """Return the script that Streamlit runs.

    Raises
    ------
    UsageError
        When Streamlit or scalelab_dashboard is not installed.
    """
    found = importlib.util.find_spec("scalelab_dashboard")
    if importlib.util.find_spec("streamlit") is None or found is None or found.origin is None:
        raise UsageError(
            "the dashboard, which is not installed",
            "an installation with the extra [dashboard]",
            "Install it: pip install 'scalelab[dashboard]'.",
        )
    return Path(found.origin).with_name("server.py")


def free_port(asked: int | None) -> int:
    """Return the requested port, or the first free port from 8501.

    Raises
    ------
    UsageError
        When no such port is free.
    """
    for port in [asked] if asked else range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise UsageError(
        f"port {asked}, which is in use"
        if asked
        else f"ports {DEFAULT_PORT} to {DEFAULT_PORT + PORTS_TRIED - 1}, which are all in use",
        "a free port",
        "Use another port, for example --port 8600.",
    )


def server_words(app: Path, port: int, *, is_headless: bool = True) -> list[str]:
    """Return the command line of the server: loopback address, allowed hosts, no telemetry."""
    settings = {
        "server.address": LOOPBACK,
        "server.port": str(port),
        "server.headless": str(is_headless).lower(),
        "server.fileWatcherType": "none",
        "server.disconnectedSessionTTL": "5",
        "server.websocketPingInterval": "300",  # a browser on a busy machine is late, not gone
        "server.enableWebsocketCompression": "true",
        "server.maxUploadSize": "200",
        "browser.gatherUsageStats": "false",
        "secrets.files": str(app.with_name("secrets.toml")),  # not those of the user's home
        "browser.serverAddress": LOOPBACK,
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "stacktrace",
        "client.showErrorLinks": "false",
        "theme.light.primaryColor": "#0060a0",
        "theme.dark.primaryColor": "#56b4e9",
        "global.developmentMode": "false",
    }
    words = [sys.executable, "-m", "streamlit", "run", str(app)]
    for name, value in settings.items():
        words.append(f"--{name}={value}")
    # Host names of the loopback, and those that a login proxy forwards.
    hosts = [LOOPBACK, "localhost", *os.environ.get("SCALELAB_DASHBOARD_HOSTS", "").split()]
    words += [f"--server.allowedHosts={host}" for host in hosts]
    return words

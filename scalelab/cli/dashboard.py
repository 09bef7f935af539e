"""The ``dashboard`` command: a Streamlit server that only this machine can reach."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from scalelab.cli.options import DEFAULT_RESULTS, FROM_HELP, MapOption, ResultsOption
from scalelab.cli.output import warn
from scalelab.errors import DataError, UsageError

DEFAULT_PORT = 8501
LOOPBACK = "127.0.0.1"
PORTS_TRIED = 20


def dashboard(
    results: ResultsOption = DEFAULT_RESULTS,
    from_file: Annotated[Path | None, typer.Option("--from", help=FROM_HELP)] = None,
    mapping: MapOption = None,
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
    from scalelab.store.public_tables import table_path
    from scalelab.store.read_options import ReadOptions, parse_map

    ReadOptions(mapping=parse_map(mapping or []))  # raises before the server starts
    if from_file is not None and not table_path(from_file).is_file():
        raise DataError(
            f"{from_file}, which is not a file",
            "a CSV or Parquet file",
            "Write its path from the current folder, for example --from data/runs.csv.",
        )
    app = app_path()
    environment = {**os.environ, **SAFE_PATH, "SCALELAB_RESULTS": str(results)}
    if from_file is not None:
        environment["SCALELAB_DASHBOARD_FILE"] = str(from_file)
        environment["SCALELAB_DASHBOARD_MAP"] = ",".join(mapping or [])
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
    return Path(found.origin).with_name("app.py")


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

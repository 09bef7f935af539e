"""The ``scalelab`` command. Its subcommands are in the other files of this package.

Each command imports what it needs when it runs, so that ``--help`` is fast.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from scalelab import __version__
from scalelab.cli import adaptive as adaptive_commands
from scalelab.cli import backtest as backtest_commands
from scalelab.cli import bench as bench_commands
from scalelab.cli import compare as compare_commands
from scalelab.cli import dashboard as dashboard_commands
from scalelab.cli import data as data_commands
from scalelab.cli import decide as decide_commands
from scalelab.cli import doctor as doctor_commands
from scalelab.cli import evaluate as evaluate_commands
from scalelab.cli import export_model as export_model_commands
from scalelab.cli import fit as fit_commands
from scalelab.cli import folders as folders_commands
from scalelab.cli import law as law_commands
from scalelab.cli import note as note_commands
from scalelab.cli import predict as predict_commands
from scalelab.cli import program as program_commands
from scalelab.cli import report as report_commands
from scalelab.cli import results as results_commands
from scalelab.cli import resume as resume_commands
from scalelab.cli import scores as scores_commands
from scalelab.cli import sweep as sweep_commands
from scalelab.cli import tables as tables_commands
from scalelab.cli import tune as tune_commands
from scalelab.cli.lazy_group import lazy_group
from scalelab.cli.output import OutputError, console, open_streams, report_error, set_results
from scalelab.cli.parser_errors import as_usage_error
from scalelab.cli.settings import default_map
from scalelab.cli.spec_options import PanelCommand, SpecCommand
from scalelab.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PIPE,
    DataError,
    ScalelabError,
)

ORDER = (
    *("sweep", "status", "fit", "predict", "scores", "backtest", "compare"),
    *("law", "decide", "tune"),
    *("dashboard", "report"),
    *("resume", "retry", "cancel", "logs", "note", "collect", "import", "export", "tables"),
    *("evaluate", "export-model"),
    *("merge", "remove", "archive", "restore"),
    *("data", "program", "bench", "doctor"),
)
"""Commands in the order of the help: what to run first comes first."""
ANSWERS = ("fit", "predict", "decide", "compare", "tables")
"""Commands that only answer: no file, thread or process of theirs is open when they end."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise typer.Abort from stop  # Typer would end with 130, without a word

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    cls=_Commands,
    name="scalelab",
    help="Plan, train, record and fit scaling laws, and decide what to train.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing the box drawing would take half of the start-up time
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Prepare text: tokenize it before a sweep.", no_args_is_help=True)
data_app.command("prepare")(data_commands.prepare)
sweep_commands.app.command("adaptive", cls=SpecCommand)(adaptive_commands.adaptive)
app.add_typer(sweep_commands.app, name="sweep")
app.command("resume", cls=SpecCommand)(resume_commands.resume)
app.command("retry", cls=SpecCommand)(resume_commands.retry)
app.command("cancel")(resume_commands.cancel)
app.command("status")(results_commands.status)
app.command("note")(note_commands.note)
app.command("logs")(results_commands.logs)
app.command("collect")(results_commands.collect)
app.command("import")(results_commands.import_)
app.command("export")(results_commands.export)
app.command("evaluate")(evaluate_commands.evaluate)
app.command("export-model")(export_model_commands.export_model)
app.command("merge")(folders_commands.merge)
app.command("remove")(folders_commands.remove)
app.command("archive")(folders_commands.archive)
app.command("restore")(folders_commands.restore)
app.command("backtest")(backtest_commands.backtest)
app.command("compare")(compare_commands.compare)
app.command("predict")(predict_commands.predict)
app.command("scores")(scores_commands.scores)
app.command("tables")(tables_commands.tables)
app.command("fit", cls=PanelCommand)(fit_commands.fit)
app.add_typer(law_commands.app, name="law")
app.command("decide", cls=PanelCommand)(decide_commands.decide)
app.command("tune", cls=SpecCommand)(tune_commands.tune)
app.command("dashboard")(dashboard_commands.dashboard)
app.command("report")(report_commands.report)
app.add_typer(data_app, name="data")
app.add_typer(program_commands.app, name="program")
app.add_typer(bench_commands.app, name="bench")
app.command("doctor")(doctor_commands.doctor)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Plan, train, record and fit scaling laws, and decide what to train."""


def run(argv: list[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Exit codes: 0 ok, 1 bug, 2 usage, 3 bad data, 4 fit not identified, 5 runs failed, 130
    interrupted, 141 when the reader of the output has closed it (``| head``; 128 + SIGPIPE).
    ``SCALELAB_DEBUG=1`` shows the traceback of an error.
    """
    open_streams()
    try:
        code = main(argv)
        sys.stdout.flush()
    except OutputError as error:
        code = report_error(error, as_json=False)
    except (BrokenPipeError, SystemExit) as stop:
        # Rich and Typer turn a closed pipe into SystemExit with code 1.
        if not isinstance(
            stop.__context__ if isinstance(stop, SystemExit) else stop, BrokenPipeError
        ):
            raise
        code = EXIT_PIPE
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in ANSWERS:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End the process without freeing its objects one by one, which takes 0.15 s after a fit."""
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    as_json = "--json" in words
    set_results(None)
    command = lazy_group(app)
    try:
        _check_current_folder()
        code = command.main(
            args=words,
            prog_name="scalelab",
            standalone_mode=False,
            default_map=default_map(command),
        )
    except ScalelabError as error:
        if os.environ.get("SCALELAB_DEBUG"):
            raise
        return report_error(error, as_json=as_json and not isinstance(error, OutputError))
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            console().print(error.format_message(), soft_wrap=True)
            return EXIT_OK
        return report_error(as_usage_error(error, words, command), as_json=as_json)
    except (typer.Abort, KeyboardInterrupt) as stop:
        if isinstance(stop.__cause__, EOFError):
            raise stop.__cause__ from None  # not a Ctrl-C: another process has ended
        is_declined = isinstance(stop, typer.Abort) and stop.__cause__ is None
        console(stderr=True).print("nothing was started" if is_declined else "interrupted")
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else EXIT_OK


def _check_current_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise DataError(
            f"a current folder that cannot be used ({error.strerror})",
            "a current folder that exists",
            "Change to another folder, for example: cd ~",
        ) from None

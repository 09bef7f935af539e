"""``scalelab doctor``: check what scalelab needs on this machine, and say how to fix the rest."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from scalelab.cli.devices import check_accelerator, check_slurm
from scalelab.cli.machine import MISSING, OK, PROBLEM, Check, check_memory, check_results
from scalelab.cli.options import DEFAULT_RESULTS, JsonOption, ResultsOption
from scalelab.cli.output import console, emit_json, say
from scalelab.cli.qualify import check_qualification
from scalelab.errors import DataError
from scalelab.launch.devices import gpu_names
from scalelab.units import plural

BASE_USE = "every command"
EXTRA_USES = {
    "train": "training",
    "tune": "scalelab tune",
    "dashboard": "scalelab dashboard",
    "trackers": "TensorBoard",
    "tokenizers": "tokenizers of sentencepiece and tiktoken",
}

_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)\s*(?:>=\s*(?P<least>[\d.]+))?[^;]*(?:;(?P<marker>.*))?"
)
_EXTRA = re.compile(r"extra == [\"'](?P<extra>\w+)[\"']")
_SYSTEM = re.compile(r"sys_platform == [\"'](?P<system>\w+)[\"']")
_STYLES = {OK: "green", MISSING: "yellow", PROBLEM: "bold red"}


def doctor(
    disk: Annotated[
        bool,
        typer.Option(
            "--disk", help="Instead, say what takes space in the results folder and what could go."
        ),
    ] = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Check packages, GPU, SLURM, disk and results folder.

    The exit code is 0 when planning, importing and fitting work, even if optional parts
    are missing.

    Example: scalelab doctor --results runs/

    What takes space: scalelab doctor --disk
    """
    if disk:
        from scalelab.api.folders import disk_usage
        from scalelab.cli.space_view import print_space

        usage = disk_usage(results)
        if as_json:
            emit_json({"schema": 1, "command": "doctor", "disk": usage})
        else:
            print_space(usage, results)
        return 0
    checks = examine(results)
    bad = [check for check in checks if check.is_base and check.status != OK]
    if as_json:
        emit_json({"schema": 1, "command": "doctor", "ok": not bad, "checks": checks})
    else:
        _print_page(checks, bad)
    return DataError.exit_code if bad else 0


def examine(results: Path) -> list[Check]:
    """Return all checks; those that every command needs come first."""
    packages = check_packages(
        importlib.metadata.requires("scalelab") or [], importlib.metadata.version
    )
    usable = {check.name for check in packages if check.status == OK}
    return [
        check_python(),
        *packages,
        check_text(results),
        *check_results(results),
        *check_memory(),
        *check_accelerator(has_torch="torch" in usable, has_triton="triton" in usable),
        *check_qualification(results, gpu_names()),
        check_slurm(),
    ]


def check_python() -> Check:
    """Check the Python version."""
    least = importlib.metadata.metadata("scalelab")["Requires-Python"].removeprefix(">=")
    found = platform.python_version()
    is_new = _release(found) >= _release(least)
    return Check(
        name="python",
        status=OK if is_new else PROBLEM,
        found=f"{platform.python_implementation()} {found} on {platform.system()} "
        f"{platform.machine()}",
        needed_for=BASE_USE,
        do="" if is_new else f"Install Python {least} or newer.",
        is_base=True,
    )


def check_packages(
    requirements: Iterable[str], version_of: Callable[[str], str], system: str = sys.platform
) -> list[Check]:
    """Return a check for scalelab and for each package that it uses.

    Parameters
    ----------
    requirements : iterable of str
        As in the metadata of the installed package, such as ``torch>=2.11; extra == "train"``.
    version_of : callable
        Returns the installed version of a package, or raises ``PackageNotFoundError``. The packages
        are not imported.
    system : str
        ``sys.platform``, for the markers of the requirements.
    """
    checks = [
        Check(
            name="scalelab",
            status=OK,
            found=version_of("scalelab"),
            needed_for=BASE_USE,
            is_base=True,
        )
    ]
    for requirement in requirements:
        match = _REQUIREMENT.fullmatch(requirement)
        if match is None or match["name"] == "scalelab":
            continue
        marker = match["marker"] or ""
        extra = found["extra"] if (found := _EXTRA.search(marker)) else None
        wanted = found["system"] if (found := _SYSTEM.search(marker)) else system
        if wanted == system and (extra is None or extra in EXTRA_USES):
            checks.append(_package_check(match["name"], match["least"], extra, version_of))
    return checks


def _package_check(
    name: str, least: str | None, extra: str | None, version_of: Callable[[str], str]
) -> Check:
    install = f"pip install 'scalelab[{extra}]'" if extra else "pip install scalelab"
    try:
        version = version_of(name)
    except importlib.metadata.PackageNotFoundError:
        status, found, do = MISSING, "not installed", install
    else:
        is_new = least is None or _release(version) >= _release(least)
        status = OK if is_new else PROBLEM
        found = version if is_new else f"{version}, older than {least}"
        do = "" if is_new else install.replace("install", "install --upgrade", 1)
    return Check(
        name=name,
        status=status,
        found=found,
        needed_for=EXTRA_USES[extra] if extra else BASE_USE,
        do=do,
        is_base=extra is None,
    )


def check_text(results: Path) -> Check:
    """Check the default text, which is the source code of Python's standard library."""
    from scalelab.corpus.source import DataSource, find_files

    use = "sweeps without --data"
    try:
        files = find_files(DataSource(), results)
        size = sum(file.path.stat().st_size for file in files)
    except (DataError, OSError) as error:
        do = "Give your own text, for example --data corpus/."
        return Check(name="text", status=MISSING, found=str(error), needed_for=use, do=do)
    has_tests = any("test" in file.path.parts for file in files)
    return Check(
        name="text",
        status=OK,
        found=f"{plural(len(files), 'standard library file')}, {size / 1e6:.1f} MB",
        needed_for=use,
        do=""
        if has_tests
        else "This Python lacks its test files, half of the text, so runs repeat the text earlier.",
    )


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _print_page(checks: Sequence[Check], bad: Sequence[Check]) -> None:
    """Print the conclusion, then what is wrong and its remedy, then what is fine."""
    from rich.text import Text

    from scalelab.cli.layout import Fitting, number_table

    out = console()
    wrong = sorted(
        (check for check in checks if check.status != OK),
        key=lambda check: (not check.is_base, check.status != PROBLEM),
    )
    if bad:
        first = f"scalelab does not work here. Fix: {', '.join(check.name for check in bad)}."
    elif wrong:
        missing = sum(check.status == MISSING for check in wrong)
        first = (
            f"Planning, importing and fitting work. Optional: {missing} missing, "
            f"{len(wrong) - missing} with a problem."
        )
    else:
        first = "All checks passed."
    say(first, out, style="bold")
    out.print()
    for check in wrong:
        status = Text(f"{check.status}: ", style=_STYLES[check.status])
        words = f"{check.name} (for {check.needed_for}): {check.found}. {check.do}"
        say(status + Text(words), out, indent=2)
    if wrong:
        out.print()
    fine = [check for check in checks if check.status == OK]
    texts = ("ok", "found", "needed for")
    table = number_table(*texts, *(["note"] if any(c.do for c in fine) else []), texts=texts[1:])
    for column in table.columns:
        column.justify, column.overflow = "left", "fold"
    for check in fine:
        row = (check.name, check.found, check.needed_for, check.do)
        table.add_row(*row[: len(table.columns)])
    out.print(Fitting(table))

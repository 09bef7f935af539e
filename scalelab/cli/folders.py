"""``scalelab merge``, ``remove``, ``archive`` and ``restore``: whole parts of results folders."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.cli.options import DEFAULT_RESULTS, JsonOption, ResultsOption
from scalelab.cli.output import console, emit_json, runnable, warn
from scalelab.cli.progress import preparing
from scalelab.errors import EXIT_OK, UsageError
from scalelab.units import format_bytes, plural

if TYPE_CHECKING:
    from scalelab.records.merge import MergePlan
    from scalelab.records.parts import Part
    from scalelab.records.removal import RemovalPlan

DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what would happen; change nothing.")
]
ConflictsOption = Annotated[
    str | None,
    typer.Option(
        "--conflicts",
        help="Where the folders contradict: ours keeps this folder's state, theirs takes the "
        "other's. Default: stop and name the conflicts.",
    ),
]
RenameOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rename",
        metavar="NAME=NEW",
        help="Bring a sweep, import or forecast in under a new name; repeatable.",
    ),
]


def merge(
    folder: Annotated[Path, typer.Argument(help="The other results folder.", metavar="DIR")],
    conflicts: ConflictsOption = None,
    rename: RenameOption = None,
    dry_run: DryRunOption = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Bring another results folder in.

    Runs, plans, imports, forecasts and datasets of DIR are copied; DIR is only read. Runs with the
    same run ID become one run. After an interruption, run the same command again.

    Example: scalelab merge /mnt/cluster/results --dry-run
    """
    from scalelab.api import folders as api

    with preparing() as progress:
        plan = api.merge(
            folder,
            results=results,
            conflicts=conflicts,
            rename=renames_of(rename or ()),
            dry_run=dry_run,
            progress=progress,
        )
    show_merge(plan, "merge", results, is_dry=dry_run, as_json=as_json)
    return EXIT_OK


def remove(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SWEEP|RUN]...", help="Sweeps, imports, and run IDs."),
    ] = None,
    checkpoints: Annotated[
        bool,
        typer.Option("--checkpoints", help="Only the checkpoints of finished runs."),
    ] = False,
    superseded: Annotated[
        bool,
        typer.Option(
            "--superseded", help="Only attempts of finished runs that the result is not from."
        ),
    ] = False,
    outputs: Annotated[
        bool,
        typer.Option("--outputs", help="Only files that users' programs of finished runs wrote."),
    ] = False,
    unused_data: Annotated[
        bool, typer.Option("--unused-data", help="Datasets that no run uses.")
    ] = False,
    orphans: Annotated[bool, typer.Option("--orphans", help="Runs that no sweep has.")] = False,
    caches: Annotated[
        bool,
        typer.Option("--caches", help="Trunk states, and leftovers of interrupted commands."),
    ] = False,
    dry_run: DryRunOption = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation prompt.")] = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Remove sweeps, runs, or what finished runs no longer need.

    A sweep is removed with its runs, except runs that other sweeps have. A run that is named is
    also taken out of its sweep's plan. Runs that train now are refused.

    Example: scalelab remove old-sweep --dry-run

    Free space: scalelab remove --checkpoints --superseded --unused-data
    """
    from scalelab.api import folders as api

    what: dict[str, Any] = {
        "checkpoints": checkpoints,
        "superseded": superseded,
        "outputs": outputs,
        "unused_data": unused_data,
        "orphans": orphans,
        "caches": caches,
        "results": results,
    }
    plan = api.remove(*(names or ()), **what, dry_run=True)
    has_work = bool(plan.parts or plan.folders)
    if not as_json:
        _print_removal(plan)
    if has_work and not dry_run:
        if not yes:
            _ask(f"Remove {_removed(plan)}?", as_json=as_json)
        plan = api.remove(*(names or ()), **what)
    if as_json:
        emit_json(
            {
                "schema": 1,
                "command": "remove",
                "parts": plan.parts,
                "folders": plan.folders,
                "shared": plan.shared,
                "shortened": plan.shortened,
                "n_bytes": plan.n_bytes,
                "dry_run": dry_run,
            }
        )
    elif has_work and not dry_run:
        console().print(f"removed; {format_bytes(plan.n_bytes)} free again", soft_wrap=True)
    return EXIT_OK


def _ask(question: str, *, as_json: bool) -> None:
    """Ask on a terminal; elsewhere, raise UsageError, which names --yes."""
    if not as_json and sys.stdin.isatty() and sys.stderr.isatty():
        if not typer.confirm(question, err=True):
            raise typer.Abort
        return
    raise UsageError(
        "a removal without --yes where nobody can be asked",
        "--yes, or --dry-run",
        "Look with --dry-run first, then add --yes.",
    )


def _removed(plan: RemovalPlan) -> str:
    """Return what a removal takes away in words."""
    kinds = Counter(_kind_of(folder) for folder in plan.folders)
    words = [count_kinds(plan.parts), *(plural(n, kind) for kind, n in kinds.items())]
    return ", ".join(word for word in words if word)


def _kind_of(folder: Path) -> str:
    from scalelab.records.parts import OUT_FOLDER

    if folder.name.startswith(("checkpoint-", ".partial-")):
        return "checkpoint"
    if folder.name == OUT_FOLDER:
        return "output folder"
    return "attempt" if folder.parent.name == "attempts" else "cache"


def _print_removal(plan: RemovalPlan) -> None:
    out = console()
    for name, run_ids in plan.shortened.items():
        out.print(f"taken out of the plan of {name}: {', '.join(run_ids)}", soft_wrap=True)
    if plan.shared:
        sweeps = sorted({name for names in plan.shared.values() for name in names})
        out.print(
            f"{plural(len(plan.shared), 'run')} of other sweeps stay: {', '.join(sweeps)}",
            soft_wrap=True,
        )
    if not (plan.parts or plan.folders):
        out.print("nothing to remove")
        return
    out.print(f"to remove: {_removed(plan)}; frees {format_bytes(plan.n_bytes)}", soft_wrap=True)


def archive(
    sweep: Annotated[str, typer.Argument(help="Name of a sweep or import.")],
    file: Annotated[Path, typer.Argument(help="A new file, .tar.gz or .tar.zst.")],
    without_data: Annotated[
        bool, typer.Option("--without-data", help="Leave the dataset out.")
    ] = False,
    without_checkpoints: Annotated[
        bool, typer.Option("--without-checkpoints", help="Leave checkpoints out.")
    ] = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Write a sweep to one compressed file.

    The file holds plan, runs, dataset and checksums; `scalelab restore` reads it. Nothing is
    removed.

    Example: scalelab archive demo demo.tar.zst
    """
    from scalelab.api import folders as api

    with preparing() as progress:
        report = api.archive(
            sweep,
            file,
            results=results,
            with_data=not without_data,
            with_checkpoints=not without_checkpoints,
            progress=progress,
        )
    if as_json:
        emit_json({"schema": 1, "command": "archive", **asdict(report)})
        return EXIT_OK
    for name in report.left_out:
        warn(f"left out: {name}, which is a link to a folder, or no file")
    out = console()
    out.print(
        f"{report.file}: {count_kinds(report.parts)}; {plural(report.n_files, 'file')} of "
        f"{format_bytes(report.n_bytes)} in {format_bytes(report.archive_bytes)}",
        soft_wrap=True,
    )
    out.print(f"To bring it back: scalelab restore {shlex.quote(str(report.file))}", soft_wrap=True)
    return EXIT_OK


def restore(
    file: Annotated[Path, typer.Argument(help="An archive, .tar.gz or .tar.zst.")],
    conflicts: ConflictsOption = None,
    rename: RenameOption = None,
    dry_run: DryRunOption = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Bring an archived sweep back.

    The whole archive is checked before anything is written. What is here already stays, as in
    `scalelab merge`.

    Example: scalelab restore demo.tar.zst
    """
    from scalelab.api import folders as api

    with preparing() as progress:
        plan = api.restore(
            file,
            results=results,
            conflicts=conflicts,
            rename=renames_of(rename or ()),
            dry_run=dry_run,
            progress=progress,
        )
    show_merge(plan, "restore", results, is_dry=dry_run, as_json=as_json)
    return EXIT_OK


def show_merge(
    plan: MergePlan, command: str, results: Path, *, is_dry: bool, as_json: bool
) -> None:
    """Print what a merge or restore did, or would do."""
    if as_json:
        emit_json({"schema": 1, "command": command, **merge_as_json(plan), "dry_run": is_dry})
        return
    for reason in plan.left_out:
        warn(f"left out: {reason}")
    for conflict in plan.conflicts:
        warn(f"conflict: {conflict.part.label}: {conflict.what}")
    out = console()
    word = "would be " * is_dry
    out.print(f"{word}added: {count_kinds(plan.new) or 'nothing'}", soft_wrap=True)
    if plan.changed:
        out.print(f"{word}extended: {count_kinds(plan.changed)}", soft_wrap=True)
    if plan.n_same:
        out.print(f"already here: {plural(plan.n_same, 'part')}", soft_wrap=True)
    out.print(f"{format_bytes(plan.n_bytes)} {word}copied to {results}", soft_wrap=True)
    if plan.conflicts:
        out.print(
            "Nothing is merged before each conflict is decided: --conflicts ours keeps this "
            "folder's state, --conflicts theirs takes the other's, --rename NAME=NEW keeps both.",
            soft_wrap=True,
        )
    sweeps = [part.name for part in (*plan.new, *plan.changed) if part.kind == "sweep"]
    if sweeps and not is_dry:
        out.print(runnable(f"Next: scalelab status {sweeps[0]}"), soft_wrap=True)


def merge_as_json(plan: MergePlan) -> dict[str, Any]:
    """Return a merge as the JSON output has it: without the single writes."""
    return {
        "new": [asdict(part) for part in plan.new],
        "changed": [asdict(part) for part in plan.changed],
        "n_same": plan.n_same,
        "conflicts": [{**asdict(each.part), "what": each.what} for each in plan.conflicts],
        "left_out": plan.left_out,
        "n_bytes": plan.n_bytes,
    }


def renames_of(texts: Iterable[str]) -> dict[str, str]:
    """Return the new names of ``NAME=NEW`` options.

    Raises
    ------
    UsageError
        If one has another form.
    """
    renames = {}
    for text in texts:
        name, equals, new = text.partition("=")
        if not (name and equals and new):
            raise UsageError(
                f"--rename {text}", "NAME=NEW", "Write for example --rename demo=demo-cluster."
            )
        renames[name] = new
    return renames


def count_kinds(parts: Iterable[Part]) -> str:
    """Return the number of parts of each kind in words, for example ``3 runs, 1 sweep``."""
    counts = Counter(part.kind for part in parts)
    words = {"source": "source version"}
    return ", ".join(plural(n, words.get(kind, kind)) for kind, n in counts.items())

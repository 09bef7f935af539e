"""``scalelab merge``, ``remove``, ``archive`` and ``restore``: whole parts of results folders."""

from __future__ import annotations

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

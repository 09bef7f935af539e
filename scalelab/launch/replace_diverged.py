"""Replacing diverged runs by new runs with a lower learning rate."""

from __future__ import annotations

import dataclasses
import json

from scalelab.errors import UsageError
from scalelab.records.files import read_json, write_atomically
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results, SavedPlan
from scalelab.sweep.program_render import used_names

ORIGIN_FILE = "origin.json"


def replace_diverged(results: Results, saved: SavedPlan, lr_scale: float) -> SavedPlan:
    """Add a run with a scaled learning rate for each diverged run; return the new plan.

    The diverged run keeps its record; ``origin.json`` of the new run names it. Each run is replaced
    once. A second call replaces the runs that diverged since, including replacements, and restores
    replacements whose folder was lost.

    Raises
    ------
    UsageError
        If the scale is not between 0 and 1, no run diverged, or a program does not receive the
        learning rate.
    """
    if not 0 < lr_scale < 1:
        raise UsageError(
            f"--lr-scale {lr_scale:g}",
            "a number between 0 and 1",
            "Use --lr-scale 0.5 to halve the learning rate.",
        )
    diverged = [run_id for run_id in saved.run_ids if results.run(run_id).status() == "diverged"]
    if not diverged:
        raise UsageError(
            f"sweep {saved.name!r} without diverged runs",
            "a sweep with diverged runs",
            f"Run `scalelab status {saved.name}` to see its runs.",
        )
    replaced = {_replaced_by(results.run(run_id)) for run_id in saved.run_ids}
    path = results.sweep(saved.name) / "plan.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    known = {row["run_id"] for row in content["rows"]}
    for run_id in diverged:
        old = results.run(run_id).read_spec()
        if old.program is not None and not used_names(old.program) & {"lr", "lr_end"}:
            raise UsageError(
                "--lr-scale for a program without {lr}",
                "a command that receives the learning rate",
                "Plan a new sweep with '--learning_rate={lr}' in program.command.",
            )
        new = dataclasses.replace(old, lr=old.lr * lr_scale)
        run = results.run(new.run_id)
        is_lost = new.run_id in known and not run.has_spec()
        if not is_lost and (run_id in replaced or new.run_id in known):
            continue
        run.write_spec(new)
        origin = {"replaces": run_id, "lr_scale": lr_scale}
        write_atomically(run.path / ORIGIN_FILE, json.dumps(origin, indent=1))
        if not is_lost:
            content["rows"].append({"run_id": new.run_id, "budget_flops": saved.budgets[run_id]})
    write_atomically(path, json.dumps(content, indent=1), durable=True)
    return results.load_plan(saved.name)


def _replaced_by(run: RunDir) -> str | None:
    """Return the run that this one replaces, or None."""
    return (read_json(run.path / ORIGIN_FILE) or {}).get("replaces")

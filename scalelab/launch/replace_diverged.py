"""New runs in the place of diverged ones, at a lower learning rate and linked to the old."""

from __future__ import annotations

import dataclasses
import json

from scalelab.errors import UsageError
from scalelab.records.files import read_json, write_atomically
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results, SavedPlan

ORIGIN_FILE = "origin.json"


def replace_diverged(results: Results, saved: SavedPlan, lr_scale: float) -> SavedPlan:
    """Add to a sweep a run for each diverged one, its learning rate scaled; return the new plan.

    The diverged run keeps its record. The new one's folder says in ``origin.json`` which run it
    replaces. A run is replaced once: asked for again, only those are that diverged since,
    replacements among them, and a replacement whose folder was lost is written again.

    Raises
    ------
    UsageError
        When the scale is not between 0 and 1, or nothing diverged.
    """
    if not 0 < lr_scale < 1:
        raise UsageError(
            f"--lr-scale {lr_scale:g}", "a number between 0 and 1", "Use 0.5 to halve it."
        )
    diverged = [run_id for run_id in saved.run_ids if results.run(run_id).status() == "diverged"]
    if not diverged:
        raise UsageError(
            f"sweep {saved.name!r}, of which no run diverged",
            "a sweep with diverged runs",
            "Look at it with `scalelab status`.",
        )
    replaced = {_replaced_by(results.run(run_id)) for run_id in saved.run_ids}
    path = results.sweep(saved.name) / "plan.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    known = {row["run_id"] for row in content["rows"]}
    for run_id in diverged:
        old = results.run(run_id).read_spec()
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
    """Return which run this one was made to replace, None for an ordinary run."""
    return (read_json(run.path / ORIGIN_FILE) or {}).get("replaces")

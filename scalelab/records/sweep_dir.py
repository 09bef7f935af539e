"""The files of a sweep: its specification and its plan, ``<results>/sweeps/<name>/``.

::

    spec.json       the science of the sweep: what decides its runs
    plan.json       the runs, in the plan's order
    launcher.lock   held by the one process that launches it
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalelab.errors import DataError, SpecError, UsageError
from scalelab.records.files import read_json, write_atomically
from scalelab.records.names import named_folder
from scalelab.records.run_dir import RunDir
from scalelab.sweep.plan import Plan

PLAN_SCHEMA = 1
TUNE_KIND, LR_CHECK_KIND = "tune", "lr-check"
OFF_RULE_KINDS = (TUNE_KIND, LR_CHECK_KIND)
"""Kinds whose runs leave the learning-rate rule on purpose: no law of the loss is fitted to them
unless they are named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedPlan:
    """A plan as it was saved.

    Attributes
    ----------
    name, kind : str
        Of the sweep.
    created_s : float
        Unix time of the first launch.
    run_ids : tuple of str
        In the plan's order, each once.
    budgets : Mapping[str, float or None]
        Budget of each run, FLOPs.
    """

    name: str
    kind: str
    created_s: float
    run_ids: tuple[str, ...]
    budgets: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Results:
    """A results folder and where things lie in it."""

    path: Path

    def run(self, run_id: str) -> RunDir:
        """Return the folder of a run."""
        return RunDir(self.path / "runs" / run_id)

    @property
    def trunks(self) -> Path:
        """Where branches leave the states of their trunks: a cache, which costs time to delete."""
        return self.path / "trunks"

    def dataset(self, fingerprint: str) -> Path:
        """Return where the tokens with this fingerprint lie."""
        return self.path / "data" / fingerprint

    def sweep(self, name: str) -> Path:
        """Return the folder of a sweep.

        Raises
        ------
        UsageError
            When the name cannot be a folder of its own.
        """
        return named_folder(self.path / "sweeps", name, what="sweep")

    def sweep_names(self) -> list[str]:
        """Return the names of all sweeps, the one created last first."""
        plans = (self.path / "sweeps").glob("*/plan.json")
        found = [self.load_plan(path.parent.name) for path in plans]
        return [plan.name for plan in sorted(found, key=lambda plan: -plan.created_s)]

    def save_plan(self, plan: Plan, science: Mapping[str, Any], *, extend: bool) -> SavedPlan:
        """Save a sweep's specification, its plan and the spec of each run.

        The same specification of the same text again changes nothing; with ``extend`` another one
        adds its runs.

        Raises
        ------
        UsageError
            When a sweep of that name holds another specification, or runs on another text, and
            ``extend`` is not set.
        """
        folder = self.sweep(plan.name)
        spec_text = json.dumps(science, indent=1, sort_keys=True)
        earlier = self.load_plan(plan.name) if (folder / "plan.json").exists() else None
        if earlier is not None and not extend:
            differing = self._differences(earlier, plan, science)
            if differing:
                raise UsageError(
                    f"sweep {plan.name!r}, which exists with another {', '.join(differing)}",
                    "the same specification and text, to continue it, or another --name",
                    "Choose another --name, or add these runs to it with --extend (which adaptive "
                    "sweeps and tunings do not have).",
                )
        known = {} if earlier is None else earlier.budgets
        budgets = {**known, **{row.spec.run_id: row.budget_flops for row in plan.rows}}
        # A run stays in the valley for which it was planned first.
        budgets |= {run_id: budget for run_id, budget in known.items() if budget is not None}
        saved = SavedPlan(
            name=plan.name,
            kind=plan.kind,
            created_s=earlier.created_s if earlier else time.time(),
            run_ids=tuple(budgets),
            budgets=budgets,
        )
        folder.mkdir(parents=True, exist_ok=True)
        for row in plan.rows:
            self.run(row.spec.run_id).write_spec(row.spec)
        if saved == earlier and _text_of(folder / "spec.json") == spec_text:
            return saved
        write_atomically(folder / "spec.json", spec_text, durable=True)
        content = {
            "schema": PLAN_SCHEMA,
            "name": saved.name,
            "kind": saved.kind,
            "created_s": saved.created_s,
            "rules": dict(plan.rules),
            "rows": [
                {"run_id": run_id, "budget_flops": budget} for run_id, budget in budgets.items()
            ],
        }
        write_atomically(folder / "plan.json", json.dumps(content, indent=1), durable=True)
        return saved

    def load_plan(self, name: str) -> SavedPlan:
        """Return a sweep's saved plan.

        Raises
        ------
        DataError
            When there is no such sweep, or its plan cannot be read.
        """
        path = self.sweep(name) / "plan.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            budgets = {
                _typed(row, "run_id", str): _typed(row, "budget_flops", int, float, type(None))
                for row in content["rows"]
            }
            return SavedPlan(
                name=name,
                kind=_typed(content, "kind", str),
                created_s=_typed(content, "created_s", int, float),
                run_ids=tuple(budgets),
                budgets=budgets,
            )
        except FileNotFoundError:
            existing = sorted(p.parent.name for p in (self.path / "sweeps").glob("*/plan.json"))
            raise DataError(
                f"sweep {name!r}, which {self.path} does not have",
                f"one of {', '.join(existing)}" if existing else "a sweep that was launched",
                "Check the name and --results, or launch it with `scalelab sweep`.",
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"plan {path}: {error}",
                "the plan that `scalelab sweep` wrote",
                "Remove it and run the sweep's command again, with each --extend: that writes it.",
            ) from None

    def _differences(self, earlier: SavedPlan, plan: Plan, science: Mapping[str, Any]) -> list[str]:
        """Return in what a plan differs from the one that was saved under its name, in words."""
        saved = read_json(self.sweep(plan.name) / "spec.json")
        run_ids = {row.spec.run_id for row in plan.rows}
        if saved is not None:
            keys = sorted({*saved, *science})
            differing = [key for key in keys if saved.get(key) != science.get(key)]
            if differing:
                return differing
        elif not run_ids or not run_ids <= set(earlier.run_ids):
            return ["specification (its spec.json cannot be read, and these are not its runs)"]
        texts = set()
        for run_id in earlier.run_ids:
            with contextlib.suppress(SpecError):
                texts.add(self.run(run_id).read_spec().data_fingerprint)
            if plan.data.fingerprint in texts:
                return []
        if not texts:
            return []
        return [
            f"text (data {', '.join(sorted(texts))}; its files now give {plan.data.fingerprint})"
        ]


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _typed(content: Mapping[str, Any], key: str, *kinds: type) -> Any:
    if not isinstance(content[key], kinds):
        raise TypeError(f"{key} = {content[key]!r}")
    return content[key]

"""The folder of a sweep, ``<results>/sweeps/<name>/``: its specification and its plan.

::

    spec.json       the options that determine the runs
    plan.json       the runs, in the order of the plan
    execution.json  how to execute the runs, as last asked for
    launcher.lock   locked by the process that launches the sweep
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.errors import FIRST_SWEEP, DataError, SpecError, UsageError, did_you_mean
from scalelab.records.files import read_json, write_atomically
from scalelab.records.names import named_folder
from scalelab.records.run_dir import RunDir

if TYPE_CHECKING:  # a worker has no pydantic, which plans need
    from scalelab.sweep.plan import Plan

PLAN_SCHEMA = 1
SAME_BUDGET = 1e-3
"""Relative difference below which a budget of an extension is one that the sweep has."""
EXECUTION_FILE = "execution.json"
TUNE_KIND, LR_CHECK_KIND, TRANSFER_KIND = "tune", "lr-check", "transfer"
MIXTURE_KIND = "mixture"
OFF_RULE_KINDS = (TUNE_KIND, LR_CHECK_KIND, TRANSFER_KIND, MIXTURE_KIND)
"""Sweeps that vary the learning rate or the text; a fit uses their runs only if the user names
them."""
FINE_AS_BEFORE = "Sweeps planned before the option --shapes have --shapes fine."


def fit_command(sweep: str, kind: str) -> str:
    """Return the command that fits the runs of a sweep."""
    form = " --form mixture" if kind == MIXTURE_KIND else ""
    return f"scalelab fit{form} --sweep {sweep}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedPlan:
    """The plan of a sweep as saved in ``plan.json``.

    Attributes
    ----------
    name, kind : str
        Name and kind of the sweep.
    created_s : float
        Unix time of the first launch.
    run_ids : tuple of str
        In the order of the plan, each once.
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
    """A results folder."""

    path: Path

    def run(self, run_id: str) -> RunDir:
        """Return the folder of a run."""
        return RunDir(self.path / "runs" / run_id)

    @property
    def trunks(self) -> Path:
        """Cache of trunk states for the cooldown branches; deleting it costs training time."""
        return self.path / "trunks"

    @property
    def qualification(self) -> Path:
        """Verdicts on the ways to execute a step, one file for each GPU and software."""
        return self.path / "qualification"

    def dataset(self, fingerprint: str) -> Path:
        """Return the folder of the tokens with this fingerprint."""
        return self.path / "data" / fingerprint

    def sweep(self, name: str) -> Path:
        """Return the folder of a sweep.

        Raises
        ------
        UsageError
            If the name is not valid.
        """
        return named_folder(self.path / "sweeps", name, what="sweep")

    def sweep_names(self) -> list[str]:
        """Return the names of the sweeps with a readable plan, newest first."""
        found = []
        for path in (self.path / "sweeps").glob("*/plan.json"):
            with contextlib.suppress(DataError, UsageError):
                found.append(self.load_plan(path.parent.name))
        return [plan.name for plan in sorted(found, key=lambda plan: (-plan.created_s, plan.name))]

    def save_plan(self, plan: Plan, science: Mapping[str, Any], *, extend: bool) -> SavedPlan:
        """Save the specification of a sweep, its plan and the spec of each run.

        Saving the same specification and data again changes nothing. With ``extend``, another
        specification adds its runs.

        Raises
        ------
        UsageError
            If a sweep of that name has another specification or other data, and ``extend`` is not
            set.
        """
        folder = self.sweep(plan.name)
        spec_text = json.dumps(science, indent=1, sort_keys=True)
        earlier = self.load_plan(plan.name) if (folder / "plan.json").exists() else None
        if earlier is not None and not extend:
            differing = self._differences(earlier, plan, science)
            if differing:
                raise UsageError(
                    f"sweep {plan.name!r}, which exists with another {', '.join(differing)}",
                    "the same specification and dataset, to continue the sweep, or a new name",
                    f"Write --name {plan.name}-2, or add these runs to the sweep with "
                    "--extend (not for "
                    "adaptive sweeps and `tune`)."
                    + (f" {FINE_AS_BEFORE}" if "model" in differing else ""),
                )
        known = {} if earlier is None else earlier.budgets
        budgets = {**known, **{row.spec.run_id: row.budget_flops for row in plan.rows}}
        # A budget that is written in few digits is the one that the sweep has.
        own = sorted({budget for budget in known.values() if budget is not None})
        for run_id, budget in budgets.items():
            near = (each for each in own if budget and abs(budget / each - 1) < SAME_BUDGET)
            budgets[run_id] = next(near, budget)
        # A run keeps the budget for which it was planned first.
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
        if saved == earlier and read_json(folder / "spec.json") == json.loads(spec_text):
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
            If there is no such sweep, or its plan cannot be read.
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
                f"sweep {name!r}, which is not in {self.path}",
                f"one of {', '.join(existing)}" if existing else "a sweep that was launched",
                did_you_mean(name, existing)
                + f"Name another folder with --results, or launch a sweep: {FIRST_SWEEP}.",
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"plan {path}, which cannot be read ({error})",
                "the plan that `scalelab sweep` wrote",
                "Remove the file and run the sweep's commands again, those with --extend included.",
            ) from None

    def _differences(self, earlier: SavedPlan, plan: Plan, science: Mapping[str, Any]) -> list[str]:
        """Return the names of the options in which a plan differs from the saved one."""
        saved = read_json(self.sweep(plan.name) / "spec.json")
        run_ids = {row.spec.run_id for row in plan.rows}
        if saved is not None:
            keys = sorted({*saved, *science})
            differing = [key for key in keys if saved.get(key) != science.get(key)]
            # Sweeps from before the table of shapes have none; many have the same runs in both.
            is_same_model = "model" not in saved and run_ids == set(earlier.run_ids)
            if differing and not (differing == ["model"] and is_same_model):
                return differing
        elif not run_ids or not run_ids <= set(earlier.run_ids):
            return ["specification (its spec.json cannot be read, and its runs differ)"]
        texts = set()
        planned_sets = sorted(plan.data.eval_sets, key=lambda ref: ref.name)
        for run_id in earlier.run_ids:
            with contextlib.suppress(SpecError):
                spec = self.run(run_id).read_spec()
                texts.add(spec.data_fingerprint)
                if plan.data.fingerprint in texts:
                    changed = set(planned_sets) - set(spec.eval_sets)
                    return [
                        f"text of evaluation set {ref.name}"
                        for ref in sorted(changed, key=lambda ref: ref.name)
                    ]
        if not texts:
            return []
        return [
            f"dataset (fingerprint {', '.join(sorted(texts))}; the files now have "
            f"{plan.data.fingerprint})"
        ]


def _typed(content: Mapping[str, Any], key: str, *kinds: type) -> Any:
    if not isinstance(content[key], kinds):
        raise TypeError(f"{key} = {content[key]!r}")
    return content[key]

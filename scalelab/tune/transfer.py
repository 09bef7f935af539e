"""Transfer check: the same learning rates at several widths and depths.

Each shape is trained at each learning rate under each parametrization. All runs are ordinary runs
of one sweep, so the same command continues an interrupted check, and equal shapes share a step.

References
----------
Yang et al. 2022, arXiv:2203.03466, figure 1; Dey et al. 2025, arXiv:2505.01618, figure 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from scalelab.errors import UsageError
from scalelab.launch.base import LaunchReport, Watcher
from scalelab.launch.execute import resume
from scalelab.launch.proposal import Proposal
from scalelab.launch.saved_options import save_launch
from scalelab.records.states import FINAL
from scalelab.records.sweep_dir import TRANSFER_KIND, Results
from scalelab.sweep.cost import plan_cost
from scalelab.sweep.planned_run import PlannedRun
from scalelab.sweep.run_spec import PARAMETRIZATIONS
from scalelab.theory.shape import BASE_DEPTH, BASE_HEAD, BASE_WIDTH
from scalelab.tune.run_end import final_loss
from scalelab.tune.spec import TuneSpec
from scalelab.tune.transfer_fit import Cell, best_rate

WIDTHS = (BASE_WIDTH // 4, BASE_WIDTH, BASE_WIDTH * 4)
DEPTHS = (BASE_DEPTH, BASE_DEPTH * 2, BASE_DEPTH * 4)
SHAPES = ",".join(
    f"{n_layers}L-{d_model}d-{d_model // BASE_HEAD}h"
    for n_layers, d_model in dict.fromkeys(
        [*((BASE_DEPTH, d_model) for d_model in WIDTHS), *((n, BASE_WIDTH) for n in DEPTHS)]
    )
)
"""Default shapes: 16 times the width at the base depth, 4 times the depth at the base width."""
DEFAULTS: Mapping[str, Any] = {
    "name": "transfer",
    "n_tokens": "80K",
    "model": {"shape_list": SHAPES},
    "train": {"seq_len": 64, "batch_seqs": 4},
    "data": {"eval_tokens": 32_768},
}
"""Default settings of the sweep."""
LR_ENDS = (2.0**-9, 2.0**-3)
N_RATES = 7


def with_defaults(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a sweep with `DEFAULTS` where it has no value."""
    found = {**DEFAULTS, **content}
    for name, values in DEFAULTS.items():
        if isinstance(values, Mapping):
            found[name] = {**values, **content.get(name, {})}
    if content.get("n_params"):
        found["model"] = dict(content.get("model", {}))
    return found


def learning_rates(spec: TuneSpec) -> tuple[float, ...]:
    """Return the learning rates of every cell, ascending."""
    ends = spec.lr or LR_ENDS
    return tuple(float(f"{lr:.4g}") for lr in np.geomspace(*ends, spec.trials))


def proposed(
    spec: TuneSpec, proposal: Proposal, results: Results, parametrization: str | None
) -> Proposal:
    """Return the proposal of a check: all shapes, rates and parametrizations, with their cost.

    Parameters
    ----------
    spec : TuneSpec
        Its sweep has the shapes, the tokens and the training settings.
    proposal : Proposal
        Of ``spec.sweep``.
    results : Results
    parametrization : str, optional
        The only one to train; default all.

    Raises
    ------
    UsageError
        If the sweep has several numbers of tokens, or a range is given for another hyperparameter.
    """
    if spec.sweep.program is not None:
        raise UsageError(
            "--transfer with [program]",
            "the built-in trainer, whose parametrizations are compared",
            "Remove --program.",
        )
    ranged = [name for name in ("batch_seqs", "weight_decay", "beta2") if getattr(spec, name)]
    if ranged or len(spec.sweep.n_tokens) > 1:
        raise UsageError(
            f"--transfer with a range of {ranged[0] if ranged else 'n_tokens'}",
            "one value, because only the learning rate and the shape vary",
            f"Write for example {'--n-tokens 64K' if not ranged else _single(ranged[0])}.",
        )
    kinds = PARAMETRIZATIONS if parametrization is None else (parametrization,)
    rows = tuple(
        _row(row, kind, lr, spec.seed)
        for kind in kinds
        for row in proposal.plan.rows
        for lr in learning_rates(spec)
    )
    rules = {**proposal.plan.rules, "lr": "varied", "parametrization": ", ".join(kinds)}
    plan = dataclasses.replace(
        proposal.plan, name=spec.name, kind=TRANSFER_KIND, rows=rows, rules=rules
    )
    plan.refuse_repeats(allow_repeats=spec.sweep.allow_repeats)
    ids = {row.spec.run_id for row in rows}
    finished = frozenset(
        run_id
        for run_id in ids
        if not plan.data.is_estimated and results.run(run_id).status() in FINAL
    )
    speeds = [proposal.cost.speed, *(other.speed for other in proposal.elsewhere)]
    cost, *elsewhere = (plan_cost(plan, speed, skip=finished) for speed in speeds)
    return dataclasses.replace(
        proposal, plan=plan, cost=cost, elsewhere=tuple(elsewhere), finished=finished
    )


def train(spec: TuneSpec, proposal: Proposal, results: Results, watch: Watcher) -> LaunchReport:
    """Train the runs of a check that are not finished; ``watch`` receives a `LaunchView`."""
    plan = proposal.plan
    science = {"kind": TRANSFER_KIND, "sweep": spec.sweep.science()}
    results.save_plan(plan, science, extend=True)
    save_launch(results, plan.name, spec.sweep)
    saved = dataclasses.replace(
        results.load_plan(plan.name), run_ids=tuple(row.spec.run_id for row in plan.rows)
    )
    return resume(
        saved, results, watch, execution=proposal.execution, n_workers=proposal.cost.speed.n_workers
    )


def cells_of(proposal: Proposal, results: Results, level: float) -> list[Cell]:
    """Return each parametrization and shape with its losses and best learning rate."""
    groups: dict[tuple[str, str], list[PlannedRun]] = {}
    for row in proposal.plan.rows:
        key = (row.spec.parametrization, row.spec.shape.label())
        groups.setdefault(key, []).append(row)
    found = []
    for (kind, label), rows in groups.items():
        lrs = tuple(row.spec.lr for row in rows)
        losses = tuple(final_loss(results.run(row.spec.run_id)) for row in rows)
        best, low, high, is_bound = best_rate(lrs, losses, level)
        found.append(
            Cell(
                parametrization=kind,
                shape=label,
                n_layers=rows[0].spec.shape.n_layers,
                d_model=rows[0].spec.shape.d_model,
                n_params=rows[0].n_params,
                lrs=lrs,
                losses=losses,
                best_lr=best,
                low=low,
                high=high,
                is_bound=is_bound,
            )
        )
    return found


def _row(row: PlannedRun, kind: str, lr: float, seed: int) -> PlannedRun:
    spec = dataclasses.replace(row.spec, parametrization=kind, lr=lr, seed=seed)
    return dataclasses.replace(row, spec=spec)


def _single(name: str) -> str:
    value = {"batch_seqs": "4", "weight_decay": "0.1", "beta2": "0.95"}[name]
    return f"--{name.replace('_', '-')} {value}"

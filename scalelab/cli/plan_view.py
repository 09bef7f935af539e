"""Output of a plan and its cost, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from scalelab.cli.bf16_advice import bf16_words
from scalelab.cli.layout import Fitting, number_table
from scalelab.cli.mixture_view import mixture_json, mixture_words, source_columns, weight_cells
from scalelab.cli.output import WARNING_STYLE, console, say, warn_here
from scalelab.cli.program_view import (
    data_words,
    flop_convention,
    flop_words,
    print_commands,
    program_as_json,
    program_words,
)
from scalelab.corpus.eval_text import HELD_OUT
from scalelab.launch.proposal import Proposal
from scalelab.records.qualification import way_of
from scalelab.sweep.cost import PlanCost, plan_cost
from scalelab.sweep.evaluation import evaluation_steps
from scalelab.sweep.execution import AUTO, CHOICES, execution_words, is_auto, needs_qualification
from scalelab.sweep.plan import Plan
from scalelab.sweep.planned_run import PlannedRun
from scalelab.sweep.program_render import used_names
from scalelab.sweep.repeats import epochs_by_source
from scalelab.sweep.rules import FEW_STEPS
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.size_table import model_label
from scalelab.theory.accounting import DEFAULT_PARAM_CONVENTION
from scalelab.units import (
    format_count,
    format_duration,
    format_energy,
    format_flops,
    format_money,
    format_quantity,
    plural,
)

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_ROWS = 60
LONG_S = 3600.0
"""Plans longer than this, in seconds, are compared with other devices."""
JSON_SCHEMA = 1
REQUESTED = (*CHOICES, "micro_batch_seqs", "batched_runs")


def print_plan(
    proposal: Proposal, n_slurm_jobs: int | None = None, *, is_wide: bool = False
) -> None:
    """Print the plan, its totals, its cost here and on other devices, and its warnings.

    Parameters
    ----------
    proposal : Proposal
    n_slurm_jobs : int or None
        Number of SLURM jobs that run at once; the cost is then that on SLURM.
    is_wide : bool
        Whether to print steps, batch, weight decay, FLOPs, time and money of each run.
    """
    plan, cost = proposal.plan, proposal.cost
    if n_slurm_jobs is not None:
        speed = replace(cost.speed, n_workers=n_slurm_jobs)
        last = frozenset(row.spec.run_id for row in proposal.largest())
        cost = plan_cost(plan, speed, skip=proposal.finished, largest=last)
    out = console()
    out.print(Fitting(_runs(proposal, cost, is_wide=is_wide)))
    if len(plan.rows) > SHOWN_ROWS:
        left = plural(len(plan.rows) - SHOWN_ROWS, "more run")
        say(f".. and {left}; --json prints all of them.", out)
    where = "here" if n_slurm_jobs is None else "on SLURM"
    for line in _summary_lines(proposal, cost, where):
        say(line, out)
    if proposal.commands:
        print_commands(proposal.commands)
    for warning in plan.warnings():
        warn_here(warning, out)


def _runs(proposal: Proposal, cost: PlanCost, *, is_wide: bool) -> Table:
    """Return the first runs of a plan; the last column names what is wrong with a run."""
    plan = proposal.plan
    decays = {row.spec.weight_decay for row in plan.rows}
    has_decay = is_wide and len(decays) > 1
    mixes = source_columns(plan)
    columns = (
        *([] if mixes else ["C"]),
        *(("N active", "N total") if plan.has_experts else ("N",)),
        *(("D",) if mixes and not is_wide else ("D", "D/N", "shape")),
        *mixes,
        *(("steps", "batch") if is_wide else ()),
        *(["lr"] if is_wide or not mixes else []),
        *(("wd",) if has_decay else ()),
        *(("FLOPs", "time", "money") if is_wide else ()),
        "",
    )
    table = number_table(*columns, title=f"{plan.name}: {plural(len(plan.rows), 'run')}")
    if "shape" in columns:
        table.columns[columns.index("shape")].justify = "left"
    table.columns[-1].justify = "left"
    shown = list(zip(plan.rows, cost.run_seconds, strict=True))[:SHOWN_ROWS]
    for row, seconds in shown:
        is_done = row.spec.run_id in proposal.finished
        note = _problem(plan, row)
        table.add_row(
            *([] if mixes else [format_flops(row.budget_flops or row.flops)]),
            *([format_quantity(row.n_params_active)] if plan.has_experts else []),
            format_quantity(row.n_params),
            format_quantity(row.spec.n_tokens),
            *(
                []
                if mixes and not is_wide
                else [f"{row.tokens_per_param:.3g}", model_label(row.spec)]
            ),
            *(weight_cells(row.spec) if mixes else []),
            *(
                (format_count(row.spec.n_steps), f"{row.spec.batch_seqs}x{row.spec.seq_len}")
                if is_wide
                else ()
            ),
            *([_lr_words(row.spec)] if is_wide or not mixes else []),
            *((f"{row.spec.weight_decay:.2g}",) if has_decay else ()),
            *(
                (
                    format_flops(row.flops),
                    "done" if is_done else _time_words(seconds, cost),
                    ""
                    if is_done or not cost.speed.is_known
                    else format_money(_usd(row, seconds, cost)),
                )
                if is_wide
                else ()
            ),
            note or ("done" if is_done and not is_wide else ""),
            style=WARNING_STYLE if note else None,
        )
    return table


def _problem(plan: Plan, row: PlannedRun) -> str:
    """Return what is wrong with a run in a few words, empty if nothing is."""
    found = []
    for name, epochs in epochs_by_source(row.spec, plan.data).items():
        if epochs > 1:
            of_source = f" of {name}" if name else ""
            found.append(f"{format_quantity(epochs, 2)} epochs{of_source}")
    if row.spec.n_steps < FEW_STEPS:
        found.append(f"{row.spec.n_steps} steps")
    return ", ".join(found)


def _time_words(seconds: float, cost: PlanCost) -> str:
    return format_duration(seconds) if cost.speed.is_known else "unknown"


def _lr_words(spec: RunSpec) -> str:
    """Return the learning rate; empty if a program does not receive it."""
    is_used = spec.program is None or used_names(spec.program).intersection(("lr", "lr_end"))
    return f"{spec.lr:.3g}" if is_used else ""


def _usd(row: PlannedRun, seconds: float, cost: PlanCost) -> float:
    """Return the cost of a run in US dollars."""
    n_devices = cost.speed.devices_of(row.spec.run_id) if cost.speed.n_devices else 1
    return seconds / 3600 * n_devices * cost.speed.usd_per_worker_hour


def _summary_lines(proposal: Proposal, cost: PlanCost, where: str) -> list[str]:
    """Return the totals and the cost of a plan, one line each."""
    plan = proposal.plan
    facts = plan.data
    about = "about " if facts.is_estimated else ""
    done = f", {plural(len(proposal.finished), 'run')} already done" if proposal.finished else ""
    speed = cost.speed
    lines = [
        data_words(plan)
        if facts.n_train_tokens is None or not facts.n_eval_tokens
        else mixture_words(plan)
        if facts.sources
        else f"text: {about}{format_quantity(facts.n_train_tokens)} training tokens "
        f"({facts.tokenizer}), {format_quantity(facts.n_eval_tokens)} held out",
        *_evaluation_lines(plan),
        f"rules: lr {plan.rules['lr']}; batch {plan.rules['batch']}; "
        f"weight decay {plan.rules['weight_decay']}; {plan.rules['schedule']}; "
        f"shapes {plan.rules['shapes']}{_parametrization_words(plan)}",
        program_words(proposal) or f"execution: {_execution_line(proposal)}",
        *(bf16_words(plan, proposal.execution.device) if where == "here" else ()),
        f"counted: N {_counted(plan)}, FLOPs {flop_words(plan)}",
        f"total: {format_flops(plan.total_flops)} FLOPs{_shared_words(plan)}{done}",
        f"{where}: {_cost_words(cost)} on {speed.n_workers} x {speed.device} ({speed.note})"
        if speed.is_known
        else f"{where}: unknown time on {speed.n_workers} x {speed.device} ({speed.note})",
    ]
    if last := proposal.largest():
        size = last[0].budget_flops or last[0].flops
        lines.append(
            f"order: {plural(len(last), 'run')} of {format_flops(size)} FLOPs after all others; "
            "the forecast of their losses is registered before they start"
        )
    if cost.wall_s < LONG_S and speed.is_known:
        return lines
    lines += [
        f"on one {other.speed.device}: {_cost_words(other)} ({other.speed.note})"
        for other in proposal.elsewhere
    ]
    return lines


def _evaluation_lines(plan: Plan) -> list[str]:
    """Return how much each run evaluates, and the share of the cost; nothing by default."""
    if not plan.names_evaluation:
        return []
    sets = [f"{ref.name} {format_quantity(ref.n_tokens)}" for ref in plan.data.eval_sets]
    sets.insert(0, f"{HELD_OUT} {format_quantity(plan.data.n_eval_tokens)}")
    counts = sorted({len(evaluation_steps(row.spec)) + 1 for row in plan.rows})
    often = plural(counts[-1], "time") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} times"
    return [
        f"evaluation: {', '.join(sets)} tokens, {often} a run; {plan.evaluation_share:.1%} of the "
        "compute"
    ]


def _parametrization_words(plan: Plan) -> str:
    kind = plan.rules["parametrization"]
    return "" if kind == "standard" else f"; {kind} parametrization"


def _counted(plan: Plan) -> str:
    if not plan.has_experts:
        return f"{DEFAULT_PARAM_CONVENTION} (all parameters)"
    return f"active (those that a token uses; D/N and FLOPs too) and {DEFAULT_PARAM_CONVENTION}"


def _execution_line(proposal: Proposal) -> str:
    """Return what was requested and what is planned, in words."""
    request, taken = proposal.execution, proposal.taken()
    ways = taken or proposal.planned()
    planned = " or ".join(dict.fromkeys(execution_words(way) for way in ways))
    words = [planned]
    if is_auto(request):
        named = " + ".join(v for name in CHOICES if (v := getattr(request, name)) != AUTO)
        start = f"planned: {planned}"
        if needs_qualification(request):
            start = f"{start}, qualified at start" if taken is None else f"qualified: {planned}"
        words = [f"{AUTO}{f' with {named}' if named else ''} ({start})"]
    words.append(f"attention {' or '.join(dict.fromkeys(way.attention for way in ways))}")
    numbers = sorted({max(1, n) for n in proposal.gpus.values()}) or [request.n_devices]
    if numbers[-1] > 1:
        words.append(f"{' or '.join(map(str, numbers))} devices a run")
    if request.micro_batch_seqs:
        words.append(f"micro-batch of {plural(request.micro_batch_seqs, 'sequence')}")
    if request.batched_runs:
        most = request.batched_runs
        words.append("no batched runs" if most == 1 else f"at most {most} batched runs")
    return "; ".join(words)


def _shared_words(plan: Plan) -> str:
    share = plan.executed_flops / plan.total_flops if plan.rows else 1.0
    if share == 1.0:
        return ""
    return (
        f", {format_flops(plan.executed_flops)} ({share:.2f}) with shared trunk steps counted once"
    )


def plan_as_json(proposal: Proposal) -> dict[str, Any]:
    """Return the plan for the JSON of ``scalelab sweep``, with unrounded numbers."""
    plan, cost = proposal.plan, proposal.cost
    last = {row.spec.run_id for row in proposal.largest()}
    return {
        "schema": JSON_SCHEMA,
        "command": "sweep",
        "name": plan.name,
        "kind": plan.kind,
        "param_convention": DEFAULT_PARAM_CONVENTION,
        "flop_convention": flop_convention(plan),
        "rows": [
            {
                "run_id": None if plan.data.is_estimated else row.spec.run_id,
                "budget_flops": row.budget_flops,
                "n_params": row.n_params,
                "n_params_active": row.n_params_active,
                "n_tokens": row.spec.n_tokens,
                "shape": model_label(row.spec),
                "n_steps": row.spec.n_steps,
                "batch_seqs": row.spec.batch_seqs,
                "seq_len": row.spec.seq_len,
                "lr": row.spec.lr if _lr_words(row.spec) else None,
                "weight_decay": row.spec.weight_decay,
                "warmup_steps": row.spec.warmup_steps,
                "decay_steps": row.spec.decay_steps,
                "flops": row.flops,
                "epochs": plan.epochs(row),
                "mixture": mixture_json(plan, row),
                "seconds": seconds if cost.speed.is_known else None,
                "gpus": proposal.gpus.get(row.spec.run_id),
                "is_finished": row.spec.run_id in proposal.finished,
                "starts_last": row.spec.run_id in last,
            }
            for row, seconds in zip(plan.rows, cost.run_seconds, strict=True)
        ],
        "rules": dict(plan.rules),
        "execution": _execution_json(proposal) if not proposal.commands else None,
        "program": program_as_json(proposal),
        "data": {
            "tokenizer": plan.data.tokenizer,
            "n_train_tokens": plan.data.n_train_tokens,
            "n_eval_tokens": plan.data.n_eval_tokens,
            "is_estimated": plan.data.is_estimated,
            "sources": [asdict(source) for source in plan.data.sources],
            "eval_sets": {ref.name: ref.n_tokens for ref in plan.data.eval_sets},
        },
        "evaluation": {
            "share_of_flops": plan.evaluation_share,
            "times": sorted({len(evaluation_steps(row.spec)) + 1 for row in plan.rows}),
        },
        "totals": {"flops": plan.total_flops, **_cost_json(cost)},
        "elsewhere": [_cost_json(other) for other in proposal.elsewhere],
        "warnings": plan.warnings(),
    }


def _execution_json(proposal: Proposal) -> dict[str, Any]:
    request, taken = proposal.execution, proposal.taken()
    return {
        "device": request.device,
        "requested": {name: getattr(request, name) for name in REQUESTED},
        "planned": [way_of(way) for way in proposal.planned()],
        "taken": None if taken is None else [way_of(way) for way in taken],
        "is_qualified_at_start": needs_qualification(request) and taken is None,
    }


def _cost_words(cost: PlanCost) -> str:
    energy = f", {format_energy(cost.kwh)}" if cost.kwh is not None else ""
    hours = format_duration(cost.worker_hours * 3600)
    each = f" ({hours} of one worker)" if cost.speed.n_workers > 1 else ""
    return f"{format_duration(cost.wall_s)}{each}, {format_money(cost.usd)}{energy}"


def _cost_json(cost: PlanCost) -> dict[str, Any]:
    return {
        "device": cost.speed.device,
        "n_workers": cost.speed.n_workers,
        "wall_s": cost.wall_s if cost.speed.is_known else None,
        "worker_hours": cost.worker_hours if cost.speed.is_known else None,
        "usd": cost.usd if cost.speed.is_known else None,
        "kwh": cost.kwh if cost.speed.is_known else None,
        "is_measured": cost.speed.is_measured,
        "note": cost.speed.note,
    }

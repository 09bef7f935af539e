"""The ``decide`` command: what to train within limits of money, data, energy and serving."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalelab.cli.fit_page import print_gravest, print_warnings, rows_used
from scalelab.cli.layout import Fitting, number_table
from scalelab.cli.options import (
    DEFAULT_RESULTS,
    FORECASTER_HELP,
    FROM_HELP,
    LevelOption,
    MapOption,
    ResultsOption,
    given_options,
    option,
)
from scalelab.cli.output import console, emit_json, write_text
from scalelab.errors import UsageError
from scalelab.theory.hardware import GRID_SOURCE, STATED_UTILISATION, WORLD_GRAMS_PER_KWH
from scalelab.units import format_flops, format_money, format_quantity, parse_quantity

if TYPE_CHECKING:
    from scalelab.forecast.decision import Candidate, Decision
    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.law_file import SavedLaw

LIMIT, HARDWARE, SOURCE, OUT = "Limits", "Hardware, prices and serving", "Scaling law", "Output"
OF_RUNS = ("from_file", "sweep", "mapping", "holdout", "form", "forecaster")
"""Options of a fit, which do not apply to a saved or published law."""
OF_PUBLISHED = (*OF_RUNS, "level", "law", "results", "as_json", "published")
"""Options that apply with --published."""


def decide(
    context: typer.Context,
    law: Annotated[
        str | None,
        option(
            SOURCE,
            "Law file or name of a saved or published law, such as besiroglu (see `scalelab law "
            "list`). Default: fit your runs.",
        ),
    ] = None,
    from_file: Annotated[Path | None, option(SOURCE, FROM_HELP, "--from")] = None,
    sweep: Annotated[str | None, option(SOURCE, "Sweep to fit.")] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    mapping: MapOption = None,
    holdout: Annotated[
        str | None, option(SOURCE, "SQL condition: rows to leave out of the fit.")
    ] = None,
    form: Annotated[
        str, option(SOURCE, "Form of the law; it must depend on N and D.")
    ] = "chinchilla",
    forecaster: Annotated[str | None, option(SOURCE, FORECASTER_HELP, "--forecaster")] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to assess as N:D, such as 7B:2T; repeatable. Default: search for the best."
        ),
    ] = None,
    flops: Annotated[str | None, option(LIMIT, "Training compute in FLOPs, such as 1e24.")] = None,
    gpu_hours: Annotated[
        str | None, option(LIMIT, "GPU-hours of training, such as 100000.")
    ] = None,
    max_days: Annotated[str | None, option(LIMIT, "Calendar days of training, such as 30.")] = None,
    max_usd: Annotated[
        str | None, option(LIMIT, "Total cost in US dollars, including serving.")
    ] = None,
    max_kwh: Annotated[str | None, option(LIMIT, "Energy in kWh, including serving.")] = None,
    max_co2_kg: Annotated[
        str | None, option(LIMIT, "Emissions in kg CO2, including serving.")
    ] = None,
    unique_tokens: Annotated[
        str | None, option(LIMIT, "Distinct training tokens; repeated tokens count less.")
    ] = None,
    serving_gb: Annotated[
        str | None, option(LIMIT, "Memory for the served weights in GB, such as 80.")
    ] = None,
    inference_tokens: Annotated[
        str | None, option(HARDWARE, "Tokens served over the lifetime of the model.")
    ] = None,
    gpu: Annotated[str, option(HARDWARE, "Device, such as h100 or a100.")] = "h100",
    gpus: Annotated[float, option(HARDWARE, "Number of GPUs.")] = 1.0,
    utilisation: Annotated[
        float, option(HARDWARE, "Achieved share of peak FLOP/s.")
    ] = STATED_UTILISATION,
    usd_per_hour: Annotated[
        float | None,
        option(HARDWARE, "US dollars per device-hour; default: that of the hardware table."),
    ] = None,
    grid: Annotated[
        float, option(HARDWARE, f"g CO2 per kWh; the default is the {GRID_SOURCE}.")
    ] = WORLD_GRAMS_PER_KWH,
    bytes_per_param: Annotated[float, option(HARDWARE, "Bytes per parameter when serving.")] = 2.0,
    real_shapes: Annotated[
        bool,
        option(
            HARDWARE,
            "Search trainable model shapes, with exact FLOPs. Default: any N, with C = 6 N D.",
            "--real-shapes",
        ),
    ] = False,
    vocab_size: Annotated[int, option(HARDWARE, "Vocabulary for --real-shapes.", min=1)] = 32_768,
    seq_len: Annotated[int, option(HARDWARE, "Tokens per sequence.", min=1)] = 4096,
    n_experts: Annotated[
        int | None,
        option(
            HARDWARE,
            "Routed experts in each block of every candidate, with --real-shapes. Compute counts "
            "active parameters, memory all of them. Default: dense models.",
            "--n-experts",
        ),
    ] = None,
    n_active_experts: Annotated[
        int | None,
        option(HARDWARE, "Experts that a token uses; default as many as the granularity."),
    ] = None,
    granularity: Annotated[
        int | None,
        option(HARDWARE, "Width of the dense layer divided by that of an expert; default 1."),
    ] = None,
    n_shared_experts: Annotated[
        int | None, option(HARDWARE, "Experts that every token uses; default 0.")
    ] = None,
    target_loss: Annotated[
        float | None,
        typer.Option(help="Loss to reach, nats; prints the probability of missing it."),
    ] = None,
    level: LevelOption = 0.9,
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="Compare published models with the law instead of searching."
        ),
    ] = False,
    emit: Annotated[
        Path | None, option(OUT, "Write the best candidate as a sweep file, such as best.toml.")
    ] = None,
    as_json: Annotated[bool, option(OUT, "Print one JSON object on stdout.", "--json")] = False,
) -> int:
    """Find the best model to train within limits.

    Shows candidates with loss and cost, and the binding limit.

    Example: scalelab decide --law besiroglu --flops 5.76e23
    """
    from scalelab import api
    from scalelab.api import decisions as api_decide
    from scalelab.api.laws import load_law
    from scalelab.forecast.allocate import LAW
    from scalelab.forecast.decision import Deployment, Limits
    from scalelab.store.read_options import parse_map

    options = given_options(context)
    if emit is not None and emit.suffix != ".toml":
        raise UsageError(
            f"--emit {emit}", "a file that ends in .toml", f"Write --emit {emit.stem}.toml."
        )
    saved = None if law is None else load_law(law, results=results)
    of_fit = OF_RUNS if saved is None or saved.has_uncertainty else (*OF_RUNS, "level")
    if law is not None and (idle := [options[name] for name in of_fit if name in options]):
        raise UsageError(
            f"--law with {', '.join(idle)}",
            "a law that is known, or options of a fit",
            f"Remove --law {law}, or remove {', '.join(idle)}.",
        )
    if published and (idle := [o for name, o in options.items() if name not in OF_PUBLISHED]):
        raise UsageError(
            f"--published with {', '.join(idle)}",
            "options of the law: the size and compute of published models are fixed",
            f"Remove {', '.join(idle)}.",
        )
    given = {
        "flops": flops,
        "gpu_hours": gpu_hours,
        "days": max_days,
        "usd": max_usd,
        "kwh": max_kwh,
        "kg_co2": max_co2_kg,
        "unique_tokens": unique_tokens,
        "serving_bytes": serving_gb and 1e9 * parse_quantity(serving_gb, what="serving_gb"),
    }
    limits = api_decide.from_quantities(Limits, given, "limits")
    deployment = Deployment(
        gpu=gpu,
        n_devices=gpus,
        utilisation=utilisation,
        usd_per_hour=usd_per_hour,
        grams_per_kwh=grid,
        inference_tokens=0.0
        if inference_tokens is None
        else parse_quantity(inference_tokens, what="inference tokens"),
        bytes_per_param=bytes_per_param,
    )
    source: FitReport | SavedLaw
    if saved is not None:
        source = saved
    else:
        source = api.fit(
            from_file,
            sweep=sweep,
            results=results,
            mapping=parse_map(mapping or []),
            holdout=holdout,
            form=form,
            level=level,
            forecaster=LAW if published else forecaster,
        )
    if published:
        return _print_published(source, as_json=as_json)
    shapes = (vocab_size, seq_len) if real_shapes else None
    asked = {
        "n_experts": n_experts,
        "n_active_experts": n_active_experts,
        "granularity": granularity,
        "n_shared_experts": n_shared_experts,
    }
    experts = {name: value for name, value in asked.items() if value is not None}
    answer = api_decide.decide(
        source,
        limits,
        deployment,
        candidates=candidate or (),
        target_loss=target_loss,
        real_shapes=shapes,
        experts=experts,
        level=level,
    )
    if emit is not None:
        _emit(emit, answer, shapes, experts)
    if as_json:
        emit_json(answer.to_dict())
    else:
        _print(answer, source, level)
    return 0


def _emit(
    path: Path, answer: Decision, shapes: tuple[int, int] | None, experts: dict[str, int]
) -> None:
    from scalelab.api.decisions import as_sweep

    if answer.best is None:
        raise UsageError(
            "--emit, but no candidate is within the limits",
            "at least one feasible candidate",
            "Raise a limit: the last column of the table names those exceeded.",
        )
    command = "scalelab " + " ".join(shlex.quote(word) for word in sys.argv[1:])
    write_text(path, as_sweep(answer.best, command, shapes, experts), "--emit")


def _print(answer: Decision, source: FitReport | SavedLaw, wanted: float) -> None:
    from scalelab.forecast.law_file import SavedLaw

    out = console()
    saved = source if isinstance(source, SavedLaw) else None
    used = "" if isinstance(source, SavedLaw) else rows_used(source.fit.n_rows, answer.warnings)
    wraps = not out.is_terminal
    has_interval = saved is None or len(saved.draws) > 0
    level = f"{100 * wanted:g} % confidence interval" if has_interval else ""
    if answer.best is None:
        out.print(f"{used}No candidate stays within the limits.", style="bold", soft_wrap=wraps)
    else:
        by = "" if isinstance(source, SavedLaw) else f"By the {source.forecaster.label}. "
        line = f"{used}Best: {_describe(answer.best, level)}. {by}".rstrip()
        out.print(line, style="bold", soft_wrap=wraps)
        beside = answer.best.law_loss_nats
        if beside is not None and not isinstance(source, SavedLaw):
            out.print(
                f"The {source.fit.form} law alone: loss {beside:.4f} "
                f"({100 * (beside / answer.best.loss_nats - 1):+.2f} %).",
                style="dim",
                soft_wrap=wraps,
            )
    first = print_gravest(answer.warnings, out)
    if answer.best is not None:
        for name in answer.binding:
            gain = answer.relaxed.get(name)
            more = f": 10 % more saves {gain:.4f} nats" if gain is not None else ""
            out.print(f"Binding limit: {name.replace('_', ' ')}{more}", soft_wrap=wraps)
        if answer.best.miss is not None:
            chance = _percent(answer.best.miss)
            out.print(f"Probability that this run misses the target loss: {chance}")
    if saved is not None:
        out.print(f"Law {saved.name}: {saved.source}", style="dim", soft_wrap=wraps)
    if not has_interval:
        out.print("This law has no intervals: only its constants are known.", style="dim")
    has_target = any(each.miss is not None for each in answer.candidates)
    interval = [level] if level else []
    names = ("candidate", "loss", *interval, *(["misses target"] if has_target else []))
    names = (*names, "C", "GPU-hours", "cost", "kWh", "kg CO2", "")
    table = number_table(*names, texts=("candidate", ""))
    if level:
        table.columns[names.index(level)].no_wrap = False
    for each in answer.candidates:
        table.add_row(
            each.label if each.shape is None else f"{each.label}, {each.shape}",
            f"{each.loss_nats:.4f}",
            *(
                ["" if each.low is None else f"{each.low:.4f} to {each.high:.4f}"]
                if interval
                else []
            ),
            *(["" if each.miss is None else _percent(each.miss)] if has_target else []),
            format_flops(each.flops),
            format_quantity(each.costs["gpu_hours"] or 0.0),
            format_money(each.costs["usd"] or 0.0),
            format_quantity(each.costs["kwh"] or 0.0),
            format_quantity(each.costs["kg_co2"] or 0.0),
            _note(each, answer.best),
        )
    out.print(Fitting(table))
    print_warnings([w for w in answer.warnings if w is not first], out)


def _note(candidate: Candidate, best: Candidate | None) -> str:
    if best is None or not candidate.is_feasible:
        return "exceeds " + ", ".join(candidate.broken).replace("_", " ")
    saving, ratio = best.loss_nats - candidate.loss_nats, candidate.flops / best.flops
    if saving > 0:
        return f"only {saving:.1g} nats lower for {format_quantity(ratio)}x the FLOPs"
    return "best" if candidate is best else ""


def _percent(share: float) -> str:
    """Return a probability such as ``< 0.1 %``, ``3.2 %`` or ``50 %``."""
    if not 0.001 <= share <= 0.999:
        return "< 0.1 %" if share < 0.5 else "> 99.9 %"
    return f"{100 * share:.1f} %" if not 0.1 <= share <= 0.9 else f"{100 * share:.0f} %"


def _describe(best: Candidate, level: str) -> str:
    interval = "" if best.low is None else f" ({level} {best.low:.4f} to {best.high:.4f})"
    is_mixture = best.n_stored > best.n_params
    size = f" active of {format_quantity(best.n_stored)}" if is_mixture else ""
    return (
        f"N {format_quantity(best.n_params)}{size} on D {format_quantity(best.n_tokens)} tokens, "
        f"C {format_flops(best.flops)} FLOPs: loss {best.loss_nats:.4f}{interval}"
    )


def _print_published(source: FitReport | SavedLaw, *, as_json: bool) -> int:
    from scalelab.forecast.law_file import SavedLaw
    from scalelab.forecast.published import verdicts

    if isinstance(source, SavedLaw):
        source.check_params("--published")
    found = verdicts(source.law if isinstance(source, SavedLaw) else source.fit.law)
    if as_json:
        emit_json({"schema": 2, "command": "decide", "published": found})
        return 0
    names = ("N", "D", "N / optimal N", "compute saved at optimum", "assessment")
    table = number_table("model", "year", *names, texts=("model", "assessment"))
    for row in found:
        table.add_row(
            row["model"],
            str(row["year"]),
            format_quantity(row["n_params"]),
            format_quantity(row["n_tokens"]),
            f"{row['ratio']:.2f}",
            f"{100 * row['saved']:.0f} %",
            row["verdict"],
        )
    console().print(Fitting(table))
    return 0

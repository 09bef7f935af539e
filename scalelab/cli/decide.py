"""The ``decide`` command: what to train within limits of money, data, energy and serving."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalelab.cli.options import (
    DEFAULT_RESULTS,
    EXCLUDE_HELP,
    FORECASTER_HELP,
    FROM_HELP,
    METRIC_HELP,
    LevelOption,
    MapOption,
    ResultsOption,
    given_options,
    option,
)
from scalelab.cli.output import emit_json, results_words, write_text
from scalelab.errors import UsageError
from scalelab.theory.hardware import GRID_SOURCE, STATED_UTILISATION, WORLD_GRAMS_PER_KWH
from scalelab.units import parse_quantity

if TYPE_CHECKING:
    from scalelab.forecast.decision import Decision
    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.law_file import SavedLaw

LIMIT, HARDWARE, SOURCE, OUT = "Limits", "Hardware, prices and serving", "Scaling law", "Output"
MIXTURE = "Mixture of sources"
OF_MIXTURE = ("target", "n_params", "n_tokens", "max_epochs")
"""Options that apply with --mixture only."""
OF_RUNS = ("from_file", "sweep", "mapping", "metric", "holdout", "exclude", "form", "forecaster")
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
    metric: Annotated[str | None, option(SOURCE, METRIC_HELP, "--metric")] = None,
    holdout: Annotated[
        str | None, option(SOURCE, "SQL condition: rows to leave out of the fit.")
    ] = None,
    exclude: Annotated[
        str | None, option(SOURCE, EXCLUDE_HELP, "--exclude", metavar="RUN,..")
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
        str | None,
        option(
            LIMIT,
            "Distinct training tokens; repeated tokens count less. With --mixture those of the "
            "sources, such as code=2e9,web=50B.",
        ),
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
        typer.Option(
            help="Loss to reach, in the unit of --metric; prints the probability of missing it."
        ),
    ] = None,
    mixture: Annotated[
        bool,
        option(
            MIXTURE,
            "Find the weights of the sources with the lowest --target, from runs of different "
            "mixtures.",
            "--mixture",
        ),
    ] = False,
    target: Annotated[
        str | None,
        option(
            MIXTURE,
            "Loss to minimise: an evaluation set, or weights that sum to 1, such as "
            "0.5*code+0.5*web. Default: all sets alike.",
        ),
    ] = None,
    n_params: Annotated[
        str | None,
        option(MIXTURE, "Parameters of the planned model; default: those of the largest run."),
    ] = None,
    n_tokens: Annotated[
        str | None, option(MIXTURE, "Training tokens; default: those of the longest run.")
    ] = None,
    max_epochs: Annotated[
        float | None,
        option(MIXTURE, "Most passes over a source with --unique-tokens; default 4."),
    ] = None,
    level: LevelOption = 0.9,
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="Compare published models with the optimum instead of searching."
        ),
    ] = False,
    wide: Annotated[
        bool,
        option(
            OUT,
            "Also print the confidence interval of the loss, GPU-hours, energy and CO2 of each "
            "candidate.",
            "--wide",
        ),
    ] = False,
    emit: Annotated[
        Path | None, option(OUT, "Write the best candidate as a sweep file, such as best.toml.")
    ] = None,
    as_json: Annotated[bool, option(OUT, "Print one JSON object on stdout.", "--json")] = False,
) -> int:
    """Find the best model to train within limits.

    Shows candidates with loss and cost, and the binding limit. Without a limit it answers for 10
    times the compute of the largest run.

    Example: scalelab decide --law besiroglu --flops 5.76e23
    """
    from scalelab import api
    from scalelab.api import decisions as api_decide
    from scalelab.api.laws import load_law
    from scalelab.cli.decide_view import print_decision, print_published
    from scalelab.forecast.decision import Deployment, Limits
    from scalelab.forecast.more_runs import of_sweep
    from scalelab.records.sweep_words import sweep_words
    from scalelab.store.read_options import parse_map
    from scalelab.store.reading import reading_of_texts

    options = given_options(context)
    if mixture:
        from scalelab.cli.mixture_decision import decide_mixture

        return decide_mixture(
            options,
            from_file=from_file,
            sweep=sweep,
            results=results,
            mapping=parse_map(mapping or []),
            target=target,
            n_params=n_params,
            n_tokens=n_tokens,
            unique_tokens=unique_tokens,
            max_epochs=max_epochs,
            level=level,
            as_json=as_json,
        )
    if idle := [options[name] for name in OF_MIXTURE if name in options]:
        raise UsageError(
            f"{', '.join(idle)} without --mixture", "--mixture with it", "Add --mixture."
        )
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
            forecaster=forecaster,
            reading=reading_of_texts(metric=metric, exclude=exclude),
        )
    if published:
        return print_published(source, as_json=as_json)
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
    # Its commands must find the sweep that they extend, and plan runs like those of the sweep.
    stored = partial(sweep_words, results)
    answer = replace(answer, to_add=of_sweep(answer.to_add, results_words(), stored))
    if emit is not None:
        _emit(emit, answer, shapes, experts)
    if as_json:
        emit_json(answer.to_dict())
    else:
        is_usual = not (candidate or api_decide.is_bounded(limits))
        print_decision(answer, source, level, is_usual=is_usual, is_wide=wide)
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
    write_text(path, as_sweep(answer.best, command, shapes, experts, unit=answer.unit), "--emit")

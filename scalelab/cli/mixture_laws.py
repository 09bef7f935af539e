"""Output of ``scalelab fit --form mixture`` and ``scalelab decide --mixture``."""

from __future__ import annotations

import csv
import io
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.cli.interval_text import interval_text, loss_text
from scalelab.cli.layout import Fitting, number_table
from scalelab.cli.output import console, emit_json, say, warn_here
from scalelab.errors import UsageError
from scalelab.fit.mixing_folds import SCHEMES

if TYPE_CHECKING:
    from rich.console import Console

    from scalelab.fit.best_mixing import BestWeights
    from scalelab.fit.intervals import Interval
    from scalelab.fit.mixing import MixtureFit

FORM = "mixture"
FIT_OPTIONS = (
    *("from_file", "sweep", "results", "mapping", "where", "format", "metric", "form"),
    *("predict", "holdout"),
    *("bootstrap", "level", "seed", "plot", "verbose", "as_json", "as_csv"),
)
"""Options of ``fit`` that apply to mixture laws."""
DECIDE_OPTIONS = (
    *("mixture", "target", "n_params", "n_tokens", "max_epochs", "unique_tokens"),
    *("from_file", "sweep", "results", "mapping", "level", "as_json"),
)
"""Options of ``decide`` that apply to mixtures."""


def refuse_others(given: Mapping[str, str], allowed: Sequence[str], command: str) -> None:
    """Raise UsageError if an option was given that mixture laws do not use."""
    idle = [option for name, option in given.items() if name not in allowed]
    if idle:
        raise UsageError(
            f"{', '.join(idle)} with {command}",
            "options of the runs, --level, --bootstrap and the output",
            f"Remove {', '.join(idle)}.",
        )


def fit_mixtures(
    options: Mapping[str, str],
    from_file: Path | None,
    *,
    sweep: str | None,
    results: Path,
    mapping: Sequence[str],
    where: str | None,
    format: str | None,
    metric: str | None,
    holdout: str | None,
    predict: Sequence[str],
    bootstrap: int,
    level: float,
    seed: int,
    plot: Path | None,
    details: bool,
    as_json: bool,
    as_csv: bool,
) -> int:
    """Fit the mixture laws, print them as a page, JSON or CSV, and return the exit code."""
    from scalelab.api.mixtures import fit_mixture, parse_mixture, parse_target
    from scalelab.store.read_options import parse_map
    from scalelab.store.reading import Reading

    refuse_others(options, FIT_OPTIONS, f"--form {FORM}")
    fit = fit_mixture(
        from_file,
        sweep=sweep,
        results=results,
        mapping=parse_map(mapping),
        where=where,
        holdout=holdout,
        sets=None if metric is None else list(parse_target(metric, "--metric")),
        bootstrap=bootstrap if "bootstrap" in options else None,
        level=level,
        seed=seed,
        reading=Reading(format=format),
    )
    answers = {}
    for text in predict:
        weights, sizes = parse_mixture(text, fit.runs.sources)
        answers[text] = fit.predict(weights, **sizes)
    if plot is not None:
        from scalelab.report.mixture_plot import mixture_figure
        from scalelab.report.plots import write_figure

        write_figure(lambda: mixture_figure(fit), plot)
    if as_json:
        asked = [{"asked": text, "losses": losses} for text, losses in answers.items()]
        emit_json({**fit.to_dict(), "predictions": asked})
    elif as_csv:
        sys.stdout.write(_csv(fit))
    else:
        given = runs_options(from_file, sweep, mapping)
        _print_page(fit, console(), answers, plot, given, details=details)
    return 0


def runs_options(from_file: Path | None, sweep: str | None, mapping: Sequence[str]) -> str:
    """Return the options that select the runs, as typed."""
    words = [] if from_file is None else ["--from", str(from_file)]
    words += [] if sweep is None else ["--sweep", sweep]
    for text in mapping:
        words += ["--map", text]
    return " ".join(shlex.quote(word) for word in words)


def _print_page(
    fit: MixtureFit,
    out: Console,
    answers: Mapping[str, Mapping[str, Interval]],
    plot: Path | None,
    given: str,
    *,
    details: bool,
) -> None:
    from scalelab.units import format_quantity, plural

    runs = fit.runs
    n_mixtures = len(set(runs.mixtures.tolist()))
    sizes = f", {plural(len(set(runs.n_params)), 'size')}" if runs.n_params is not None else ""
    say(
        f"Mixture laws of {plural(runs.n, 'run')}: {plural(len(runs.sources), 'source')}, "
        f"{plural(n_mixtures, 'mixture')}{sizes}. Losses in {runs.unit}.",
        out,
    )
    out.print()
    table = number_table(
        "set", "law", "R2", "RMSE", *(f"{SCHEMES[s]}: RMSE" for s in _schemes(fit)),
        texts=("set", "law"), title="Law of each evaluation set, chosen by held-out error",
    )  # fmt: skip
    for name, law in fit.laws.items():
        held = [s.rmse[name] for s in fit.scores if s.form == law.form]
        table.add_row(
            name, law.form, f"{law.r2:.4f}", f"{law.rmse:.4f}", *(f"{v:.4f}" for v in held)
        )
    out.print(Fitting(table))
    out.print()
    table = number_table(
        "law", "parameters",
        *(f"{SCHEMES[s]}: {what}" for s in _schemes(fit) for what in ("R2", "RMSE")),
        texts=("law",), title="Held-out error of every law, mean over the evaluation sets",
    )  # fmt: skip
    for form, count in fit.n_parameters.items():
        cells = [
            text
            for s in fit.scores
            if s.form == form
            for text in (f"{s.mean_r2:.4f}", f"{s.mean_rmse:.4f}")
        ]
        table.add_row(form, str(count), *cells)
    out.print(Fitting(table))
    out.print()
    scale = (
        "" if runs.n_params is None else f" at N = {format_quantity(float(runs.n_params.max()))}"
    )
    table = number_table(
        "set", *runs.sources, texts=("set",),
        title="Change of the loss if 10 % more of the tokens come from a source, at the mean of "
        f"the mixtures{scale}",
    )  # fmt: skip
    for name, changes in fit.effects().items():
        table.add_row(name, *(_change(changes[source]) for source in runs.sources))
    out.print(Fitting(table))
    if details:
        for name, law in fit.laws.items():
            out.print()
            table = number_table("parameter", "value", texts=("parameter",), title=name)
            for parameter, interval in law.param_intervals(fit.level).items():
                table.add_row(parameter, interval_text(interval))
            out.print(Fitting(table))
    if answers:
        out.print()
        table = number_table("predicted", *fit.laws, texts=("predicted",))
        for text, losses in answers.items():
            table.add_row(text, *(interval_text(losses[name]) for name in fit.laws))
        out.print(Fitting(table))
    if fit.holdout is not None:
        out.print()
        table = number_table(
            "set", "R2", "RMSE", texts=("set",), title=f"{plural(fit.holdout.n, 'held-out run')}"
        )
        for name in fit.laws:
            table.add_row(name, f"{fit.holdout.r2[name]:.4f}", f"{fit.holdout.rmse[name]:.4f}")
        out.print(Fitting(table))
    for warning in fit.warnings:
        warn_here(warning.message, out)
    if plot is not None:
        say(f"Figure: {plot}", out)
    out.print()
    first = next(iter(fit.laws))
    say(f"Next: scalelab decide --mixture {given} --target {first}".replace("  ", " "), out)


def _change(interval: Any) -> str:
    if not math.isfinite(interval.low):
        return f"{interval.value:+.4f}"
    return f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _schemes(fit: MixtureFit) -> list[str]:
    return list(dict.fromkeys(s.scheme for s in fit.scores))


def _csv(fit: MixtureFit) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["set", "law", "parameter", "value", "low", "high", "level"])
    for name, law in fit.laws.items():
        for parameter, interval in law.param_intervals(fit.level).items():
            ends = (interval.value, interval.low, interval.high)
            cells = ("" if math.isnan(v) else repr(v) for v in ends)
            writer.writerow([name, law.form, parameter, *cells, fit.level])
    return out.getvalue()


def print_best(fit: MixtureFit, best: BestWeights, target: Mapping[str, float], level: float,
               *, as_json: bool) -> int:  # fmt: skip
    """Print the best weights as a page or JSON, and return the exit code."""
    if as_json:
        emit_json({"command": "decide", "target": dict(target), "level": level, **best.to_dict()})
        return 0
    from scalelab.units import format_quantity

    out = console()
    scale = ", ".join(
        f"{letter} = {format_quantity(value)}"
        for letter, value in (("N", best.n_params), ("D", best.n_tokens))
        if value is not None
    )
    words = " + ".join(
        name if weight == 1 else f"{weight:.3g} {name}" for name, weight in target.items()
    )
    at = f" at {scale}" if scale else ""
    say(
        f"Lowest {words}{at}: {interval_text(best.target)} {fit.runs.unit}. "
        f"That is {_change(best.gain)} below the best trained mixture, {best.best_run}.",
        out,
    )
    out.print()
    epochs = ["epochs"] if best.epochs else []
    table = number_table(
        "source", "weight", f"{100 * level:g} % interval", f"in {best.best_run}", *epochs, "limit",
        texts=("source", "limit"),
    )  # fmt: skip
    for name, weight in best.weights.items():
        span = "" if math.isnan(weight.low) else f"{weight.low:.3f} to {weight.high:.3f}"
        passes = [f"{best.epochs[name]:.2f}" if name in best.epochs else ""] if epochs else []
        limit = "reached" if name in best.binding else ""
        table.add_row(
            name, f"{weight.value:.3f}", span, f"{best.best_run_weights[name]:.3f}", *passes, limit
        )
    out.print(Fitting(table))
    out.print()
    table = number_table("set", "predicted loss", "law", texts=("set", "law"))
    for name, loss in best.losses.items():
        shown = interval_text(loss) if math.isfinite(loss.low) else loss_text(loss.value)
        table.add_row(name, shown, fit.laws[name].form)
    out.print(Fitting(table))
    say(
        f"Nearest trained mixture: {best.nearest}; {100 * best.distance:.0f} % of the tokens come "
        "from other sources there.",
        out,
    )
    for warning in (*fit.warnings, *best.warnings):
        warn_here(warning.message, out)
    return 0


def parse_amounts(texts: Sequence[str], option: str) -> dict[str, float]:
    """Return the number of each source in ``code=1e9,web=20B``; UsageError for other text."""
    from scalelab.units import parse_quantity

    out: dict[str, float] = {}
    for item in ",".join(texts).split(","):
        name, equals, number = (part.strip() for part in item.partition("="))
        if not equals or not name or name in out:
            raise UsageError(
                f"{option} {item.strip()!r}",
                "SOURCE=TOKENS pairs, each source once",
                f"Write for example {option} code=1e9,web=20B.",
            )
        out[name] = parse_quantity(number, what=f"{option} of {name}")
    return out

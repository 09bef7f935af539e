"""The page that ``scalelab decide`` prints: the best model, the verdict, then the candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalelab.cli.fit_page import ANSWER_STYLE, print_runs_to_add, print_verdict, rows_used
from scalelab.cli.fit_tables import DIM_STYLE
from scalelab.cli.layout import Fitting, number_table
from scalelab.cli.output import console, emit_json, say, warn_here
from scalelab.forecast.headline import basis_words, decision_sentence
from scalelab.forecast.law_file import SavedLaw
from scalelab.units import format_flops, format_money, format_quantity, plural

if TYPE_CHECKING:
    from scalelab.forecast.decision import Candidate, Decision
    from scalelab.forecast.fit_report import FitReport

LIMIT_OPTIONS = "--flops, --gpu-hours, --max-days, --max-usd, --max-kwh or --max-co2-kg"


def print_decision(
    answer: Decision,
    source: FitReport | SavedLaw,
    level: float,
    *,
    is_usual: bool,
    is_wide: bool,
) -> None:
    """Print a decision.

    Parameters
    ----------
    answer : Decision
    source : FitReport or SavedLaw
    level : float
        Level of the intervals.
    is_usual : bool
        Whether no limit was given, so that the compute is that of `usual_flops`.
    is_wide : bool
        Whether to print every cost.
    """
    out = console()
    saved = source if isinstance(source, SavedLaw) else None
    used = "" if isinstance(source, SavedLaw) else rows_used(source.fit.n_rows, answer.warnings)
    has_interval = saved is None or len(saved.draws) > 0
    if answer.best is None:
        say(f"{used}No candidate stays within the limits.", out, style=ANSWER_STYLE)
    else:
        rows = None if isinstance(source, SavedLaw) else source.observations
        say(
            used
            + decision_sentence(
                answer.best, rows, answer.metric.label, answer.unit, answer.optimum
            ),
            out,
            style=ANSWER_STYLE,
        )
    say(_basis(answer, source, level if has_interval else None), out, style=DIM_STYLE)
    if is_usual and answer.best is not None:
        say(
            f"No limit was given, so the compute is limited to {format_flops(answer.best.flops)} "
            f"FLOP; {LIMIT_OPTIONS} sets another.",
            out,
            style=DIM_STYLE,
        )
    verdict = answer.verdict
    if has_interval and verdict is not None:
        print_verdict(verdict, out)
    out.print()
    if answer.best is not None and not is_usual:
        for name in answer.binding:
            gain = answer.relaxed.get(name)
            more = f": 10 % more saves {gain:.4f} {answer.unit}" if gain is not None else ""
            say(f"Binding limit: {name.replace('_', ' ')}{more}", out)
    if answer.best is not None and answer.best.miss is not None:
        chance = _percent(answer.best.miss)
        say(f"Probability that this run misses the target loss: {chance}", out)
    out.print(_table(answer, has_interval=has_interval, is_wide=is_wide))
    if answer.to_add:
        print_runs_to_add(answer.to_add, level, out)
    if not has_interval and verdict is not None:
        print_verdict(verdict, out)


def _basis(answer: Decision, source: FitReport | SavedLaw, level: float | None) -> str:
    """Return what predicts, and what the numbers in brackets are."""
    if isinstance(source, SavedLaw):
        by = f"law {source.name}: {source.source}"
    else:
        by = f"by the {source.forecaster.label}"
    if level is None:
        return f"{by[0].upper()}{by[1:]}. No intervals: only its constants are known."
    law, best = "", answer.best
    if best is not None and best.law_loss_nats is not None and not isinstance(source, SavedLaw):
        difference = 100 * (best.law_loss_nats / best.loss_nats - 1)
        law = (
            f" The {source.fit.form} law alone, at the same N and D: {best.law_loss_nats:.4f} "
            f"({difference:+.2f} %)."
        )
    return f"{basis_words(by, level, answer.optimum)}{law}"


def _table(answer: Decision, *, has_interval: bool, is_wide: bool) -> Fitting:
    """Return the candidates with loss and costs."""
    has_target = any(each.miss is not None for each in answer.candidates)
    names = (
        *("candidate", f"{answer.metric.label} ({answer.unit})"),
        *(["prediction interval"] if has_interval else []),
        *(["confidence interval"] if has_interval and is_wide else []),
        *(["misses target"] if has_target else []),
        *("FLOPs", "cost"),
        *(["GPU-hours", "kWh", "kg CO2"] if is_wide else []),
        "",
    )
    table = number_table(*names, texts=("candidate", ""))
    for each in answer.candidates:
        table.add_row(
            each.label if each.shape is None else f"{each.label}, {each.shape}",
            f"{each.loss_nats:.4f}",
            *([_limits(each.pred_low, each.pred_high)] if has_interval else []),
            *([_limits(each.low, each.high)] if has_interval and is_wide else []),
            *(["" if each.miss is None else _percent(each.miss)] if has_target else []),
            format_flops(each.flops),
            format_money(each.costs["usd"] or 0.0),
            *(
                [
                    format_quantity(each.costs[name] or 0.0)
                    for name in ("gpu_hours", "kwh", "kg_co2")
                ]
                if is_wide
                else []
            ),
            _note(each, answer),
        )
    return Fitting(table)


def _limits(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{low:.4f} to {high:.4f}"


def _note(candidate: Candidate, answer: Decision) -> str:
    best = answer.best
    if candidate is not best and candidate.exceeded:
        return f"exceeds {candidate.exceeded}"
    if best is None:
        return ""
    saving, ratio = best.loss_nats - candidate.loss_nats, candidate.flops / best.flops
    if saving > 0:
        return f"only {saving:.1g} {answer.unit} lower for {format_quantity(ratio)}x the FLOPs"
    return "best" if candidate is best else ""


def _percent(share: float) -> str:
    """Return a probability such as ``< 0.1 %``, ``3.2 %`` or ``50 %``."""
    if not 0.001 <= share <= 0.999:
        return "< 0.1 %" if share < 0.5 else "> 99.9 %"
    return f"{100 * share:.1f} %" if not 0.1 <= share <= 0.9 else f"{100 * share:.0f} %"


def print_published(source: FitReport | SavedLaw, *, as_json: bool) -> int:
    """Print published models, each compared with the optimum of a law, and return the exit code."""
    from scalelab.forecast.allocate import LAW
    from scalelab.forecast.extrapolation import fitted_range
    from scalelab.forecast.published import NEAR_FACTOR, far_words, verdicts

    if isinstance(source, SavedLaw):
        source.check_params("--published")
    if isinstance(source, SavedLaw):
        found, what, name = verdicts(source.law), f"law {source.name}", LAW
    else:
        found = verdicts(source.averaged or source.fit.law)
        what, name = source.forecaster.label, source.forecaster.name
    if as_json:
        emit_json({"schema": 2, "command": "decide", "forecaster": name, "published": found})
        return 0
    out = console()
    counts = {name: sum(_short(row) == name for row in found) for name in ASSESSMENTS}
    say(
        f"Of {plural(len(found), 'published model')}, "
        + ", ".join(f"{count} are {name}" for name, count in counts.items())
        + f" by the {what}.",
        out,
        style=ANSWER_STYLE,
    )
    fitted = (
        source.fitted_range() if isinstance(source, SavedLaw) else fitted_range(source.observations)
    )
    if fitted and (far := far_words([row["flops"] for row in found], fitted.flops)):
        warn_here(far, out)
    names = ("N", "D", "N/N_opt", "saved")
    table = number_table("model", "year", *names, "assessment", texts=("model", "assessment"))
    for row in found:
        table.add_row(
            row["model"],
            str(row["year"]),
            format_quantity(row["n_params"]),
            format_quantity(row["n_tokens"]),
            f"{row['ratio']:.2f}",
            f"{100 * row['saved']:.0f} %",
            _short(row),
        )
    out.print(Fitting(table))
    say(
        "N/N_opt: size divided by the compute-optimal one. saved: compute that the optimum saves "
        "at equal loss. over-trained: smaller than optimal, cheaper to serve. under-trained: too "
        f"large for its compute. near the optimum: within a factor of {NEAR_FACTOR:g}.",
        out,
        style=DIM_STYLE,
    )
    return 0


ASSESSMENTS = ("over-trained", "near the optimum", "under-trained")


def _short(row: dict[str, object]) -> str:
    """Return the assessment of a published model without its explanation."""
    return str(row["verdict"]).partition(":")[0]

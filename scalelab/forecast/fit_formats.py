"""A fit as CSV and as a LaTeX table, and numbers and text in LaTeX."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scalelab.forecast.fit_report import FitReport

_TEX_NAMES = {
    "alpha": r"$\alpha$",
    "beta": r"$\beta$",
    "gamma": r"$\gamma$",
    "a": r"$a$ ($N_\mathrm{opt} \propto C^a$)",
    "b": r"$b$ ($D_\mathrm{opt} \propto C^b$)",
    **{name: f"${name}$" for name in "ABEG"},
}


def to_csv(report: FitReport) -> str:
    """Return the parameters of a fit, derived exponents and forecasts as CSV, one per line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("kind", "name", "value", "low", "high", "pred_low", "pred_high"))
    for kind, group in (("param", report.params), ("derived", report.derived)):
        for name, i in group.items():
            writer.writerow((kind, name, *map(_digits, (i.value, i.low, i.high)), "", ""))
    for point in report.frontier:
        for name in ("n_params", "n_tokens", "a", "b"):
            i = getattr(point, name)
            where = f"{name} at C={point.flops:g}"
            writer.writerow(("frontier", where, *map(_digits, (i.value, i.low, i.high)), "", ""))
    for f in report.forecasts:
        for name, size in (("n_params", f.n_params), ("n_tokens", f.n_tokens)):
            if size is not None:
                limits = map(_digits, (size.value, size.low, size.high))
                writer.writerow(("prediction", f"{name} at {f.asked}", *limits, "", ""))
        limits = map(_digits, (f.loss_nats, f.low, f.high, f.pred_low, f.pred_high))
        key = "loss_nats" if report.metric is None else report.metric.key
        writer.writerow(("prediction", f"{key} at {f.asked}", *limits))
    return out.getvalue()


def to_tex(report: FitReport) -> str:
    """Return the parameters of a fit as a LaTeX table; the caption states the objective."""
    objective = report.fit.objective
    rows = [
        f"{_TEX_NAMES.get(name, tex_text(name))} & {tex_number(i.value)} & "
        f"[{tex_number(i.low)}, {tex_number(i.high)}] \\\\"
        for name, i in (*report.params.items(), *report.derived.items())
    ]
    delta = f", $\\delta = {tex_number(objective.threshold).strip('$')}$"
    caption = (
        f"{tex_text(report.fit.form)} form, {tex_text(report.label)}"
        f"{f' ({report.unit})' if report.unit else ''}, {report.fit.n_rows} runs, "
        f"{objective.loss} of the {objective.residual} residual"
        f"{delta if objective.loss == 'huber' else ''}; "
        f"{report.level:.0%} intervals from {report.fit.bootstrap.k} {report.fit.bootstrap.method} "
        f"bootstrap replicates; status {tex_text(report.law_status)}."
    ).replace("%", "\\%")
    return "\n".join(
        [
            "\\begin{table}",
            f"\\caption{{{caption}}}",
            "\\begin{tabular}{lrr}",
            "\\hline",
            f"parameter & value & {report.level:.0%} interval \\\\".replace("%", "\\%"),
            "\\hline",
            *rows,
            "\\hline",
            "\\end{tabular}",
            "\\end{table}",
            "",
        ]
    )


def tex_number(value: float) -> str:
    """Return five significant digits as LaTeX mathematics."""
    if not math.isfinite(value):
        return "--"
    text = f"{value:.5g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"${mantissa} \\times 10^{{{int(exponent)}}}$"
    return f"${text}$"


def tex_text(text: str) -> str:
    """Return text as LaTeX."""
    return text.replace("_", r"\_")


def _digits(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else ""

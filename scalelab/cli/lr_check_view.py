"""Output of ``--lr-check``: one line per budget, as text and JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from scalelab.cli.layout import Fitting, number_table
from scalelab.cli.output import console

if TYPE_CHECKING:
    from scalelab.tune.lr_check import Verdict


def verdicts_as_json(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    """Return the verdicts for the ``lr_check`` key of the JSON output."""
    rows = [asdict(found) for found in verdicts]
    for row in rows:
        row["held"] = row.pop("has_held")
    return rows


def print_verdicts(verdicts: list[Verdict]) -> None:
    """Print a line for each budget, and a summary."""
    from scalelab.tune.lr_check import HELD_WITHIN
    from scalelab.units import format_flops, format_quantity

    out = console()
    columns = ("budget", "N", "lr", "lower", "rule", "upper", "best lr", "rule held")
    table = number_table(*columns, title="learning-rate check")
    for found in verdicts:
        table.add_row(
            format_flops(found.budget_flops),
            format_quantity(found.n_params),
            f"{found.lrs[1]:.3g}",
            *(_loss(loss) for loss in found.losses),
            "" if found.best_lr is None else f"{found.best_lr:.3g}",
            {True: "yes", False: "no", None: "?"}[found.has_held],
        )
    out.print(Fitting(table))
    n_lost = sum(found.has_held is False for found in verdicts)
    n_open = sum(found.has_held is None for found in verdicts)
    words = f"The rule held at {len(verdicts) - n_lost - n_open} of {len(verdicts)} budgets"
    words += f" (half and twice its rate improve the loss by less than {HELD_WITHIN:.2%})."
    if n_lost:
        words += " Measure a better rule with `scalelab tune`, then use --lr-rule tuned:NAME."
    out.print(words, soft_wrap=True)


def _loss(loss: float | None) -> str:
    if loss is None:
        return "-"
    return f"{loss:.4f}" if math.isfinite(loss) else "diverged"

"""Say where numbers cannot be in the unit in which they are read."""

from __future__ import annotations

import numpy as np

from scalelab.logs.losses import LARGEST_NATS, SMALLEST_NATS
from scalelab.records.types import Observations
from scalelab.units import format_quantity, plural

FEWEST_PARAMS = 100
FEWEST_TOKENS_PER_PARAM = 1e-3


def plausibility_notes(rows: Observations, *, is_nats: bool) -> dict[str, str]:
    """Return notes on losses, sizes and tokens that are impossible in their unit.

    Parameters
    ----------
    rows : Observations
    is_nats : bool
        Whether the losses are read as nats per token.
    """
    notes: dict[str, str] = {}
    loss, n, d = rows.loss_nats, rows.n_params, rows.n_tokens
    if is_nats and not rows.is_signed:
        high, low = int((loss > LARGEST_NATS).sum()), int((loss < SMALLEST_NATS).sum())
        if high:
            notes["impossible_loss"] = (
                f"{plural(high, 'loss', 'losses')} above {LARGEST_NATS:g} nats (up to "
                f"{loss.max():.4g}), which is worse than chance for any vocabulary. If they are "
                "perplexities, write --loss-unit perplexity or --map loss_nats=ln(COLUMN)."
            )
        elif low:
            notes["impossible_loss"] = (
                f"{plural(low, 'loss', 'losses')} below {SMALLEST_NATS:g} nats per token (down to "
                f"{loss.min():.3g}), less than the entropy of text. Check the column and its unit, "
                "for example --loss-unit bits-per-byte."
            )
    with np.errstate(invalid="ignore"):
        small = int((n < FEWEST_PARAMS).sum())
        few = int((d < n * FEWEST_TOKENS_PER_PARAM).sum())
    if small:
        notes["impossible_size"] = (
            f"{plural(small, 'row')} with fewer than {FEWEST_PARAMS} parameters (N from "
            f"{format_quantity(float(n.min()))}). If the column is in millions, write --map "
            '"n_params=COLUMN*1e6".'
        )
    elif few:
        notes["impossible_tokens"] = (
            f"{plural(few, 'row')} with fewer tokens than parameters / 1,000 (D from "
            f"{format_quantity(float(d.min()))}). If the column is in billions, write --map "
            '"n_tokens=COLUMN*1e9".'
        )
    return notes

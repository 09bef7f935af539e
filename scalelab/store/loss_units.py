"""Convert the losses of a table to nats, by the option ``--loss-unit`` or the column's name."""

from __future__ import annotations

from scalelab.arrays import FloatArray
from scalelab.logs.losses import BPB, NATS, PERPLEXITY, in_nats, unit_of
from scalelab.store.read_options import ReadOptions
from scalelab.store.table_source import TableSource


def convert_loss(
    core: dict[str, FloatArray], theirs: str, source: TableSource, options: ReadOptions
) -> tuple[str, dict[str, str]]:
    """Convert the losses in ``core`` to nats; bits per byte stay as they are.

    Parameters
    ----------
    core : dict of str to ndarray
        Columns of the table; ``loss_nats`` is replaced.
    theirs : str
        The column or expression that was read.
    source : TableSource
    options : ReadOptions

    Returns
    -------
    unit : str
        Nats or bits per byte.
    notes : dict of str to str
        What was converted, by code.
    """
    if source.is_log or options.is_signed:
        return (BPB if "loss_unit" in source.notes else NATS), {}
    unit = options.reading.loss_unit or (unit_of(theirs) if theirs in source.types else NATS)
    if unit == BPB:
        return BPB, {
            "loss_unit": f"The losses ({theirs}) are in bits per byte; every loss of this fit is "
            "in that unit."
        }
    if unit == NATS:
        return NATS, {}
    core["loss_nats"] = in_nats(core["loss_nats"], unit)
    how = "their logarithm" if unit == PERPLEXITY else "ln 2 times them"
    return NATS, {
        "loss_unit": f"{theirs} is read as {unit}: the losses are {how}, in nats. If they are in "
        "nats already, write --loss-unit nats."
    }

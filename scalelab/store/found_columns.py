"""Find the columns of N, D, C and the loss by their names where a table has not ours."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

from scalelab.logs.losses import is_held_out, plain, rank_losses, unit_of
from scalelab.store.cells import header_scale
from scalelab.store.columns import SIZES, USUAL_NAMES
from scalelab.store.table_source import TableSource, quote

_UNITS = ("_k", "_m", "_b", "_t", "_thousand", "_million", "_billion", "_trillion",
          "_thousands", "_millions", "_billions", "_trillions")  # fmt: skip


def candidates(wanted: str, columns: Iterable[str]) -> list[str]:
    """Return the columns whose names say that they hold ``wanted``, the most likely first.

    Unlike `scalelab.store.columns.likely_columns`, no misspelt name is taken.
    """
    names = list(columns)
    if wanted == "loss_nats":
        usual = [name for name in names if _bare(name) in USUAL_NAMES["loss_nats"]]
        return list(dict.fromkeys([*rank_losses(names), *usual]))
    usual_names = (wanted, *USUAL_NAMES.get(wanted, ()))
    by_name = {name: _bare(name) for name in names}
    return [name for word in usual_names for name, bare in by_name.items() if bare == word]


def find(missing: Sequence[str], columns: Iterable[str]) -> dict[str, str]:
    """Return the column that holds each missing one of ours, where exactly one does.

    A loss on held-out data precedes a training loss, and nats precede other units.
    """
    names = list(columns)
    found: dict[str, str] = {}
    for wanted in missing:
        able = candidates(wanted, [name for name in names if name not in found.values()])
        if wanted == "loss_nats" and len(able) > 1:
            best = (is_held_out(able[0]), unit_of(able[0]))
            able = [name for name in able if (is_held_out(name), unit_of(name)) == best]
        if len(able) == 1:
            found[wanted] = able[0]
    return found


def find_needed(
    source: TableSource, found: Mapping[str, str], needs: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return what to read for columns that are missing, and a note that says so.

    Of N, D and C, two are enough; C is taken last.
    """
    left = [name for name in source.types if name not in found.values()]
    wanted = [] if "loss_nats" in found else ["loss_nats"]
    n_missing = len(SIZES) - 1 - sum(name in found for name in SIZES)
    if n_missing > 0:
        wanted += [name for name in SIZES if name not in found and name in needs]
    able = {
        ours: theirs
        for ours, theirs in find(wanted, left).items()
        if theirs.lower() not in source.repeated
    }
    for name in [name for name in SIZES if name in able][max(n_missing, 0) :]:
        del able[name]
    if not able:
        return {}, {}
    chosen = expressions(able)
    words = ", ".join(f"{ours} from {theirs}" for ours, theirs in able.items())
    option = shlex.quote(",".join(f"{ours}={theirs}" for ours, theirs in chosen.items()))
    notes: dict[str, str] = {}
    notes["found_columns"] = (
        f"Columns found by their names: {words}. To choose others: --map {option}."
    )
    return chosen, notes


def expressions(found: Mapping[str, str]) -> dict[str, str]:
    """Return what to read for each found column: a column, or one with the scale of its name."""
    return {
        ours: f"{quote(theirs)} * {scale:.0e}"
        if ours in SIZES and (scale := header_scale(theirs)) != 1
        else theirs
        for ours, theirs in found.items()
    }


def _bare(name: str) -> str:
    """Return a name without capitals, signs and the unit at its end."""
    word = plain(name)
    if header_scale(name) != 1:
        return next((word.removesuffix(unit) for unit in _UNITS if word.endswith(unit)), word)
    return word

"""Runs: table of all runs, training curves of selected ones, and how to restart failed ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from scalelab.report import figures_runs
from scalelab.units import plural
from scalelab_dashboard import glossary, point, queries, ui, waiting

if TYPE_CHECKING:
    from scalelab_dashboard.choice import Choice

MAX_SELECTED = 12
MARK = "fit"
"""Column with what the fit says about a run, where it says something about any."""
COLUMNS = (
    "run_id",
    "status",
    MARK,
    "reason",
    "n_params",
    "n_tokens",
    "flops",
    "loss_nats",
    "lr",
    "batch_seqs",
    "n_layers",
    "d_model",
    "seed",
    "epochs",
    "wall_s",
    "attempts",
    "device",
)
VARYING = (
    *("n_heads", "n_kv_heads", "d_head", "d_ff", "vocab_size", "is_tied", "has_qk_norm"),
    *("n_experts", "n_active_experts", "d_shared_expert", "granularity"),
    *("seq_len", "schedule", "warmup_steps", "decay_steps", "lr_end_ratio"),
    *("optimizer", "parametrization", "beta1", "beta2", "epsilon", "weight_decay", "grad_clip"),
    *("z_loss", "logit_softcap", "is_document_masked", "balance_weight", "router_z_weight"),
    *("init_std", "ema_decay", "precision", "tokenizer"),
)
"""Columns shown only where the runs of the sweep differ in them."""
ACTIVE = "n_params_active"
"""Column shown beside all parameters where the two differ."""
FOLLOWING = ("n_heads", "d_head", "d_ff", "n_kv_heads", "warmup_steps", "decay_steps")
"""Columns that vary with the size or the length of a run in every sweep; shown where they do not
follow from it."""
SETTINGS = (*("lr", "batch_seqs", "n_layers", "d_model", "seed", "epochs", "attempts", "device"),)
"""Columns left out where all runs have one value: the last column is in view at 1,280 pixels."""
WORDS = {"batch_seqs": "batch", "n_layers": "layers", "d_model": "width"}
"""Headers of columns whose names are not theirs."""
AXES = ("tokens", "flops")
PAGE_ROWS = 2_000
"""Rows sent to the browser at a time, which it can sort."""
ORDERS = {
    "failed first": None,
    "lowest loss": ("loss_nats", True),
    "highest loss": ("loss_nats", False),
    "most FLOPs": ("flops", False),
    "most parameters": ("n_params", False),
    "longest time": ("wall_s", False),
}
"""Sort orders of a table with several pages: column, and whether it is ascending."""
STATES = (
    *("done", "running", "queued", "planned"),
    *("failed", "diverged", "pruned", "preempted", "cancelled"),
)


def show(choice: Choice) -> None:
    """Draw the page."""
    if choice.source is None:
        if choice.table is None:
            waiting.nothing(choice)
        else:
            st.info("The rows of a table are in the **Data** view.")
        return
    table = queries.runs(choice.results, choice.source.name, choice.stamp)
    # A fragment is known by its place: it must not move when the fit is done, or what the reader
    # types at that moment is for a fragment that is not there any more.
    with st.container():
        marks = point.marks(choice)
    if marks:
        table = table.assign(**{MARK: table["run_id"].map(marks).fillna("")})
        table = table.iloc[(table[MARK] == "").to_numpy().argsort(kind="stable")]
    browser(choice, table)


@st.fragment
def browser(choice: Choice, table: pd.DataFrame) -> None:
    """Draw filter, table and curves, as a fragment: selecting runs redraws nothing else."""
    assert choice.source is not None
    left, right = st.columns(2)
    with left:
        states = st.multiselect(
            "Status",
            STATES,
            key="status",
            bind="query-params",
            placeholder="all",
            help=glossary.about("State, status"),
        )
    with right:
        text = st.text_input(
            "Find", key="find", bind="query-params", placeholder="part of a run_id or an error"
        )
    found = filtered(table, states, text or "")
    shown, where = page_of(found)
    same = shared(table)
    seen, flops = view(shown, varying(table), tuple(same))
    picked = st.dataframe(
        seen,
        hide_index=True,
        height=380,
        key=f"runs_table{where}",  # each page has its own selection
        on_select="rerun",
        selection_mode="multi-row",
        alt=f"{len(found)} runs with status, size, loss and errors",
        column_config=_config(flops),
    )
    chosen = [i for i in picked["selection"]["rows"] if i < len(shown)][:MAX_SELECTED]
    st.caption(
        f"{len(found):,} of {len(table):,} runs{where}. Click a header to sort, or the left edge "
        f"of a row to select it (up to {MAX_SELECTED})." + ui.as_text(same_words(same))
    )
    with st.container():  # keeps the place of the curves, as in `show`
        _faults(choice, found, shown.iloc[chosen])
        if len(chosen) == 1:
            _one(choice, str(shown["run_id"].iloc[chosen[0]]))
    ids = tuple(shown["run_id"].iloc[chosen]) or _best(found)
    if ids and choice.source.kind != "import":
        curves(choice, ids, is_chosen=bool(chosen))


def _one(choice: Choice, name: str) -> None:
    """Draw what can be done with one selected run."""
    with st.container(horizontal=True):
        to_overview = st.button(
            "Show on the Overview", on_click=point.to_overview, args=(name,), key="to_overview"
        )
        if point.exclude_button(choice, name) or to_overview:
            st.rerun()  # the whole page, not only this fragment


def page_of(found: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the rows of the chosen page in the chosen order, and their range as text."""
    n_pages = -(-len(found) // PAGE_ROWS)
    if n_pages <= 1:
        return found, ""
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    with left:
        name = st.selectbox("Sort order", ORDERS, key="order", bind="query-params")
    with right:
        page = st.pagination(n_pages, key="part", bind="query-params")
    order = ORDERS[name or next(iter(ORDERS))]
    if order is not None:
        column, is_ascending = order
        found = found.sort_values(column, ascending=is_ascending, kind="stable")
    start = (page - 1) * PAGE_ROWS
    part = found.iloc[start : start + PAGE_ROWS]
    return part, f", of which {start + 1:,} to {start + len(part):,} are on this page"


@st.fragment
def curves(choice: Choice, run_ids: tuple[str, ...], *, is_chosen: bool) -> None:
    """Draw training curves, as a fragment that does not redraw the table."""
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    with left:
        st.subheader("Training curves")
        st.caption(
            "Selected runs."
            if is_chosen
            else "Finished runs with the lowest loss. Select others in the table."
        )
    with right:
        by = st.segmented_control(
            "Against",
            AXES,
            default=AXES[0],
            key="against",
            bind="query-params",
            required=True,
        )
    ui.plot(
        "curves",
        (choice.results, choice.stamp, run_ids),
        lambda look: figures_runs.curves(
            queries.curves(choice.results, run_ids, choice.stamp), by or AXES[0], look
        ),
        by,
        of=f"sweep {choice.shown}",
    )


def filtered(table: pd.DataFrame, states: list[str], text: str) -> pd.DataFrame:
    """Return the rows with one of the states (none: any) and the text in run_id or error."""
    keep = pd.Series(True, index=table.index)
    if states:
        keep &= table["status"].isin(states)
    if text:
        error = table["reason"].fillna("") if "reason" in table else ""
        words = table["run_id"] + " " + error
        keep &= words.str.contains(text, case=False, regex=False)
    return table[keep]


def varying(table: pd.DataFrame) -> list[str]:
    """Return the settings in which the runs differ beyond what follows from size and length."""
    found = [name for name in VARYING if name in table and _differs(table, name)]
    return [ACTIVE, *found] if _has_inactive(table) else found


def shared(table: pd.DataFrame) -> dict[str, Any]:
    """Return the settings that all of several runs have in common, whose columns say nothing."""
    names = [name for name in SETTINGS if name in table and len(table) > 1]
    values = {name: table[name].dropna().unique() for name in names}
    return {name: found[0] for name, found in values.items() if len(found) == 1}


def same_words(same: dict[str, Any]) -> str:
    """Return what all runs have in common as a sentence, with a space before it."""
    if not same:
        return ""
    words = (
        f"{WORDS.get(name, name)} {value if isinstance(value, str) else ui.digits(float(value))}"
        for name, value in same.items()
    )
    return f" All runs: {', '.join(words)}."


def _has_inactive(table: pd.DataFrame) -> bool:
    """Say whether some runs have experts, so that a token does not use all parameters."""
    if ACTIVE not in table:
        return False
    return bool((table[ACTIVE] < table["n_params"]).any())


def _differs(table: pd.DataFrame, name: str) -> bool:
    # Runs that have not started have no values.
    if len(table[name].dropna().unique()) <= 1:
        return False
    by = "n_steps" if name in ("warmup_steps", "decay_steps") else "d_model"
    if name not in FOLLOWING or by not in table:
        return True
    pairs = table[[by, name]].dropna().drop_duplicates()
    return bool(pairs[by].duplicated().any())


def view(
    table: pd.DataFrame, more: Sequence[str] = (), less: Sequence[str] = ()
) -> tuple[pd.DataFrame, str]:
    """Return the shown columns with ``more`` and without ``less``, and the name of FLOPs."""
    names = [name for name in COLUMNS if name in table and name not in less]
    at = names.index("seed") if "seed" in names else len(names)
    names[at:at] = more
    if "reason" in names and not table["reason"].notna().any():
        names.remove("reason")
    shown = table[names].copy()
    if "reason" in names:
        shown["reason"] = shown["reason"].fillna("")
    name = "flops"
    if len(shown):
        flops, name = ui.scaled(shown, "flops")
        shown["flops"] = flops
        shown = shown.rename(columns={"flops": name})
    if "loss_nats" in shown:
        shown["loss_nats"] = shown["loss_nats"].astype(float)
    return shown, name


def _config(flops: str) -> dict[str, Any]:
    number = st.column_config.NumberColumn
    return {
        "n_params": number("N", format="compact", help="parameters"),
        "n_tokens": number("D, tokens", format="compact"),
        "loss_nats": number("loss, nats", format="%.4f"),
        "lr": number("lr", format="%.2e"),
        flops: number(format="%.3g"),
        "batch_seqs": number(WORDS["batch_seqs"], help="sequences per step"),
        "n_layers": number(WORDS["n_layers"]),
        "d_model": number(WORDS["d_model"]),
        "wall_s": number("time, s", format="localized"),
        "epochs": number("epochs", format="%.2f"),
        "run_id": "run",
        MARK: st.column_config.TextColumn(
            MARK, help="outlier: far from the fitted law. excluded: left out of the fit."
        ),
        "reason": st.column_config.TextColumn("error", width="medium"),
    }


def _best(table: pd.DataFrame) -> tuple[str, ...]:
    done = table[table["status"] == "done"]
    return tuple(done.nsmallest(3, "loss_nats")["run_id"]) if len(done) else ()


def _faults(choice: Choice, found: pd.DataFrame, chosen: pd.DataFrame) -> None:
    """Show how to restart runs without a result."""
    assert choice.source is not None
    n_lost = int(found["status"].isin(("failed", "diverged", "cancelled", "preempted")).sum())
    if not n_lost:
        return
    for _, row in chosen.iterrows():
        if row["status"] in ("failed", "diverged", "pruned") and isinstance(row.get("reason"), str):
            st.markdown(f"**{ui.as_text(row['run_id'])}**: {ui.as_text(row['reason'])}")
    ui.command(
        ["scalelab", "retry", choice.source.name, "--results", choice.results],
        f"{plural(n_lost, 'run')} without a result. To start them again:",
    )

"""Runs: all of them, whatever their state; curves of those selected; how to start them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from scalelab.report import figures_runs
from scalelab_dashboard import queries, ui, waiting

if TYPE_CHECKING:
    from scalelab_dashboard.state import Choice

MAX_SELECTED = 12
COLUMNS = (
    "run_id",
    "status",
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
AXES = ("tokens", "flops")
STATES = ("done", "running", "queued", "planned", "failed", "diverged", "preempted", "cancelled")


def show(choice: Choice) -> None:
    """Draw the page."""
    if choice.source is None:
        if choice.table is None:
            waiting.nothing(choice)
        else:
            st.info("A table has rows, not runs: the **Data** page shows them.")
        return
    table = queries.runs(choice.results, choice.source.name, choice.stamp)
    browser(choice, table)


@st.fragment
def browser(choice: Choice, table: pd.DataFrame) -> None:
    """Filter, table and curves: a fragment, so that choosing runs redraws nothing else."""
    assert choice.source is not None
    left, right = st.columns(2)
    with left:
        states = st.multiselect(
            "Status", STATES, key="status", bind="query-params", placeholder="all"
        )
    with right:
        text = st.text_input(
            "Find", key="find", bind="query-params", placeholder="part of a run's name or fault"
        )
    shown = filtered(table, states, text or "")
    seen, flops = view(shown)
    picked = st.dataframe(
        seen,
        hide_index=True,
        height=380,
        key="runs_table",
        on_select="rerun",
        selection_mode="multi-row",
        alt=f"{len(shown)} runs with status, size, loss and faults",
        column_config=_config(flops),
    )
    chosen = [i for i in picked["selection"]["rows"] if i < len(shown)][:MAX_SELECTED]
    st.caption(
        f"{len(shown):,} of {len(table):,} runs. Click a header to sort, the left edge of a row to "
        f"select it (up to {MAX_SELECTED})."
    )
    _faults(choice, shown, chosen)
    ids = tuple(shown["run_id"].iloc[chosen]) or _best(shown)
    if ids and choice.source.kind != "import":
        curves(choice, ids, is_chosen=bool(chosen))


@st.fragment
def curves(choice: Choice, run_ids: tuple[str, ...], *, is_chosen: bool) -> None:
    """Curves of some runs: a fragment of its own, which leaves the table alone."""
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    with left:
        st.subheader("Curves")
        st.caption(
            "Of the selected runs."
            if is_chosen
            else "Of the best finished runs; select others above."
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
    look = ui.look()
    ui.draw(
        queries.figure(
            "curves",
            (choice.results, choice.stamp, run_ids),
            look.name,
            by,
            lambda: figures_runs.curves(
                queries.curves(choice.results, run_ids, choice.stamp), by or AXES[0], look
            ),
        ),
        "curves",
    )


def filtered(table: pd.DataFrame, states: list[str], text: str) -> pd.DataFrame:
    """Return the rows with one of the states (none: any) and the text in name or fault."""
    keep = pd.Series(True, index=table.index)
    if states:
        keep &= table["status"].isin(states)
    if text:
        fault = table["reason"].fillna("") if "reason" in table else ""
        said = table["run_id"] + " " + fault
        keep &= said.str.contains(text, case=False, regex=False)
    return table[keep]


def view(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the columns that are shown, and the name of FLOPs in a unit the browser can show."""
    names = [name for name in COLUMNS if name in table]
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
        "batch_seqs": number("batch", help="sequences a step"),
        "n_layers": number("layers"),
        "d_model": number("width"),
        "wall_s": number("time, s", format="localized"),
        "epochs": number("epochs", format="%.2f"),
        "run_id": "run",
        "reason": st.column_config.TextColumn("fault", width="medium"),
    }


def _best(table: pd.DataFrame) -> tuple[str, ...]:
    done = table[table["status"] == "done"]
    return tuple(done.nsmallest(3, "loss_nats")["run_id"]) if len(done) else ()


def _faults(choice: Choice, shown: pd.DataFrame, chosen: list[int]) -> None:
    """Say how to start again what has no result."""
    assert choice.source is not None
    lost = shown[shown["status"].isin(("failed", "diverged", "cancelled", "preempted"))]
    if not len(lost):
        return
    for i in chosen:
        row = shown.iloc[i]
        if row["status"] in ("failed", "diverged") and isinstance(row.get("reason"), str):
            st.markdown(f"**{ui.as_text(row['run_id'])}**: {ui.as_text(row['reason'])}")
    ui.command(
        ["scalelab", "retry", choice.source.name, "--results", choice.results],
        f"{len(lost):,} of these runs have no result. To start them again:",
    )

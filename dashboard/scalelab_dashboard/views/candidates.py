"""The table of Decide: every candidate with its predicted loss and costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from scalelab.units import format_duration, format_flops, format_money, format_quantity
from scalelab_dashboard.asked import SECONDS_PER_DAY

if TYPE_CHECKING:
    from scalelab.forecast.decision import Candidate, Decision

FURTHER = ("confidence interval", "law at this N and D", "C, FLOP", "GPU-hours", "kWh", "kg CO2")
"""Columns of the candidates that are shown on demand: with them the table is wider than a page."""


def show(answer: Decision, hardware: str) -> None:
    """Show the candidates: loss, interval, time and money, and on demand every column."""
    is_all = st.toggle("All columns of the candidates", key="all_columns", bind="query-params")
    table = pd.DataFrame([_row(each, answer, hardware) for each in answer.candidates])
    omitted = [] if is_all else [head for head in FURTHER if head in table]
    if not is_all and "exceeds" in table and not table["exceeds"].any():
        omitted.append("exceeds")
    st.dataframe(
        table.drop(columns=omitted),
        hide_index=True,
        alt="Candidates with predicted loss and costs",
    )


def training_time(each: Candidate) -> str:
    """Return the time of training on all devices."""
    seconds = SECONDS_PER_DAY * (each.costs["days"] or 0.0)
    return format_duration(seconds) if seconds >= 1 else "< 1 s"


def _row(each: Candidate, answer: Decision, hardware: str) -> dict[str, str]:
    interval = {}
    for name, low, high in (
        ("prediction interval", each.pred_low, each.pred_high),
        ("confidence interval", each.low, each.high),
    ):
        if low is not None:
            interval[name] = f"{low:.4f} to {high:.4f}"
    if each.law_loss_nats is not None:
        interval["law at this N and D"] = f"{each.law_loss_nats:.4f}"
    return {
        "candidate": each.label,
        f"{answer.metric.label}, {answer.unit}": f"{each.loss_nats:.4f}",
        **interval,
        "C, FLOP": format_flops(each.flops),
        "GPU-hours": format_quantity(each.costs["gpu_hours"] or 0.0),
        f"time on {hardware}": training_time(each),
        "money": format_money(each.costs["usd"] or 0.0),
        "kWh": format_quantity(each.costs["kwh"] or 0.0),
        "kg CO2": format_quantity(each.costs["kg_co2"] or 0.0),
        "exceeds": each.exceeded,
    }

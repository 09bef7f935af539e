"""Cost and energy: planned, spent and wasted, in FLOPs, device-hours, money, kWh and CO2."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from scalelab.report import figures_runs
from scalelab.theory.hardware import (
    CPU_CORE_USD_PER_HOUR,
    CPU_CORE_WATTS,
    CPU_POWER_SOURCE,
    CPU_PRICE_SOURCE,
    GRID_SOURCE,
    WORLD_GRAMS_PER_KWH,
    match_hardware,
)
from scalelab.units import format_flops, format_money, format_quantity, plural
from scalelab_dashboard import queries, ui, waiting
from scalelab_dashboard.data import Rates

if TYPE_CHECKING:
    from scalelab_dashboard.choice import Choice

UNITS = {
    "Money": ("usd", "US dollars"),
    "Time": ("hours", "device-hours"),
    "Energy": ("kwh", "kWh"),
    "CO2": ("kg_co2", "kg CO2-equivalent"),
    "Compute": ("flops", "FLOP"),
}
FORMATS: dict[str, Callable[[float], str]] = {
    "usd": format_money,
    "flops": format_flops,
}
PARTS = {"spent": "spent on results", "wasted": "wasted", "planned": "planned"}


def show(choice: Choice) -> None:
    """Draw the page."""
    if choice.source is None or choice.source.kind == "import":
        if choice.table is None and choice.source is None:
            waiting.nothing(choice)
        else:
            st.info("An imported table does not have the cost of its runs.")
        return
    runs = queries.runs(choice.results, choice.source.name, choice.stamp)
    price, watts, price_source, power_source = _device(runs)
    columns = st.columns(4)
    with columns[0]:
        usd = st.number_input(
            "US dollars per device-hour",
            0.0,
            1000.0,
            price,
            0.01,
            key="usd",
            bind="query-params",
            help=price_source,
        )
    with columns[1]:
        power = st.number_input(
            "Watts per device",
            0.0,
            5000.0,
            watts,
            10.0,
            "%g",
            key="watts",
            bind="query-params",
            help=f"For runs without measured energy. Default: {power_source}.",
        )
    with columns[2]:
        grams = st.number_input(
            "g CO2 per kWh",
            0.0,
            2000.0,
            WORLD_GRAMS_PER_KWH,
            10.0,
            "%g",
            key="grid",
            bind="query-params",
            help=GRID_SOURCE,
        )
    with columns[3]:
        unit = st.selectbox("Show", list(UNITS), key="cost", bind="query-params")
    rates = Rates(usd_per_hour=usd, watts=power, grams_per_kwh=grams)
    table = queries.costs(choice.results, choice.source.name, choice.stamp, rates)
    column, name = UNITS[unit]
    _totals(table)
    ui.plot(
        "costs",
        (choice.results, choice.source.name, choice.stamp, rates),
        lambda look: figures_runs.costs(table, column, name, look),
        unit,
        of=f"sweep {choice.source.name}",
    )
    measured = int(runs["energy_j"].notna().sum()) if "energy_j" in runs else 0
    st.caption(
        ui.as_text(
            f"Energy: measured in {measured:,} of {plural(len(runs), 'run')}; in the others "
            f"device-hours times {power:g} W: {_given(power, watts, power_source)}. Grid, "
            f"{grams:g} g CO2-equivalent per kWh: "
            f"{_given(grams, WORLD_GRAMS_PER_KWH, GRID_SOURCE)}. Price, {format_money(usd)} per "
            f"device-hour: {_given(usd, price, price_source)}. Wasted: runs that ended without a "
            "result. Planned: at the speed of the finished runs."
        )
    )


def _given(value: float, default: float, source: str) -> str:
    """Return the source of a number: ours, or the input on this page."""
    return source if value == default else "given on this page"


def _totals(table: pd.DataFrame) -> None:
    rows = []
    for unit, (column, name) in UNITS.items():
        row = {"": f"{unit}, {name}"}
        for part, label in PARTS.items():
            values = table[f"{part}_{column}"].to_numpy(float)
            known = np.isfinite(values)
            shown = FORMATS.get(column, format_quantity)
            total = float(values[known].sum())
            row[label] = (shown(total) if total else "0") if known.any() else "not known yet"
        rows.append(row)
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Totals of every cost")


def _device(runs: pd.DataFrame) -> tuple[float, float, str, str]:
    """Return price and watts of the most common device, and the source of each."""
    names = runs["device_name"].dropna() if "device_name" in runs else pd.Series(dtype=str)
    known = match_hardware(str(names.mode().iloc[0])) if len(names) else None
    if known is not None:
        return (
            float(known.usd_per_hour),
            float(known.watts),
            known.price_source,
            f"board power, {known.source}",
        )
    threads = runs["n_threads"].dropna().astype(float) if "n_threads" in runs else pd.Series([1.0])
    cores = float(threads.median()) if len(threads) else 1.0
    return (
        CPU_CORE_USD_PER_HOUR * cores,
        CPU_CORE_WATTS * cores,
        CPU_PRICE_SOURCE,
        CPU_POWER_SOURCE,
    )

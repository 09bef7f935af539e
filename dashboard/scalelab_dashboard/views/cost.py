"""Cost and energy: planned, spent and wasted, in FLOPs, device-hours, money, kWh and CO2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from scalelab.api.page import Rates
from scalelab.report import figures_runs
from scalelab.theory.hardware import CPU_CORE_USD_PER_HOUR, CPU_PRICE_SOURCE, match_hardware
from scalelab_dashboard import queries, ui, waiting

if TYPE_CHECKING:
    from scalelab_dashboard.state import Choice

CPU_CORE_WATTS = 10.0
WORLD_GRAMS_PER_KWH = 473.0
GRID_SOURCE = "world mean of 2024, Ember, Global Electricity Review 2025"
UNITS = {
    "Money": ("usd", "US dollars"),
    "Device-hours": ("hours", "device-hours"),
    "Energy": ("kwh", "kWh"),
    "CO2": ("kg_co2", "kg CO2-equivalent"),
    "FLOPs": ("flops", "FLOP"),
}
PARTS = {"spent": "spent on results", "wasted": "wasted", "planned": "still planned"}


def show(choice: Choice) -> None:
    """Draw the page."""
    if choice.source is None or choice.source.kind == "import":
        if choice.table is None and choice.source is None:
            waiting.nothing(choice)
        else:
            st.info("What runs made elsewhere have cost is not in their table.")
        return
    runs = queries.runs(choice.results, choice.source.name, choice.stamp)
    price, watts, source = _device(runs)
    columns = st.columns(4)
    with columns[0]:
        usd = st.number_input(
            "US dollars a device-hour",
            0.0,
            1000.0,
            price,
            0.01,
            key="usd",
            bind="query-params",
            help=source,
        )
    with columns[1]:
        power = st.number_input(
            "Watts a device",
            0.0,
            5000.0,
            watts,
            10.0,
            key="watts",
            bind="query-params",
            help="Used where no counter measured the energy.",
        )
    with columns[2]:
        grams = st.number_input(
            "g CO2 a kWh",
            0.0,
            2000.0,
            WORLD_GRAMS_PER_KWH,
            10.0,
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
    ui.draw(figures_runs.costs(table, column, name, ui.look()), "costs")
    measured = int(runs["energy_j"].notna().sum()) if "energy_j" in runs else 0
    st.caption(
        ui.as_text(
            f"Energy was measured in {measured:,} of {len(runs):,} runs, else device-hours "
            f"times watts. Grid: {grams:g} g CO2 a kWh ({GRID_SOURCE}). Price: {source}. Wasted is "
            "what went into runs that ended without a result; planned is reckoned at the speed of "
            "the finished runs."
        )
    )


def _totals(table: pd.DataFrame) -> None:
    rows = []
    for part, label in PARTS.items():
        row: dict[str, str] = {"": label}
        for unit, (column, _) in UNITS.items():
            values = table[f"{part}_{column}"].to_numpy(float)
            known = np.isfinite(values)
            row[unit] = f"{values[known].sum():.4g}" if known.any() else "unknown yet"
        rows.append(row)
    headers = {
        unit: f"{unit}, {name}" if unit != name else unit for unit, (_, name) in UNITS.items()
    }
    st.dataframe(
        pd.DataFrame(rows).rename(columns=headers), hide_index=True, alt="Totals of every cost"
    )


def _device(runs: pd.DataFrame) -> tuple[float, float, str]:
    """Return price, watts and where they come from, for the device that most runs had."""
    names = runs["device_name"].dropna() if "device_name" in runs else pd.Series(dtype=str)
    known = match_hardware(str(names.mode().iloc[0])) if len(names) else None
    if known is not None:
        return (
            float(known.usd_per_hour),
            float(known.watts),
            f"{known.price_source}; {known.source}",
        )
    threads = runs["n_threads"].dropna().astype(float) if "n_threads" in runs else pd.Series([1.0])
    cores = float(threads.median()) if len(threads) else 1.0
    return (
        CPU_CORE_USD_PER_HOUR * cores,
        CPU_CORE_WATTS * cores,
        f"{CPU_PRICE_SOURCE}; about {CPU_CORE_WATTS:g} W a core",
    )

"""The question of the view Decide: the inputs for limits, hardware, serving and candidates."""

from __future__ import annotations

from functools import partial

import streamlit as st

from scalelab.forecast.decide import parse_candidate
from scalelab.forecast.decision import Deployment
from scalelab.theory.hardware import (
    GRID_SOURCE,
    HARDWARE,
    STATED_UTILISATION,
    UTILISATION_SOURCE,
    WORLD_GRAMS_PER_KWH,
)
from scalelab.units import parse_quantity
from scalelab_dashboard import ui
from scalelab_dashboard.asked import (
    LIMITS,
    USUAL_DAYS,
    Asked,
    check_limit,
    check_rate,
    usual_count,
)


def is_changed() -> bool:
    """Say whether an input of the view has a value in the session or the address."""
    keys = [f"max_{name}" for name, *_ in LIMITS]
    keys += ["law", "device", "gpus", "price", "use", "serve", "grid_co2", "named"]
    return any(st.session_state.get(key) or key in st.query_params for key in keys)


def ask(usual: str) -> Asked:
    """Draw the inputs: limits, then hardware and serving."""
    st.markdown("**Limits**")
    limits = _limits(usual)
    st.markdown("**Hardware and serving**")
    first, second, third, fourth = st.columns(4)
    with first:
        gpu = st.selectbox(
            "GPU",
            sorted(HARDWARE),
            index=sorted(HARDWARE).index("h100"),
            key="device",
            bind="query-params",
        )
        price = ui.checked_input(
            "US dollars per GPU-hour",
            "price",
            check_rate,
            placeholder=f"default {HARDWARE[gpu].usd_per_hour:g}",
            help=HARDWARE[gpu].price_source,
        )
    with third:
        share = st.number_input(
            "Utilisation",
            0.01,
            1.0,
            STATED_UTILISATION,
            0.05,
            key="use",
            bind="query-params",
            help=UTILISATION_SOURCE,
        )
        served = ui.checked_input(
            "Tokens served in total",
            "serve",
            lambda text: parse_quantity(text, what="served tokens"),
            placeholder="default none; e.g. 10T",
            help="Serving costs 2 N FLOPs per token. It is part of money, energy and CO2.",
        )
    with second:
        flops = parse_quantity(dict(limits).get("flops", usual), what="training compute")
        fitting = usual_count(flops, gpu, share)
        given = ui.checked_input(
            "GPUs",
            "gpus",
            lambda text: Deployment(n_devices=parse_quantity(text, what="GPUs")),
            placeholder=f"default {fitting:,}",
            help=f"Default: a power of two that trains this in {USUAL_DAYS:g} days or less.",
        )
        grid = ui.checked_input(
            "g CO2 per kWh",
            "grid_co2",
            check_rate,
            placeholder=f"default {WORLD_GRAMS_PER_KWH:g}, world mean",
            help=GRID_SOURCE,
        )
    with fourth:
        named = ui.checked_input(
            "Candidates, N:D",
            "named",
            _check_candidates,
            placeholder="default all; e.g. 7B:2T, 13B:1T",
        )
    if not limits and not named:
        limits = (("flops", usual),)
        st.caption(f"No limit given: showing the best model for {usual} FLOP of training.")
    return Asked(
        limits=limits,
        gpu=gpu,
        count=parse_quantity(given, what="GPUs") if given else float(fitting),
        share=share,
        served=served,
        price=price,
        grid=grid,
        named=_split(named),
    )


def _split(named: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in named.split(",") if part.strip())


def _check_candidates(named: str) -> None:
    for part in _split(named):
        parse_candidate(part)


def _limits(usual: str) -> tuple[tuple[str, str], ...]:
    """Draw the limits; return the given ones as text."""
    given = []
    places = st.columns(4)
    for i, (name, label, _, _, example) in enumerate(LIMITS):
        with places[i % 4]:
            text = ui.checked_input(
                label,
                f"max_{name}",
                partial(check_limit, name),
                placeholder=f"no limit; e.g. {usual if name == 'flops' else example}",
            )
        if text:
            given.append((name, text))
    return tuple(given)

"""The words of the page, one line each, from the glossary of the documentation.

``docs/generate.py`` writes ``glossary.json`` from ``docs/glossary.md``, the only source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import streamlit as st

FILE = Path(__file__).with_name("glossary.json")
VIEW = "Glossary"
LINK = f"[All words](?page={VIEW})"
LOSSES = "huber, ls, lad, likelihood"
FORMS = "chinchilla, tied, gamma, kaplan"
EXPERT_FORMS = "granularity, routed, experts, sparsity"
PUBLISHED = "besiroglu, besiroglu-huber, hoffmann, hoffmann-tex"
ROWS = "Best of, mean of, last of"
VERDICT = "Sound, with warnings, not identified"
FIT_WORDS = (
    *("Approach 1, 2, 3", "isoFLOP curve", "D_opt, N_opt", "Exponents a and b", "D/N"),
    *("E, A, B, alpha, beta", "Confidence interval", "Prediction interval", VERDICT),
    *("Outlier", "Misfit", "Convention", "Form", FORMS, EXPERT_FORMS),
)
WORDS_OF: Mapping[str, tuple[str, ...]] = {
    "Overview": (
        *FIT_WORDS,
        "Bracketed minimum",
        "Edge minimum",
        "Frontier",
        "State, status",
        "Held-out rows",
    ),
    "Fit": (
        *(*FIT_WORDS, "G", "Huber loss", "Delta", "Objective", "Residual", "Bootstrap"),
        *("Replicate", "AICc", "State, status", LOSSES),
    ),
    "Domains": (*FIT_WORDS, "Evaluation set", "Frontier"),
    "Extrapolate": (
        *(
            *FIT_WORDS,
            "Extrapolation",
            "Frontier",
            "Held-out rows",
            "Utilisation",
            "Coverage",
            "Forecaster",
        ),
        *("CRPS", "Registered forecast", "Public table", "MFU", "GPU-hours"),
    ),
    "Decide": (*FIT_WORDS, PUBLISHED, "Utilisation", "Epoch", "GPU-hours", "USD, kWh, CO2"),
    "Compare": (*FIT_WORDS, PUBLISHED, "Speed-up", "Frontier", "Law", "Public table"),
    "Runs": (
        *("State, status", "Loss", "Learning rate, lr", "Batch", "Epoch", "MFU", "Shape"),
        *("Seed", "Attempt", "isoFLOP curve"),
    ),
    "Cost and energy": ("GPU-hours", "USD, kWh, CO2", "FLOP, FLOPs", "Budget", "isoFLOP curve"),
    "Data": (
        "N",
        "D",
        "C",
        "Convention",
        "Budget",
        "Cluster",
        ROWS,
        "Loss",
        "Seed",
        "Public table",
        "isoFLOP curve",
    ),
}
"""Terms that each view uses."""


@cache
def entries() -> Mapping[str, str]:
    """Return the definition of every term."""
    found: dict[str, str] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def about(*terms: str) -> str:
    """Return the definitions of terms as a help text that links to the glossary."""
    return "\n\n".join((*(f"**{term}**: {entries()[term]}" for term in terms), LINK))


def words(view: str) -> None:
    """Offer the words of a view, one line each."""
    terms = WORDS_OF.get(view, ())
    if terms:
        with st.expander("Words on this page"):
            st.markdown("\n".join(f"- **{term}**: {entries()[term]}" for term in terms))
            st.markdown(LINK)


def show(_: object) -> None:
    """Draw the glossary as a view."""
    st.markdown("\n".join(f"- **{term}**: {text}" for term, text in entries().items()))

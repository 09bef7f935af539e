"""Every term of the views has a one-line explanation, from the glossary of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scalelab_dashboard import glossary
from scalelab_dashboard.app import VIEWS
from scalelab_dashboard.choice import EXPERT_FORMS, FORMS

from scalelab.fit.objective import LOSSES
from scalelab.forecast.allocate import FORECASTERS
from scalelab.forecast.backtest import SINGLE_FORMS
from scalelab.forecast.published_laws import PUBLISHED_LAWS
from scalelab.records.states import RUN_STATES
from scalelab.store.public_tables import list_public_tables
from scalelab.theory.accounting import FLOP_CONVENTIONS, PARAM_CONVENTIONS, PARAM_WORDS

FOLDER = Path(glossary.__file__).parent
FILES = {
    "Overview": ("overview", "live"),
    "Fit": ("fit",),
    "Domains": ("domains",),
    "Extrapolate": ("extrapolate",),
    "Decide": ("decide",),
    "Compare": ("compare",),
    "Runs": ("runs",),
    "Cost and energy": ("cost",),
    "Data": ("data",),
}
SAID = {
    r"approach [123]": "Approach 1, 2, 3",
    r"[Ii]soFLOP": "isoFLOP curve",
    r"N_opt|D_opt|ompute-optimal": "D_opt, N_opt",
    r"exponent a\b": "Exponents a and b",
    r"\bD/N\b|tokens per parameter": "D/N",
    r"G: N_opt": "G",
    r"\b[Hh]uber": "Huber loss",
    r"bracketed\b": "Bracketed minimum",
    r"irreducible|alpha and|\bE: ": "E, A, B, alpha, beta",
    r"onfidence interval": "Confidence interval",
    r"rediction interval|new run": "Prediction interval",
    r"bootstrap replicates|replicates,": "Replicate",
    r"[Rr]esiduals": "Residual",
    r"AICc": "AICc",
    r"held-out": "Held-out rows",
    r"[Uu]tilisation": "Utilisation",
    r"\bMFU\b|\bmfu\b": "MFU",
    r"epochs": "Epoch",
    r"GPU-hours|device-hours": "GPU-hours",
    r"speed-up|Speed-up": "Speed-up",
    r"frontier": "Frontier",
    r"counted": "Convention",
    r'"Status"|status \{': "State, status",
}
"""What the source of a view says, and the entry of the glossary that explains it."""


@pytest.mark.parametrize("view", [view for view in VIEWS if view != glossary.VIEW])
def test_every_term_of_a_view_is_among_its_words_and_in_the_glossary(view: str) -> None:
    terms = glossary.WORDS_OF[view]
    assert set(terms) <= set(glossary.entries())
    shown = "\n".join(
        line
        for name in FILES[view]
        for line in (FOLDER / "views" / f"{name}.py").read_text().splitlines()
        if re.search(r"[\"']", line) and not line.strip().startswith(('"""', "#"))
    )
    missing = [term for said, term in SAID.items() if re.search(said, shown) and term not in terms]
    assert not missing, f"{view} says these without an explanation: {missing}"


def test_a_help_text_has_the_definition_and_a_link() -> None:
    text = glossary.about("Huber loss", "G")
    assert "linear for large ones" in text
    assert "G (C/6)^a" in text
    assert text.endswith(f"(?page={glossary.VIEW})")
    assert not [term for term, line in glossary.entries().items() if "](" in line or "\n" in line]


def test_no_name_means_a_law_and_a_count_on_one_screen() -> None:
    assert set(PARAM_WORDS) == set(PARAM_CONVENTIONS)
    assert set(PARAM_WORDS.values()).isdisjoint(FORMS)
    names = {f"public:{table.name}" for table in list_public_tables()}
    assert names.isdisjoint(FORMS)


ENUMERATIONS = {
    "objectives": (LOSSES, "Fit"),
    "forms": (FORMS, "Fit"),
    "forms of experts": (EXPERT_FORMS, "Fit"),
    "forms of a backtest": (SINGLE_FORMS, None),
    "forecasters": (FORECASTERS, "Extrapolate"),
    "published laws": (PUBLISHED_LAWS, "Decide"),
    "counts of N": (PARAM_WORDS.values(), "Fit"),
    "counts of C": (FLOP_CONVENTIONS, "Fit"),
    "states": (RUN_STATES, None),
    "rows of a table": (("best of", "mean of", "last of"), "Data"),
}
"""Names that views list, and the view whose words explain them (None: the glossary alone)."""


@pytest.mark.parametrize("kind", ENUMERATIONS)
def test_every_name_that_a_view_lists_has_a_line(kind: str) -> None:
    names, view = ENUMERATIONS[kind]
    terms = glossary.entries() if view is None else glossary.WORDS_OF[view]
    lines = "\n".join(f"{term}: {glossary.entries()[term]}" for term in terms).lower()
    assert not [name for name in names if not re.search(rf"(?<![\w-]){name}(?![\w-])", lines)]

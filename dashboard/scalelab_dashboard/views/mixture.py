"""Mixture: the best weights of the sources, the law of each evaluation set, and what sources do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from scalelab.fit.mixing_folds import SCHEMES
from scalelab.forecast.verdict import verdict_on
from scalelab.report import figures_mixture, figures_ternary
from scalelab.report.mixture_answer import TERNARY
from scalelab_dashboard import ui, waiting

if TYPE_CHECKING:
    from scalelab.report.mixture_answer import MixtureAnswer
    from scalelab_dashboard.choice import Choice


def show(choice: Choice) -> None:
    """Draw the page."""
    if choice.key is None:
        waiting.nothing(choice)
        return
    if choice.source is not None and not choice.source.counts.get("done"):
        waiting.unfinished(choice)
        return
    left, right = st.columns([3, 1], gap="medium")
    target = left.text_input(
        "Target",
        key="mix_target",
        bind="query-params",
        placeholder="0.5*code+0.5*web",
        help="The loss to minimise: an evaluation set, or a weighted mean of several. Empty: the "
        "mean of all sets.",
    )
    n_tokens = right.text_input(
        "Training tokens D",
        key="mix_tokens",
        bind="query-params",
        placeholder="20B",
        help="Of the planned run; the unique tokens of the sources then limit their weights. "
        "Empty: those of the largest run.",
    )
    asked = ((target or "").strip(), (n_tokens or "").strip())
    found = waiting.mixture(choice, *asked)
    if found is None:
        return
    verdict = verdict_on(found.warnings)
    ui.answer(found.sentence(), found.basis(), verdict.label, verdict.warnings)
    _best(found, choice, asked)
    st.subheader("What each source does")
    ui.plot("mix_effects", choice.key, lambda look: figures_mixture.effects(found, look), asked)
    st.caption(
        "Change of the loss if 10 % more of the tokens come from a source and the others shrink in "
        "proportion, at the mean of the trained mixtures and the largest size. Green: lower."
    )
    st.subheader("Law of each evaluation set")
    st.dataframe(_laws(found), hide_index=True, alt="Law of each evaluation set with its errors")
    st.caption(
        "The form with the least held-out error. RMSE in "
        f"{ui.as_text(found.runs.unit)}, of the runs that were fitted, and of runs that were left "
        "out."
    )
    ui.plot("mix_fit", choice.key, lambda look: figures_mixture.agreement(found, look), asked)
    st.caption(
        f"Measured against predicted loss, {ui.as_text(found.runs.unit)}. Colour: model size."
    )
    ui.command(_words(choice, found, asked))


def _best(found: MixtureAnswer, choice: Choice, asked: tuple[str, str]) -> None:
    """Draw the best weights: over a triangle if there are three sources, and as bars."""
    left = right = st.container()
    if len(found.sources) == TERNARY:
        left, right = st.columns([3, 2], gap="medium")
        with left:
            st.subheader("Target over the weights")
            ui.plot("ternary", choice.key, lambda k: figures_ternary.ternary(found, k), asked)
            st.caption(
                "Predicted target. Circles: trained mixtures. Star: lowest prediction. Outline: "
                f"weights inside all {100 * found.level:g} % intervals."
            )
    with right:
        st.subheader("Best weights")
        ui.plot("mix_weights", choice.key, lambda k: figures_mixture.weights(found, k), asked)
        epochs = [f"{name} {each:.2g}" for name, each in found.best.epochs.items()]
        if epochs:
            st.caption(ui.as_text(f"Epochs over the unique tokens: {', '.join(epochs)}."))


def _laws(found: MixtureAnswer) -> pd.DataFrame:
    schemes = list(dict.fromkeys(scheme for law in found.laws for scheme in law.held_out))
    losses = found.best.losses
    return pd.DataFrame(
        {
            "evaluation set": [law.name for law in found.laws],
            "law": [law.form for law in found.laws],
            "R²": [f"{law.r2:.4f}" for law in found.laws],
            "RMSE": [f"{law.rmse:.4f}" for law in found.laws],
            **{
                f"RMSE, {SCHEMES.get(scheme, scheme)}": [
                    f"{law.held_out[scheme]:.4f}" if scheme in law.held_out else "–"
                    for law in found.laws
                ]
                for scheme in schemes
            },
            "loss at the best weights": [
                f"{losses[law.name].value:.4f}, "
                f"{ui.limits(losses[law.name], found.level, '{:.4f}')}"
                for law in found.laws
            ],
        }
    )


def _words(choice: Choice, found: MixtureAnswer, asked: tuple[str, str]) -> list[str]:
    """Return the command that gives the same answer."""
    words = ["scalelab", "decide", "--mixture"]
    if choice.table is not None:
        words += ["--from", choice.table.path]
    elif choice.source is not None:
        words += ["--results", choice.results, "--sweep", choice.source.name]
    target, n_tokens = asked
    words += ["--target", target] if target else []
    words += ["--n-tokens", n_tokens] if n_tokens else []
    return words if choice.level == 0.9 else [*words, "--level", f"{choice.level:g}"]

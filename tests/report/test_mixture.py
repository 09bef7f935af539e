"""Figures and report of mixtures show the numbers of the fit."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from scalelab.api.mixtures import fit_mixture
from scalelab.errors import UsageError
from scalelab.report import figures_mixture, figures_ternary
from scalelab.report.look import DARK, LIGHT
from scalelab.report.mixture_answer import GRID, MixtureAnswer, mixture_answer
from scalelab.report.mixture_html import render_mixture
from scalelab.sweep.mixture_design import mixture_design


def runs_of(names: list[str]) -> pd.DataFrame:
    """Return runs of an exponential law: each set falls fastest with its own source."""
    rng = np.random.default_rng(0)
    rows = []
    for mixture in mixture_design(16, dict.fromkeys(names, 1.0)).mixtures:
        h = np.array([mixture[name] for name in names])
        losses = {
            f"loss_{name}": 1.5 + np.exp(-0.3 - 2.0 * h[k]) + rng.normal(0, 1e-3)
            for k, name in enumerate(names)
        }
        rows.append({**{f"weight_{name}": v for name, v in mixture.items()}, **losses})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module", params=[["code", "web"], ["code", "docs-en", "web"], list("abcd")])
def answer(request: pytest.FixtureRequest) -> MixtureAnswer:
    fit = fit_mixture(runs_of(request.param), bootstrap=20, forms=["exponential_mixing"])
    return mixture_answer(fit)


def test_the_answer_can_be_sent_to_another_process(answer: MixtureAnswer) -> None:
    copy = pickle.loads(pickle.dumps(answer))
    assert copy.sentence() == answer.sentence()
    assert f"{len(answer.laws)} evaluation sets" in answer.sentence()
    # By symmetry, equal weights are best.
    for weight in answer.best.weights.values():
        assert weight.value == pytest.approx(1 / len(answer.sources), abs=0.03)


def test_every_figure_draws_the_numbers(answer: MixtureAnswer) -> None:
    for look in (LIGHT, DARK):
        bars = figures_mixture.weights(answer, look)
        shown = dict(zip(bars.data[0].y, bars.data[0].x, strict=True))
        assert list(shown.values())[::-1] == [w.value for w in answer.best.weights.values()]
        effects = figures_mixture.effects(answer, look)
        assert effects.data[0].z.shape == (len(answer.laws), len(answer.sources))
        # More of its own source lowers the loss of a set.
        assert (np.diag(np.asarray(effects.data[0].z)) < 0).all()
        panels = figures_mixture.agreement(answer, look)
        points = [trace for trace in panels.data if trace.mode == "markers"]
        assert len(points) == len(answer.laws)
        assert np.abs(np.asarray(points[0].x) - np.asarray(points[0].y)).max() < 0.01


def test_the_triangle_has_the_lowest_target_at_the_star(answer: MixtureAnswer) -> None:
    figure = figures_ternary.ternary(answer)
    if len(answer.sources) != 3:
        assert "needs three sources" in figure.layout.meta["alt"]
        return
    assert "docs-en" in figure.to_json()
    surface = figure.data[0]
    z = np.asarray(surface.z)
    assert np.nanmin(z) == pytest.approx(answer.best.target.value, abs=2e-4)
    row, column = np.unravel_index(np.nanargmin(z), z.shape)
    star = next(trace for trace in figure.data if trace.name == "best mixture")
    assert abs(surface.x[column] - star.x[0]) < 2 / GRID
    assert abs(surface.y[row] - star.y[0]) < 2 / GRID
    runs = next(trace for trace in figure.data if trace.name == "trained mixture")
    # The first three mixtures are the corners, in the order of the sources.
    assert np.allclose(runs.x[:3], [0, 1, 0.5])
    assert np.allclose(runs.y[:3], [0, 0, np.sqrt(3) / 2])


def test_the_report_has_the_weights_and_the_laws(answer: MixtureAnswer) -> None:
    page = render_mixture(answer, "scalelab report --form mixture")
    for text in ("Best weights", "Law of each evaluation set", "exponential_mixing", "mix_effects"):
        assert text in page
    assert f"{next(iter(answer.best.weights.values())).value:.3f}" in page


def test_a_limit_of_unique_tokens_is_drawn_and_said() -> None:
    table = runs_of(["code", "web"])
    fit = fit_mixture(table.assign(n_tokens=20_000_000), bootstrap=0, forms=["exponential_mixing"])
    fit.runs.unique_tokens.update({"code": 1_000_000.0})
    answer = mixture_answer(fit, {"code": 1.0}, n_tokens=20e6)
    assert answer.best.weights["code"].value == pytest.approx(0.2, abs=1e-3)
    assert "unique tokens of code limit its weight" in answer.basis()
    limits = figures_mixture.weights(answer).data[2]
    assert list(limits.x) == [0.2]
    with pytest.raises(UsageError, match="target 'nope'"):
        mixture_answer(fit, {"nope": 1.0})

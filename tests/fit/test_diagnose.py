from dataclasses import replace

import numpy as np
import pytest

from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.diagnose import design_warnings, notes_as_warnings, row_warnings
from scalelab.fit.envelope import fit_envelope
from scalelab.fit.isoflop import fit_isoflop
from scalelab.fit.parametric import fit_parametric
from scalelab.store.read_options import ReadOptions
from scalelab.store.tables import read_table

NONE = BootstrapSpec(k=0)


def row_codes(rows, lines=None, form="chinchilla"):
    fit = fit_parametric(rows, form=form, bootstrap=NONE)
    return {warning.code: warning.message for warning in row_warnings(rows, lines, fit)}


def design_codes(rows):
    found = design_warnings(fit_isoflop(rows), fit_envelope(rows))
    return {warning.code: warning.message for warning in found}


def shifted(rows, factors):
    """Move each budget's grid by a factor in N, keeping its FLOPs."""
    n_params = rows.n_params * np.repeat(factors, len(rows) // len(factors))
    n_tokens = rows.flops / (6 * n_params)
    loss = 1.82 + 482.0 * n_params**-0.348 + 2085.0 * n_tokens**-0.366
    return replace(rows, n_params=n_params, n_tokens=n_tokens, loss_nats=loss)


def test_a_clean_centred_grid_warns_only_about_missing_curves(isoflop_runs):
    rows = isoflop_runs()
    assert row_codes(rows) == {}
    assert set(design_codes(rows)) == {"approach_1_unavailable"}


@pytest.mark.parametrize(("factor", "side"), [(3.0, "smaller"), (1 / 3, "larger")])
def test_an_off_centre_grid_names_the_side(isoflop_runs, factor, side):
    rows = shifted(isoflop_runs(noise=0.0), np.full(5, factor))
    found = design_codes(rows)
    assert "drifting_grid" not in found
    assert side in found["off_centre_grid"]
    # A parabola over a wide grid puts its minimum near, not at, the offset of 3.
    assert "2." in found["off_centre_grid"] or "3." in found["off_centre_grid"]


def test_a_drifting_grid_differs_from_an_off_centre_one(isoflop_runs):
    rows = shifted(isoflop_runs(noise=0.0), np.geomspace(1 / 2.5, 2.5, 5))
    found = design_codes(rows)
    assert "drifting_grid" in found
    assert "off_centre_grid" not in found


def test_an_edge_minimum_names_its_budget_and_side(isoflop_runs):
    rows = shifted(isoflop_runs(noise=0.0, half_width=2.0), np.array([1, 1, 5.0, 1, 1]))
    assert "1e19 (below the smallest N)" in design_codes(rows)["edge_minimum"]


def test_intermediate_checkpoints_are_mid_schedule(isoflop_runs):
    rows = isoflop_runs()
    labels = np.array([f"r{i}" for i in range(len(rows))])
    assert "mid_schedule" not in row_codes(replace(rows, cluster=labels))
    early = rows.take(np.arange(len(rows)))
    early = replace(
        early,
        n_tokens=early.n_tokens / 2,
        flops=early.flops / 2,
        cluster=labels,
        loss_nats=early.loss_nats * 1.05,
    )
    both = replace(
        rows,
        n_params=np.concatenate([rows.n_params, early.n_params]),
        n_tokens=np.concatenate([rows.n_tokens, early.n_tokens]),
        loss_nats=np.concatenate([rows.loss_nats, early.loss_nats]),
        flops=np.concatenate([rows.flops, early.flops]),
        budget=None,
        cluster=np.concatenate([labels, labels]),
    )
    assert row_codes(both)["mid_schedule"].startswith(
        "Probably intermediate checkpoints: 45 of 90 rows"
    )
    ended = replace(both, extra={"fraction_elapsed": np.ones(len(both))})
    assert "mid_schedule" not in row_codes(ended)


def test_fraction_elapsed_identifies_unfinished_rows(isoflop_runs):
    rows = isoflop_runs()
    fraction = np.where(np.arange(len(rows)) < 4, 0.5, 1.0)
    found = row_codes(replace(rows, extra={"fraction_elapsed": fraction}))
    assert found["mid_schedule"].startswith("In 4 of 45 rows")
    assert "mid_schedule" not in row_codes(
        replace(rows, extra={"fraction_elapsed": fraction * 0 + 1})
    )


def test_two_counting_conventions_in_one_table_are_a_warning(isoflop_runs):
    rows = isoflop_runs()
    half = np.arange(len(rows)) % 2 == 0
    mixed = replace(rows, flops=np.where(half, rows.flops, 1.5 * rows.flops))
    assert "mixed_conventions" in row_codes(mixed)
    smooth = replace(rows, flops=rows.flops * (rows.n_params / 1e8) ** -0.2)
    assert "mixed_conventions" not in row_codes(smooth)


@pytest.mark.parametrize(
    ("flop_convention", "param_convention", "factor", "is_warned"),
    [
        ("6nd", "chinchilla", 1000.0, True),
        ("6nd", "unstated", 1.2, True),
        ("6nd_kaplan", "kaplan", 0.5, True),
        ("6nd", "chinchilla", 1.05, False),
        ("6nd", "kaplan", 1.5, False),
        ("exact", "chinchilla", 3.0, False),
        ("unstated", "unstated", 1e-3, True),
    ],
)
def test_flops_that_differ_from_their_convention_are_a_warning(
    isoflop_runs, flop_convention, param_convention, factor, is_warned
):
    rows = isoflop_runs()
    rows = replace(
        rows,
        flops=factor * rows.flops,
        budget=None,
        flop_convention=flop_convention,
        param_convention=param_convention,
    )
    found = row_codes(rows)
    assert ("flops_mismatch" in found) is is_warned
    assert not is_warned or f"{factor:.3g} times 6ND" in found["flops_mismatch"]


def test_budgets_of_another_convention_than_the_flops_are_a_warning(isoflop_runs, tables):
    rows = isoflop_runs()
    assert "budget_mismatch" not in row_codes(replace(rows, flops=1.05 * rows.flops))
    assert "3 times" in row_codes(replace(rows, flops=3 * rows.flops))["budget_mismatch"]
    path = tables / "marin" / "data.csv"
    real = read_table(path, ReadOptions(where="dataset = 'comma' AND role = 'sweep'")).observations
    assert "3 times" in row_codes(real)["budget_mismatch"]


@pytest.mark.parametrize(
    ("where", "is_mixed"),
    [
        ("series = 'isoflop_llama_ctx2048'", False),
        ("series = 'isoflop_llama_ctx16384'", False),
        ("arch = 'llama'", True),
        ("context_length = 8192 AND arch = 'llama'", True),
    ],
)
def test_pooled_attention_counts_of_a_real_table_are_a_warning(tables, where, is_mixed):
    path = tables / "xlstm" / "data.csv"
    rows = read_table(path, ReadOptions(where=where)).observations
    assert ("mixed_conventions" in row_codes(rows)) is is_mixed


def test_outliers_are_named_by_their_lines(isoflop_runs):
    rows = isoflop_runs()
    loss = rows.loss_nats.copy()
    loss[[4, 31]] *= 1.3
    found = row_codes(replace(rows, loss_nats=loss), lines=np.arange(len(rows)) + 2)
    assert "lines 6, 33" in found["outliers"]


def test_outliers_of_a_sweep_are_named_by_their_runs(isoflop_runs):
    rows = isoflop_runs()
    loss = rows.loss_nats.copy()
    loss[[4, 31]] *= 1.3
    names = np.array([f"run{i:02}" for i in range(len(rows))])
    found = row_codes(replace(rows, loss_nats=loss, names=names), lines=np.arange(len(rows)) + 1)
    assert "runs run04, run31" in found["outliers"]


def test_outliers_are_excluded_by_run_or_by_line_where_the_run_has_other_rows(isoflop_runs):
    rows = isoflop_runs()
    loss = rows.loss_nats.copy()
    loss[[4, 30, 31]] *= 1.3
    names = np.array([f"run{i // 2:02}" for i in range(len(rows))])
    named = replace(rows, loss_nats=loss, names=names)
    fit = fit_parametric(named, form="chinchilla", bootstrap=NONE)
    (found,) = row_warnings(named, np.arange(len(rows)) + 1, fit)
    # line 5 is half of its run, lines 31 and 32 are one run
    assert found.runs == ("5", "run15")
    (unnamed,) = row_warnings(replace(named, names=None), None, fit)
    assert unnamed.runs == ()


def test_rounding_of_a_table_without_noise_is_no_outlier(isoflop_runs):
    rows = isoflop_runs(noise=0.0)
    # Whole numbers of parameters and tokens: the losses are off by less than 1e-7.
    whole = replace(rows, n_params=np.floor(rows.n_params), n_tokens=np.floor(rows.n_tokens))
    assert "outliers" not in row_codes(whole)


def test_rows_that_the_law_passes_through_do_not_make_outliers_of_the_others(isoflop_runs):
    # Nearly absolute deviations: five of nine residuals are 0, so their median is too.
    for seed in range(6):
        rows = isoflop_runs(budgets=(1e18, 1e19, 1e20), sizes=3, seed=seed)
        assert "outliers" not in row_codes(rows)


@pytest.mark.parametrize(("form", "is_misfit"), [("chinchilla", True), ("gamma", False)])
def test_a_form_that_does_not_fit_real_runs_is_a_warning(tables, form, is_misfit):
    where = "dataset = 'nemotron' AND role = 'sweep'"
    path = tables / "marin" / "data.csv"
    rows = read_table(path, ReadOptions(where=where)).observations
    assert ("misfit" in row_codes(rows, form=form)) is is_misfit


def test_notes_keep_their_codes():
    (warning,) = notes_as_warnings({"derived_flops": "C = 6 N D was taken."})
    assert (warning.code, warning.message) == ("derived_flops", "C = 6 N D was taken.")

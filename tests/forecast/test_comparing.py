"""Sweeps, tables and laws over one another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scalelab.api import fit
from scalelab.api.comparisons import compare_runs, source_of
from scalelab.api.data import frame_of
from scalelab.api.laws import load_law
from scalelab.cli.main import main
from scalelab.errors import DataError, UsageError
from scalelab.forecast.bands import Bands
from scalelab.forecast.comparable import Comparability
from scalelab.forecast.comparing import Source, SourceComparison, compare_sources
from scalelab.forecast.comparison_words import _limits
from scalelab.forecast.loss_gap import loss_gaps
from scalelab.records.evaluated import EvaluatedOn
from scalelab.records.metric import parse_metric
from scalelab.records.types import Observations
from scalelab.report import figures_compare
from scalelab.report.look import LIGHT, compared_colours
from scalelab.store.read_options import ReadOptions
from scalelab.store.table_read import TableRead
from scalelab.store.tables import read_table
from scalelab.theory.laws import Chinchilla

SAVING = 1.5
"""Compute that recipe B saves."""
LAW = Chinchilla(A=482.0, B=2085.0, E=1.82, alpha=0.348, beta=0.366)
GAMMA = 0.348 * 0.366 / (0.348 + 0.366)


def of_text(
    source: Source, text: str, tokenizer: str = "gpt2", metric: str = "heldout", documents: str = ""
) -> Source:
    """Return the source with losses of this text, tokenizer and metric; unknown if empty."""
    assert source.rows is not None
    evaluated = EvaluatedOn(
        texts=(text,) if text else (),
        tokenizers=(tokenizer,) if tokenizer else (),
        sources=(documents,) if documents else (),
    )
    rows = replace(source.rows, evaluated=evaluated, metric=parse_metric(metric))
    return replace(source, rows=rows)


@pytest.fixture(scope="module")
def compared(isoflop_runs: Callable[..., Observations]) -> SourceComparison:
    """Return recipe A, recipe B with 1.5 times the effective compute, and the published law."""
    a, same = isoflop_runs(noise=0.002), isoflop_runs(noise=0.002, seed=11)
    b = replace(same, loss_nats=1.82 + (same.loss_nats - 1.82) * SAVING**-GAMMA)
    sources = [
        source_of(
            name,
            fit(
                frame_of(TableRead(observations=rows, lines=np.arange(len(rows)))),
                bootstrap=100,
                forecaster="law",
            ),
        )
        for name, rows in (("recipe-a", a), ("recipe-b", b))
    ]
    sources = [of_text(source, "c4") for source in sources]
    return compare_sources([*sources, source_of("besiroglu", load_law("besiroglu"))])


def test_the_better_recipe_is_named_with_its_speed_up(compared: SourceComparison) -> None:
    speedup = compared.parts[1].speedup
    assert speedup is not None
    assert speedup.low < SAVING < speedup.high
    assert speedup.low > 1
    assert compared.answers[0] == (
        "recipe-b is better than recipe-a: it reaches the loss of recipe-a at 1e20 FLOP with "
        f"{1 / speedup.value:.3g}x [{1 / speedup.high:.3g}x, {1 / speedup.low:.3g}x] "
        f"of the compute ({speedup.value:.3g}x faster)."
    )
    assert compared.to_dict()["sources"][1]["comparable"]["answer"] == "yes"
    assert compared.parts[2].speedup is None
    assert compared.parts[2].reason == ""
    assert (
        compared.answers[1]
        == "No losses to compare: besiroglu is a law without runs. Compare N, D and the exponents."
    )


def test_losses_of_other_texts_or_tokenizers_have_no_speed_up_but_d_over_n(
    compared: SourceComparison,
) -> None:
    a, b = (part.source for part in compared.parts[:2])
    for other in (of_text(b, "wiki"), of_text(b, "c4", "llama"), of_text(b, "c4", "gpt2", "code")):
        found = compare_sources([a, other], flops=1e20)
        assert not found.has_speedup
        assert found.answers[0].startswith("Not comparable: ")
        assert "better" not in found.answers[0].partition("Nothing here shows whether")[0]
        details = " ".join(found.details[0])
        assert "D/N at 1e20 FLOP" in details
        assert "Exponent a" in details
        assert "scalelab compare recipe-a recipe-b --metric bpb:both" in details
        comparable = found.to_dict()["sources"][1]["comparable"]
        assert comparable["answer"] == "no"
        assert comparable["reasons"]


def test_losses_of_unknown_text_are_answered_with_the_condition(compared: SourceComparison) -> None:
    a, b = (part.source for part in compared.parts[:2])
    for other in (of_text(b, ""), of_text(b, "c4", "")):
        found = compare_sources([a, other], flops=1e20)
        assert found.answers[0].startswith(
            "recipe-b reaches the loss of recipe-a at 1e20 FLOP with"
        )
        assert found.answers[0].endswith(
            ", if both losses are of one text and one tokenizer (not known)."
        )
        assert found.details[0][0].startswith("Not known: nothing states the ")
        assert found.to_dict()["sources"][1]["comparable"]["answer"] == "unknown"


def test_bits_per_byte_compare_over_tokenizers_if_the_text_is_the_same(
    compared: SourceComparison,
) -> None:
    bits = [
        of_text(part.source, "c4", tokenizer, "bpb:heldout")
        for part, tokenizer in zip(compared.parts[:2], ("gpt2", "llama"), strict=True)
    ]
    # The fingerprint is of tokens: it does not show that the text is the same.
    assert compare_sources(bits, flops=1e20).parts[1].comparable == Comparability(
        answer="unknown",
        reasons=("whether both losses are of one text",),
        do=compare_sources(bits, flops=1e20).parts[1].comparable.do,
    )
    said = compare_sources(bits, flops=1e20).answers[0]
    assert said.endswith("if both losses are of one text (not known).")
    same = [of_text(source, "c4", "gpt2", "bpb:heldout") for source in bits]
    assert compare_sources(same, flops=1e20).has_speedup


def test_two_tokenizers_on_one_text_compare_in_bits_per_byte(compared: SourceComparison) -> None:
    a, b = (part.source for part in compared.parts[:2])

    def asked(metric: str, other: str) -> SourceComparison:
        made = (of_text(a, "1", "gpt2", metric, "text"), of_text(b, "2", "llama", metric, other))
        return compare_sources(made, flops=1e20)

    tokens = asked("heldout", "text")
    assert "per token of different tokenizers (llama and gpt2)" in tokens.answers[0]
    assert tokens.details[0][-1] == (
        "The text is the same, so bits per byte compare: "
        "`scalelab compare recipe-a recipe-b --metric bpb:heldout`."
    )
    assert asked("bpb:heldout", "text").parts[1].comparable == Comparability(answer="yes")
    assert "are of different texts (other of recipe-b" in asked("bpb:heldout", "other").answers[0]


def test_public_tables_state_their_text(tables: Path) -> None:
    texts = {
        name: read_table(Path(f"public:{name}")).observations.evaluated.texts
        for name in ("chinchilla", "olmo_ladder", "datablations")
    }
    assert texts["chinchilla"] == ("MassiveText",)
    assert texts["olmo_ladder"] == texts["datablations"] == ("C4 validation",)


def test_a_table_states_text_and_tokenizer_in_its_columns(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    head = "n_params,n_tokens,loss,tokenizer,eval_fingerprint,keep"
    rows = ("1e6,2e7,4.0,gpt2,abc,1", "2e6,4e7,3.8,gpt2,abc,1", "2e6,4e7,3.7,llama,def,0")
    table.write_text("\n".join((head, *rows)) + "\n")
    every = read_table(table).observations.evaluated
    assert (every.texts, every.tokenizers) == (("abc", "def"), ("gpt2", "llama"))
    kept = read_table(table, ReadOptions(where="keep = 1")).observations.evaluated
    assert (kept.texts, kept.tokenizers) == (("abc",), ("gpt2",))


def test_a_worse_recipe_needs_more_compute(
    compared: SourceComparison,
) -> None:
    a, b = compared.parts[0].source, compared.parts[1].source
    (said,) = compare_sources([b, a], flops=1e20).answers
    assert said.startswith("recipe-a is worse than recipe-b: it reaches the loss of recipe-b at")
    assert "with 1." in said
    assert "x slower)." in said


def test_overlapping_optima_have_no_clear_difference(compared: SourceComparison) -> None:
    ours, theirs = (part.forecast.n_params for part in compared.parts[1::-1] if part.forecast)
    assert ours is not None
    assert theirs is not None
    assert ours.low < theirs.high
    assert theirs.low < ours.high
    assert "no clear difference" in " ".join(compared.details[0])
    assert " wants " not in " ".join(compared.details[0])


def test_the_optima_and_exponents_of_all_are_compared_at_one_compute(
    compared: SourceComparison,
) -> None:
    assert compared.flops == pytest.approx(1e20)
    for part in compared.parts:
        assert part.forecast is not None
        assert part.bands is not None
        assert part.source.exponents is not None
        assert part.source.exponents[0].value == pytest.approx(0.366 / 0.714, abs=0.03)
    assert np.array_equal(compared.parts[0].bands.flops, compared.parts[2].bands.flops)
    assert set(compared.to_dict()) == {"flops", "level", "answers", "details", "sources"}


def test_the_figures_show_every_source(compared: SourceComparison) -> None:
    for axis in ("n_params", "n_tokens"):
        figure = figures_compare.frontiers(compared, axis)
        assert {"recipe-a", "recipe-b", "besiroglu"} <= {trace.name for trace in figure.data}
    assert "besiroglu" in figures_compare.exponent_forest(compared).layout.meta["alt"]
    assert "recipe-b" in {trace.name for trace in figures_compare.speedups(compared).data}
    assert {trace.name for trace in figures_compare.losses(compared).data} >= {
        "recipe-a",
        "recipe-b",
    }
    assert len(set(compared_colours(LIGHT, 6))) == 6


def test_one_source_and_a_repeated_name_are_refused(compared: SourceComparison) -> None:
    first = compared.parts[0].source
    with pytest.raises(UsageError, match="1 source"):
        compare_sources([first])
    with pytest.raises(UsageError, match="twice"):
        compare_sources([first, first])


def test_a_law_of_its_own_cannot_be_the_reference_of_a_speed_up(
    compared: SourceComparison,
) -> None:
    law, runs = compared.parts[2].source, compared.parts[0].source
    found = compare_sources([law, runs], flops=1e19)
    assert found.parts[1].speedup is None
    assert "besiroglu is a law without runs" in found.answers[0]


def test_an_unknown_name_lists_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Did you mean besiroglu"):
        compare_runs(["besiroglo", "hoffmann"], results=tmp_path)


def test_two_published_laws_are_compared_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "besiroglu", "hoffmann", "--results", str(tmp_path), "--flops", "1e22"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found["sources"]] == ["besiroglu", "hoffmann"]
    assert found["sources"][1]["a"]["value"] == pytest.approx(0.28 / 0.62, abs=1e-6)
    assert main(words) == 0
    assert "1e22 FLOP" in capsys.readouterr().out


@pytest.mark.slow
def test_the_figure_of_a_comparison_is_written(tmp_path: Path) -> None:
    path = tmp_path / "laws.png"
    words = ["compare", "besiroglu", "hoffmann", "--results", str(tmp_path), "--plot", str(path)]
    assert main(words) == 0
    assert path.stat().st_size > 10_000


@pytest.mark.slow
def test_the_report_has_the_comparison(tmp_path: Path, tables: Path) -> None:
    out = tmp_path / "report.html"
    words = ["report", "--from", str(tables / "llama3" / "data.csv"), "--out", str(out)]
    assert main([*words, "--compare", "besiroglu", "--results", str(tmp_path)]) == 0
    text = out.read_text()
    assert "Compared with others" in text
    assert "besiroglu wants" in text
    assert len(text.encode()) < 2_500_000


def test_a_compute_beyond_the_runs_is_named(compared: SourceComparison) -> None:
    found = compare_sources([part.source for part in compared.parts[:2]], flops=1e21)
    assert "That is 10x above the compute of the runs of recipe-b and recipe-a." in found.details[0]
    assert compared.parts[1].gap is not None
    assert found.parts[1].gap is not None
    widths = [
        each.difference.high - each.difference.low
        for each in (compared.parts[1].gap, found.parts[1].gap)
    ]
    assert widths[1] > 1.5 * widths[0]


def test_loss_difference_and_speed_up_are_those_of_the_laws(compared: SourceComparison) -> None:
    found = compared.to_dict()["sources"][1]
    gap = found["gap"]
    assert gap["flops"] == pytest.approx(1e20)
    n, d = LAW.optimal(np.array([1e20]))
    reducible = float(LAW.loss({"n_params": n, "n_tokens": d})[0]) - LAW.params["E"]
    true = reducible * (SAVING**-GAMMA - 1)
    assert gap["loss_difference"]["low"] < true < gap["loss_difference"]["high"] < 0
    assert gap["loss"] - gap["reference_loss"] == pytest.approx(gap["loss_difference"]["value"])
    assert gap["compute"]["value"] == pytest.approx(1 / found["speedup"]["value"])
    words = f"loss {gap['loss']:.4g} against {gap['reference_loss']:.4g}, -0.0"
    assert words in " ".join(compared.details[0])
    assert any("does not change clearly with compute" in each for each in compared.details[0])
    assert [each["flops"] for each in found["gaps"]] == sorted(e["flops"] for e in found["gaps"])


def test_the_speed_up_of_a_steeper_law_changes_with_compute() -> None:
    flops = np.geomspace(1e17, 1e23, 61)
    loss = 10 * flops**-0.05
    curves = [_frontier(flops, loss), _frontier(flops, 16 * flops**-0.06)]
    gaps = loss_gaps(curves[1], curves[0], [1e19, 1e21])
    for gap, at in zip(gaps, (1e19, 1e21), strict=True):
        needed = (16 / (10 * at**-0.05)) ** (1 / 0.06)
        assert gap.compute.value == pytest.approx(needed / at, rel=1e-3)
        assert gap.compute.low < gap.compute.value < gap.compute.high
    assert gaps[0].speedup.high < gaps[1].speedup.low
    # beyond the frontier it is not known
    (wide,) = loss_gaps(_frontier(flops, 0.99 * loss, 0.2), curves[0], [1e18])
    assert wide.compute.low == 0
    assert _limits(wide.speedup, "{:.2f}".format).endswith(", no limit]")
    (never,) = loss_gaps(_frontier(flops, 9 * loss), curves[0], [1e21])
    assert not never.is_reached
    assert set(never.to_dict()["speedup"].values()) == {None}
    assert loss_gaps(curves[1], curves[0], [1e25]) == ()


def test_limits_of_the_difference_add_in_squares() -> None:
    flops = np.geomspace(1e17, 1e23, 61)
    ours, other = _frontier(flops, 2 * flops**0, 0.03), _frontier(flops, 3 * flops**0, 0.04)
    (gap,) = loss_gaps(ours, other, [1e20])
    half = np.hypot(2 * 0.03, 3 * 0.04)
    assert gap.difference.value == pytest.approx(-1)
    assert gap.difference.high - gap.difference.low == pytest.approx(2 * half)


def _frontier(flops: np.ndarray, loss: np.ndarray, error: float = 1e-3) -> Bands:
    unused = dict.fromkeys(("n_params", "n_tokens"), flops)
    unused |= {f"{name}_{end}": flops for name in list(unused) for end in ("low", "high")}
    low, high = loss * (1 - error), loss * (1 + error)
    return Bands(
        flops=flops,
        loss=loss,
        low=low,
        high=high,
        pred_low=low,
        pred_high=high,
        level=0.9,
        **unused,
    )


def test_runs_without_a_law_of_their_own_have_one_factor(compared: SourceComparison) -> None:
    a, b = (part.source for part in compared.parts[:2])
    assert b.rows is not None
    few = fit(
        frame_of(TableRead(observations=b.rows.take(np.arange(4)), lines=np.arange(4))),
        bootstrap=100,
        forecaster="law",
    )
    found = compare_sources([a, of_text(source_of("few", few), "c4")])
    assert found.parts[1].gap is None
    assert found.parts[1].one_factor is not None
    assert "few do not determine its own law" in " ".join(found.details[0])
    assert " FLOP with" not in found.answers[0]
    assert found.to_dict()["sources"][1]["speedup"]["value"] == pytest.approx(SAVING, rel=0.2)
    assert "few" in {trace.name for trace in figures_compare.speedups(found).data}


def test_equal_recipes_have_no_difference_beyond_noise(compared: SourceComparison) -> None:
    first = compared.parts[0].source
    found = compare_sources([first, replace(first, name="again")], flops=1e20)
    assert found.answers[0].startswith("No difference beyond noise between again and recipe-a: ")

"""Mixtures in sweeps: weights, designs, and repeats of a source."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from scalelab.errors import UsageError
from scalelab.sweep.flag_tables import flag_table
from scalelab.sweep.mix_table import rounded_weights
from scalelab.sweep.mixture import drawn_tokens
from scalelab.sweep.mixture_design import mixture_design
from scalelab.sweep.option import find_option
from scalelab.sweep.plan import Plan
from scalelab.sweep.planned_run import SourceFacts
from scalelab.sweep.spec import SweepSpec, sweep_from_mapping

UNIQUE = {"code": 30_000_000, "docs": 2_000_000, "web": 40_000_000}
GRID = {"kind": "grid", "n_params": "300K", "n_tokens": "3M"}
SWEEP = {"kind": "mixture", "n_params": "300K", "n_tokens": "20M"}


def of(**data: Any) -> SweepSpec:
    return sweep_from_mapping({**GRID, "data": data}, source="a test")


@pytest.fixture
def mixed_facts(facts):
    def make(weights: dict[str, float | None]):
        sources = tuple(
            SourceFacts(
                name=name,
                fingerprint=name * 2,
                n_train_tokens=UNIQUE[name],
                n_eval_tokens=65_536,
                weight=weight,
            )
            for name, weight in weights.items()
        )
        return dataclasses.replace(facts, sources=sources)

    return make


def test_a_file_and_options_give_the_same_mixture() -> None:
    expected = of(mix={"code": {"paths": ["a", "b"], "weight": 0.7}, "web": {"paths": "c"}},
                  mix_weight={"web": 0.3})  # fmt: skip
    short = of(mix={"code": ["a", "b"], "web": "c"}, mix_weight={"code": 0.7, "web": "0.3"})
    assert short == expected
    assert short.science() == expected.science()
    option = find_option(SweepSpec, ("data", "mix"))
    assert option is not None
    paths = flag_table(option, ["code=a", "web=c", "code=b"])
    weights = find_option(SweepSpec, ("data", "mix_weight"))
    assert weights is not None
    shares = flag_table(weights, ["web=0.3", "code=0.7"])
    assert of(mix=paths, mix_weight=shares) == expected
    assert {name: s.paths for name, s in expected.data.sources().items()} == {
        "code": ("a", "b"),
        "web": ("c",),
    }


def test_each_source_can_be_read_in_its_own_way() -> None:
    sweep = of(
        tokenizer="bpe:512",
        field="body",
        mix={
            "code": {"paths": "a", "weight": 0.5, "format": "text"},
            "web": {"paths": "b", "weight": 0.5, "field": "html"},
        },
    )
    sources = sweep.data.sources()
    assert (sources["code"].format, sources["code"].field) == ("text", "body")
    assert (sources["web"].format, sources["web"].field) == ("auto", "html")
    assert {source.tokenizer for source in sources.values()} == {"bpe:512"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mix": {"a": "x", "b": "y"}}, "sources a, b without a weight"),
        ({"mix": {"a": "x", "b": "y"}, "mix_weight": {"a": 0.5}}, "source b without a weight"),
        (
            {"mix": {"a": "x", "b": "y"}, "mix_weight": {"a": 0.7, "b": 0.4}},
            r"weights that sum to 1.1: a 0.7, b 0.4; expected weights that sum to 1. With the same "
            r"proportions: --mix-weight a=0.636 --mix-weight b=0.364",
        ),
        ({"mix": {"a": "x", "b": "y"}, "mix_weight": {"a": -1, "b": 2}}, "weight -1 of source a"),
        ({"mix": {"a": "x", "b": "y"}, "mix_weight": {"a": 70, "b": 30}}, "For 70 % write 0.7"),
        ({"mix": {"a": "x", "b": "y"}, "mix_weight": {"a": "nan", "b": 1}}, "weight nan"),
        (
            {"mix": {"code": "x", "web": "y"}, "mix_weight": {"cod": 1}},
            "'cod', which is no source of the mixture.*Did you mean code",
        ),
        ({"mix_weight": {"code": 1}}, "which is no source of the mixture"),
        (
            {"mix": {"a": "x", "b": "y"}, "mix_weight": ["a=0.5", "a=0.4", "b=0.5"]},
            "two weights of source a: 0.5, 0.4",
        ),
        ({"mix": {"a": {"paths": "x", "weight": 1}}}, "a mixture of one source, a"),
        ({"mix": {"a": [], "b": "y"}}, "source a without text"),
        ({"mix": {"a": "", "b": "y"}}, "source a without text"),
        ({"mix": {"a": {"weight": 1}, "b": "y"}}, "source a without text"),
        ({"mix": {"heldout": "x", "b": "y"}}, "source 'heldout'"),
        ({"mix": {"A b": "x", "b": "y"}}, "source 'A b'"),
        ({"mix": ["a", "b=y"]}, r"data.mix 'a' \(--mix-source\); expected NAME=VALUE"),
        ({"mix": {"a": {"paths": "x", "wieght": 1}, "b": "y"}}, "Did you mean weight"),
        (
            {"paths": "x", "mix": {"a": {"paths": "x", "weight": 1}, "b": {"paths": "y"}}},
            "--data with a mixture of a, b",
        ),
    ],
)
def test_bad_mixtures_are_explained(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        of(**data)


def test_a_sweep_over_mixtures_chooses_the_weights_itself() -> None:
    with pytest.raises(UsageError, match="mixture sweep without sources"):
        sweep_from_mapping(SWEEP, source="a test")
    given = {"a": {"paths": "x", "weight": 0.5}, "b": {"paths": "y", "weight": 0.5}}
    with pytest.raises(UsageError, match="mixture sweep with a weight of a, b"):
        sweep_from_mapping({**SWEEP, "data": {"mix": given}}, source="a test")
    with pytest.raises(UsageError, match="runs = 9 for a sweep of kind grid"):
        sweep_from_mapping({**GRID, "runs": 9}, source="a test")


def test_designs_have_corners_centre_and_far_points() -> None:
    design = mixture_design(24, dict.fromkeys("abc", 1.0))
    points = np.array([[mixture[name] for name in "abc"] for mixture in design.mixtures])
    assert points[:4].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.333, 0.333, 0.334]] or (
        sorted(points[3].tolist()) == [0.333, 0.333, 0.334]
    )
    assert all(math.fsum(row) == pytest.approx(1, abs=1e-12) for row in points)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, 1)
    # 24 points on a triangle of area 0.866: a hexagonal lattice would have 0.25.
    assert distances.min() > 0.13
    assert design.mixtures[:10] == mixture_design(10, dict.fromkeys("abc", 1.0)).mixtures
    assert not design.moved


@pytest.mark.parametrize("n_sources", [2, 3, 5, 8])
def test_designs_stay_within_the_limits(n_sources: int) -> None:
    names = [f"s{i}" for i in range(n_sources)]
    limits = dict.fromkeys(names, 1.0) | {names[0]: 0.2567}
    design = mixture_design(20, limits)
    assert design.moved == {names[0]: 0.256}
    for mixture in design.mixtures:
        assert math.fsum(mixture.values()) == pytest.approx(1, abs=1e-12)
        assert mixture[names[0]] <= 0.256
    assert design.mixtures[0][names[0]] == 0.256
    assert len({tuple(mixture.values()) for mixture in design.mixtures}) == 20


def test_impossible_designs_are_refused() -> None:
    with pytest.raises(UsageError, match="3 mixtures of 3 sources; expected at least 4"):
        mixture_design(3, dict.fromkeys("abc", 1.0))
    with pytest.raises(UsageError, match=r"together hold too few tokens: at most a 0\.50, b 0\.40"):
        mixture_design(8, {"a": 0.5, "b": 0.4})
    with pytest.raises(UsageError, match="for which there is room"):
        mixture_design(30, {"a": 0.505, "b": 0.505})


def test_rounded_weights_sum_to_one() -> None:
    rounded = rounded_weights({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    assert sorted(rounded.values()) == [0.333, 0.333, 0.334]
    assert rounded_weights({"a": 0.7, "b": 0.3}) == {"a": 0.7, "b": 0.3}


def test_each_mixture_is_trained_at_each_size(plan_of, mixed_facts) -> None:
    mix = {name: name for name in UNIQUE}
    plan: Plan = plan_of(
        mixed_facts(dict.fromkeys(UNIQUE)),
        **{**SWEEP, "n_params": "100K,300K", "runs": 12, "data": {"mix": mix}},
    )
    assert len(plan.rows) == 24
    assert len({row.spec.run_id for row in plan.rows}) == 24
    by_size = [{row.spec.mixture for row in rows} for rows in (plan.rows[:12], plan.rows[12:])]
    assert by_size[0] == by_size[1]
    # 4 epochs of 2M tokens are 0.4 of 20M.
    assert max(s.weight for r in plan.rows for s in r.spec.mixture if s.name == "docs") == 0.399
    assert any("the corner of source docs is at 0.399" in text for text in plan.warnings())
    plan.refuse_repeats(allow_repeats=False)
    for row in plan.rows:
        drawn = drawn_tokens(row.spec)
        assert sum(drawn.values()) == row.spec.n_tokens
        for source in row.spec.mixture:
            assert drawn[source.name] == pytest.approx(
                source.weight * row.spec.n_tokens, abs=2 * row.spec.seq_len
            )
    free = plan_of(
        mixed_facts(dict.fromkeys(UNIQUE)),
        **{**SWEEP, "allow_repeats": True, "runs": 12, "data": {"mix": mix}},
    )
    assert max(s.weight for r in free.rows for s in r.spec.mixture if s.name == "docs") == 1.0


def test_a_fixed_mixture_works_in_other_sweeps_and_is_refused_beyond_the_limit(
    plan_of, mixed_facts
) -> None:
    weights = {"code": 0.2, "docs": 0.6, "web": 0.2}
    content = {
        "kind": "isoflop",
        "budgets": "1e13",
        "data": {"mix": {n: {"paths": n, "weight": w} for n, w in weights.items()}},
    }
    plan = plan_of(mixed_facts(weights), **content)
    assert {tuple(s.weight for s in row.spec.mixture) for row in plan.rows} == {(0.2, 0.6, 0.2)}
    with pytest.raises(
        UsageError, match=r"epochs over source docs: 0.6 of its .* give docs at most 0\.\d+"
    ):
        plan.refuse_repeats(allow_repeats=False)
    plan.refuse_repeats(allow_repeats=True)
    assert any("repeat text of source docs" in text for text in plan.warnings())

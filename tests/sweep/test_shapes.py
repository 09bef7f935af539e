"""Shapes near a target: usual depths, close to the target, all different."""

import hashlib
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.errors import UsageError
from scalelab.sweep.plan import make_plan
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.shape_rule import ALIGNED, DEFAULT_RULE, SHAPES, ShapeRule
from scalelab.sweep.shapes import (
    LARGEST_MISS,
    distinct_shapes,
    nearest_shape,
    shape_table,
    size_limits,
)
from scalelab.sweep.spec import read_sweep_file
from scalelab.theory.accounting import count_params

SWEEPS = Path(__file__).parents[2] / "sweeps"


@given(st.floats(4.2, 12), st.sampled_from([256, 4096, 50257]), st.sampled_from(SHAPES))
@settings(max_examples=100, deadline=None)
def test_the_nearest_shape_is_near_and_sane(log10_target, vocab_size, table):
    target, rule = 10**log10_target, ShapeRule(table=table)
    if target < 1.5 * size_limits(vocab_size, rule)[0]:
        return
    shape = nearest_shape(target, vocab_size, rule)
    assert abs(math.log(count_params(shape).total / target)) < LARGEST_MISS[table]
    assert shape.d_model % shape.d_head == 0
    assert shape.n_heads * shape.d_head == shape.d_model
    assert 0.5 <= shape.n_layers / DEFAULT_RULE.preferred_depth(shape.d_model) <= 2.0
    assert shape.d_ff >= 8 * shape.d_model / 3


@pytest.mark.parametrize("target", [3e6, 1e8, 1e9, 7e9, 7e10])
def test_from_a_few_million_on_the_ladder_is_fine_grained(target):
    shape = nearest_shape(target, 32000)
    assert abs(count_params(shape).total / target - 1) < 0.08


def test_known_widths_get_depths_close_to_common_models():
    # Radford et al. 2019 (12 layers at 768), Touvron et al. 2023 (32 at 4,096).
    assert abs(DEFAULT_RULE.preferred_depth(768) - 12) < 1
    assert abs(DEFAULT_RULE.preferred_depth(4096) - 32) < 4


def test_more_sizes_than_shapes_is_an_error_that_says_how_many_there_are():
    targets = [30_000 * 1.01**i for i in range(12)]
    with pytest.raises(UsageError) as caught:
        distinct_shapes(targets, 256)
    assert "12 sizes" in caught.value.given
    assert "fewer sizes" in caught.value.do


def test_a_size_beyond_the_ladder_says_where_it_ends():
    with pytest.raises(UsageError, match="11\\.6K"):
        nearest_shape(10, 256)
    with pytest.raises(UsageError):
        nearest_shape(1e16, 256)


def test_the_ladder_is_sorted_and_counts_all_parameters():
    table = shape_table(256)
    assert list(table.log_params) == sorted(table.log_params)
    assert table.log_params[7] == pytest.approx(math.log(count_params(table.shapes[7]).total))


@pytest.mark.parametrize("vocab_size", [256, 50_257])
def test_each_aligned_shape_has_the_sizes_for_which_gpus_are_fast(vocab_size):
    shapes = shape_table(vocab_size, ShapeRule(table=ALIGNED)).shapes
    assert {shape.d_head for shape in shapes} == {32, 64, 128}
    for shape in shapes:
        assert shape.d_ff % 64 == 0
        assert shape.d_model % shape.d_head == 0
    # The tables differ only where widths are small.
    large = {shape for shape in shapes if shape.d_model >= 256}
    assert large == {s for s in shape_table(vocab_size, DEFAULT_RULE).shapes if s.d_model >= 256}


def test_too_many_aligned_sizes_offer_the_fine_table():
    with pytest.raises(UsageError, match="--shapes fine"):
        distinct_shapes([50_000 * 1.1**i for i in range(6)], 256, ShapeRule(table=ALIGNED))


GIVEN_SWEEPS = {
    # Number of runs, first, last, and a hash of all run_ids, as they were before shapes had a rule.
    ("smoke", 97): (6, "0325c3b0d294", "1a578bc9dac6", "a1e9c8e05bf7"),
    ("demo", 97): (24, "795c7c851fdf", "0ae397ffd9e7", "feab906f2d7a"),
    ("kaplan_grid", 4096): (16, "3d45238543ec", "9950c89d0432", "90c8089c6dd2"),
    ("chinchilla", 32_000): (45, "fd0ea4f8ff8f", "07d63fd07bf0", "6d517b0b47e3"),
}


@pytest.mark.parametrize(("name", "vocab_size"), GIVEN_SWEEPS)
def test_the_sweep_files_keep_their_run_ids(name, vocab_size):
    sweep = read_sweep_file(SWEEPS / f"{name}.toml")
    facts = DataFacts(
        fingerprint="text",
        eval_fingerprint="held out",
        tokenizer=sweep.data.tokenizer,
        vocab_size=vocab_size,
        n_train_tokens=10**11,
        n_eval_tokens=10**6,
    )
    run_ids = [row.spec.run_id for row in make_plan(sweep, facts, precision="fp32").rows]
    all_ids = hashlib.sha256("".join(run_ids).encode()).hexdigest()[:12]
    found = (len(run_ids), run_ids[0], run_ids[-1], all_ids)
    assert found == GIVEN_SWEEPS[name, vocab_size]

"""Runs of one shape share steps where a calibration says that it pays, and no worker is idle."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.sweep.batched_runs import GAIN_MIN, best_batching, choose_batched_runs
from scalelab.sweep.cost import plan_cost
from scalelab.sweep.speeds import speed_from_calibration

GAINS = {2: 1.6, 4: 2.1, 8: 2.0}


@pytest.mark.parametrize(
    ("n_equal", "n_workers", "gains", "size"),
    [
        (8, 1, GAINS, 4),
        (8, 2, GAINS, 4),
        # Six runs on two workers: three each, where batches of two would take two rounds.
        (6, 2, GAINS, 3),
        (8, 8, GAINS, 1),
        (9, 8, GAINS, 2),
        (8, 2, {}, 1),
        (8, 2, {2: 1.05, 4: 0.9}, 1),
        (1, 1, GAINS, 1),
    ],
)
def test_the_packing_with_which_equal_runs_are_done_first(n_equal, n_workers, gains, size):
    assert best_batching(n_equal, gains, n_workers).size == size


@given(
    n_equal=st.integers(1, 60),
    n_workers=st.integers(1, 12),
    gains=st.dictionaries(st.sampled_from([2, 4, 8, 16]), st.floats(0.3, 8)),
)
def test_batched_runs_never_take_longer_and_leave_no_worker_idle(n_equal, n_workers, gains):
    batching = best_batching(n_equal, gains, n_workers)
    assert batching.size <= max(gains, default=1)
    assert batching.size <= max(1, math.ceil(n_equal / n_workers))
    if batching.size > 1:
        alone = math.ceil(n_equal / n_workers)
        batched = math.ceil(math.ceil(n_equal / batching.size) / n_workers) * batching.size
        assert alone >= GAIN_MIN * batched / batching.gain * (1 - 1e-12)


def test_seeds_and_rates_are_batched_and_other_shapes_and_branches_are_not(plan_of):
    def sizes(**axes):
        plan = plan_of(**axes)
        batching = choose_batched_runs([row.spec for row in plan.rows], lambda spec: GAINS, 1)
        return [batching[row.spec.run_id].size for row in plan.rows]

    tokens = {"n_tokens": "1M", "train": {"seeds": (0, 1, 2, 3)}}
    assert sizes(kind="grid", n_params="13K", **tokens) == [4] * 4
    assert sizes(kind="grid", n_params="13K,190K", n_tokens="1M") == [1, 1]
    same = {"n_tokens": "1M,2M,4M", "train": {"batch_seqs": 8}}
    assert sizes(kind="grid", n_params="13K", **same) == [3] * 3
    same["train"]["schedule"] = "wsd"
    assert sizes(kind="ladder", n_params="13K", **same) == [1] * 3


def test_a_plan_is_as_much_cheaper_as_its_batching_are_faster(plan_of):
    plan = plan_of(kind="grid", n_params="13K", n_tokens="10M", train={"seeds": (0, 1, 2, 3)})
    spec = plan.rows[0].spec
    point = {
        "d_model": spec.shape.d_model,
        "n_layers": spec.shape.n_layers,
        "seq_len": spec.seq_len,
        "batch_seqs": spec.batch_seqs,
        "flops_per_s": 1e9,
        "tokens_per_s": 1e4,
        "eval_tokens_per_s": 1e9,
    }

    def seconds(gains):
        content = {
            "device": "a cpu",
            "points": [point],
            "exact": [{**point, "batching_gains": gains}],
        }
        return plan_cost(plan, speed_from_calibration(content, 1)).run_seconds[0]

    assert seconds({}) / seconds({"2": 1.5, "4": 2.0}) == pytest.approx(2, rel=0.01)

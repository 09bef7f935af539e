"""Verdicts are joined, found and asked; the fastest right way wins clearly or not at all."""

from __future__ import annotations

from dataclasses import replace

from scalelab.records import qualification
from scalelab.records.qualification import (
    choice,
    fastest,
    kernel_class,
    kernel_status,
    merged,
    nearest_shape,
    shape_entry,
    status_of,
)
from scalelab.sweep.execution import ExecutionSpec

GRAPH = {"step": "graph", "kernels": "triton", "attention": "flash"}
COMPILED = {"step": "compiled", "kernels": "reference", "attention": "flash"}
EAGER = {"step": "eager", "kernels": "reference", "attention": "sdpa"}


def right(way, step_ms, **more):
    return {**way, "status": "ok", "reason": "", "step_ms": step_ms, **more}


def wrong(way):
    return {**way, "status": "wrong", "reason": "far off", "step_ms": 0.1}


def entry(spec, candidates, n_runs=1):
    return shape_entry(spec, n_runs, candidates, is_whole=True, tries=1)


def kernels(spec, status="ok", n_runs=1):
    check = {"op": "swiglu", "size": "3 x 8", "status": status, "reason": "far off"}
    return {"class": kernel_class(spec, n_runs), "is_whole": True, "tries": 1, "checks": [check]}


def sized(spec, d_model):
    return replace(spec, shape=replace(spec.shape, d_model=d_model))


def test_the_fastest_wins_only_if_the_difference_is_more_than_noise():
    assert fastest([right(EAGER, 4.0), right(GRAPH, 1.0)]) == GRAPH
    assert fastest([right(GRAPH, 1.0), right(EAGER, 0.99)]) == GRAPH
    assert fastest([wrong(GRAPH), right(EAGER, 4.0)]) == EAGER
    assert fastest([wrong(GRAPH)]) is None


def test_times_of_the_same_rounds_count_more_than_those_of_others():
    # The GPU had become slower meanwhile: the graph took 2 ms in the rounds of the compiled step.
    rounds = {"against": GRAPH, "against_ms": 2.0}
    assert fastest([right(GRAPH, 1.0), right(COMPILED, 1.5, **rounds)]) == COMPILED


def test_a_run_takes_the_choice_of_the_nearest_shape_of_its_kind(spec):
    small, large = sized(spec, 32), sized(spec, 512)
    shapes = [entry(small, [right(EAGER, 1.0)]), entry(large, [right(GRAPH, 1.0)])]
    near = sized(spec, 384)
    verdict = {"kernels": [kernels(near)], "shapes": shapes}
    ways = [ExecutionSpec(**GRAPH), ExecutionSpec(**EAGER)]
    assert choice(verdict, near, 1, ways) == GRAPH
    assert choice(verdict, sized(spec, 40), 1, ways) == EAGER
    for other in (replace(near, precision="bf16"), replace(near, optimizer="muon")):
        assert nearest_shape(verdict, other, 1) is None
    assert nearest_shape(verdict, near, 4) is None


def test_a_kernel_that_is_wrong_at_the_sizes_of_a_run_rules_out_what_uses_it(spec):
    shapes = [entry(spec, [right(GRAPH, 1.0), right(EAGER, 4.0)])]
    for status in ("wrong", "crashed", "not tried"):
        verdict = {"kernels": [kernels(spec, status)], "shapes": shapes}
        assert status_of(verdict, spec, 1, GRAPH)[0] == status
        assert choice(verdict, spec, 1, [ExecutionSpec(**GRAPH), ExecutionSpec(**EAGER)]) == EAGER
    # Sizes at which no kernel was checked say nothing about a way that uses kernels.
    verdict = {"kernels": [], "shapes": shapes}
    assert status_of(verdict, spec, 1, GRAPH)[0] == "not tried"
    assert status_of(verdict, spec, 1, EAGER)[0] == "ok"


def test_our_attention_alone_depends_on_its_own_check(spec):
    only_attention = {"step": "eager", "kernels": "reference", "attention": "triton"}
    assert kernel_status(kernels(spec, "wrong"), only_attention) is None
    assert kernel_status(kernels(spec, "wrong"), GRAPH)[0] == "wrong"


def test_the_first_verdict_counts_and_the_second_fills_its_gaps(spec):
    tried = {"kernels": [kernels(spec)], "shapes": [entry(spec, [right(GRAPH, 1.0)])]}
    missing = {**GRAPH, "status": "not tried", "reason": "time limit"}
    second = {
        "kernels": [kernels(spec, "wrong"), kernels(sized(spec, 512))],
        "shapes": [entry(spec, [wrong(GRAPH), right(EAGER, 4.0)])],
    }
    joined = merged(tried, second)
    assert [each["checks"][0]["status"] for each in joined["kernels"]] == ["ok", "ok"]
    (shape,) = joined["shapes"]
    assert [each["status"] for each in shape["candidates"]] == ["ok", "ok"]
    assert shape["chosen"] == GRAPH
    gap = {"kernels": [], "shapes": [entry(spec, [missing])]}
    assert merged(gap, second)["shapes"][0]["candidates"][0]["status"] == "wrong"
    assert merged(joined, second) == joined


def test_a_file_name_says_the_device_and_changes_with_each_version():
    platform = qualification.Platform(
        device="NVIDIA H100 80GB HBM3", driver="570.1", torch="2.11", triton="3.6", revision="a"
    )
    assert platform.file_name.startswith("nvidia-h100-80gb-hbm3-")
    names = {replace(platform, **{n: "other"}).file_name for n in platform.__dataclass_fields__}
    assert len(names | {platform.file_name}) == 6

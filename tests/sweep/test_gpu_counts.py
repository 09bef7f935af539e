"""Numbers of GPUs by the planned FLOPs of a run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.errors import UsageError
from scalelab.sweep.gpu_counts import gpu_numbers, gpus_for, read_gpu_counts
from scalelab.sweep.option import validated
from scalelab.sweep.tables import LauncherTable, SlurmTable


@pytest.mark.parametrize(
    ("given_counts", "expected"),
    [
        (8, {1e17: 8, 1e21: 8}),
        ("0", {1e17: 0}),
        ({"<1e19": 1, ">=1e19": 8}, {9.99e18: 1, 1e19: 8, 1e25: 8}),
        ("<=1e19=1, >1e19=8", {1e19: 1, 1.001e19: 8}),
        ("<1e18=1,>=1e18 <1e20=4,>=1e20=16", {1: 1, 1e18: 4, 9.9e19: 4, 1e20: 16}),
        ({">= 1e20": 16, "<1e20 >=1e18": 4, "< 1e18": 1}, {1e17: 1, 1e18: 4, 1e20: 16}),
    ],
)
def test_the_gpus_of_a_run(given_counts: Any, expected: dict[float, int]) -> None:
    counts = read_gpu_counts(given_counts)
    assert {flops: gpus_for(counts, flops) for flops in expected} == expected
    assert set(gpu_numbers(counts)) >= set(expected.values())
    launcher = LauncherTable(slurm=SlurmTable(gpus_per_run=given_counts))
    assert LauncherTable.model_validate_json(launcher.model_dump_json()) == launcher


@given(flops=st.floats(0.0, 1e36), bound=st.floats(1.0, 1e30))
def test_every_run_meets_one_condition(flops: float, bound: float) -> None:
    for low, high in (("<", ">="), ("<=", ">")):
        counts = read_gpu_counts({f"{low}{bound!r}": 1, f"{high}{bound!r}": 2})
        is_low = flops < bound if low == "<" else flops <= bound
        assert gpus_for(counts, flops) == (1 if is_low else 2)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ("-1", "gpus_per_run = '-1'"),
        ("eight", "gpus_per_run = 'eight'"),
        (1.5, "gpus_per_run = 1.5"),
        ("<1e19=1", "no condition for runs of at least 1e+19 FLOPs"),
        (">=1e19=8", "no condition for runs below 1e+19 FLOPs"),
        ("<1e19=1,>1e19=8", "no condition for runs of exactly 1e+19 FLOPs"),
        ("<=1e19=1,>=1e19=8", "two conditions for runs of exactly 1e+19 FLOPs"),
        ("<1e19=1,>=1e18=8", "two conditions for runs of 1e+18 to 1e+19 FLOPs"),
        ("<1e18=1,>=1e19=8", "no condition for runs of 1e+18 to 1e+19 FLOPs"),
        (">=1e20 <1e19=1", "some number of FLOPs meets"),
        ("<1e19=x,>=1e19=8", "condition '<1e19=x'"),
        ("1e19=1", "condition '1e19=1'"),
        ({"<1e19": 0, ">=1e19": 8}, "on the CPU and on GPUs"),
    ],
)
def test_conditions_that_leave_a_run_open_are_refused(counts: Any, words: str) -> None:
    with pytest.raises(UsageError) as error:
        validated(SlurmTable, {"gpus_per_run": counts}, source="the test")
    assert words in f"{error.value.given} {error.value.allowed}"


def test_tensor_parallelism_divides_every_number_of_gpus() -> None:
    counts = {"<1e19": 2, ">=1e19": 8}
    assert SlurmTable(gpus_per_run=counts, tensor_parallel=2).tensor_parallel == 2
    with pytest.raises(UsageError, match="tensor_parallel = 4 on 2 devices a run"):
        SlurmTable(gpus_per_run=counts, tensor_parallel=4)

"""What may be spread over several devices, and what is refused with the number that is at fault."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scalelab.errors import ScalelabError, UsageError
from scalelab.sweep.devices import require_multi_device
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params
from scalelab.theory.shape import ModelShape

SHAPE = ModelShape(n_layers=2, d_model=48, n_heads=12, d_head=4, d_ff=72, vocab_size=61)
SPEC = RunSpec(
    shape=SHAPE,
    seq_len=8,
    batch_seqs=12,
    n_steps=4,
    lr=0.01,
    warmup_steps=1,
    data_fingerprint="a",
    eval_fingerprint="b",
    tokenizer="bytes",
    seed=0,
)


@pytest.mark.parametrize(("n_devices", "degree"), [(1, 1), (12, 1), (6, 6), (12, 4), (48, 4)])
def test_whole_shares_are_allowed(n_devices: int, degree: int) -> None:
    execution = ExecutionSpec(n_devices=n_devices, tensor_parallel=degree)
    assert execution.n_data_parallel * degree == n_devices
    require_multi_device(SPEC, execution)


@pytest.mark.parametrize(
    ("n_devices", "degree", "changes", "words"),
    [
        (6, 4, {}, "tensor_parallel = 4 on 6 devices a run"),
        (5, 1, {}, "12 sequences a batch over 5 devices"),
        (10, 2, {}, "12 sequences a batch over 5 groups of devices"),
        (24, 24, {}, "tensor_parallel = 24 for a model with n_kv_heads = 12"),
        (4, 4, {"n_kv_heads": 3}, "n_kv_heads = 3"),
        (8, 4, {"d_ff": 2}, "d_ff = 2"),
        (
            *(8, 4),
            {"n_experts": 2, "n_active_experts": 1, "d_shared_expert": 3},
            "d_shared_expert = 3",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(
    n_devices: int, degree: int, changes: dict[str, int], words: str
) -> None:
    spec = replace(SPEC, shape=replace(SHAPE, **changes))
    execution = ExecutionSpec(n_devices=n_devices, tensor_parallel=degree)
    with pytest.raises(UsageError, match=words):
        require_multi_device(spec, execution)


def test_no_device_can_have_no_part() -> None:
    with pytest.raises(ScalelabError, match="tensor_parallel = 0"):
        ExecutionSpec(tensor_parallel=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 6, "d_ff": 70},
        {"n_experts": 3, "n_active_experts": 1, "d_shared_expert": 11},
    ],
)
@pytest.mark.parametrize("degree", [1, 4, 5])
def test_the_parts_of_the_blocks_are_the_whole(changes: dict[str, int], degree: int) -> None:
    shape = replace(SHAPE, **changes)
    parts = [shape.tensor_part(degree, index) for index in range(degree)]
    whole, own = count_params(shape), [count_params(part) for part in parts]
    assert whole.attention == sum(counts.attention for counts in own)
    routers = 2 * 48 * shape.n_experts
    assert whole.feed_forward == routers + sum(c.feed_forward - routers for c in own)
    for part in parts:
        # Every query head is where its key and value head is.
        assert part.n_heads * shape.kv_heads == shape.n_heads * part.kv_heads
        assert abs(part.kv_heads - shape.kv_heads / degree) < 1
        assert abs(part.d_ff - shape.d_ff / degree) < 1
        assert (part.d_model, part.d_head, part.n_layers) == (48, 4, 2)

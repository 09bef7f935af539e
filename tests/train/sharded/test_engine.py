"""A run on a data x tensor mesh of devices has the results of one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scalelab.records.run_dir import RunDir
from scalelab.theory.shape import ModelShape
from scalelab.train.evaluation import EVAL_LOSSES_FILE
from tests.train.outcome import curve, last_note, result
from tests.train.sharded.job import Job

RTOL = {"loss_nats": 2e-5, "grad_norm": 2e-4, "noise_trace": 1e-4}
WIDE = ModelShape(n_layers=2, d_model=16, n_heads=4, d_head=6, d_ff=24, vocab_size=61, n_kv_heads=2)
CASES: dict[str, dict[str, Any]] = {
    "adamw": {
        "ema_decay": 0.8,
        "z_loss": 1e-3,
        "logit_softcap": 2.0,
        "is_document_masked": True,
    },
    "muon": {"optimizer": "muon", "shape": replace(WIDE, is_tied=True)},
    # Heads and hidden units that the devices cannot share evenly.
    "mup": {
        "parametrization": "mup",
        "shape": replace(WIDE, n_heads=6, n_kv_heads=3, d_ff=25, has_qk_norm=False),
        "ema_decay": 0.5,
    },
    "completep": {
        "parametrization": "completep",
        "optimizer": "muon",
        "shape": replace(WIDE, n_layers=3),
    },
    "experts": {
        "optimizer": "muon",
        "shape": replace(WIDE, n_experts=3, n_active_experts=2, n_kv_heads=0, d_shared_expert=13),
        "balance_weight": 0.1,
        "router_z_weight": 0.05,
    },
}


@pytest.fixture
def make_case(make_run: Callable[..., RunDir]) -> Callable[..., RunDir]:
    """Return a function that writes the spec of a case and returns its run folder."""

    def make(case: str, group: str, **changes: Any) -> RunDir:
        # Clips most steps.
        common = {"shape": WIDE, "n_steps": 6, "batch_seqs": 4, "grad_clip": 0.5}
        return make_run(f"{group}-{case}", **(common | CASES[case] | changes))

    return make


def require_same(run: RunDir, alone: RunDir, columns: Sequence[str] = tuple(RTOL)) -> None:
    """Compare the curves and records of two runs."""
    for column in columns:
        found, expected = curve(run, column), curve(alone, column)
        rtol = RTOL[column]
        assert list(found) == list(expected)
        np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=rtol)
    each = [np.load(r.attempts()[-1].path / EVAL_LOSSES_FILE) for r in (run, alone)]
    np.testing.assert_allclose(*each, rtol=1e-4)
    one, other = result(alone), result(run)
    assert other.loss_nats == pytest.approx(one.loss_nats, rel=RTOL["loss_nats"])
    assert (other.ema_loss_nats is None) == (one.ema_loss_nats is None)
    if one.ema_loss_nats is not None:
        assert one.ema_loss_nats != one.loss_nats
        assert other.ema_loss_nats == pytest.approx(one.ema_loss_nats, rel=RTOL["loss_nats"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_ranks", "tensor_parallel", "micro", "cases"),
    [
        (2, 1, 0, ("adamw", "muon")),
        (2, 2, 2, ("muon", "mup", "completep", "experts")),
        (4, 2, 1, ("adamw", "experts")),
    ],
)
def test_a_mesh_has_the_losses_norms_noise_and_average_of_one_device(
    make_case: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    start: Callable[..., Job],
    n_ranks: int,
    tensor_parallel: int,
    micro: int,
    cases: tuple[str, ...],
) -> None:
    alone, runs = ([make_case(case, group) for case in cases] for group in ("alone", "mesh"))
    for run in alone:
        # Two ranks with all of their sequences in a pass are two micro-batches of one device.
        assert attempt_at(run, micro_batch_seqs=micro or 2) == "done"
    job = start(runs, n_ranks, tensor_parallel=tensor_parallel, micro_batch_seqs=micro)
    assert job.finish() == ["done"] * len(cases)
    for run, one in zip(runs, alone, strict=True):
        require_same(run, one)
        execution = last_note(run)["execution"]
        found = execution["n_devices"], execution["tensor_parallel"]
        assert found == (n_ranks, tensor_parallel)


def test_unsplit_weights_stay_equal_on_all_devices(
    make_case: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    together: Callable[..., str],
) -> None:
    alone, run = (make_case("adamw", group) for group in ("alone", "run"))
    assert attempt_at(alone) == "done"
    assert together(run, 2, tensor_parallel=2, drifting_rank=1) == "done"
    require_same(run, alone, ("loss_nats", "grad_norm"))


def test_a_run_resumes_on_any_mesh_with_its_momentum_and_average(
    make_case: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    together: Callable[..., str],
) -> None:
    alone, run = (
        make_case(
            "muon", group, ema_decay=0.8, n_steps=12, shape=replace(WIDE, n_kv_heads=0, n_heads=3)
        )
        for group in ("alone", "run")
    )
    assert attempt_at(alone) == "done"
    assert attempt_at(run, stop_at=3) == "preempted"
    for stop_at, n_ranks, degree in ((6, 2, 2), (9, 4, 2), (10, 2, 1)):
        assert together(run, n_ranks, tensor_parallel=degree, stop_at=stop_at) == "preempted"
    assert attempt_at(run) == "done"
    steps = [(a.read_note()["resumed_from"] or {"step": 0})["step"] for a in run.attempts()]
    assert steps == sorted(set(steps))
    require_same(run, alone, ("loss_nats", "grad_norm"))


@pytest.mark.slow
def test_a_model_with_too_few_heads_fails(
    make_case: Callable[..., RunDir], start: Callable[..., Job]
) -> None:
    odd = make_case("adamw", "odd", shape=replace(WIDE, n_kv_heads=1))
    even = make_case("adamw", "even", n_steps=2, warmup_steps=1)
    assert start([odd, even], 2, tensor_parallel=2).finish() == ["failed", "done"]
    reason = last_note(odd)["ended"]["reason"]
    assert "tensor_parallel = 2 for a model with n_kv_heads = 1" in reason
    # A group has one forward pass, so there is no smaller batch to measure the noise with.
    assert curve(even, "noise_trace")[2] is None


def test_tensor_parallelism_on_a_single_device_is_an_error(
    make_case: Callable[..., RunDir], attempt_at: Callable[..., str]
) -> None:
    run = make_case("adamw", "alone")
    assert attempt_at(run, tensor_parallel=2) == "failed"
    assert "tensor_parallel = 2 on 1 device a run" in last_note(run)["ended"]["reason"]

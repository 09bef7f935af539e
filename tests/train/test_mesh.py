"""One run over a mesh of devices, by data and by the width of its blocks: the numbers of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scalelab.records.run_dir import RunDir
from scalelab.theory.shape import ModelShape
from tests.train.job import Job
from tests.train.outcome import curve, last_note, result

RTOL = 5e-5
N_STEPS = 8
WIDE = ModelShape(n_layers=2, d_model=16, n_heads=4, d_head=6, d_ff=24, vocab_size=61, n_kv_heads=2)
CASES: dict[str, dict[str, Any]] = {
    "adamw": {"ema_decay": 0.8, "z_loss": 1e-3},
    "muon": {"optimizer": "muon", "shape": replace(WIDE, is_tied=True)},
    "mup": {"parametrization": "mup", "shape": replace(WIDE, has_qk_norm=False), "ema_decay": 0.5},
    "experts": {
        "optimizer": "muon",
        "shape": replace(WIDE, n_experts=3, n_active_experts=2, n_kv_heads=0),
    },
}


@pytest.fixture
def make_case(make_run: Callable[..., RunDir]) -> Callable[[str, str], RunDir]:
    def make(case: str, group: str) -> RunDir:
        # The norms are clipped in most of the steps.
        common = {"shape": WIDE, "n_steps": N_STEPS, "batch_seqs": 4, "grad_clip": 0.5}
        return make_run(f"{group}-{case}", **(common | CASES[case]))

    return make


def require_same(run: RunDir, alone: RunDir) -> None:
    """Compare all that two runs recorded of their steps and of their end."""
    for column, rtol in (("loss_nats", RTOL), ("grad_norm", 10 * RTOL), ("noise_trace", 1e-3)):
        found, expected = curve(run, column), curve(alone, column)
        assert list(found) == list(expected)
        np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=rtol)
    one, other = result(alone), result(run)
    assert other.loss_nats == pytest.approx(one.loss_nats, rel=RTOL)
    assert (other.ema_loss_nats is None) == (one.ema_loss_nats is None)
    if one.ema_loss_nats is not None:
        assert one.ema_loss_nats != one.loss_nats
        assert other.ema_loss_nats == pytest.approx(one.ema_loss_nats, rel=RTOL)


@pytest.mark.parametrize(("n_ranks", "tensor_parallel"), [(2, 1), (2, 2), (4, 2)])
def test_a_mesh_has_the_losses_norms_noise_and_average_of_one_device(
    make_case: Callable[[str, str], RunDir],
    attempt_at: Callable[..., str],
    start: Callable[..., Job],
    n_ranks: int,
    tensor_parallel: int,
) -> None:
    alone, runs = ([make_case(case, group) for case in CASES] for group in ("alone", "mesh"))
    for run in alone:
        assert attempt_at(run, micro_batch_seqs=1) == "done"
    job = start(runs, n_ranks, tensor_parallel=tensor_parallel, micro_batch_seqs=1)
    assert job.finish() == ["done"] * len(CASES)
    for run, one in zip(runs, alone, strict=True):
        require_same(run, one)
        execution = last_note(run)["execution"]
        found = execution["n_devices"], execution["tensor_parallel"]
        assert found == (n_ranks, tensor_parallel)

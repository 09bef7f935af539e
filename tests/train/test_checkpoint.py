"""Incomplete and corrupt checkpoints are not used."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from scalelab.records.run_dir import RunDir
from scalelab.train import checkpoint


def test_a_saved_state_is_loaded(make_run: Callable[..., RunDir]) -> None:
    run = make_run()
    attempt = run.claim()
    state = {"step": 7, "weights": torch.randn(33), "nested": {"best": 1.25, "none": None}}
    checkpoint.save(attempt, state)
    ((found, loaded),) = checkpoint.load_newest(run)
    assert loaded is not None
    assert (found.step, loaded["nested"]) == (7, state["nested"])
    assert torch.equal(loaded["weights"], state["weights"])  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["state.pt", "meta.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_corrupt_checkpoint_is_not_loaded(
    make_run: Callable[..., RunDir], place: str, harm: str
) -> None:
    run = make_run()
    attempt = run.claim()
    for step in (3, 9):
        checkpoint.save(attempt, {"step": step, "weights": torch.ones(500)})
    path = run.checkpoints()[0].path / place
    content = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(content[:-20])
    else:
        content[len(content) // 2] ^= 0x40
        path.write_bytes(content)
    states = [(found.step, state) for found, state in checkpoint.load_newest(run)]
    assert states[0] == (9, None)
    assert states[1][1] is not None


def test_a_checkpoint_under_another_step_is_not_loaded(make_run: Callable[..., RunDir]) -> None:
    run = make_run()
    attempt = run.claim()
    checkpoint.save(attempt, {"step": 3})
    (found,) = run.checkpoints()
    found.path.rename(found.path.with_name("checkpoint-8"))
    ((_, state),) = checkpoint.load_newest(run)
    assert state is None


def test_code_in_a_checkpoint_is_not_run(make_run: Callable[..., RunDir]) -> None:
    run = make_run()
    attempt = run.claim()

    class Harmful:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return pytest.fail, ("code of a checkpoint was run",)

    checkpoint.save(attempt, {"step": 3, "code": Harmful()})
    ((_, state),) = checkpoint.load_newest(run)
    assert state is None
    assert json.loads((run.checkpoints()[0].path / "meta.json").read_text())["step"] == 3

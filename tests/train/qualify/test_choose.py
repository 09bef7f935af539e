"""Which way an attempt takes; verdicts are shared, joined and filled in where they lack a case."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scalelab.corpus.dataset import Dataset
from scalelab.records.qualification import (
    cached_verdicts,
    kernel_class,
    name_of,
    read_verdict,
    way_of,
    write_verdict,
)
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import AUTO, ExecutionSpec, QualifyRequest
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.qualify import choose, lock
from scalelab.train.qualify.measure import Target, way_id
from tests.train.outcome import curve, last_note, run_attempt
from tests.train.qualify.conftest import AUTO_REQUEST

PLAIN = "eager + reference + explicit"
FUSED = "eager + reference + sdpa"
TRITON = "eager + triton + explicit"
DIRECT = "direct + reference + explicit"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Return a function that sets what a measurement finds; it returns the labels measured."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def find(**times: Any) -> list[list[str]]:
        """Set milliseconds, or a status, by the words of a way joined by ``_``."""
        asked: list[list[str]] = []

        def measure(targets: Sequence[Target], *_: Any, **__: Any) -> None:
            asked.append([target.spec.shape.label() for target in targets])
            for target in targets:
                fields = {"class": kernel_class(target.spec, target.n_runs), "checks": []}
                target.kernels = {**fields, "is_whole": True, "tries": target.tries}
                for way in target.ways:
                    found = times.get("_".join(way_id(way)), 2.0)
                    is_time = isinstance(found, float)
                    figures = {
                        "status": "ok" if is_time else found,
                        "reason": "" if is_time else f"it is {found}",
                        "step_ms": found if is_time else None,
                    }
                    target.candidates[way_id(way)] = {**way_of(way), **figures}

        monkeypatch.setattr(choose, "measure", measure)
        return asked

    return find


def sized(spec: RunSpec, d_model: int) -> RunSpec:
    return replace(spec, shape=replace(spec.shape, d_model=d_model))


def test_the_fastest_right_way_is_taken_and_a_second_worker_does_not_measure(
    measured: Callable[..., Any], tiny: RunSpec, tmp_path: Path
) -> None:
    asked = measured(eager_triton_explicit=0.5)
    request = QualifyRequest(tmp_path / "shared", (tiny,))
    chosen, note = choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=request)
    assert name_of(way_of(chosen)) == TRITON
    assert chosen == replace(AUTO_REQUEST, **way_of(chosen))
    assert (note["shape"], note["ruled_out"]) == (tiny.shape.label(), [])
    assert choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=request) == (chosen, note)
    # Neither does a worker without the results folder: the user's cache has it.
    assert choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=None)[0] == chosen
    assert asked == [[tiny.shape.label()]]
    choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=request, is_forced=True)
    assert len(asked) == 2


def test_of_several_workers_at_once_one_measures(
    measured: Callable[..., Any],
    tiny: RunSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = measured(eager_triton_explicit=0.5)
    measure = choose.measure
    monkeypatch.setattr(choose, "measure", lambda *a, **k: (time.sleep(0.3), measure(*a, **k)))
    monkeypatch.setattr(lock, "POLL_S", 0.05)
    request = QualifyRequest(tmp_path / "shared", (tiny,))

    def work(_: int) -> ExecutionSpec:
        return choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=request)[0]

    with ThreadPoolExecutor(3) as pool:
        chosen = set(pool.map(work, range(3)))
    assert [each.kernels for each in chosen] == ["triton"]
    assert len(asked) == 1


@pytest.mark.parametrize("status", ["wrong", "not repeatable", "failed", "crashed", "hung"])
def test_the_fastest_way_is_not_taken_if_it_is_ruled_out(
    measured: Callable[..., Any], tiny: RunSpec, status: str
) -> None:
    measured(eager_triton_explicit=status, direct_reference_explicit=3.0)
    chosen, note = choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=None)
    assert name_of(way_of(chosen)) == FUSED
    assert [(name_of(out), out["reason"]) for out in note["ruled_out"]] == [
        (TRITON, f"it is {status}")
    ]


def test_only_missing_shapes_are_measured_and_a_run_takes_the_nearest_ones_choice(
    measured: Callable[..., Any], tiny: RunSpec, tmp_path: Path
) -> None:
    asked = measured(eager_triton_explicit=0.5)
    small, middle, large = (sized(tiny, d) for d in (16, 64, 256))
    folder = tmp_path / "shared"
    choose.qualified(AUTO_REQUEST, small, n_runs=1, request_=QualifyRequest(folder, (small,)))
    measured(eager_triton_explicit=9.0)
    asked = measured(eager_triton_explicit=9.0)
    request = QualifyRequest(folder, (small, middle, large))
    chosen, note = choose.qualified(AUTO_REQUEST, large, n_runs=1, request_=request)
    labels = [each.shape.label() for each in (large, middle)]
    assert asked == [labels]
    assert (note["shape"], chosen.kernels) == (large.shape.label(), "reference")
    # A run between them: its kernels are checked, its way is the nearest shape's.
    between = sized(tiny, 24)
    chosen, note = choose.qualified(AUTO_REQUEST, between, n_runs=1, request_=request)
    assert asked[1:] == [[between.shape.label()]]
    assert (note["shape"], chosen.kernels) == (small.shape.label(), "triton")


def test_batched_runs_are_qualified_apart(measured: Callable[..., Any], tiny: RunSpec) -> None:
    asked = measured()
    for n_runs in (1, 4, 4):
        choose.qualified(AUTO_REQUEST, tiny, n_runs=n_runs, request_=None)
    assert len(asked) == 2


def test_the_verdict_beside_the_results_counts_more_than_the_cache(
    measured: Callable[..., Any], tiny: RunSpec, tmp_path: Path
) -> None:
    measured(eager_triton_explicit=0.5)
    request = QualifyRequest(tmp_path / "shared", (tiny,))
    choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=request)
    cache = cached_verdicts()
    assert cache is not None
    (path,) = cache.glob("*.json")
    verdict = read_verdict(path)
    assert verdict is not None
    for candidate in verdict["shapes"][0]["candidates"]:
        candidate["status"] = "wrong" if candidate["kernels"] == "triton" else "ok"
    write_verdict(path, verdict)
    assert choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=request)[0].kernels == "triton"
    assert choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=None)[0].kernels == "reference"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}'])
def test_a_damaged_verdict_is_measured_again(
    measured: Callable[..., Any], tiny: RunSpec, tmp_path: Path, content: str
) -> None:
    asked = measured()
    request = QualifyRequest(tmp_path / "shared", (tiny,))
    _, note = choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=request)
    for folder in (request.folder, cached_verdicts()):
        assert folder is not None
        (folder / Path(note["file"]).name).write_text(content)
    choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=request)
    assert len(asked) == 2
    assert json.loads(Path(note["file"]).read_text())["shapes"]


def test_folders_that_cannot_be_written_cost_only_the_memory_of_the_verdict(
    measured: Callable[..., Any],
    tiny: RunSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured(eager_triton_explicit=0.5)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    request = QualifyRequest(tmp_path / "file" / "shared", (tiny,))
    chosen, note = choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=request)
    assert (chosen.kernels, note["file"]) == ("triton", None)


def test_what_is_not_measured(
    measured: Callable[..., Any], tiny: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measured()
    several = replace(AUTO_REQUEST, n_devices=2)
    assert choose.qualified(several, tiny, n_runs=1, request_=None)[0].kernels == "reference"
    named = ExecutionSpec(step="eager")
    assert choose.qualified(named, tiny, n_runs=1, request_=None) == (named, {})
    monkeypatch.delenv("TRITON_INTERPRET")
    chosen, note = choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=None)
    assert name_of(way_of(chosen)) == DIRECT
    assert note["requested"] == dict.fromkeys(("step", "kernels", "attention"), AUTO)
    assert asked == []


def test_an_unfinished_shape_is_tried_once_more(
    measured: Callable[..., Any], tiny: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured()
    asked = []
    monkeypatch.setattr(choose, "measure", lambda targets, *_, **__: asked.append(targets))
    for _ in range(4):
        chosen, note = choose.qualified(AUTO_REQUEST, tiny, n_runs=1, request_=None)
        assert (name_of(way_of(chosen)), note["is_qualified"]) == (PLAIN, False)
    assert len(asked) == choose.MAX_TRIES


def test_a_resumed_run_keeps_its_execution_unless_that_is_ruled_out_now(
    measured: Callable[..., Any],
    make_run: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    dataset: Dataset,
) -> None:
    measured(eager_triton_explicit=0.5)
    straight, resumed = make_run("straight"), make_run("resumed")
    assert attempt_at(straight, step="eager") == "done"
    assert attempt_at(resumed, stop_at=12, step="eager") == "preempted"
    # The fastest way would be another one now, with other bits.
    assert run_attempt(resumed.path, dataset.folder, AUTO_REQUEST) == "done"
    assert last_note(resumed)["qualification"]["requested"]["kernels"] == AUTO
    assert name_of(last_note(resumed)["execution"]) == PLAIN
    assert curve(resumed) == curve(straight)


def test_a_resumed_run_whose_execution_is_ruled_out_changes_it_and_says_so(
    measured: Callable[..., Any],
    make_run: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    dataset: Dataset,
) -> None:
    run = make_run()
    assert attempt_at(run, stop_at=12, step="eager") == "preempted"
    (attempt,) = run.attempts()
    note = attempt.read_note()
    note["execution"]["kernels"] = "triton"
    attempt.write_note(note)
    measured(eager_triton_explicit="wrong", direct_reference_explicit=0.5)
    assert run_attempt(run.path, dataset.folder, AUTO_REQUEST) == "done"
    changed = last_note(run)["qualification"]["changed"]
    assert name_of(changed["from"]) == TRITON
    assert "it is wrong" in changed["reason"]
    assert name_of(last_note(run)["execution"]) == DIRECT
    assert last_note(run)["resumed_from"]["step"] > 0

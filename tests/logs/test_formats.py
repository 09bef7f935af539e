"""Every reader, against logs that the programs themselves wrote (see samples/README.md)."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from scalelab.errors import DataError
from scalelab.logs.registry import FORMATS, READERS, read_logs, reader_of
from scalelab.logs.types import LoggedRun

SAMPLES = Path(__file__).parent / "samples"


def loss(step: int) -> float:
    """The loss that the synthetic samples log at a step."""
    return 1.7 + 3.5 * (step + 5) ** -0.5


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a sample's README says about one run."""

    format: str
    path: str
    run: str
    n_params: float | None = None
    n_tokens: float | None = None
    loss: float
    last_step: int | None
    points: int
    unit: str = "nats"
    incomplete: str = ""
    at: dict[int, float] = field(default_factory=dict)


RUNS = (
    Expected(format="huggingface", path="huggingface", run="done", n_params=231_744,
             n_tokens=20_480, loss=3.813441038131714, last_step=40, points=8),
    Expected(format="huggingface", path="huggingface", run="killed_and_resumed", n_tokens=20_480,
             loss=3.813441038131714, last_step=40, points=8),
    Expected(format="huggingface", path="huggingface", run="jit_sigterm_exit0", n_tokens=12_800,
             loss=3.692415237426758, last_step=25, points=5,
             incomplete="it stopped at step 25 of 400"),
    Expected(format="lightning", path="lightning", run="lightning", n_tokens=10_240,
             loss=loss(40) + 0.1, last_step=40, points=40),
    Expected(format="lightning", path="litgpt", run="litgpt", n_params=132_864, n_tokens=20_480,
             loss=3.0690598487854004, last_step=80, points=40),
    Expected(format="lightning", path="litgpt", run="killed", n_params=132_864, n_tokens=20_480,
             loss=2.68426775932312, last_step=79, points=40,
             incomplete="litgpt expected 10.0 s more when the log ended"),
    Expected(format="lingua", path="lingua", run="lingua", n_tokens=30_720, loss=loss(60),
             last_step=60, points=6, at={30: loss(30), 40: loss(40)}),
    Expected(format="llmc", path="llmc", run="llmc", loss=2.3217, last_step=40, points=40,
             at={31: 2.27, 32: 2.2833}),
    Expected(format="lm-eval", path="lm-eval", run="tiny", n_params=147_776,
             loss=4.888100124811377, last_step=None, points=0, unit="bits-per-byte"),
    Expected(format="marin", path="marin", run="marin", n_params=131_136, n_tokens=20_480,
             loss=loss(39) + 0.1, last_step=39, points=0),
    Expected(format="megatron", path="megatron", run="run", loss=2.321749, last_step=40, points=4,
             at={10: 2.603696}),
    Expected(format="mlflow", path="mlflow/mlflow.db.gz", run="r1", n_tokens=20_480,
             loss=loss(40) + 0.1, last_step=41, points=42, at={30: 2.0, 41: math.nan}),
    Expected(format="mlflow", path="mlflow/mlruns", run="r1", n_tokens=20_480, loss=loss(40) + 0.1,
             last_step=41, points=42, at={30: 2.0, 41: math.nan}),
    Expected(format="nanochat", path="nanochat", run="run1", n_params=196_662, n_tokens=15_360,
             loss=3.538016, last_step=30, points=30, unit="bits-per-byte",
             at={14: 6.222658, 15: 6.219560}),
    Expected(format="nanogpt", path="nanogpt/run1.log", run="run1", n_params=108_864,
             n_tokens=20_480, loss=3.2759, last_step=40, points=41),
    Expected(format="nanogpt", path="nanogpt", run="run1", n_params=108_864, n_tokens=20_480,
             loss=3.2265, last_step=40, points=41, at={39: 3.18, 40: 3.2716}),
    Expected(format="tensorboard", path="tensorboard", run="tensorboard", n_tokens=20_480,
             loss=loss(40) + 0.1, last_step=40, points=40, at={30: loss(30)}),
    Expected(format="trackio", path="trackio", run="run-1", n_tokens=20_480, loss=loss(40) + 0.1,
             last_step=40, points=41),
    Expected(format="wandb", path="wandb", run="gpt2-tiny", n_params=106_624, n_tokens=30_720,
             loss=loss(60) + 0.1, last_step=60, points=61, at={20: loss(20), 33: loss(33)}),
)  # fmt: skip


def read(expected: Expected, root: Path = SAMPLES) -> LoggedRun:
    runs = read_logs(root / expected.path).runs
    (run,) = (run for run in runs if run.name == expected.run)
    return run


@pytest.mark.parametrize("expected", RUNS, ids=lambda e: f"{e.path}:{e.run}")
class TestContract:
    """What holds for every format."""

    def test_values_are_those_of_the_readme(self, expected: Expected) -> None:
        run = read(expected)
        found = {name: item.value for name, item in run.derived.items()}
        assert run.reader == expected.format
        assert found.get("n_params") == expected.n_params
        assert found.get("n_tokens") == expected.n_tokens
        assert found["loss_nats"] == pytest.approx(expected.loss, rel=1e-6)
        assert run.last_step == expected.last_step
        assert run.loss_unit == expected.unit

    def test_a_run_that_did_not_reach_its_end_is_named(self, expected: Expected) -> None:
        run = read(expected)
        assert run.incomplete == expected.incomplete
        assert run.status == ("unfinished" if expected.incomplete else "finished")

    def test_the_curve_has_each_step_once_and_the_value_written_last(
        self, expected: Expected
    ) -> None:
        curve = read(expected).curve
        assert len(curve["step"]) == expected.points
        assert (np.diff(curve["step"]) > 0).all()
        at = dict(zip(curve["step"].astype(int), curve["loss_nats"], strict=True))
        for step, value in expected.at.items():
            assert at[step] == pytest.approx(value, rel=1e-6, nan_ok=True)

    def test_every_derived_value_names_its_source(self, expected: Expected) -> None:
        for item in read(expected).derived.values():
            assert item.source
            assert math.isfinite(item.value)

    def test_a_cut_file_is_read_up_to_the_cut_or_is_a_data_error(
        self, expected: Expected, tmp_path: Path
    ) -> None:
        shutil.copytree(SAMPLES / expected.format.replace("lightning", expected.path),
                        tmp_path / "cut", dirs_exist_ok=True)  # fmt: skip
        for file in [path for path in (tmp_path / "cut").rglob("*") if path.is_file()]:
            file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
        try:
            runs = read_logs(tmp_path / "cut").runs
        except DataError:
            return
        assert all(run.name for run in runs)


def test_each_format_has_a_sample() -> None:
    tested = {expected.format for expected in RUNS} | {"open-lm", "wandb-export"}
    assert tested == set(FORMATS)


def test_names_of_sources_are_those_that_the_trainer_uses() -> None:
    run = read(next(e for e in RUNS if e.path == "nanogpt/run1.log"))
    assert run.derived["n_tokens"].source == (
        "max_iters x batch_size x gradient_accumulation_steps x block_size"
    )


def test_at_most_one_reader_recognises_each_sample() -> None:
    for path in sorted(SAMPLES.rglob("*")):
        if path.is_file() and path.suffix != ".md":
            head = path.read_bytes()[:4096]
            assert sum(reader.sniff(path, head) for reader in READERS) <= 1, path


def test_the_reader_can_be_named(tmp_path: Path) -> None:
    odd = tmp_path / "output.txt"
    odd.write_text("hello\n" * 2000 + (SAMPLES / "nanogpt/run1.log").read_text())
    assert reader_of(odd) is None
    (run,) = read_logs(odd, format="nanogpt").runs
    assert run.derived["loss_nats"].value == 3.2759


def test_scores_of_an_evaluation_join_the_run_of_that_name(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "huggingface/done", tmp_path / "tiny")
    shutil.copytree(SAMPLES / "lm-eval", tmp_path / "evals")
    (run,) = read_logs(tmp_path).runs
    assert run.reader == "huggingface"
    assert run.final["eval/tiny_ppl/bits_per_byte"] == pytest.approx(4.8881, rel=1e-4)
    assert run.derived["loss_nats"].value == pytest.approx(3.8134, rel=1e-4)

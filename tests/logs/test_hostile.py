"""Damaged and hostile logs end in runs or in a DataError, in bounded time and memory."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalelab.errors import DataError
from scalelab.logs.registry import FORMATS, READERS, read_logs

SAMPLES = Path(__file__).parent / "samples"
FILES = sorted(
    path
    for path in SAMPLES.rglob("*")
    if path.is_file() and any(r.sniff(path, path.read_bytes()[:4096]) for r in READERS)
)

CONTENTS = {path: path.read_bytes() for path in FILES}
INSERTED = (b"1e999", b"-1", b"NaN", b"9" * 40, b"{" * 500, b"\n", b"\0")
SEEDS = st.integers(0, 2**64)
"""One number an example: 10,000 examples of many draws would take minutes."""


def damaged(seed: int) -> tuple[str, bytes, str]:
    """Return the name and the damaged content of a real log, and a format."""
    choose = random.Random(seed)
    path = choose.choice(FILES)
    data = bytearray(CONTENTS[path])
    for _ in range(choose.randint(1, 4)):
        kind = choose.choice(("cut", "flip", "insert", "repeat"))
        at = choose.randint(0, max(len(data) - 1, 0))
        if kind == "cut":
            del data[at:]
        elif kind == "flip" and data:
            data[at] = choose.randrange(256)
        elif kind == "insert":
            data[at:at] = choose.choice((choose.randbytes(choose.randint(0, 12)), *INSERTED))
        else:
            data[at:at] = data[: choose.randint(0, 300)]
    return path.name, bytes(data), choose.choice(FORMATS)


def assert_reads_or_refuses(path: Path, format: str | None = None) -> None:
    try:
        runs = read_logs(path, format=format).runs
    except DataError:
        return
    assert all(isinstance(run.name, str) for run in runs)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=SEEDS)
def test_damaged_logs_are_read_or_refused(seed: int, tmp_path: Path) -> None:
    name, data, _ = damaged(seed)
    (tmp_path / name).write_bytes(data)
    assert_reads_or_refuses(tmp_path / name)
    (tmp_path / name).unlink()


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=SEEDS)
def test_any_format_reads_or_refuses_any_log(seed: int, tmp_path: Path) -> None:
    name, data, format = damaged(seed)
    (tmp_path / name).write_bytes(data)
    assert_reads_or_refuses(tmp_path / name)
    assert_reads_or_refuses(tmp_path / name, format)
    (tmp_path / name).unlink()


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=400), format=st.sampled_from(FORMATS))
def test_every_format_refuses_noise(data: bytes, format: str, tmp_path: Path) -> None:
    (tmp_path / "noise.bin").write_bytes(data)
    assert_reads_or_refuses(tmp_path / "noise.bin", format)


def test_a_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "metrics.jsonl.gz"
    line = b'{"global_step": 1, "loss/out": 1.0}\n'
    with gzip.open(bomb, "wb") as stream:
        stream.write(line + b" " * (64 << 20))
    with pytest.raises(DataError, match="200 times"):
        read_logs(bomb, format="lingua")


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / "training_args.bin").write_bytes(pickle.dumps(Harm()))
    for format in FORMATS:
        assert_reads_or_refuses(tmp_path / "training_args.bin", format)
    assert not (tmp_path / "harm").exists()


def test_links_out_of_a_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/main.log").symlink_to(SAMPLES / "llmc/main.log")
    (tmp_path / "inside/more").symlink_to(SAMPLES)
    with pytest.raises(DataError, match="no run log was recognised"):
        read_logs(tmp_path / "inside")


def test_a_record_that_claims_a_terabyte_is_refused(tmp_path: Path) -> None:
    source = next((SAMPLES / "tensorboard/20261126-1100").iterdir())
    path = tmp_path / source.name
    path.write_bytes(source.read_bytes() + struct.pack("<QI", 1 << 40, 0) + b"x" * 100)
    (run,) = read_logs(path).runs
    assert run.last_step == 40
    assert any("damaged" in note for note in run.notes)


def test_a_metrics_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "mlruns/0/abc"
    (run / "metrics").mkdir(parents=True)
    (run / "meta.yaml").write_text("run_id: ../../../secret\nstatus: 3\n")
    (run / "metrics/val_loss").write_text("1 3.5 1\n1 3.0 2\n")
    (read,) = read_logs(tmp_path).runs
    assert read.derived["loss_nats"].value == 3.0


def test_a_series_of_a_million_steps_keeps_its_end_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "main.log"
    with path.open("w") as stream:
        stream.writelines(f"s:{step} trl:{3 + 1 / (step + 1):.6f}\n" for step in range(200_000))
        stream.write("s:199999 tel:2.5\n")
    (run,) = read_logs(path).runs
    assert run.last_step == 199_999
    assert run.derived["loss_nats"].value == 2.5
    assert 10_000 < len(run.curve["step"]) <= 65_536

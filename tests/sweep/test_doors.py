"""Every field of a run can be set from a sweep file and from the command line.

The fields are read from `RunSpec` and `ModelShape`, so a new field fails here until a key sets it.
A key of the same name is found without an entry in `DOORS`; its value is the example of its help.
"""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalelab.api import propose
from scalelab.sweep.option import Option, options
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.spec import SweepSpec, sweep_from_mapping
from scalelab.theory.shape import ModelShape

BASE = {"kind": "grid", "n_params": "300K", "n_tokens": "3M", "train.lr": "2e-3"}
"""The sweep whose run is compared with those of each key."""

NOT_SET = {
    "numerics_revision": "the version of the trainer's mathematics",
    "data_fingerprint": "the hash of the text, which `data.paths` chooses",
    "eval_fingerprint": "the hash of the held-out text",
}
"""Fields that no key may set, with what they are."""

MIX = {
    "csv": {"paths": "marked.csv.gz", "format": "text", "weight": 0.7},
    "toml": {"paths": "program.toml", "weight": 0.3},
}

DOORS: dict[str, tuple[str, Any]] = {
    "mixture": ("data.mix", MIX),
    "program": ("program", "program.toml"),
    # Fields that a key of another name sets, with a value; the rest of the keys have their name.
    "n_layers": ("model.aspect", "8"),
    "d_model": ("model.shape_list", "2L-48d-2h"),
    "n_heads": ("model.shape_list", "3L-96d-6h"),
    "d_ff": ("model.ff_multiple", "4"),
    "vocab_size": ("data.tokenizer", "bpe:4096"),
    "n_steps": ("n_tokens", "6M"),
    "seed": ("train.seeds", "1"),
    "warmup_steps": ("train.warmup", "0.2"),
    "decay_steps": ("train.decay", "0.2"),
    "d_shared_expert": ("model.n_shared_experts", "1"),
    "end_token": ("data.end_token", "7"),
    "eval_sets": ("data.eval", "code=marked.txt"),
}
OF_EXPERTS = (
    *("model.n_active_experts", "model.n_shared_experts"),
    *("train.balance_weight", "train.router_z_weight"),
)
NEEDED: dict[str, dict[str, str]] = {
    # Keys that a key needs beside it; empty ones must be left out.
    "train.decay": {"train.schedule": "wsd"},
    "model.shape_list": {"n_params": ""},
    **{key: {"model.n_experts": "8"} for key in OF_EXPERTS},
    "data.mix": {"data.eval_tokens": "1000", "train.seq_len": "16"},
    "data.end_token": {
        "data.paths": "marked.npy",
        "data.eval_tokens": "1000",
        "train.is_document_masked": "true",
    },
}
FIELDS = [
    *(item.name for item in dataclasses.fields(RunSpec) if item.name != "shape"),
    *(f"shape.{item.name}" for item in dataclasses.fields(ModelShape)),
]


def runs_of(keys: dict[str, Any]) -> list[RunSpec]:
    """Return the runs of a sweep, planned as a dry run plans it."""
    content: dict[str, Any] = {}
    for key, value in keys.items():
        *tables, name = key.split(".")
        table = content
        for part in tables:
            table = table.setdefault(part, {})
        if value:
            table[name] = value
    sweep = sweep_from_mapping(content, source="the test")
    plan = propose(sweep, device="cpu", workers=1, is_dry_run=True).plan
    return [row.spec for row in plan.rows]


def door_of(field: str) -> tuple[Option | None, Any]:
    """Return the option that sets a field, None without one, and a value for it."""
    name = field.removeprefix("shape.")
    key, value = DOORS.get(name, ("", ""))
    found = [item for item in options(SweepSpec) if key in (item.key, "")]
    if not key:
        found = [item for item in found if item.path[-1] == name]
    return (found[0], value or found[0].example) if found else (None, "")


def values_of(runs: list[RunSpec], field: str) -> set[object]:
    name = field.removeprefix("shape.")
    return {getattr(spec if name == field else spec.shape, name) for spec in runs}


@pytest.mark.parametrize("field", FIELDS)
def test_a_key_and_a_flag_set_the_field(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Token files whose documents end with token 9.
    np.tile(np.arange(10, dtype="<u2"), 500).tofile("marked.npy")
    with gzip.open("marked.csv.gz", "wt") as file:
        file.writelines(f"{start},{start + 10}\n" for start in range(0, 5000, 10))
    Path("marked.txt").write_text("a text that is only evaluated " * 100)
    Path("program.toml").write_text('program = {command = ["echo", "{lr}"], vocab_size = 256}')
    option, value = door_of(field)
    if field in NOT_SET:
        assert option is None
        return
    assert option is not None, (
        f"no key of a sweep file sets {field}: add one of that name, or name it in DOORS"
    )
    assert option.flag
    assert option.is_in_files
    needed = NEEDED.get(option.key, {})
    before = runs_of({**BASE, **{key: value for key, value in needed.items() if value}})
    after = runs_of({**BASE, **needed, option.key: value})
    assert values_of(after, field) - values_of(before, field), f"{option.flag} {value}"


def test_no_entry_is_left_of_a_field_or_a_key_that_is_gone() -> None:
    names = {field.removeprefix("shape.") for field in FIELDS}
    keys = {item.key for item in options(SweepSpec)}
    assert set(NOT_SET) | set(DOORS) <= names
    assert {key for key, _ in DOORS.values()} | set(NEEDED) <= keys

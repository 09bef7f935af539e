"""Options of ``[execution]`` and ``[model]``: what a dry run shows, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scalelab.cli.main import main

SMALL = ("--budgets", "1e13", "--sizes", "2", "--dry-run")
ON_GPUS = ("--launcher", "slurm")


@pytest.fixture
def scalelab(tmp_path, monkeypatch, capfd):
    """Return a runner of the command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("SCALELAB_KERNELS", "SCALELAB_ATTENTION", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def plan(scalelab):
    """Return a function that gives the JSON of a dry run."""

    def made(*words: str) -> dict[str, Any]:
        code, out, err = scalelab("sweep", "isoflop", *SMALL, *words, "--json")
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    return made


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (ON_GPUS, "auto (planned: graph + triton, qualified at start); attention flash"),
        (
            (*ON_GPUS, "--precision", "fp32"),
            "auto (planned: graph + triton, qualified at start); attention sdpa",
        ),
        (
            (*ON_GPUS, "--kernels", "reference", "--micro-batch", "2", "--batched-runs", "1"),
            "auto with reference (planned: compiled + reference, qualified at start); "
            "attention flash; micro-batch of 2 sequences; no batched runs",
        ),
        (
            (*ON_GPUS, "--step", "eager", "--kernels", "triton", "--attention", "cudnn"),
            "eager + triton; attention cudnn",
        ),
        (
            (*ON_GPUS, "--gpus-per-run", "8"),
            "auto (planned: eager + reference); attention flash; 8 devices a run",
        ),
        ((), "auto (planned: direct + reference); attention explicit"),
        (
            ("--precision", "bf16", "--batched-runs", "4"),
            "auto (planned: direct + reference); attention explicit; at most 4 batched runs",
        ),
    ],
)
def test_a_dry_run_says_how_the_steps_are_planned(scalelab, words, line):
    code, out, err = scalelab("sweep", "isoflop", *SMALL, *words)
    assert code == 0, err
    assert f"execution: {line}\n" in out


def test_the_json_of_a_plan_has_the_request_and_the_planned_way(plan):
    found = plan(*ON_GPUS)["execution"]
    assert found["device"] == "cuda"
    assert found["requested"] == {
        **dict.fromkeys(("step", "kernels", "attention"), "auto"),
        **dict.fromkeys(("micro_batch_seqs", "batched_runs"), 0),
    }
    assert found["planned"] == [{"step": "graph", "kernels": "triton", "attention": "flash"}]
    assert found["is_qualified_at_start"]
    assert not plan()["execution"]["is_qualified_at_start"]


def test_the_environment_sets_kernels_and_attention_and_a_flag_overrides_it(plan, monkeypatch):
    monkeypatch.setenv("SCALELAB_KERNELS", "reference")
    monkeypatch.setenv("SCALELAB_ATTENTION", "cudnn")
    found = plan(*ON_GPUS, "--attention", "flash")["execution"]["requested"]
    assert (found["kernels"], found["attention"]) == ("reference", "flash")


@pytest.mark.parametrize(
    ("words", "given", "do"),
    [
        (("--step", "graph"), "step = graph on a CPU", "--step auto"),
        (("--attention", "flash"), "attention = flash on a CPU", "--attention auto"),
        (("--attention", "cudnn"), "attention = cudnn on a CPU", "--attention auto"),
        (("--kernels", "triton"), "kernels = triton on a CPU", "TRITON_INTERPRET=1"),
        (("--attention", "triton"), "attention = triton on a CPU", "TRITON_INTERPRET=1"),
        (("--step", "direct", "--attention", "sdpa"), "attention = sdpa", "--step auto"),
        ((*ON_GPUS, "--step", "direct"), "step = direct on a GPU", "--device cpu"),
        (
            (*ON_GPUS, "--attention", "flash", "--precision", "fp32"),
            "attention = flash with precision = fp32",
            "--precision bf16",
        ),
        (
            (*ON_GPUS, "--gpus-per-run", "8", "--step", "graph"),
            "step = graph with 8 GPUs in a run",
            "--step auto",
        ),
        (("--kernels", "tritom"), "kernels = 'tritom'", "Did you mean triton?"),
        (("--micro-batch", "-1"), "micro_batch_seqs '-1'", "--micro-batch 4"),
        (("--batched-runs", "some"), "batched_runs 'some'", "--batched-runs 1"),
        (("--checkpoint-interval", "0"), "checkpoint_interval_s = '0'", "--checkpoint-interval"),
        (("--shapes", "round"), "shapes = 'round'", "--shapes aligned"),
    ],
)
def test_what_cannot_be_executed_is_refused_before_a_launch(scalelab, words, given, do):
    code, _, err = scalelab("sweep", "isoflop", *SMALL, *words)
    assert code == 2
    flat = " ".join(err.split())
    assert given in flat
    assert do in flat


def test_an_interpreter_makes_kernels_on_a_cpu_possible(plan, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = plan("--kernels", "triton")["execution"]["planned"]
    assert found == [{"step": "eager", "kernels": "triton", "attention": "sdpa"}]


def test_a_sweep_file_has_the_tables_and_the_runs_do_not_depend_on_execution(
    scalelab, tmp_path, monkeypatch
):
    path = tmp_path / "one.toml"
    head = 'kind = "isoflop"\nbudgets = "1e13"\nsizes = 2\n'

    def runs(text: str, *words: str) -> dict[str, Any]:
        path.write_text(head + text)
        code, out, err = scalelab("sweep", "run", str(path), "--dry-run", "--json", *words)
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    plain = runs("")
    table = '[execution]\nstep = "eager"\nattention = "sdpa"\nmicro_batch_seqs = 2\n'
    chosen = runs(table, "--attention", "explicit")
    assert chosen["execution"]["requested"] == {
        "step": "eager",
        "kernels": "auto",
        "attention": "explicit",
        "micro_batch_seqs": 2,
        "batched_runs": 0,
    }
    assert chosen["rows"] == plain["rows"]
    monkeypatch.setenv("SCALELAB_ATTENTION", "sdpa")
    assert runs("")["execution"]["requested"]["attention"] == "sdpa"
    assert runs(table)["execution"]["requested"]["attention"] == "sdpa"
    aligned = runs('[model]\nshapes = "aligned"\n')
    assert aligned["rules"]["shapes"] == "aligned"
    assert [row["shape"] for row in aligned["rows"]] != [row["shape"] for row in plain["rows"]]


@pytest.mark.parametrize(
    ("words", "shapes"),
    [
        (("isoflop", "--budgets", "9e14", "--sizes", "2"), "fine"),
        (("isoflop", "--budgets", "1e13,1e15", "--sizes", "2"), "aligned"),
        (("isoflop", "--budgets", "1e15", "--sizes", "2", "--shapes", "fine"), "fine"),
        (("grid", "--n-params", "1M,4M", "--n-tokens", "40M"), "fine"),
        (("grid", "--n-params", "1M,4M", "--n-tokens", "42M"), "aligned"),
        (("ladder", "--n-params", "4M", "--n-tokens", "21M,42M"), "aligned"),
    ],
)
def test_large_sweeps_have_aligned_shapes_and_the_plan_names_the_table(scalelab, words, shapes):
    code, out, err = scalelab("sweep", *words, "--dry-run", "--allow-repeats")
    assert code == 0, err
    assert f"; shapes {shapes}\n" in out


@pytest.mark.parametrize("name", ["step", "kernels", "attention"])
def test_bench_refuses_unknown_and_impossible_ways(scalelab, name):
    code, _, err = scalelab("bench", "train", f"--{name}", "warp")
    assert code == 2
    assert f"--{name} warp" in err
    assert f"--{name} auto" in err


def test_fp8_is_planned_for_gpus_and_refused_on_a_cpu_and_for_narrow_models(scalelab):
    words = ("sweep", "isoflop", "--budgets", "1e16", "--sizes", "2", "--dry-run", "--precision")
    code, out, err = scalelab(*words, "fp8", *ON_GPUS)
    assert code == 0, err
    assert "planned: graph + triton" in out
    code, _, err = scalelab(*words, "fp8", "--device", "cpu")
    assert code == 2
    assert "precision = fp8 on cpu" in err
    assert "--precision bf16" in err
    code, _, err = scalelab("sweep", "isoflop", *SMALL, "--precision", "fp8", *ON_GPUS)
    assert code == 2
    assert "has no product in fp8" in err
    code, _, err = scalelab("bench", "train", "--device", "cpu", "--precision", "fp8")
    assert code == 2
    assert "precision = fp8 on cpu" in err


@pytest.mark.parametrize(
    ("flags", "budgets", "saved"),
    [
        ("fpu amx_bf16 amx_tile", "1e17..1e18", True),
        ("fpu amx_bf16 amx_tile", "1e11..2e11", False),  # tiny models gain nothing
        ("fpu avx512_bf16", "1e17..1e18", False),
    ],
)
def test_a_dry_run_says_what_bf16_would_save_on_a_cpu_with_amx(
    scalelab, monkeypatch, tmp_path, flags, budgets, saved
):
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr("scalelab.cli.bf16_advice.CPU_FACTS", facts)
    words = ["sweep", "isoflop", "--budgets", budgets, "--device", "cpu", "--dry-run"]
    code, out, err = scalelab(*words)
    assert code == 0, err
    assert ("--precision bf16 would take about" in out) == saved
    out = scalelab(*words, "--precision", "bf16")[1]
    assert "bf16 would take" not in out
    assert ("This CPU has no AMX" in out) == ("amx" not in flags)

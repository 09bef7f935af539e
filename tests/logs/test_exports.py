"""Formats without a sample of their own: small files in the layout that each reader cites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scalelab.logs.registry import read_logs, reader_of


def test_a_chart_of_wandb_has_a_run_in_each_column(tmp_path: Path) -> None:
    (tmp_path / "chart.csv").write_text(
        '"Step","a - eval/loss","a - eval/loss__MIN","a - eval/loss__MAX","b-1 - eval/loss",'
        '"b-1 - eval/loss__MIN","b-1 - eval/loss__MAX"\n'
        '"100","3.5","3.5","3.5","","",""\n"200","3.25","3.25","3.25","3.0","3.0","3.0"\n'
    )
    runs = {run.name: run for run in read_logs(tmp_path / "chart.csv").runs}
    assert {name: run.derived["loss_nats"].value for name, run in runs.items()} == {
        "a": 3.25,
        "b-1": 3.0,
    }


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_rows_of_a_wandb_history_with_config_beside_them(tmp_path: Path, kind: str) -> None:
    rows = [
        {"_step": i, "_timestamp": 1.0, "iter": 10 * i, "val/loss": 4 - i / 10, "lr": 1e-3}
        for i in range(5)
    ]
    rows[2]["val/loss"] = "NaN"
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        text = "\n".join(lines)
    else:
        text = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
    (tmp_path / f"history.{kind}").write_text(text)
    (tmp_path / "config.yaml").write_text(
        "wandb_version: 1\nmax_iters:\n  desc: null\n  value: 40\nbatch_size:\n  value: 8\n"
        "block_size:\n  value: 64\nparameter_count:\n  value: 1000000\n"
    )
    (run,) = read_logs(tmp_path / f"history.{kind}").runs
    assert run.last_step == 40
    assert run.derived["loss_nats"].value == pytest.approx(3.6)
    assert run.derived["n_params"].value == 1_000_000
    assert run.derived["n_tokens"].value == 40 * 8 * 64
    assert run.status == "finished"


def test_models_of_open_lm_have_the_loss_of_their_own_corpus(tmp_path: Path) -> None:
    model = {
        "name": "c4_original-d=96_l=8_h=4-0.5",
        "dataset_name": "c4_original",
        "hyperparameters": {
            "tokens": 105_693_120, "lr": 3e-3, "params": 10_569_312, "params_no_embed": 5_727_840,
        },
        "results": [
            {"loss": 6.9, "tokens": 245_760, "val_data": ["eval_data/openlm/shard_0.tar"]},
            {"loss": 5.5526, "tokens": 1_740, "val_data": ["eval_data/c4_val/shard-{0..1}.tar"]},
        ],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(model, indent=4))
    (run,) = read_logs(tmp_path).runs
    assert run.reader == "open-lm"
    assert run.derived["loss_nats"].value == 5.5526
    assert run.derived["n_params"].value == 10_569_312
    assert run.derived["n_tokens"].value == 105_693_120
    assert run.derived["lr"].value == 3e-3


def test_a_run_whose_loss_became_nan_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "main.log").write_text("s:1 trl:3.0\ns:2 trl:nan\ns:2 tel:-nan\n")
    (run,) = read_logs(tmp_path).runs
    assert run.incomplete == "its last val_loss is not a finite number"
    assert "loss_nats" not in run.derived


def test_without_config_the_size_by_total_flos_is_offered(tmp_path: Path) -> None:
    state = {
        "global_step": 10, "max_steps": 10, "num_input_tokens_seen": 1000, "total_flos": 6e9,
        "log_history": [{"step": 10, "eval_loss": 3.0}],
    }  # fmt: skip
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    (run,) = read_logs(tmp_path).runs
    assert "n_params" not in run.derived
    assert "--map n_params=1e+06" in run.notes[0]


def test_tokens_follow_from_total_flos_where_the_trainer_did_not_count(tmp_path: Path) -> None:
    samples = Path(__file__).parent / "samples/huggingface/done"
    state = json.loads((samples / "trainer_state.json").read_text())
    state["num_input_tokens_seen"] = 0
    for row in state["log_history"]:
        row.pop("num_input_tokens_seen", None)
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "config.json").write_text((samples / "config.json").read_text())
    (run,) = read_logs(tmp_path).runs
    assert run.derived["n_tokens"].value == pytest.approx(20_480)
    assert "total_flos" in run.derived["n_tokens"].source


def test_megatron_arguments_give_the_size_and_the_tokens(tmp_path: Path) -> None:
    sample = Path(__file__).parent / "samples/megatron/run.log"
    arguments = {
        "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 256, "num_attention_heads": 2,
        "seq_length": 64, "max_position_embeddings": 64, "padded_vocab_size": 256,
    }  # fmt: skip
    listed = "".join(f"  {name} {'.' * 30} {value}\n" for name, value in arguments.items())
    head = "------------------------ arguments ------------------------\n"
    (tmp_path / "run.log").write_text(head + listed + sample.read_text())
    (run,) = read_logs(tmp_path).runs
    block = 12 * 64**2 + (3 * 64 + 64 + 256 + 64) + 4 * 64
    assert run.derived["n_params"].value == 2 * block + 128 + 256 * 64 + 64 * 64
    assert run.derived["n_tokens"].value == 320 * 64


def test_a_table_of_runs_with_their_last_steps_is_no_history(tmp_path: Path) -> None:
    lines = {
        "table": "hyper_id,_step,loss\n1,300,3.0\n2,100,3.1\n3,200,3.2\n",
        "named": "Name,State,_step,loss\na,finished,100,3.0\nb,crashed,200,3.1\n",
        "history": "_step,_runtime,val/loss\n0,1,4.0\n1,2,3.5\n2,3,3.0\n",
    }
    for name, text in lines.items():
        (tmp_path / f"{name}.csv").write_text(text)
    recognised = {name for name in lines if reader_of(tmp_path / f"{name}.csv") is not None}
    assert recognised == {"history"}

"""Results of programs that write the logs of known trainers, read while and after they run."""

import json
import math
import tracemalloc

import numpy as np
import pytest

from scalelab.launch.programs.checkpoints import count_safetensors
from scalelab.launch.programs.failures import output_tail
from scalelab.launch.programs.output import OwnOutput
from scalelab.sweep.program import ProgramSpec
from scalelab.sweep.run_spec import RunSpec
from tests.launch.programs.conftest import N_PARAMS, SHAPE

NANOGPT = f"""
import os, sys, time
print("tokens per iteration will be: 128")
print("batch_size = 4", "block_size = 32", "gradient_accumulation_steps = 1", sep="\\n")
print("num decayed parameter tensors: 9, with {N_PARAMS - 10:,} parameters")
print("num non-decayed parameter tensors: 5, with 10 parameters")
for step in range(0, END + 1):
    if step % 10 == 0:
        print(f"step {{step}}: train loss 3.9, val loss {{4 - step / 20:.4f}}", flush=True)
    print(f"iter {{step}}: loss {{5 - step / 10:.4f}}, time 3.0ms, mfu 0.01%")
"""


def test_nanogpt_is_read_from_its_output(program):
    trained = program("", header=NANOGPT.replace("END", "20"), spec={"reader": "nanogpt"})
    assert trained.train() == "done"
    record = trained.record()
    assert (record.loss_nats, record.n_tokens) == (3.0, 2560)
    assert record.n_params["chinchilla"] == N_PARAMS
    rows = trained.rows()
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[9]["loss_nats"] == 4.0
    assert rows[9]["eval_loss_nats"] == 3.5


def test_nanogpt_that_stops_early_with_code_0_has_no_result(program):
    trained = program("", header=NANOGPT.replace("END", "10"), spec={"reader": "nanogpt"})
    assert trained.train() == "failed"
    assert trained.end()["kind"] == "early_exit"
    assert "step 10 of 20" in trained.end()["reason"]


def test_a_last_loss_before_the_final_step_is_no_result(program):
    text = NANOGPT.replace("END", "20").replace("% 10", "% 15")
    trained = program("", header=text, spec={"reader": "nanogpt"})
    assert trained.train() == "failed"
    assert trained.end()["kind"] == "no_result"
    assert "is of step 15, and the final step is 20" in trained.end()["reason"]


STATE = {
    "global_step": 20, "max_steps": 20, "num_input_tokens_seen": 2560, "train_batch_size": 4,
    "log_history": [
        {"step": 10, "loss": 4.0, "learning_rate": 0.001, "grad_norm": 0.5},
        {"step": 20, "loss": 3.5, "learning_rate": 0.0001, "grad_norm": 0.25},
        {"step": 20, "eval_loss": 3.25},
    ],
}  # fmt: skip
CONFIG = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "head_dim": 16, "intermediate_size": 88, "vocab_size": 256, "tie_word_embeddings": False,
}  # fmt: skip


def _trainer(state: dict, config: dict) -> str:
    return f"""
import json, os
folder = os.environ["SCALELAB_OUT_DIR"]
json.dump({config!r}, open(folder + "/config.json", "w"))
json.dump({state!r}, open(folder + "/trainer_state.json", "w"))
"""


def test_the_trainer_of_transformers_is_read_from_its_state(program):
    header = _trainer(STATE, CONFIG)
    trained = program("", header=header, spec={"reader": "huggingface"})
    assert trained.train() == "done", trained.end()
    rows = trained.rows()
    assert [(row["step"], row["lr"], row["grad_norm"]) for row in rows] == [
        (10, 0.001, 0.5),
        (20, 0.0001, 0.25),
    ]
    assert trained.record().loss_nats == 3.25


def test_a_graceful_stop_with_code_0_and_a_plausible_loss_is_no_result(program):
    state = {**STATE, "global_step": 12, "num_input_tokens_seen": 1536}
    state["log_history"] = [{"step": 10, "loss": 4.0}, {"step": 12, "eval_loss": 3.5}]
    trained = program("", header=_trainer(state, CONFIG), spec={"reader": "huggingface"})
    assert trained.train() == "failed"
    assert trained.end()["kind"] == "early_exit"


def test_another_head_dim_than_planned_is_refused_with_both_numbers(program):
    header = _trainer(STATE, {**CONFIG, "head_dim": 128})
    trained = program("", header=header, spec={"reader": "huggingface"})
    assert trained.train() == "failed"
    assert trained.end()["kind"] == "no_result"
    assert f"{N_PARAMS:,}" in trained.end()["reason"]


def test_a_declared_unit_converts_the_loss(program):
    header = NANOGPT.replace("END", "20")
    trained = program("", header=header, spec={"reader": "nanogpt", "loss_unit": "bits"})
    assert trained.train() == "done"
    assert trained.record().loss_nats == pytest.approx(3 * math.log(2))


def test_a_loss_whose_name_states_another_unit_than_declared_is_refused(program):
    text = 'print("Step 00020 | Validation bpb: 1.25")'
    trained = program("", header=text, spec={"reader": "nanochat", "size_by": "shape"})
    assert trained.train() == "failed"
    assert "val_bpb in bits_per_byte, where the sweep file says nats" in trained.end()["reason"]
    given = {"reader": "nanochat", "size_by": "shape", "loss_unit": "bits_per_byte"}
    trained = program("", header=text, spec={**given, "bytes_per_token": 4.0})
    assert trained.train() == "done"
    assert trained.record().loss_nats == pytest.approx(1.25 * math.log(2) * 4)


def test_parameters_are_counted_in_the_headers_of_safetensors(tmp_path):
    for name, shape in (("model-1", [4, 8]), ("model-2", [5])):
        size = 2 * int(np.prod(shape))
        entry = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, size]}}
        header = json.dumps({"__metadata__": {"format": "pt"}, **entry}).encode()
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    assert count_safetensors(tmp_path) == 37
    path.write_bytes(path.read_bytes()[:-1])
    assert count_safetensors(tmp_path) is None


def test_endless_lines_and_outputs_are_read_in_little_memory(tmp_path):
    path = tmp_path / "reported.jsonl"
    row = b'{"step": 1, "loss": 5.0}\n'
    path.write_bytes(row + bytes(48 << 20) + b"\n" + row)
    output = OwnOutput(path, _spec())
    tracemalloc.start()
    rows = output.read(is_last=True)
    assert output_tail(path)[-1] == '{"step": 1, "loss": 5.0}'
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(rows), output.last_step) == (2, 1)
    assert peak < 24 << 20


def _spec() -> RunSpec:
    return RunSpec(
        shape=SHAPE, seq_len=32, batch_seqs=4, n_steps=20, lr=1e-3, warmup_steps=2,
        data_fingerprint="undeclared", eval_fingerprint="undeclared", tokenizer="bytes", seed=1,
        program=ProgramSpec(command=("x",)),
    )  # fmt: skip

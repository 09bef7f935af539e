"""`api.evaluate`: numbers by their definition, saved once, in the table evals."""

import json
import math
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from scalelab import api
from scalelab.corpus.task_tokens import choice_bytes, encode_task
from scalelab.corpus.tasks import read_task
from scalelab.corpus.tokenizer import ByteTokenizer
from scalelab.errors import DataError, UsageError
from scalelab.records.evaluations import read_evaluations
from scalelab.store.live import open_snapshot
from scalelab.train import harness
from scalelab.train.huggingface.check import load
from scalelab.train.task_scores import TOKENS_PER_BATCH, score, summarize
from scalelab.train.weights import WeightsModel, load_weights

# The model of these tests knows the bytes below 61 only.
ITEMS = [
    {"context": f"{a} + {b} :", "choices": [str(a + b), str(a - b), "0123" * (a % 3 + 1)]}
    for a in range(5)
    for b in range(4)
]
SUMS = [{**item, "answer": place % 3} for place, item in enumerate(ITEMS)]
SUMS[3]["context"] = ""
SUMS[4]["context"] = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12: "


@pytest.fixture
def results(tmp_path, dataset):
    """A results folder with the data of the runs."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / dataset.fingerprint).symlink_to(dataset.folder)
    return tmp_path


@pytest.fixture
def sums(tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in SUMS))
    return file


@pytest.fixture
def run(make_run, attempt_at):
    run = make_run()
    assert attempt_at(run, keeps_weights=True) == "done"
    return run


def log_likelihood(logits_of, context, choice, seq_len):
    """Return the log-likelihood of a choice by the rules of lm-evaluation-harness."""
    if context and not context[-1:].isspace():
        choice = f" {choice}"
    blanks = len(context) - len(context.rstrip())
    if blanks:
        context, choice = context[:-blanks], context[-blanks:] + choice
    before, after = [*context.encode()] or [0], [*choice.encode()]
    tokens = torch.tensor((before + after)[-(seq_len + 1) :])
    losses = torch.log_softmax(logits_of(tokens[None, :-1]).double(), -1)[0]
    return losses.gather(-1, tokens[1:, None])[-len(after) :].sum().item()


def check_scores(run, task, logits_of):
    """Compare scores and their summary with a computation item by item."""
    weights = load_weights(run)
    seq_len = weights.spec.seq_len
    tokens = encode_task(task, ByteTokenizer(), seq_len, 61)
    found = score(WeightsModel(weights, "cpu"), tokens.scored, lambda done: None)
    expected = [
        [log_likelihood(logits_of, item.context, choice, seq_len) for choice in item.choices]
        for item in task.items
    ]
    assert np.allclose(found, -np.ravel(expected), atol=1e-4)
    by_byte = [
        np.divide(own, [choice_bytes(c) for c in item.choices])
        for item, own in zip(task.items, expected, strict=True)
    ]
    is_right = [
        np.argmax(own) == item.answer for item, own in zip(task.items, by_byte, strict=True)
    ]
    bits = [-own[item.answer] / math.log(2) for item, own in zip(task.items, by_byte, strict=True)]
    summary = summarize(tokens, found, 30)
    assert summary.accuracy == np.mean(is_right)
    assert summary.stderr == pytest.approx(np.std(is_right, ddof=1) / math.sqrt(len(is_right)))
    assert summary.bits_per_byte == pytest.approx(np.mean(bits), abs=1e-5)
    assert summary.n_items == len(SUMS)


def test_scores_are_log_likelihoods_item_by_item(run, sums, monkeypatch):
    monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", 100)
    check_scores(run, read_task(sums, "sums"), WeightsModel(load_weights(run), "cpu").logits)


@pytest.mark.slow
def test_scores_equal_those_of_the_exported_model_in_transformers(run, sums, results):
    exported = api.export_model(run.run_id, results / "model", results=results, check=True)
    assert exported.max_logit_difference < 1e-4
    model = load(exported.folder)
    with torch.no_grad():
        check_scores(run, read_task(sums, "sums"), lambda tokens: model(tokens).logits)


def test_a_text_counts_each_token_once(run, tmp_path, results):
    file = tmp_path / "digits.jsonl"
    texts = ["0123456789 " * n for n in (1, 3, 7)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    report = api.evaluate(run.run_id, tasks=[str(file)], results=results)
    found = report.rows[0].evaluation
    assert (found.kind, found.n_tokens, found.n_bytes, found.n_items) == ("text", 121, 121, 3)
    assert found.bits_per_byte == pytest.approx(found.loss_nats / math.log(2))
    assert found.stderr > 0


def test_an_evaluation_is_saved_once_and_in_the_table(run, sums, results):
    options = {"tasks": [f"adding={sums}"], "results": results}
    first = api.evaluate(run.run_id[:6], **options)
    assert [(row.is_new, row.evaluation.set) for row in first.rows] == [(True, "adding")]
    assert "contexts of 1 item of 20 are longer than the model (24 tokens)" in first.warnings[0]
    again = api.evaluate(run.run_id, **options)
    assert [row.is_new for row in again.rows] == [False]
    assert again.rows[0].evaluation == first.rows[0].evaluation
    table = query(
        results, "SELECT set, kind, accuracy, n_items, is_final, source FROM evals ORDER BY set"
    ).to_dict("records")
    assert [row["set"] for row in table] == ["adding", "heldout"]
    assert table[0]["source"] == "evaluate"
    assert table[0]["is_final"]
    assert table[0]["accuracy"] == first.rows[0].evaluation.accuracy
    # Other items under the same name take its place.
    sums.write_text(json.dumps(SUMS[0]) + "\n")
    assert api.evaluate(run.run_id, **options).rows[0].is_new
    assert [found.n_items for found in read_evaluations(run.path)] == [1]
    assert query(results, "SELECT n_items FROM evals WHERE set = 'adding'").n_items.tolist() == [1]


def test_runs_without_weights_are_left_out_with_their_reason(
    run, make_run, attempt_at, sums, results
):
    bare = make_run(seed=9)
    assert attempt_at(bare) == "done"
    planned = make_run(seed=10)
    report = api.evaluate(
        run.run_id, bare.run_id, planned.run_id, tasks=[str(sums)], results=results
    )
    assert [row.run_id for row in report.rows] == [run.run_id]
    assert report.left_out == {
        bare.run_id: "whose weights were not kept",
        planned.run_id: "which is planned",
    }
    assert any("1 run not evaluated: which is planned" in text for text in report.warnings)
    with pytest.raises(DataError, match="no run to evaluate: 1 run of 1: whose weights") as caught:
        api.evaluate(bare.run_id, tasks=[str(sums)], results=results)
    assert "--keep-weights" in caught.value.do


def test_wrong_names_are_usage_errors(run, sums, results):
    with pytest.raises(UsageError, match="matches 0 runs"):
        api.evaluate("nothing", tasks=[str(sums)], results=results)
    with pytest.raises(UsageError, match="nothing to evaluate on"):
        api.evaluate(run.run_id, results=results)
    with pytest.raises(UsageError, match="second task named sums"):
        api.evaluate(run.run_id, tasks=[str(sums), str(sums)], results=results)
    with pytest.raises(UsageError, match="no run and no sweep"):
        api.evaluate(tasks=[str(sums)], results=results)


def query(results, sql):
    with open_snapshot(results) as connection:
        return connection.execute(sql).df()


class StandIn(types.ModuleType):
    """lm_eval as its documentation says, with recorded samples (version 0.4.13)."""

    def simple_evaluate(self, **options):
        self.options = options
        with open(f"{options['model_args']['pretrained']}/config.json") as file:
            assert json.load(file)["model_type"] == "llama"
        samples = [
            {
                "target": 1,
                "arguments": [["2 + 2 =", " 5"], ["2 + 2 =", " four"]],
                "filtered_resps": [[-1.0, False], [-2.0, True]],
            },
            {
                "target": 0,
                "arguments": [["1 + 1 =", " 2"], ["1 + 1 =", " 11"]],
                "filtered_resps": [[-3.0, False], [-4.0, False]],
            },
        ]
        return {
            "samples": {"arith-metic": samples, "wiki": [{}], "gen": [{}, {}]},
            "results": {
                "arith-metic": {"acc,none": 0.5},
                "wiki": {"bits_per_byte,none": 1.25, "bits_per_byte_stderr,none": "N/A"},
                "gen": {"exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": 0.5},
            },
            "configs": {
                "arith-metic": {"output_type": "multiple_choice"},
                "wiki": {"output_type": "loglikelihood_rolling"},
                "gen": {"output_type": "generate_until"},
            },
        }


def test_tasks_of_the_harness_are_read_from_its_samples(
    run, results, monkeypatch, make_run, attempt_at
):
    stand_in, tasks = StandIn("lm_eval"), types.ModuleType("lm_eval.tasks")
    tasks.TaskManager = lambda include_path: include_path
    monkeypatch.setitem(sys.modules, "lm_eval", stand_in)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    monkeypatch.setattr(harness.importlib.metadata, "version", lambda name: "0.4.13")
    spec = run.read_spec()
    plain = make_run(shape=replace(spec.shape, has_qk_norm=False))
    assert attempt_at(plain, keeps_weights=True) == "done"
    options = {"tasks": ["lm-eval:arith-metic, wiki"], "results": results, "include": "defs"}
    report = api.evaluate(plain.run_id, **options)
    assert stand_in.options["tasks"] == ["arith-metic", "wiki"]
    assert stand_in.options["task_manager"] == "defs"
    by_name = {row.evaluation.set: row.evaluation for row in report.rows}
    found = by_name["arith_metic"]
    # 1 nat a byte loses against 2 nats on 4 bytes; 3 nats on 1 byte lose against 4 on 2.
    assert (found.accuracy, found.n_items, found.n_bytes) == (0.5, 2, 5)
    assert found.bits_per_byte == pytest.approx((0.5 + 3.0) / 2 / math.log(2))
    assert (by_name["wiki"].kind, by_name["wiki"].bits_per_byte) == ("text", 1.25)
    assert (by_name["gen"].accuracy, by_name["gen"].stderr) == (0.5, 0.5)
    assert not any(row.is_new for row in api.evaluate(plain.run_id, **options).rows)


def test_a_missing_harness_says_how_to_install_it(run, results, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match="without lm-evaluation-harness") as caught:
        api.evaluate(run.run_id, tasks=["lm-eval:arc_easy"], results=results)
    assert "pip install" in caught.value.do
    with pytest.raises(UsageError, match="names of tasks"):
        api.evaluate(run.run_id, tasks=["lm-eval:"], results=results)

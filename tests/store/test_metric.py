"""A metric names which loss a command reads: sets, bits per byte, tasks, means."""

import math

import duckdb
import numpy as np
import pandas as pd
import pytest

from scalelab.errors import DataError, UsageError
from scalelab.records.metric import parse_metric, with_unit
from scalelab.store.finished_runs import finished_runs
from scalelab.store.import_evals import import_eval_rows
from scalelab.store.live import SNAPSHOT_FILE
from scalelab.store.metric import metrics_of
from scalelab.store.read_options import ReadOptions
from scalelab.store.reading import Reading
from scalelab.store.results import read_results
from scalelab.store.schema import create_statements
from scalelab.store.tables import read_frame


def frame(**columns) -> pd.DataFrame:
    sizes = {"n_params": [1e6, 2e6, 4e6], "n_tokens": [1e8, 1e8, 1e8], "loss": [3.0, 2.9, 2.8]}
    return pd.DataFrame({**sizes, **columns})


def losses(table: pd.DataFrame, metric: str | None, **reading) -> list[float]:
    options = ReadOptions(reading=Reading(metric=metric, **reading))
    return read_frame(table, options).observations.loss_nats.tolist()


@pytest.mark.parametrize(
    ("text", "written", "unit", "axis"),
    [
        ("heldout", "heldout", "nats/token", "loss (nats/token)"),
        ("code", "code", "nats/token", "loss on code (nats/token)"),
        (" bpb:code ", "bpb:code", "bits/byte", "loss on code (bits/byte)"),
        ("task:arc", "task:arc", "bits/byte", "loss of task arc (bits/byte)"),
        ("acc:arc", "acc:arc", "error rate", "task arc (error rate)"),
        ("0.5*a + 0.5*b", "a+b", "nats/token", "mean of a+b (nats/token)"),
        ("0.7*a+0.3*b", "0.7*a+0.3*b", "nats/token", "mean of 0.7*a+0.3*b (nats/token)"),
    ],
)
def test_a_metric_has_a_unit_and_a_label(text, written, unit, axis):
    metric = parse_metric(text)
    assert (metric.text, metric.unit, metric.axis) == (written, unit, axis)
    assert parse_metric(metric.text) == metric


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("0.7*a+0.4*b", "sum to 1.1"),
        ("0.7*a+b", "others have none"),
        ("bpb:a+b", "different units .*Write for example --metric bpb:a\\+bpb:b"),
        ("acc:a+b", "different units .*Fit one of them"),
        ("acx:a", "Did you mean --metric acc"),
        ("a+a", "twice"),
        ("", "not a metric"),
        ("-0.2*a+1.2*b", "above 0"),
    ],
)
def test_a_metric_that_cannot_be_meant_is_refused(text, advice):
    with pytest.raises(UsageError, match=advice):
        parse_metric(text)


def test_columns_are_found_by_their_names():
    found = metrics_of(
        ["loss", "loss_pile", "bpb_arc", "acc_arc", "eval/web/bpb", "eval/web/loss", "train_loss"]
    )
    assert found == {
        "pile": "loss_pile",
        "task:arc": "bpb_arc",
        "acc:arc": "acc_arc",
        "bpb:web": "eval/web/bpb",
        "web": "eval/web/loss",
    }


def test_a_table_is_read_by_metric_in_its_unit():
    table = frame(loss_code=[2.0, 1.9, 1.8], ppl_web=np.exp([1.0, 2.0, 3.0]), acc_t=[0.2, 0.4, 0.5])
    assert losses(table, None) == [3.0, 2.9, 2.8]
    assert losses(table, "code") == [2.0, 1.9, 1.8]
    assert losses(table, "0.25*heldout+0.75*code") == pytest.approx([2.25, 2.15, 2.05])
    assert losses(table, "web") == pytest.approx([1.0, 2.0, 3.0])
    assert losses(table, "acc:t") == pytest.approx([0.8, 0.6, 0.5])
    per_token = frame(bytes_per_token=[4.0, 4.0, 2.0])
    assert losses(per_token, "bpb:heldout") == pytest.approx(
        [3.0 / 4 / math.log(2), 2.9 / 4 / math.log(2), 2.8 / 2 / math.log(2)]
    )
    assert losses(table, "bpb:code", loss_unit="bits-per-byte") == [2.0, 1.9, 1.8]


def test_rows_without_the_metric_are_counted():
    table = frame(loss_code=[2.0, None, 1.8])
    read = read_frame(table, ReadOptions(reading=Reading(metric="code")))
    assert read.observations.loss_nats.tolist() == [2.0, 1.8]
    assert read.notes["no_metric"].startswith("1 row of 3 left out: no code")
    with pytest.raises(DataError, match="no row of the frame has"):
        losses(frame(loss_code=[None, None, None]).astype({"loss_code": float}), "code")


def test_an_unknown_set_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"code, heldout.*Did you mean --metric code\?"):
        losses(frame(loss_code=[2.0, 1.9, 1.8]), "cod")
    with pytest.raises(UsageError, match=r"Did you mean --metric bpb:code\?"):
        losses(frame(bpb_code=[2.0, 1.9, 1.8]), "code")
    options = ReadOptions(mapping={"loss_nats": "loss"}, reading=Reading(metric="code"))
    with pytest.raises(UsageError, match="one of them"):
        read_frame(frame(loss_code=[2.0, 1.9, 1.8]), options)


def test_json_names_the_unit():
    content = {"loss_nats": 1.0, "best": [{"law_loss_nats": 2.0}], "saves_nats": {}}
    assert with_unit(content, parse_metric("heldout")) == content
    assert with_unit(content, parse_metric("bpb:code")) == {
        "loss_bits_per_byte": 1.0,
        "best": [{"law_loss_bits_per_byte": 2.0}],
        "saves_bits_per_byte": {},
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder with two sweeps of three runs and their evaluations; tests only read it."""
    folder = tmp_path_factory.mktemp("results")
    with duckdb.connect(str(folder / SNAPSHOT_FILE)) as store:
        store.execute(create_statements())
        for i in range(6):
            store.execute(
                "INSERT INTO runs (run_id, status, n_params, n_params_chinchilla, n_tokens, flops, "
                "loss_nats, tokenizer) VALUES (?, 'done', ?, ?, 1e8, 1e14, ?, ?)",
                [f"r{i}", 1e6 * (i + 1), 1e6 * (i + 1), 3 - 0.1 * i, "ab"[i // 3]],
            )
            sweep = "ab"[i // 3]
            store.execute(
                "INSERT INTO sweeps VALUES (?, ?, ?, NULL, 'grid', 1.0)", [sweep, f"r{i}", i]
            )
            evals = [("heldout", "text", 3 - 0.1 * i, 1.0 - 0.1 * i, None)]
            evals += [] if i == 1 else [("code", "text", 2.0 + i, 0.5 + i, None)]
            evals += [("arc", "task", None, 0.8, 0.25)]
            for name, kind, loss, bits, accuracy in evals:
                store.execute(
                    "INSERT INTO evals (run_id, step, set, kind, loss_nats, bits_per_byte, "
                    "accuracy, is_final, source) VALUES (?, 9, ?, ?, ?, ?, ?, true, 'training')",
                    [f"r{i}", name, kind, loss, bits, accuracy],
                )
                # An evaluation during training does not count.
                store.execute(
                    "INSERT INTO evals (run_id, step, set, kind, loss_nats, is_final) "
                    "VALUES (?, 4, ?, ?, 99, false)",
                    [f"r{i}", name, kind],
                )
    return folder


def of_sweep(results, sweep, metric):
    read = read_results(results, sweep, ReadOptions(reading=Reading(metric=metric)))
    return read.observations


def test_a_sweep_is_read_by_metric_like_a_table(results):
    assert of_sweep(results, "a", "code").loss_nats.tolist() == [2.0, 4.0]
    assert of_sweep(results, "a", "bpb:code").loss_nats.tolist() == [0.5, 2.5]
    assert of_sweep(results, "a", "bpb:heldout").loss_nats.tolist() == pytest.approx([1, 0.9, 0.8])
    rows = of_sweep(results, "a", "task:arc")
    assert rows.loss_nats.tolist() == [0.8] * 3
    assert rows.extra["acc_arc"].tolist() == [0.25] * 3
    assert of_sweep(results, "a", "acc:arc").loss_nats.tolist() == [0.75] * 3
    assert of_sweep(results, "a", None).loss_nats.tolist() == pytest.approx([3.0, 2.9, 2.8])
    with pytest.raises(UsageError, match="Did you mean --metric code"):
        of_sweep(results, "a", "coed")


def test_sweeps_of_several_tokenizers_are_read_together(results):
    rows = of_sweep(results, "b,a", "bpb:heldout")
    assert rows.n_params.tolist() == [4e6, 5e6, 6e6, 1e6, 2e6, 3e6]
    assert rows.source == "sweeps b, a"
    with pytest.raises(UsageError, match="'c', which was not collected"):
        of_sweep(results, "a,c", None)
    with pytest.raises(UsageError, match="different names"):
        of_sweep(results, "a,,b", None)


def test_finished_runs_have_the_metric_that_is_asked_for(results):
    found = {run.run_id: run.loss_nats for run in finished_runs(results, "0.5*code+0.5*heldout")}
    assert found["r0"] == pytest.approx(2.5)
    assert math.isnan(found["r1"])


def test_the_losses_of_an_import_are_evaluations():
    rows = [{"line": 2, "loss_nats": 1.1, "loss_pile": 2.0, "bpb_arc": 0.9, "acc_arc": "0.3"}]
    rows += [{"line": 3, "loss_nats": 1.0, "loss_pile": None, "bpb_arc": 0.8, "acc_arc": "n/a"}]
    found = import_eval_rows("olmo", rows, {"metric": "bpb:heldout"})
    assert [(row["run_id"], row["set"], row["kind"]) for row in found] == [
        ("olmo/2", "pile", "text"),
        ("olmo/2", "arc", "task"),
        ("olmo/2", "heldout", "text"),
        ("olmo/3", "arc", "task"),
        ("olmo/3", "heldout", "text"),
    ]
    assert found[1]["accuracy"] == 0.3
    assert found[1]["bits_per_byte"] == 0.9
    assert found[2]["bits_per_byte"] == 1.1
    assert "loss_nats" not in found[2]

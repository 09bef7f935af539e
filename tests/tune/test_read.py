import numpy as np
import pytest

from scalelab.errors import DataError, UsageError
from scalelab.tune.read import read_tuned_runs

HEAD = "params,tokens,peak,bs,final\n"
MAPPED = {"n_params": "params", "n_tokens": "tokens", "lr": "peak", "loss_nats": "final"}
ROWS = [
    "1e8,2e9,0.001,64,2.9",
    "1e8,2e9,0.002,128,2.8",
    "1e8,2e9,0.004,64,nan",
    "1e8,2e9,0.008,64,inf",
    "1e8,2e9,0.016,64,",
    "1e8,2e9,,64,2.7",
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(HEAD + "\n".join(ROWS) + "\n")
    return path


def test_sequences_become_tokens(table):
    read = read_tuned_runs(table, mapping={**MAPPED, "batch_seqs": "bs"}, seq_len=512)
    np.testing.assert_array_equal(read.runs.batch_tokens, [64 * 512, 128 * 512])
    np.testing.assert_array_equal(read.runs.lr, [0.001, 0.002])


def test_a_batch_with_a_length_counts_sequences_and_without_one_tokens(table):
    mapping = {**MAPPED, "batch_size": "bs"}
    assert read_tuned_runs(table, mapping=mapping, seq_len=10).runs.batch_tokens[0] == 640
    assert read_tuned_runs(table, mapping=mapping).runs.batch_tokens[0] == 64


def test_tokens_may_be_an_expression_beside_a_length(table):
    mapping = {**MAPPED, "batch_tokens": "bs * 512"}
    read = read_tuned_runs(table, mapping=mapping, seq_len=512)
    np.testing.assert_array_equal(read.runs.batch_tokens, [64 * 512, 128 * 512])
    assert "batch_in_sequences" not in {w.code for w in read.warnings}


def test_tokens_below_one_sequence_are_sequences_with_a_warning(table):
    read = read_tuned_runs(table, mapping={**MAPPED, "batch_tokens": "bs"}, seq_len=2048)
    np.testing.assert_array_equal(read.runs.batch_tokens, [64 * 2048, 128 * 2048])
    assert "batch_in_sequences" in {w.code for w in read.warnings}


def test_sequences_need_their_length(table):
    with pytest.raises(UsageError, match="seq-len"):
        read_tuned_runs(table, mapping={**MAPPED, "batch_seqs": "bs"})


def test_runs_without_a_loss_are_counted_as_diverged(table):
    read = read_tuned_runs(table, mapping={**MAPPED, "batch_tokens": "bs"})
    assert read.runs.n_diverged == 3
    assert "rejected_rows" in {w.code for w in read.warnings}


def test_usual_names_need_no_mapping(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "lr,batch_sequences,n_tokens,n_params_non_embedding,loss,run_id\n"
        "1e-3,64,2e9,1e8,2.9,a\n2e-3,64,2e9,1e8,2.8,b\n"
    )
    runs = read_tuned_runs(path, seq_len=2048).runs
    assert runs.param_convention == "kaplan"
    assert runs.label is None
    assert runs.batch_tokens[0] == 64 * 2048


def test_a_cluster_tells_cells_apart(table):
    mapping = {**MAPPED, "batch_tokens": "bs", "cluster": "peak"}
    assert len(np.unique(read_tuned_runs(table, mapping=mapping).runs.cells())) == 2


def test_a_missing_column_is_named(table):
    with pytest.raises(DataError, match="lr and batch_tokens"):
        read_tuned_runs(table, mapping={"n_params": "params", "n_tokens": "tokens"})

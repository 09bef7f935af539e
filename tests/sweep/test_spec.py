"""Text enters here: what is allowed is read, what is not is refused with the way out."""

import math
from pathlib import Path

import pytest

from scalelab.errors import DataError, UsageError
from scalelab.sweep.execution import AUTO, ExecutionSpec
from scalelab.sweep.spec import read_sweep_file, sweep_from_mapping

AN_ISOFLOP = {"kind": "isoflop", "budgets": "1e18"}
SWEEPS = Path(__file__).parents[2] / "sweeps"


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.toml")), ids=lambda path: path.name)
def test_every_committed_sweep_file_is_valid(path):
    assert read_sweep_file(path).default_name() == path.stem


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"kind": "isoflop", "budgets": "1e20..1e18"}, "not below its second"),
        ({"kind": "isoflop", "budgets": "abc"}, "abc"),
        ({"kind": "isoflop", "budgets": "-1"}, "-1"),
        ({"kind": "isoflop", "budgets": "0"}, "0"),
        ({"kind": "isoflop", "budgets": "1e18.."}, "missing end"),
        ({"kind": "isoflop"}, "without budgets"),
        ({"kind": "grid", "n_params": "1M"}, "without n_tokens"),
        ({"kind": "grid", "n_params": "1M", "n_tokens": "1M", "budgets": "1e18"}, "with budgets"),
        ({"kind": "isoflop", "budgets": "1e18", "sizes": 0}, "sizes = 0"),
        ({"kind": "isoflop", "budgets": "1e18", "span": 0.5}, "span = 0.5"),
        ({"kind": "sideways", "budgets": "1e18"}, "kind = 'sideways'"),
        ({"kind": "isoflop", "budgets": "1e18", "bugdets": 1}, "bugdets"),
        ({"kind": "isoflop", "budgets": "1e18", "train": {"lr_rule": "best"}}, "best"),
        ({"kind": "isoflop", "budgets": "1e18", "train": {"lr": -1}}, "train.lr"),
        ({"kind": "isoflop", "budgets": "1e18", "launcher": {"name": "k8s"}}, "k8s"),
        ({"kind": "isoflop", "budgets": "1e300"}, "budgets.0 = 1e+300"),
        ({"kind": "isoflop", "budgets": "1e18", "tokens_per_param": 0}, "tokens_per_param '0'"),
        ({"kind": "grid", "n_params": "1M", "n_tokens": "1,000"}, "n_tokens '1,000' with '000'"),
        ({"kind": "grid", "n_params": [1e6, -1], "n_tokens": "1M"}, "n_params '-1'"),
        ({**AN_ISOFLOP, "train": {"lr": math.nan}}, "train.lr = nan"),
        ({**AN_ISOFLOP, "train": {"lr_rule": "tuned:"}}, "'tuned:' without a name"),
        ({**AN_ISOFLOP, "train": {"seeds": []}}, "train.seeds = []"),
        ({**AN_ISOFLOP, "train": {"seeds": [0, True]}}, "seeds = [0, True]"),
        ({**AN_ISOFLOP, "train": {"seq_len": True}}, "seq_len = True"),
        ({**AN_ISOFLOP, "train": {"weight_decay": math.inf}}, "train.weight_decay = inf"),
        ({**AN_ISOFLOP, "train": {"weight_decay": 1e6}}, "train.weight_decay = 1000000.0"),
        ({**AN_ISOFLOP, "train": {"grad_clip": math.inf}}, "train.grad_clip = inf"),
    ],
)
def test_nonsense_is_refused_with_what_was_given(content, words):
    with pytest.raises(UsageError) as caught:
        sweep_from_mapping(content, source="the options")
    assert words in caught.value.given
    assert caught.value.allowed
    assert caught.value.do


def test_an_unknown_key_lists_the_known_ones_of_its_table():
    with pytest.raises(UsageError, match="seq_len"):
        sweep_from_mapping(
            {"kind": "isoflop", "budgets": "1e18", "train": {"seqlen": 1}}, source="x.toml"
        )


def test_a_file_that_is_missing_or_no_toml_is_bad_data(tmp_path):
    with pytest.raises(DataError, match="missing"):
        read_sweep_file(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("kind = isoflop")
    with pytest.raises(DataError, match="bad"):
        read_sweep_file(tmp_path / "bad.toml")


def test_the_science_leaves_out_name_and_launcher():
    base = {"kind": "isoflop", "budgets": "1e18"}
    one = sweep_from_mapping({**base, "name": "a", "launcher": {"name": "slurm"}}, source="")
    two = sweep_from_mapping(base, source="")
    assert one.science() == two.science()
    assert one.science() != sweep_from_mapping({**base, "sizes": 3}, source="").science()


def test_the_science_leaves_out_execution_and_the_fine_table_of_shapes():
    def science(budgets, **tables):
        content = {"kind": "isoflop", "budgets": budgets, **tables}
        return sweep_from_mapping(content, source="").science()

    small = science("9e14")
    assert "model" not in small
    assert "execution" not in small
    assert small == science("9e14", execution={"step": "eager", "batched_runs": 1})
    assert small == science("9e14", model={"shapes": "fine"})
    assert science("9e14", model={"shapes": "aligned"})["model"] == {"shapes": "aligned"}
    # A sweep that was saved before the tables existed has the fine one.
    assert "model" not in science("1e15", model={"shapes": "fine"})
    assert science("1e15")["model"] == {"shapes": "aligned"}


def test_a_request_has_the_names_and_defaults_of_the_execution():
    sweep = sweep_from_mapping({"kind": "isoflop", "budgets": "1e12"}, source="")
    request = sweep.execution.request("cpu")
    assert request == ExecutionSpec(step=AUTO, kernels=AUTO, attention=AUTO, batched_runs=0)
    tables = {"execution": {"micro_batch_seqs": "auto", "batched_runs": "4"}}
    content = {"kind": "isoflop", "budgets": "1e12", **tables}
    named = sweep_from_mapping(content, source="").execution.request("cuda", keeps_weights=True)
    assert (named.device, named.micro_batch_seqs, named.batched_runs) == ("cuda", 0, 4)
    assert named.keeps_weights


def test_a_sweep_names_itself_by_its_axes():
    sweep = sweep_from_mapping({"kind": "isoflop", "budgets": "2e11..2e12:4"}, source="")
    assert sweep.default_name() == "isoflop-2e11-2e12-4x7"

"""The options of a stored sweep as words: further runs are planned like its own."""

import json

import pytest

from scalelab.cli.main import main
from scalelab.records.sweep_dir import Results
from scalelab.records.sweep_words import option_words, sweep_words
from scalelab.sweep.spec import sweep_from_mapping

PLAN = ("sweep", "isoflop", "--budgets", "1e13", "--n-params", "300K,600K")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--seq-len", "64", "--batch-seqs", "4", "--lr", "3e-3", "--schedule", "wsd"),
        ("--tied", "--no-qk-norm", "--aspect", "32", "--seeds", "0,1", "--eval-tokens", "64K"),
    ],
)
def test_the_words_of_a_sweep_plan_its_own_runs(tmp_path, capsys, options):
    text = tmp_path / "text.txt"
    text.write_text("a few words of text and some more of them\n" * 40_000)
    first, second = tmp_path / "first", tmp_path / "second"
    end = ("--name", "s", "--plan-only", "--json")
    given = ("--data", str(text), "--allow-repeats", *options)
    assert main([*PLAN, *given, "--results", str(first), *end]) == 0
    words = sweep_words(first, "s")
    assert "--data" in words
    assert main([*PLAN, *words, "--results", str(second), *end]) == 0
    capsys.readouterr()
    run_ids = [Results(folder).load_plan("s").run_ids for folder in (first, second)]
    assert len(run_ids[0]) == (4 if "--seeds" in options else 2)
    assert run_ids[0] == run_ids[1]
    specs = [json.loads((f / "sweeps/s/spec.json").read_text()) for f in (first, second)]
    assert specs[0] == specs[1]


@pytest.mark.parametrize(
    ("budgets", "model", "expected"),
    [
        ((1e13,), {}, ()),
        ((1e13,), {"shapes": "aligned"}, ("--shapes", "aligned")),
        ((1e14, 5e14), {"shapes": "fine"}, ("--shapes", "fine")),
        ((1e18,), {}, ()),
    ],
)
def test_the_table_of_shapes_is_named_where_further_runs_could_have_another(
    budgets, model, expected
):
    sweep = sweep_from_mapping(
        {"kind": "isoflop", "budgets": list(budgets), "model": model}, source=""
    )
    assert option_words(sweep.science()) == expected


def test_what_no_flag_can_give_is_not_known(tmp_path):
    assert sweep_words(tmp_path, "s") is None
    assert option_words({"kind": "isoflop", "program": {"command": "train"}}) is None
    assert option_words({"kind": "isoflop", "data": {"mix": {"a": {"paths": ["a.txt"]}}}}) is None
    assert option_words({"kind": "isoflop", "model": {"rules": [{}, {}]}}) is None

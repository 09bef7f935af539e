"""Columns of the Runs view: settings are shown where the runs differ in them."""

import pandas as pd
from scalelab_dashboard.views.runs import COLUMNS, MARK, VARYING, same_words, shared, varying, view

from scalelab.store import schema

TABLE = pd.DataFrame(
    {
        "run_id": ["a", "b", "c", "d"],
        "status": ["done", "done", "done", "planned"],
        "seed": [0, 0, 0, None],
        "flops": [1e12, 2e12, 2e12, None],
        "loss_nats": [2.0, 1.9, 1.8, None],
        "n_steps": [100, 200, 200, None],
        "d_model": [32, 32, 64, None],
        "d_ff": [96, 96, 192, None],
        "n_kv_heads": [2, 1, 2, None],
        "warmup_steps": [10, 20, 20, None],
        "z_loss": [0.0, 0.0, 0.0, None],
        "logit_softcap": [0.0, 30.0, 0.0, None],
        "is_document_masked": [True, True, True, None],
    }
)


def test_constant_settings_and_those_that_follow_from_the_size_are_hidden():
    # d_ff follows from the width and warmup_steps from the length; n_kv_heads does not.
    assert varying(TABLE) == ["n_kv_heads", "logit_softcap"]
    assert varying(TABLE[TABLE["run_id"] == "a"]) == []
    shown, _ = view(TABLE, varying(TABLE))
    at = list(shown).index("seed")
    assert list(shown)[at - 2 : at] == ["n_kv_heads", "logit_softcap"]
    assert "z_loss" not in shown
    assert "is_document_masked" not in shown


def test_the_columns_exist_in_the_store():
    names = {column.name for column in schema.RUNS.columns}
    assert set(VARYING) <= names
    assert set(COLUMNS) - {"epochs", "wall_s", "attempts", MARK} <= names | {"run_id", "status"}


def test_what_all_runs_have_in_common_is_a_sentence_and_no_column():
    same = shared(TABLE)
    assert same == {"seed": 0}
    shown, _ = view(TABLE, varying(TABLE), tuple(same))
    assert "seed" not in shown
    assert same_words({**same, "device": "h100", "d_model": 64}) == (
        " All runs: seed 0, device h100, width 64."
    )
    assert shared(TABLE[:1]) == {}

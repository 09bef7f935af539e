import json
import re

import pytest

from scalelab.cli.main import main

CELLS = ("--n-params", "20K,40K", "--n-tokens", "1M,2M", "--dry-run")


@pytest.fixture
def pool(tables):
    return tables / "scalebench/lr_batch_train.csv"


def run(capsys, *words):
    code = main(["tune", *map(str, words)])
    return code, capsys.readouterr()


def answer(capsys, *words):
    code, out = run(capsys, *words, "--json")
    return code, json.loads(out.out)


def test_a_table_answers_with_intervals(capsys, pool):
    code, said = answer(
        capsys,
        "--from",
        pool,
        "--map",
        "n_params=n_params_non_embedding,loss_nats=loss,batch_seqs=batch_sequences",
        "--seq-len",
        2048,
        "--predict",
        "N=1e9,D=1e11",
        "--bootstrap",
        50,
    )
    assert code == 0
    assert set(said) == {"lr", "batch_tokens", "law", "warnings"}
    for name, low, high in (("lr", 1e-3, 2.5e-3), ("batch_tokens", 6e5, 1.3e6)):
        assert set(said[name]) == {"value", "low", "high"}
        assert low < said[name]["low"] < said[name]["value"] < said[name]["high"] < high
    assert said["law"]["n_cells"] == 41
    assert said["law"]["param_convention"] == "kaplan"
    law = said["law"]["lr"]
    assert law["k"]["value"] * 1e9 ** law["p"]["value"] * 1e11 ** law["q"][
        "value"
    ] == pytest.approx(said["lr"]["value"])


def test_the_page_shows_published_rules_beside_the_law(capsys, pool):
    words = ("--from", pool, "--seq-len", 2048, "--predict", "N=1e9,D=1e11", "--bootstrap", 0)
    code, out = run(capsys, *words)
    assert code == 0
    for name in ("kaplan", "deepseek", "steplaw", "olmo", "arXiv:2503.04715"):
        assert name in out.out


def test_the_first_line_is_the_answer_in_a_sentence(capsys, pool):
    _, out = run(capsys, "--from", pool, "--seq-len", 2048, "--bootstrap", 50)
    number = r"\d\S* \[\S+, \S+\]"
    assert re.match(
        rf"For N \S+ on D \S+ tokens, .*: learning rate {number}, batch {number} tokens\. "
        r"The rate grows as N\^\S+ D\^\S+\.$",
        out.out.splitlines()[0],
    )


def test_few_replicates_are_said(capsys, pool):
    code, said = answer(capsys, "--from", pool, "--seq-len", 2048, "--bootstrap", 5)
    assert code == 0
    assert "few_replicates" in [warning["code"] for warning in said["warnings"]]


def test_one_cell_is_not_identified(capsys, pool):
    where = "n_params_non_embedding = 214663680 AND n_tokens = 4e9"
    words = ("--from", pool, "--where", where, "--seq-len", 2048, "--predict", "N=1e9,D=1e11")
    code, said = answer(capsys, *words)
    assert code == 4
    assert said["law"] is None
    assert said["lr"] == {"value": None, "low": None, "high": None}
    assert said["warnings"][-1]["code"] == "not_identified"


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("--from", "POOL", "--seq-len", 2048, "--predict", "C=1e20"), 2, "N and D"),
        (("--from", "POOL", "--predict", "N=1e9,D=1e11"), 2, "sequences"),
        (("--from", "POOL", "--seq-len", 2048, "--level", 1.5), 2, "level"),
        (("--from", "nowhere.csv"), 3, "nowhere.csv"),
        ((), 2, "--from"),
        (("--n-params", "20K"), 2, "--n-tokens"),
        (("--from", "POOL", "--n-params", "20K"), 2, "either --from FILE, or --n-params"),
        ((*CELLS, "--lr", "1e-3"), 2, "LOW..HIGH"),
        ((*CELLS, "--lr", "3e-2..1e-3"), 2, "first end is not below its second"),
        ((*CELLS, "--beta2", "0.9..1.5"), 2, "beta2"),
        ((*CELLS, "--trials", 0), 2, "trials"),
        ((*CELLS, "--n-params", "1"), 2, "parameters"),
        ((*CELLS, "--seed", -1), 2, "seed -1"),
        ((*CELLS, "--bootstrap", 1), 2, "1 bootstrap replicate"),
        ((*CELLS, "--level", 1.5), 2, "level"),
        (("--from", "POOL", "--seq-len", 2048, "--seed", -1), 2, "seed -1"),
    ],
)
def test_invalid_options_are_refused(capsys, pool, words, code, part):
    words = [pool if word == "POOL" else word for word in words]
    found, said = answer(capsys, *words)
    assert found == code
    assert part in json.dumps(said["error"])

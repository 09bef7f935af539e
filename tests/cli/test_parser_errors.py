"""Complaints of the option parser name the command, the option and what to type instead."""

import shlex

import pytest

from scalelab.cli.main import main


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        (
            "sweep isoflop --budget 1e12",
            [
                "error: unknown option --budget for scalelab sweep isoflop",
                "Did you mean --budgets?",
            ],
        ),
        ("fit --from", ["error: --from without a value in scalelab fit", "`scalelab fit --help`"]),
        ("sweep isoflop --budgets", ["--budgets without a value", "for example --budgets 1e18.."]),
        ("sweep isofop", ["unknown command 'isofop'", "Did you mean scalelab sweep isoflop?"]),
        ("import", ["error: scalelab import without FILE", "expected scalelab import FILE"]),
        ("fit runs.csv", ["unexpected argument 'runs.csv'", "Did you mean --from runs.csv?"]),
        ("fit --json=3", ["error: --json with a value", "Write --json."]),
        (
            "fit --level x",
            ["error: --level x", "expected a number", "Write for example --level 0.9"],
        ),
        ("resume --workers=0", ["error: --workers 0", "expected a number of at least 1"]),
    ],
)
def test_the_parser_says_what_to_type(line, lines, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert [words for words in lines if words not in err] == []
    assert len(err.splitlines()) == 3


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("fit --from public:chinchila", "public:chinchilla"),
        ("fit --from public:chinchilla --form Chinchila", "chinchilla"),
        ("fit --from public:chinchilla --residual lg", "log"),
        ("fit --from public:chinchilla --loss hubr", "huber"),
        ("fit --from public:chinchilla --bootstrap-method rows", "row"),
        ("fit --from public:chinchilla --forecaster averagd", "averaged"),
        ("fit --from public:chinchilla --loss-unit nat", "nats"),
        ("fit --from public:chinchilla --last-of excluded", "excluded_besiroglu"),
        ("fit --from public:olmo_ladder --where 'n_parms > 1e9'", "n_params"),
        ("fit --from rnus.csv", "runs.csv"),
        ("decide --law besirogl", "besiroglu"),
        ("decide --law besiroglu --gpu h1000", "h100"),
        ("sweep run rnus.csv", "runs.csv"),
        ("sweep isoflop --budgets 1e12 --lr-rule widht --dry-run", "width"),
        ("sweep isoflop --budgets 1e12 --device cdua --dry-run", "cuda"),
        ("retry demo --status fialed", "failed"),
        ("bench train --step grph", "graph"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_likely_one(line, near, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs.csv").write_text("")
    assert main(shlex.split(line)) in (2, 3)
    err = capsys.readouterr().err
    assert f"Did you mean {near}?" in err
    # a table of many columns is not listed whole
    assert max(map(len, err.splitlines())) < 450


@pytest.mark.parametrize("group", ["", "sweep", "bench", "law", "data"])
def test_a_group_without_a_command_prints_its_help(capsys, group):
    assert main(group.split()) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: {f'scalelab {group}'.strip()}")
    assert err == ""

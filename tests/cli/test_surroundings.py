"""Closed or full output, a removed folder, and printed commands that work as printed."""

import json
import os
import shlex
import subprocess
import sys

import pytest
import typer

from scalelab.api.sweeps import save_plan
from scalelab.cli import output
from scalelab.cli.main import app, main

COMMAND = [sys.executable, "-c", "from scalelab.cli.main import run; run()"]
TABLE = "n_params,n_tokens,loss\n" + "".join(
    f"{n},{d},{1.7 + 400 * n**-0.35 + 2000 * d**-0.37}\n"
    for n in (1e6, 3e6, 1e7, 3e7)
    for d in (1e8, 3e8, 1e9, 3e9)
)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "r.csv").write_text(TABLE)
    return tmp_path / "r.csv"


def shell(line, **variables):
    return subprocess.run(
        line, shell=True, capture_output=True, text=True, env={**os.environ, **variables}
    )


FIT = "fit --from r.csv --bootstrap 0 --forecaster law"
FULL = "standard output that cannot be written (No space left on device)"


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("tables >&-", 141, ""),
        (f"{FIT} > /dev/full", 3, FULL),
        ("tables --json > /dev/full", 3, "No space left on device"),
        (f"{FIT} 2>&-", 0, ""),
        ("tables 2> /dev/full", 0, ""),
        ("tables <&- >&- 2>&-", 141, ""),
    ],
)
def test_an_output_that_cannot_be_written_ends_without_a_traceback(tmp_path, line, code, words):
    done = shell(f"cd {shlex.quote(str(tmp_path))} && {shlex.join(COMMAND)} {line}")
    assert done.returncode == code
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == (3 if words else 0)


@pytest.mark.parametrize(
    ("words", "ends"), [(("fit", "--from", "absent.csv"), 3), (("tables",), 0)]
)
def test_what_is_to_run_at_the_exit_runs_once(words, ends, tmp_path):
    code = (
        "import atexit, sys\n"
        "from scalelab.cli.main import run\n"
        "atexit.register(lambda: print('left', file=sys.stderr))\n"
        "run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stderr.count("left") == 1
    assert done.returncode == ends


def test_export_to_a_full_disk_says_so(table, tmp_path):
    results = ["--results", str(tmp_path / "results")]
    assert main(["import", str(table), *results]) == 0
    words = [*COMMAND, "export", "--table", "imports", *results]
    done = shell(f"{shlex.join(words)} > /dev/full")
    assert done.returncode == 3
    assert done.stderr.startswith("error: standard output that cannot be written")


def test_a_removed_current_folder_is_named(table, tmp_path):
    (tmp_path / "gone").mkdir()
    words = shlex.join([*COMMAND, "fit", "--from", str(table)])
    done = shell(f"cd {tmp_path}/gone && rmdir ../gone && PYTHONSAFEPATH=1 {words}")
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "error: a current folder that cannot be used (No such file or directory)",
        "expected a current folder that exists",
        "Change to another folder, for example: cd ~",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Next: scalelab fit --sweep t", "Next: scalelab fit --sweep t --results 'my runs'"),
        ("Run `scalelab logs RUN`.", "Run `scalelab logs RUN --results 'my runs'`."),
        ("Next: scalelab tune --name t ..", "Next: scalelab tune --name t --results 'my runs' .."),
        ("`scalelab collect --results x`", "`scalelab collect --results x`"),
        ("`scalelab bench device`", "`scalelab bench device`"),
    ],
)
def test_a_printed_command_names_the_results_folder(text, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCALELAB_RESULTS", raising=False)
    main(["status", "--results", "my runs"])
    assert output.runnable(text) == expected
    assert output.results_words() == ("--results", "my runs")
    monkeypatch.setenv("SCALELAB_RESULTS", "my runs")
    main(["status", "--results", "my runs"])
    assert output.runnable(text) == text
    assert output.results_words() == ()
    main(["status"])
    assert output.runnable(text) == text


def commands(group, path="scalelab"):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_advice_adds_the_results_folder_exactly_where_the_command_accepts_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCALELAB_RESULTS", raising=False)
    main(["status", "--results", "elsewhere"])
    found = {}
    for path, command in commands(typer.main.get_group(app)):
        accepts = any("--results" in parameter.opts for parameter in command.params)
        found[path] = accepts
        expected = f"{path} --results elsewhere" if accepts else path
        assert output.runnable(f"Run `{path}`.") == f"Run `{expected}`."
    assert found["scalelab fit"]
    assert found["scalelab sweep isoflop"]
    assert not found["scalelab tables"]
    assert not found["scalelab bench device"]
    assert output.runnable("`scalelab sweep`") == "`scalelab sweep`"


def test_a_fit_without_runs_says_how_to_get_some(table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit"]) == 3
    err = capsys.readouterr().err
    assert "`scalelab sweep isoflop --budgets 1e12..1e13`" in err
    assert "collect`" not in err
    assert main(["import", str(table), "--name", "mine"]) == 0
    assert main(["fit", "--sweep", "nosuch"]) == 2
    assert "--sweep mine" in capsys.readouterr().err


def test_what_import_prints_next_works_as_printed(table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["import", str(table), "--results", str(tmp_path / "elsewhere")])
    line = capsys.readouterr().out.splitlines()[-1]
    assert main([*shlex.split(line.removeprefix("Next: scalelab ")), "--bootstrap", "0"]) == 0


def test_advice_in_an_error_works_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere" / "runs" / "abc").mkdir(parents=True)
    assert main(["logs", "x", "--results", "elsewhere"]) == 2
    assert "`scalelab status --json --results elsewhere`" in capsys.readouterr().err


def test_an_end_of_file_is_not_called_interrupted(monkeypatch, capsys):
    def end(*_):
        raise EOFError("the server has ended")

    monkeypatch.setattr("scalelab.cli.doctor.examine", end)
    with pytest.raises(EOFError):
        main(["doctor"])
    assert "interrupted" not in capsys.readouterr().err


def test_a_ctrl_c_has_a_word(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("scalelab.cli.doctor.examine", stop)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_sweep_stopped_before_its_first_run_names_the_command_that_continues_it(
    monkeypatch, tmp_path, capsys
):
    def stop(proposal, *, results, **_):
        save_plan(proposal, results=results)
        raise KeyboardInterrupt

    monkeypatch.setattr("scalelab.api.sweeps.launch", stop)
    text = tmp_path / "text"
    text.mkdir()
    for number in range(40):
        (text / f"{number}.txt").write_text(f"file {number} " * 200)
    words = "sweep isoflop --budgets 1e9 --sizes 2 --eval-tokens 5000 --seq-len 32 --batch-seqs 4"
    given = ["--data", str(text), "--name", "s", "--yes", "--results", str(tmp_path / "r")]
    assert main([*words.split(), *given]) == 130
    err = capsys.readouterr().err
    assert f"To continue, run `scalelab resume s --results {tmp_path / 'r'}`." in err
    assert err.endswith("interrupted\n")


def test_the_dashboard_imports_nothing_from_the_current_folder(table, monkeypatch):
    pytest.importorskip("streamlit")
    started = []
    monkeypatch.setattr("os.execve", lambda *words: started.append(words))
    main(["dashboard", "--from", str(table)])
    ((_, words, environment),) = started
    assert environment["PYTHONSAFEPATH"] == "1"
    # The secrets of the user's home are not read: that home may be unusable.
    assert any(word.startswith("--secrets.files=") for word in words)


def test_the_dashboard_reads_its_file_with_the_options_of_fit(table, monkeypatch, capsys):
    pytest.importorskip("streamlit")
    started = []
    monkeypatch.setattr("os.execve", lambda *words: started.append(words))
    words = ["--loss-unit", "bpb", "--best-of", "lr,batch", "--last-of", "run", "--format", "table"]
    main(["dashboard", "--from", str(table), *words, "--include-unfinished"])
    ((_, _, environment),) = started
    assert json.loads(environment["SCALELAB_DASHBOARD_READING"]) == {
        "format": "table",
        "loss_unit": "bits-per-byte",
        "includes_unfinished": True,
        "best_of": ["lr", "batch"],
        "last_of": "run",
    }
    assert main(["dashboard", "--from", str(table), "--loss-unit", "miles"]) == 2
    assert main(["dashboard", "--best-of", "lr"]) == 2
    assert "--best-of without --from" in capsys.readouterr().err
    main(["dashboard", "--from", str(table.parent)])
    assert started[-1][2]["SCALELAB_DASHBOARD_FILE"] == str(table.parent)


def test_a_settings_file_suggests_the_nearest_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scalelab.toml").write_text("[fit]\nbootstap = 100\n")
    assert main(["fit", "--from", "x.csv"]) == 2
    assert "Did you mean bootstrap?" in capsys.readouterr().err

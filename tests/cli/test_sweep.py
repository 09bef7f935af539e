"""``scalelab sweep`` as a person meets it: plan, cost, refusal, JSON, exit codes."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from scalelab.cli.main import main
from scalelab.sweep.speeds import unmeasured_cpu_speed
from tests.cpu_limits import slowness

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.toml"))


@pytest.fixture
def scalelab(tmp_path, monkeypatch, capfd):
    """Return a runner of the command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def run(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def measured(scalelab, cache_home, monkeypatch) -> None:
    """Let the machine's speed be the one that all launches of the tests share."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))


@pytest.fixture
def text(tmp_path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for file in (Path(sysconfig.get_path("stdlib")) / "email").glob("*.py"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_every_committed_sweep_can_be_looked_at(scalelab, tmp_path, path, monkeypatch):
    monkeypatch.chdir(path.parents[1])  # mixtures.toml names files of the repository
    results = ("--results", str(tmp_path / "results"))
    code, out, _ = scalelab("sweep", "run", str(path), "--dry-run", *results)
    assert code == 0
    assert path.stem in out
    assert "FLOPs exact" in out
    assert not (tmp_path / "results").exists()


def test_the_plan_shows_what_a_person_asks_for(scalelab):
    code, out, _ = scalelab("sweep", "isoflop", "--budgets", "1e18..1e20", "--dry-run")
    assert code == 0
    for word in ("D/N", "shape", "lr", "epochs", "total"):
        assert word in out
    assert all(word not in out for word in ("steps", "money"))
    # what is wrong comes last
    assert [line.startswith("warning: ") for line in out.splitlines()[-2:]] == [False, True]
    assert "years" in out
    assert "h100" in out
    assert "assumes 40 % of peak" in out
    words = ("sweep", "isoflop", "--budgets", "1e18..1e20", "--dry-run", "--wide")
    wide = scalelab(*words)[1]
    for word in ("D/N", "shape", "steps", "batch", "lr", "FLOPs", "time", "money", "total"):
        assert word in wide


def test_the_table_of_a_plan_fits_80_columns(scalelab, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = scalelab("sweep", "isoflop", "--budgets", "1e18..1e20", "--dry-run")[1]
    rows = [line for line in out.splitlines() if re.search(r"\d+L-\d+d-\d+h", line)]
    assert len(rows) == 35
    assert all(len(line) <= 80 for line in rows)


def test_json_is_one_object_with_unrounded_numbers(scalelab):
    code, out, _ = scalelab(
        "sweep", "isoflop", "--budgets", "1e13", "--sizes", "3", "--dry-run", "--json"
    )
    assert code == 0
    answer = json.loads(out)
    assert answer["command"] == "sweep"
    assert answer["dry_run"] is True
    assert len(answer["rows"]) == 3
    for row in answer["rows"]:
        assert row["n_tokens"] == row["n_steps"] * row["batch_seqs"] * row["seq_len"]
        assert row["run_id"] is None
    assert answer["totals"]["flops"] == sum(row["flops"] for row in answer["rows"])


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (("--budgets", "1e20..1e18"), "not below its second"),
        (("--budgets", "abc"), "abc"),
        (("--budgets", "-1"), "-1"),
        (("--budgets", "0"), "0"),
        (("--budgets", "1e18.."), "missing end"),
        (("--budgets", "1e12", "--sizes", "400", "--span", "1.2"), "400 sizes"),
        (("--budgets", "1e12", "--name", "../escape"), "../escape"),
        (("--budgets", "1e12", "--name", "a b;rm"), "a b;rm"),
        (("--budgets", "1e12", "--seeds", "one"), "one"),
        (("--budgets", "1e12", "--device", "tpu"), "tpu"),
        (("--budgets", "1e12", "--launcher", "cloud"), "cloud"),
        (("--budgets", "1e12", "--lr-rule", "best"), "best"),
        (("--bugdets", "1e12"), "bugdets"),
    ],
)
def test_nonsense_is_refused_with_the_way_out(scalelab, tmp_path, words, given):
    code, out, err = scalelab("sweep", "isoflop", *words, "--dry-run")
    assert code == 2
    assert out == ""
    assert given in err
    assert "expected" in err
    assert not (tmp_path / "results").exists()
    code, out, _ = scalelab("sweep", "isoflop", *words, "--dry-run", "--json")
    assert code == 2
    error = json.loads(out)["error"]
    assert set(error) == {"given", "allowed", "do"}
    assert given in error["given"]


@pytest.mark.parametrize("content", [None, b"", b"\x00\x01\x02" * 9000, b"tiny"])
def test_text_that_cannot_be_used_is_bad_data(scalelab, tmp_path, content):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    code, _, err = scalelab("sweep", "isoflop", "--budgets", "1e10", "--data", str(path), "--yes")
    assert code == 3
    assert "text.txt" in err or "text" in err
    assert not (tmp_path / "results" / "sweeps").exists()


@pytest.mark.slow
def test_a_long_plan_is_refused_without_yes_and_nothing_is_started(
    scalelab, measured, text, tmp_path
):
    code, _, err = scalelab(
        *("sweep", "isoflop", "--budgets", "1e16", "--sizes", "2", "--allow-repeats"),
        *("--data", str(text), "--eval-tokens", "4096"),
    )
    assert code == 2
    for way_out in ("--dry-run", "--launcher slurm", "--yes"):
        assert way_out in err
    assert not (tmp_path / "results" / "sweeps").exists()


def test_repeating_text_often_is_refused_but_a_dry_run_still_prints(scalelab, text, monkeypatch):
    def assumed(plan, execution, n_workers):
        return unmeasured_cpu_speed(n_workers)

    monkeypatch.setattr("scalelab.launch.proposal.speed_for", assumed)
    words = ("sweep", "grid", "--n-params", "15K", "--n-tokens", "100M", "--data", str(text))
    words = (*words, "--eval-tokens", "4K")
    code, out, _ = scalelab(*words, "--dry-run")
    assert code == 0
    assert "epochs" in out
    assert "A launch refuses more than 4" in out
    # A plan of years is not worth agreeing to where it would then be refused.
    for more in (("--yes",), ("--n-tokens", "10B")):
        code, _, err = scalelab(*words, *more)
        assert code == 2
        assert "--allow-repeats" in err


def test_retry_lists_the_states_that_it_knows(scalelab):
    code, _, err = scalelab("retry", "--status", "bogus")
    assert code == 2
    assert "failed, diverged or pruned" in err
    code, _, err = scalelab("retry", "--status", "diverged")
    assert code == 2
    assert "--status diverged without --lr-scale" in err


def test_resume_of_an_unknown_sweep_names_the_known_ones(scalelab):
    code, _, err = scalelab("resume", "nothing")
    assert code == 3
    assert "nothing" in err
    code, _, err = scalelab("resume")
    assert code == 3
    assert "no sweep" in err


def test_settings_are_defaults_that_flags_and_environment_override(scalelab, tmp_path, monkeypatch):
    (tmp_path / "scalelab.toml").write_text("[sweep.isoflop]\nsizes = 3\n")
    words = ("sweep", "isoflop", "--budgets", "1e13", "--dry-run", "--json")
    assert len(json.loads(scalelab(*words)[1])["rows"]) == 3
    assert len(json.loads(scalelab(*words, "--sizes", "2")[1])["rows"]) == 2
    (tmp_path / "config" / "scalelab").mkdir(parents=True)
    (tmp_path / "config" / "scalelab" / "scalelab.toml").write_text("[sweep.isoflop]\nspan = 3\n")
    rows = json.loads(scalelab(*words)[1])["rows"]
    assert rows[-1]["n_params"] / rows[0]["n_params"] < 5
    (tmp_path / "scalelab.toml").write_text("[sweep.isoflop]\nsises = 3\n")
    code, out, _ = scalelab(*words)
    assert code == 2
    assert "sises" in json.loads(out)["error"]["given"]


def test_dry_runs_and_help_are_quick_and_need_no_torch(tmp_path):
    # As on any machine where the command ran before: the bytecode is kept.
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env = kept | {"PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode")}
    code = (
        "import sys; from scalelab.cli.main import main; "
        "code = main(sys.argv[1:]); "
        "heavy = {'torch', 'pandas', 'scipy', 'streamlit'} & set(sys.modules); "
        "print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )

    def cpu_seconds(*words: str) -> float:
        """Return the least processor time, in seconds of the machine where the limits were set."""
        times = []
        for _ in range(3):
            slower = slowness()
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            answer = subprocess.run(
                [sys.executable, "-c", code, *words],
                env=env,
                capture_output=True,
                text=True,
                check=True,
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            times.append(taken_s / slower)
            assert answer.stderr.strip().endswith("[]"), answer.stderr
        return min(times)

    assert cpu_seconds("--help") < 0.3
    assert cpu_seconds("sweep", "isoflop", "--budgets", "1e12..1e13", "--dry-run") < 1.0

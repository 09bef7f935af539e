"""`scalelab export-model` and `scalelab evaluate` on the runs of a real sweep."""

import json
import shutil

import numpy as np
import pytest

from scalelab.cli.main import main
from scalelab.store.live import open_snapshot


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a results folder with a sweep of two runs, and the folders of two texts."""
    folder = tmp_path_factory.mktemp("kept")
    rng = np.random.default_rng(1)
    words = ["one ", "two ", "three ", "four. ", "five\n", "six; "]
    for name, n_files in (("train", 12), ("eval", 3)):
        (folder / name).mkdir()
        for index in range(n_files):
            text = "".join(rng.choice(words, 1500))
            (folder / name / f"{index}.txt").write_text(f"{name} {index}\n{text}")
    assert main(sweep_words(folder, "kept", "--keep-weights")) == 0
    return folder


def sweep_words(folder, name, *more):
    return [
        *("sweep", "grid", "--name", name, "--data", str(folder / "train"), "--yes"),
        *("--eval-set", f"code={folder / 'eval'}", "--n-params", "20K,40K", "--n-tokens", "30K"),
        *("--seq-len", "32", "--eval-tokens", "4096", "--results", str(folder / "results"), *more),
    ]


@pytest.mark.slow
def test_a_set_added_later_has_the_loss_that_training_would_have_found(trained, capsys):
    results = trained / "results"
    words = ["evaluate", "kept", "--results", str(results), "--json"]
    capsys.readouterr()
    sets = ["--eval-set", f"later={trained / 'eval'}", "--eval-set", f"code={trained / 'eval'}"]
    assert main([*words, *sets]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["set"] for row in answer["evaluations"]] == ["later", "later"]
    assert answer["warnings"][0].startswith("code: evaluated in training already")
    with open_snapshot(results) as connection:
        found = connection.execute(
            "SELECT a.loss_nats - b.loss_nats, a.bits_per_byte - b.bits_per_byte, "
            "a.stderr - b.stderr, a.n_bytes - b.n_bytes FROM evals AS a JOIN evals AS b "
            "USING (run_id, step, kind) WHERE a.set = 'later' AND b.set = 'code'"
        ).fetchall()
    assert len(found) == 2
    assert np.allclose(found, 0, atol=1e-6)


@pytest.mark.slow
def test_a_text_that_was_trained_on_and_a_taken_name_are_refused(trained, capsys):
    words = ["evaluate", "kept", "--results", str(trained / "results"), "--eval-set"]
    assert main([*words, f"bad={trained / 'train'}"]) == 3
    assert "also in the training text" in capsys.readouterr().err
    assert main([*words, f"code={trained / 'eval' / '0.txt'}"]) == 2
    assert "has for another text" in capsys.readouterr().err
    assert main([*words, "later"]) == 2
    assert "NAME=PATH" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_goes_from_the_sweep_to_a_folder(trained, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    results = trained / "results"
    run_id = sorted(path.name for path in (results / "runs").iterdir())[0]
    words = ["export-model", run_id[:5], "--results", str(results)]
    capsys.readouterr()
    assert main(words) == 0
    assert f"{run_id}-hf: run {run_id} as Qwen3ForCausalLM" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / f"{run_id}-hf").iterdir()} == {
        *("config.json", "model.safetensors", "scalelab.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert main(words) == 2
    assert "which exists" in capsys.readouterr().err
    assert main([*words, "x", "--format", "gguf"]) == 2
    assert main([*words, "x", "--dtype", "bf16", "--json"]) == 2
    assert "bfloat16" in json.loads(capsys.readouterr().out)["error"]["allowed"]
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_evaluations_are_merged_with_the_run(trained, tmp_path, capsys):
    results, other = trained / "results", tmp_path / "other"
    shutil.copytree(results, other)
    task = tmp_path / "numbers.jsonl"
    task.write_text('{"context": "one", "choices": ["two", "xyz"], "answer": 0}\n')
    assert main(["evaluate", "kept", "--results", str(other), "--tasks", str(task)]) == 0
    assert "numbers" in capsys.readouterr().out
    assert main(["merge", str(other), "--results", str(results)]) == 0
    with open_snapshot(results) as connection:
        query = "SELECT count(*) FROM evals WHERE set = 'numbers' AND accuracy IS NOT NULL"
        assert connection.execute(query).fetchone() == (2,)

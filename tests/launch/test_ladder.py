"""``sweep ladder`` on the local pool: each trunk once, branches equal separate runs bit for bit."""

import json

import pytest

from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.trunk import branch_step
from tests.train.outcome import run_attempt


@pytest.mark.slow
def test_branches_start_from_their_trunk_and_equal_straight_runs(
    start, text, tmp_path, results
) -> None:
    lengths = ("--n-params", "15K", "--n-tokens", "20K,40K,80K", "--seeds", "0,1")
    options = ("--data", str(text), "--eval-tokens", "4096", "--seq-len", "32", "--batch-seqs", "4")
    process = start("sweep", "ladder", *lengths, *options, "--name", "tiny", "--yes", "--json")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert json.loads(out)["counts"] == {"done": 6}
    n_from_trunk = 0
    for run_id in results.load_plan("tiny").run_ids:
        run = results.run(run_id)
        spec = run.read_spec()
        (attempt,) = run.attempts()
        note = attempt.read_note()
        own = attempt.read_record()
        if "trunk" not in note:
            continue
        n_from_trunk += 1
        assert 0 < note["trunk"]["step"] < branch_step(spec)
        if spec.seed == 1:
            continue
        straight = RunDir(tmp_path / "straight" / run_id)
        straight.write_spec(spec)
        dataset = results.dataset(spec.data_fingerprint)
        assert run_attempt(straight.path, dataset, ExecutionSpec(**note["execution"])) == "done"
        assert straight.accepted().read_record().loss_nats == own.loss_nats
    assert n_from_trunk == 4

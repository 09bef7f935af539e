"""The table ``evals`` has the losses of every run on every set."""

import json
import math

from scalelab.store.collect import collect
from scalelab.store.live import open_snapshot


def rows_of(results, columns="*", where="true"):
    with open_snapshot(results) as connection:
        return connection.execute(
            f"SELECT {columns} FROM evals WHERE {where} ORDER BY run_id, step, set"
        ).fetchall()


def test_every_done_run_has_its_held_out_loss(make):
    done = make.done(seed=1)
    make.attempt(make.run(seed=2))
    make.finish(make.attempt(make.run(seed=3)), None)
    collect(make.path)
    columns = "run_id, step, set, kind, loss_nats, stderr, bits_per_byte, is_final, source"
    n_steps = done.read_spec().n_steps
    assert rows_of(make.path, columns) == [
        (done.run_id, n_steps, "heldout", "text", 1.4375, 0.011, None, True, "training")
    ]


def test_the_held_out_loss_per_byte_and_its_bytes(make):
    run = make.done()
    path = run.accepted().path / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "bytes_per_token": 4.0, "eval_tokens": 1000}))
    collect(make.path)
    ((bits, n_tokens, n_bytes),) = rows_of(make.path, "bits_per_byte, n_tokens, n_bytes")
    assert bits == 1.4375 / math.log(2) / 4
    assert (n_tokens, n_bytes) == (1000, 4000)


def test_a_removed_run_leaves_the_table(make):
    import shutil

    run, kept = make.done(seed=1), make.done(seed=2)
    collect(make.path)
    shutil.rmtree(run.path)
    collect(make.path)
    assert rows_of(make.path, "run_id") == [(kept.run_id,)]

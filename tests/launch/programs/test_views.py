"""Commands show the runs of a program as they show ours."""

import pytest

from scalelab.cli.log_view import show_logs
from scalelab.launch.trackers import Follower
from scalelab.records.sweep_dir import Results
from scalelab.store.collect import collect
from scalelab.store.live import open_snapshot


class Recorder:
    def __init__(self):
        self.shown = []

    def start(self, run_id, step):
        pass

    def show(self, run_id, step, values, time_s):
        self.shown.append((step, set(values)))

    def close(self):
        pass


def test_logs_show_command_output_and_curve(program, capsys):
    text = "print('\\x1b[31mred\\x1b[0m')\nprint('50 %\\r100 %', end='', flush=True)\n"
    trained = program(text + "train(1, 20)\nfinish()")
    trained.train()
    capsys.readouterr()
    show_logs(trained.run, n_lines=3, follows=False)
    shown = capsys.readouterr().out
    assert "train.py; ended done" in shown
    assert "red\n100 %\nstep       18  loss 3.2000  lr 0.001" in shown
    show_logs(trained.run, n_lines=3, follows=True)
    assert "100 %" in capsys.readouterr().out.splitlines()


def test_logs_name_the_kind_of_a_failure(program, capsys):
    trained = program("sys.exit('no such option')")
    trained.train()
    show_logs(trained.run, n_lines=3, follows=False)
    assert "ended failed (usage: the program ended with exit code 1" in capsys.readouterr().out


@pytest.mark.slow
def test_trackers_and_store_take_rows_without_rate_norm_and_speed(program):
    text = "for step in range(1, 21): say(step=step, loss=4.0)\nfinish(evals={'code': 1.5})"
    trained = program(text)
    trained.train()
    results = Results(trained.run.path.parents[1])
    recorder = Recorder()
    Follower(results, [trained.run.run_id], [recorder]).follow(is_last=True)
    assert recorder.shown[0] == (1, {"loss_nats", "flops"})
    collect(results.path)
    with open_snapshot(results.path) as store:
        rows = store.execute("SELECT step, tokens, lr, grad_norm FROM metrics").fetchall()
        run = store.execute("SELECT status, loss_nats, n_tokens FROM runs").fetchone()
        ended = store.execute("SELECT status, kind, evals FROM attempts").fetchone()
    assert ended == ("done", None, '{"code": 1.5}')
    assert rows[0] == (1, 128, None, None)
    assert run == ("done", 3.25, 2560)

"""One attempt of a program: results, failures, stops, resumes; and no process left behind."""

from tests.launch.programs.conftest import N_PARAMS


def test_a_program_that_writes_its_rows_and_its_final_loss_is_done(program):
    trained = program("train(1, 20)\nfinish()")
    assert trained.train() == "done"
    record = trained.record()
    assert (record.loss_nats, record.loss_se_nats) == (3.25, 0.01)
    assert (record.n_params["chinchilla"], record.n_tokens, record.n_steps) == (N_PARAMS, 2560, 20)
    rows = trained.rows()
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert (rows[-1]["lr"], rows[-1]["grad_norm"]) == (0.001, None)
    assert trained.train() == "done"
    assert len(trained.run.attempts()) == 1

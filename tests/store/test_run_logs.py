"""Run logs as tables of runs: import, fit --from, curves, and what the notes say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scalelab import api
from scalelab.errors import DataError
from scalelab.store.collect import collect
from scalelab.store.importers import import_table
from scalelab.store.read_options import ReadOptions
from scalelab.store.reading import Reading
from scalelab.store.results import read_results
from scalelab.store.run_logs import smoothed
from scalelab.store.tables import read_table

SAMPLES = Path(__file__).parents[1] / "logs/samples"


def law(n: float, d: float) -> float:
    return 1.7 + 400 / n**0.34 + 410 / d**0.28


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Logs of 15 runs of the Hugging Face trainer, and one that stopped."""
    folder = tmp_path / "outputs"
    for width in (32, 64, 128, 256, 512):
        for steps in (100, 200, 400):
            home = folder / f"w{width}-s{steps}"
            home.mkdir(parents=True)
            config = {
                "model_type": "llama", "hidden_size": width, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 3 * width,
                "vocab_size": 512, "tie_word_embeddings": True,
            }  # fmt: skip
            (home / "config.json").write_text(json.dumps(config))
            n = 512 * width + 2 * (4 * width**2 + 9 * width**2 + 2 * width) + width
            rows = [
                {"step": s, "loss": law(n, 4096.0 * s), "num_input_tokens_seen": 4096 * s}
                for s in range(10, steps + 1, 10)
            ]
            rows.append({"step": steps, "eval_loss": law(n, 4096.0 * steps)})
            state = {
                "global_step": steps, "max_steps": steps, "log_history": rows,
                "num_input_tokens_seen": 4096 * steps,
            }  # fmt: skip
            (home / "trainer_state.json").write_text(json.dumps(state))
    stopped = json.loads((folder / "w64-s400/trainer_state.json").read_text())
    (folder / "stopped").mkdir()
    (folder / "stopped/config.json").write_text((folder / "w64-s400/config.json").read_text())
    (folder / "stopped/trainer_state.json").write_text(json.dumps({**stopped, "max_steps": 9000}))
    return folder


def test_a_folder_of_logs_is_a_table_with_curves(outputs: Path) -> None:
    table = read_table(outputs)
    rows = table.observations
    assert len(rows) == 15
    np.testing.assert_allclose(rows.loss_nats, law(rows.n_params, rows.n_tokens))
    assert rows.param_convention == "chinchilla"
    assert "stopped at step 400 of 9,000" in table.notes["unfinished_logs"]
    assert "n_tokens = last value of num_input_tokens_seen" in table.notes["run_logs"]
    assert table.curves is not None
    assert set(table.curves.run_id) == set(rows.cluster.tolist())  # type: ignore[union-attr]


def test_unfinished_runs_are_kept_when_asked(outputs: Path) -> None:
    options = ReadOptions(reading=Reading(includes_unfinished=True))
    table = read_table(outputs, options)
    assert len(table.observations) == 16
    assert "unfinished_logs" not in table.notes


def test_an_import_keeps_curves_for_the_envelope(outputs: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    report = import_table(results, outputs, ReadOptions())
    assert (report.name, report.n_rows) == ("outputs", 15)
    assert not import_table(results, outputs, ReadOptions()).is_new
    collect(results)
    read = read_results(results, "outputs", ReadOptions())
    direct = read_table(outputs)
    assert read.curves is not None
    assert direct.curves is not None
    np.testing.assert_allclose(read.curves.loss_nats, direct.curves.loss_nats)
    assert set(read.curves.run_id) == set(read.observations.cluster.tolist())  # type: ignore[union-attr]


def test_a_fit_of_logs_recovers_the_law_and_has_an_envelope(outputs: Path) -> None:
    report = api.fit(str(outputs), bootstrap=0)
    assert report.fit.params["E"] == pytest.approx(1.7, abs=0.02)
    # With three tokens a parameter, the smallest model is best on every curve that was read.
    assert "are ever the best" in str(report.envelope.reason)


def test_settings_and_logged_values_are_columns(outputs: Path) -> None:
    frame = api.load(str(outputs), where="hidden_size = 128")
    assert len(frame) == 3
    assert (frame["vocab_size"] == 512).all()


def test_a_log_without_sizes_says_what_to_write() -> None:
    with pytest.raises(DataError, match="hold no n_params and no n_tokens") as caught:
        read_table(SAMPLES / "llmc")
    assert "--map 'n_params=124e6,n_tokens=last_step*524288'" in str(caught.value)
    options = ReadOptions(mapping={"n_params": "124e6", "n_tokens": "last_step*524288"})
    rows = read_table(SAMPLES / "llmc", options).observations
    assert (rows.n_params[0], rows.n_tokens[0]) == (124e6, 40 * 524_288)


def test_losses_in_bits_per_byte_stay_and_are_said() -> None:
    table = read_table(SAMPLES / "nanochat")
    assert table.observations.loss_nats[0] == 3.538016
    assert "bits-per-byte" in table.notes["loss_unit"]
    assert table.curves is None


def test_units_that_do_not_compare_are_said(tmp_path: Path) -> None:
    for name in ("nanochat", "nanogpt"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.log").write_text((SAMPLES / name / "run1.log").read_text())
    assert "do not compare" in read_table(tmp_path).notes["mixed_units"]


def test_smoothed_curves_average_quarters_of_an_e_fold() -> None:
    tokens = np.exp(np.arange(1000) / 100)
    losses = 2 + tokens**-0.1
    x, y = smoothed(tokens, losses)
    assert len(x) == 12
    np.testing.assert_allclose(y, 2 + x**-0.1, rtol=2e-4)

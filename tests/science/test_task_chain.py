"""Accuracy of the 7B and 13B models of the OLMo ladder (results/tables/task_chain.md)."""

from pathlib import Path

import pandas as pd
import pytest

from scalelab.api.chains import fit_chain
from scalelab.store.public_tables import table_path
from scalelab.store.reading import Reading

DATA = table_path(Path("public:olmo_ladder"))
PUBLISHED = {"hellaswag": 0.025, "arc_challenge": 0.175}
"""Relative error of the published ladder, by task."""


@pytest.mark.science
@pytest.mark.parametrize("checkpoints", ["all", "final"])
@pytest.mark.parametrize("shortest", ["1xC", "0.5xC"])
def test_the_error_is_at_most_that_of_the_published_ladder(checkpoints, shortest):
    table = pd.read_csv(DATA)
    targets = table[(table["mode"] == "eval") & (table.is_final == 1)]
    rows = table[table["mode"] == "train"]
    if shortest == "1xC":
        rows = rows[~rows.run.str.endswith("0.5xC")]
    reading = Reading(last_of="run" if checkpoints == "all" else None)
    if checkpoints == "final":
        rows = rows[rows.is_final == 1]
    asked = [f"N={row.n_params},D={row.n_tokens}" for row in targets.itertuples()]
    found = fit_chain(rows, reading=reading, predict=asked, bootstrap=200)
    for chain in found.chains:
        errors = []
        for row, each in zip(targets.itertuples(), chain.forecasts, strict=True):
            true = getattr(row, f"acc_{chain.task}")
            loss = getattr(row, f"bpb_{chain.task}")
            errors.append(each.accuracy.value / true - 1)
            direct = each.direct.value / true - 1
            print(
                f"\n| {shortest} | {checkpoints} | {chain.task} | {row.n_params / 1e9:.1f}B "
                f"| {each.loss.loss_nats:.4f} ({100 * (each.loss.loss_nats / loss - 1):+.1f} %) "
                f"| {true:.3f} | {each.accuracy.value:.3f} [{each.accuracy.low:.3f}, "
                f"{each.accuracy.high:.3f}] | {100 * errors[-1]:+.1f} % | {100 * direct:+.1f} % |",
                end="",
            )
            assert each.accuracy.low < true < each.accuracy.high
        mean = sum(map(abs, errors)) / len(errors)
        assert mean <= PUBLISHED[chain.task]

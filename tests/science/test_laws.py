"""R^2 of the forms of special tables (results/tables/laws.md), printed with ``-s``."""

import numpy as np
import pytest

from tests.fit.law_tables import LAW_TABLES, folds, r_squared, without_largest

LOWEST = {"parallel": 0.999, "vocabulary": 0.96, "experts": 0.94, "routed": 0.93, "sparsity": 0.9}
"""Goals for the mean over 5 folds."""


@pytest.mark.science
@pytest.mark.parametrize("loss", ["huber", "ls"])
@pytest.mark.parametrize("table", LAW_TABLES, ids=lambda table: table.form)
def test_left_out_rows_are_predicted(table, loss):
    groups = table.rows()
    whole = r_squared(table.form, [(rows, rows) for rows in groups], loss)
    parts = [r_squared(table.form, part, loss) for part in folds(groups)]
    largest = [
        f"{name} {r_squared(table.form, without_largest(groups, name), loss):.4f}"
        for name in table.largest
    ]
    print(
        f"\n| `{table.form}` | {table.name} | {loss} | {whole:.4f} | {np.mean(parts):.4f} "
        f"({min(parts):.4f}) | {', '.join(largest)} |"
    )
    assert np.mean(parts) > LOWEST[table.form]

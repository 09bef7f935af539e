"""Public tables with the law that each is for, and R^2 on rows that a fit did not see."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from scalelab.api.data import read_runs
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.objective import Objective
from scalelab.fit.parametric import fit_parametric
from scalelab.fit.rows import column

MOE = {
    "n_params": "dense_parameter_count",
    "n_experts": "num_experts",
    "loss_nats": "loss_validation",
}


class LawTable(NamedTuple):
    """A table, its law, and the column whose largest value is left out."""

    form: str
    name: str
    mapping: dict[str, str]
    groups: tuple[str, ...] = ("true",)
    largest: tuple[str, ...] = ("n_params",)

    def rows(self):
        """Return the rows of each group: a law is fitted to each."""
        path = Path(f"public:scalebench_{self.name}_train")
        return [
            read_runs(path, mapping=self.mapping, where=where, form=self.form).observations
            for where in self.groups
        ]


LAW_TABLES = (
    LawTable(
        "parallel",
        "parallel",
        {"n_params": "num_params", "n_streams": "parallel_size"},
        groups=("\"group\" = 'stack'", "\"group\" = 'pile'"),
        largest=("n_streams", "n_params"),
    ),
    LawTable(
        "vocabulary",
        "vocab",
        {
            "n_params": "non_vocab_parameters",
            "n_tokens": "num_characters",
            "loss_nats": "unigram_normalized_loss",
        },
        largest=("vocab_size", "n_params"),
    ),
    LawTable("experts", "moe", MOE, largest=("n_experts", "n_params")),
    LawTable("routed", "moe", MOE, largest=("n_experts", "n_params")),
    LawTable(
        "sparsity",
        "sparsity",
        {"n_params": "N_active * 1e9", "n_tokens": "D2 * 1e9", "density": "1 / P"},
        largest=("n_tokens", "n_params"),
    ),
)


def fitted(form, rows, loss="huber"):
    """Return the fit without bootstrap replicates."""
    return fit_parametric(
        rows,
        form=form,
        objective=Objective(loss=loss),
        bootstrap=BootstrapSpec(k=0),
        uses_inflation=False,
    )


def r_squared(form, parts, loss="huber"):
    """Return the pooled R^2 of (rows to fit, rows to predict), one pair for each group."""
    predicted, observed = [], []
    for train, test in parts:
        law = fitted(form, train, loss).law
        predicted.append(law.loss({name: column(test, name) for name in law.columns}))
        observed.append(test.loss_nats)
    y, f = np.concatenate(observed), np.concatenate(predicted)
    return 1 - float(((f - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def folds(groups, k=5, seed=0):
    """Return k lists of (rows to fit, rows to predict) by a random split of each group."""
    orders = [np.random.default_rng(seed).permutation(len(rows)) for rows in groups]
    out = []
    for fold in range(k):
        masks = [np.isin(order.argsort() % k, fold) for order in orders]
        out.append([(r.take(~m), r.take(m)) for r, m in zip(groups, masks, strict=True)])
    return out


def without_largest(groups, name):
    """Return (rows to fit, rows to predict): the latter within 3 % of the column's maximum."""
    out = []
    for rows in groups:
        values = column(rows, name)
        is_large = values > 0.97 * values.max()
        out.append((rows.take(~is_large), rows.take(is_large)))
    return out

"""The data of a run: whether it is the planned one, and what was trained on it so far."""

from __future__ import annotations

from typing import Any

from scalelab.corpus.mixed import AnyDataset, MixedDataset
from scalelab.errors import DataError
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params, executed_flops_per_token, train_flops


def planned_dataset(spec: RunSpec, dataset: AnyDataset) -> AnyDataset:
    """Return the data of a run; a mixture gets the weights of the run.

    Raises
    ------
    DataError
        When the run was planned with another dataset.
    """
    planned = (spec.data_fingerprint, spec.eval_fingerprint)
    found = (dataset.fingerprint, dataset.eval_fingerprint)
    if planned != found:
        raise DataError(
            f"a dataset with fingerprints {found} for run {spec.run_id}",
            f"the dataset that the run was planned with, {planned}",
            "Give the path of the planned dataset, or plan the sweep again with this dataset.",
        )
    weights = {source.name: source.weight for source in spec.mixture}
    return dataset.with_weights(weights) if isinstance(dataset, MixedDataset) else dataset


def counts(
    spec: RunSpec, execution: ExecutionSpec, dataset: AnyDataset, n_steps: int
) -> dict[str, Any]:
    """Return the fields of `RunRecord` that follow from the steps taken: sizes, tokens, FLOPs."""
    n_tokens = n_steps * spec.tokens_per_step
    flops = train_flops(spec.shape, spec.seq_len, n_tokens)
    flops["executed"] = n_tokens * executed_flops_per_token(
        spec.shape,
        spec.seq_len,
        skips_masked=execution.attention != "explicit",
        recomputes_blocks=execution.recomputes_blocks,
    )
    return {
        "n_params": count_params(spec.shape).by_convention(),
        "flops": flops,
        "n_tokens": n_tokens,
        "unique_tokens": dataset.unique_tokens(n_tokens, spec.seq_len),
        "source_tokens": _source_tokens(dataset),
        "bytes_per_token": dataset.bytes_per_token,
        "n_steps": n_steps,
    }


def _source_tokens(dataset: AnyDataset) -> dict[str, int] | None:
    """Return the training tokens of each source of a mixture; None for one text."""
    if not isinstance(dataset, MixedDataset):
        return None
    return {name: source.n_train_tokens for name, source in dataset.sources.items()}

"""What a run draws from the sources of its mixture."""

from __future__ import annotations

from collections.abc import Mapping

from scalelab.corpus.drawing import n_drawn
from scalelab.sweep.run_spec import RunSpec


def drawn_tokens(spec: RunSpec) -> dict[str, int]:
    """Return the training tokens of a run from each source, by name; empty without a mixture.

    They are exact: `scalelab.corpus.drawing` draws as many.
    """
    weights = {source.name: source.weight for source in spec.mixture}
    return tokens_of_weights(weights, spec.n_steps * spec.batch_seqs, spec.seq_len)


def tokens_of_weights(
    weights: Mapping[str, float], n_sequences: int, seq_len: int
) -> dict[str, int]:
    """Return the training tokens from each source; ``weights`` are in the order of the names."""
    if not weights:
        return {}
    counts = n_drawn(tuple(weights.values()), n_sequences).tolist()
    return {name: n * seq_len for name, n in zip(weights, counts, strict=True)}

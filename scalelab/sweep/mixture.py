"""What a run draws from the sources of its mixture."""

from __future__ import annotations

from scalelab.corpus.drawing import n_drawn
from scalelab.sweep.run_spec import RunSpec


def drawn_tokens(spec: RunSpec) -> dict[str, int]:
    """Return the training tokens of a run from each source, by name; empty without a mixture.

    They are exact: `scalelab.corpus.drawing` draws as many.
    """
    if not spec.mixture:
        return {}
    weights = tuple(source.weight for source in spec.mixture)
    counts = n_drawn(weights, spec.n_steps * spec.batch_seqs).tolist()
    named = zip(spec.mixture, counts, strict=True)
    return {source.name: n * spec.seq_len for source, n in named}

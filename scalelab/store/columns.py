"""Columns of an imported table: our names, and the names that other groups use for them."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from scalelab.theory.laws import LAWS, Law

ALIASES: Mapping[str, tuple[str, ...]] = {
    "n_params": (),
    "n_tokens": (),
    "loss_nats": ("loss",),
    "flops": (),
    "budget": ("isoflop_budget", "flops_budget"),
    "cluster": ("run_id", "run"),
}
"""Our columns, and the names that are read as them without ``--map``."""

CORE = ("n_params", "n_tokens", "loss_nats", "flops")
"""Columns that every observation has; one of N, D, C can be derived."""

SIZES = ("n_params", "n_tokens", "flops")
"""N, D and C: a form that does not need one of them does not ask for it."""

MAPPED = tuple(
    dict.fromkeys(
        (
            *ALIASES,
            *(column for law in LAWS for column in (law.target, *law.columns)),
            *("fraction_elapsed", "weight", "lr", "batch_tokens", "batch_seqs", "seq_len"),
        )
    )
)
"""Our names that ``--map`` accepts: the columns that a fit, a law or `tune` reads."""

NON_EMBEDDING = ("nonembed", "nonembedding")
"""Endings, without underscores, of columns that count parameters without embeddings."""

USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "n_params": (
        *("params", "n", "num_params", "parameters", "num_parameters", "param_count"),
        *("total_params", "model_params", "non_embedding_params", "params_non_embedding"),
        *("n_params_nonembed", "n_params_non_embedding", "non_embedding_parameters"),
        *("model_size", "size"),
    ),
    "n_tokens": (
        *("tokens", "d", "num_tokens", "train_tokens", "training_tokens", "total_tokens"),
        *("tokens_seen", "num_train_tokens", "token_count", "data_size"),
    ),
    "loss_nats": (
        *("val_loss", "eval_loss", "validation_loss", "valid_loss", "test_loss", "heldout_loss"),
        *("final_loss", "loss_final", "cross_entropy", "ce_loss", "nll", "train_loss"),
    ),
    "flops": ("c", "compute", "train_flops", "training_flops", "total_flops", "flop", "flops_6nd"),
    "budget": ("flop_budget", "compute_budget", "isoflop"),
    "unique_tokens": ("unique", "dataset_tokens", "data_tokens"),
    "lr": ("learning_rate", "max_lr", "peak_lr"),
    "batch_seqs": ("batch_size", "global_batch_size"),
    "seq_len": ("sequence_length", "context_length", "ctx_len"),
}
"""Usual names of our columns, the most likely first; suggested in errors, never read unasked."""


def needed_sizes(law: type[Law]) -> tuple[str, ...]:
    """Return the columns of N, D and C that a table needs for this law.

    All three where the law trades N against D, because approaches 1 and 2 need them too.
    """
    needed = tuple(name for name in SIZES if name in law.columns)
    return SIZES if {"n_params", "n_tokens"} <= set(needed) else needed


def likely_columns(wanted: str, columns: Iterable[str]) -> list[str]:
    """Return the columns that probably hold ``wanted``, the most likely first.

    ``wanted`` is one of our names, or a misspelt name of a column.
    """
    plain = {re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"): name for name in columns}
    usual = [*ALIASES.get(wanted, ()), *USUAL_NAMES.get(wanted, ())]
    ours = [name for name, names in USUAL_NAMES.items() if wanted.lower() in names]
    exact = [name for name in (wanted.lower(), *usual, *ours) if name in plain]
    near = [
        match
        for name in (wanted.lower(), *usual)
        if len(name) > 2
        for match in difflib.get_close_matches(name, plain, n=2, cutoff=0.8)
    ]
    return [plain[name] for name in dict.fromkeys([*exact, *near])]


def map_option(wanted: Sequence[str], columns: Iterable[str]) -> str:
    """Return a ``--map`` option that reads these columns of ours, guessed where possible."""
    left = list(columns)
    items = []
    for name in wanted:
        likely = likely_columns(name, left)
        items.append(f"{name}={likely[0] if likely else 'COLUMN'}")
        left = [column for column in left if column not in likely[:1]]
    return f"--map {shlex.quote(','.join(items))}"

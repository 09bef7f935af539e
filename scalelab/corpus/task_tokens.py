"""Tasks as tokens: what a model reads and which of its targets count.

The rules are those of lm-evaluation-harness.

A choice is scored after its context. If neither has a blank where they meet, one is added. Both
are encoded together, and the tokens after those of the context alone are the choice's. Blanks at
the end of a context belong to the choice. An empty context is the token that ends documents.
Too long sequences lose their first tokens.

A text is cut into parts of the model's length; each token is predicted once. The first part begins
after the token that ends documents, the others with the last token of the part before, and the
last part has as much context as fits.

References
----------
https://github.com/EleutherAI/lm-evaluation-harness, version 0.4.13: ``lm_eval/api/model.py``
(``_encode_pair``, ``loglikelihood``), ``lm_eval/models/huggingface.py`` (``_loglikelihood_tokens``,
``loglikelihood_rolling``), ``lm_eval/utils.py`` (``get_rolling_token_windows``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.tasks import TEXT, Task
from scalelab.corpus.tokenizer import Tokenizer
from scalelab.errors import DataError
from scalelab.units import plural

Tokens = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A sequence whose last targets count.

    Attributes
    ----------
    tokens : ndarray of int64, shape (n,)
        At most the model's length + 1.
    n_targets : int
        How many of the last tokens count.
    item, choice : int
        What they belong to.
    """

    tokens: Tokens
    n_targets: int
    item: int
    choice: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskTokens:
    """A task for one tokenizer and one length.

    Attributes
    ----------
    task : Task
    scored : tuple of Scored
        Every choice of every item; the parts of every text.
    n_cut : int
        Items whose context lost tokens.
    """

    task: Task
    scored: tuple[Scored, ...]
    n_cut: int


def choice_bytes(choice: str) -> int:
    """Return the UTF-8 bytes of a choice, without the blanks before it that join it."""
    return len((choice.lstrip() or choice).encode())


def encode_task(task: Task, tokenizer: Tokenizer, seq_len: int, vocab_size: int) -> TaskTokens:
    """Return a task as sequences for a model.

    Parameters
    ----------
    task : Task
    tokenizer : Tokenizer
    seq_len : int
        Tokens that the model sees at once.
    vocab_size : int
        Its vocabulary.

    Raises
    ------
    DataError
        If a choice is longer than the model, or a text has a token that the model does not have.
    """
    is_text = task.kind == TEXT
    found = (_text_parts if is_text else _choices)(task, tokenizer, seq_len)
    outside = next(
        (s for s in found.scored if len(s.tokens) and s.tokens.max() >= vocab_size), None
    )
    if outside is not None:
        raise DataError(
            f"item {outside.item + 1} of {task.name}, with token {outside.tokens.max()}",
            f"tokens of the model, 0 to {vocab_size - 1}",
            "Leave the item out: the training data has no such token.",
        )
    return found


def _choices(task: Task, tokenizer: Tokenizer, seq_len: int) -> TaskTokens:
    pairs = [_pair(item.context, choice) for item in task.items for choice in item.choices]
    contexts = list(dict.fromkeys(context for context, _ in pairs))
    lengths = dict(zip(contexts, map(len, _encode(tokenizer, contexts)), strict=True))
    wholes = _encode(tokenizer, [context + choice for context, choice in pairs])
    places = [(i, c) for i, item in enumerate(task.items) for c in range(len(item.choices))]
    scored = []
    cut: set[int] = set()
    for (context, _), whole, (item, choice) in zip(pairs, wholes, places, strict=True):
        if not context:
            whole = np.concatenate(([tokenizer.end_token], whole))
        n_targets = max(len(whole) - max(lengths[context], 1), 1)
        if n_targets > seq_len:
            raise DataError(
                f"choice {choice + 1} of item {item + 1} of {task.name}, of "
                f"{plural(n_targets, 'token')}",
                f"at most {seq_len} tokens, the length of the model (seq_len)",
                "Shorten the choice, or train with a larger --seq-len.",
            )
        if len(whole) > seq_len + 1:
            cut.add(item)
        scored.append(
            Scored(tokens=whole[-(seq_len + 1) :], n_targets=n_targets, item=item, choice=choice)
        )
    return TaskTokens(task=task, scored=tuple(scored), n_cut=len(cut))


def _pair(context: str, choice: str) -> tuple[str, str]:
    """Return context and continuation, whose blanks stand at the beginning of the latter."""
    if context and not context[-1].isspace() and not choice[0].isspace():
        choice = f" {choice}"
    bare = context.rstrip()
    return bare, context[len(bare) :] + choice


def _text_parts(task: Task, tokenizer: Tokenizer, seq_len: int) -> TaskTokens:
    scored = []
    texts = [item.choices[0] for item in task.items]
    for index, tokens in enumerate(_encode(tokenizer, texts)):
        whole = np.concatenate(([tokenizer.end_token], tokens))
        for begin in range(0, len(tokens), seq_len):
            end = min(begin + seq_len, len(tokens))
            part = whole[max(0, end - seq_len) : end + 1]
            scored.append(Scored(tokens=part, n_targets=end - begin, item=index, choice=0))
    return TaskTokens(task=task, scored=tuple(scored), n_cut=0)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tokens]:
    """Return the tokens of each text, without the end of a document."""
    found = tokenizer.encode(text.encode() for text in texts)
    return [tokens[:-1].astype(np.int64) for tokens in found]

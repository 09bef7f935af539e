"""Tasks as tokens: the rules of lm-evaluation-harness, here in its own words."""

import numpy as np
import pytest

from scalelab.corpus.task_tokens import choice_bytes, encode_task
from scalelab.corpus.tasks import Item, Task
from scalelab.corpus.tokenizer import ByteTokenizer
from scalelab.errors import DataError


def encoded(*items, seq_len=16, kind="task"):
    task = Task(name="sums", kind=kind, items=items)
    return encode_task(task, ByteTokenizer(), seq_len, 256)


def texts(found):
    """Return what each sequence reads and which of it counts."""
    return [
        tuple(bytes(t.tolist()).decode() for t in np.split(s.tokens, [-s.n_targets]))
        for s in found.scored
    ]


@pytest.mark.parametrize(
    ("context", "choice", "expected"),
    [
        ("a:", "yes", ("a:", " yes")),
        ("a:", " yes", ("a:", " yes")),
        ("a: ", "yes", ("a:", " yes")),
        ("a:\n", "yes", ("a:", "\nyes")),
        ("", "yes", ("\x00", "yes")),
        ("  ", "yes", ("\x00", "  yes")),
    ],
)
def test_context_and_choice_meet_at_one_blank(context, choice, expected):
    found = encoded(Item(context, (choice, "no")))
    assert texts(found)[0] == expected
    assert [(s.item, s.choice) for s in found.scored] == [(0, 0), (0, 1)]


def test_a_long_context_loses_its_beginning_and_is_counted():
    found = encoded(Item("0123456789", ("abcdef", "x")), Item("01", ("a", "b")), seq_len=8)
    assert texts(found)[:2] == [("89", " abcdef"), ("3456789", " x")]
    assert found.n_cut == 1
    assert max(len(s.tokens) for s in found.scored) == 9


def test_a_choice_longer_than_the_model_is_an_error():
    with pytest.raises(DataError, match="choice 2 of item 1 of sums, of 9 tokens"):
        encoded(Item("a", ("b", "c" * 8)), seq_len=8)


def test_a_token_that_the_model_does_not_have_is_an_error():
    task = Task(name="sums", kind="task", items=(Item("a", ("b", "é")),))
    with pytest.raises(DataError, match="item 1 of sums, with token 195"):
        encode_task(task, ByteTokenizer(), 8, 128)


def test_bytes_of_a_choice_do_not_count_the_blank_that_joins_it():
    assert [choice_bytes(text) for text in ("é", " é", "a b", " ")] == [2, 2, 3, 1]


def windows(tokens, prefix, length):
    """`get_rolling_token_windows` with a context of 1, then `make_disjoint_window`."""
    first = min(length, len(tokens))
    yield [prefix], tokens[:first]  # the model reads the targets after it
    predicted = first
    while predicted < len(tokens):
        size = min(len(tokens) - predicted, length)
        end = predicted + size
        inputs, targets = tokens[end - length - 1 : end - 1], tokens[end - size : end]
        yield inputs[: len(inputs) - (len(targets) - 1)], targets
        predicted += size


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 17, 30])
def test_a_text_is_cut_as_the_harness_cuts_it(n):
    text = "".join(chr(33 + i) for i in range(n))
    found = encoded(Item("", (text,)), seq_len=8, kind="text")
    expected = list(windows([*text.encode()], 0, 8))
    assert len(found.scored) == len(expected)
    for each, (context, targets) in zip(found.scored, expected, strict=True):
        # The harness reads the context and then the targets but the last one.
        assert each.tokens.tolist() == [*context, *targets]
        assert each.n_targets == len(targets)
    assert sum(s.n_targets for s in found.scored) == n
    assert found.scored[0].tokens.dtype == np.int64

"""Arithmetic of sweep files: Python's results for what is allowed, an error for the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.errors import UsageError
from scalelab.sweep.expression import parse

FOUND = {"n_steps": 100, "lr": 1e-3, "size.depth": 12, "run_id": "ab"}
ATOMS = st.one_of(
    st.integers(0, 50).map(str), st.sampled_from(["0.5", "1e-3", "2.5e2", "n_steps", "lr"])
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(" ".join),
        inner.map("({})".format),
        inner.map("-{}".format),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(
            lambda t: f"{t[0]}({t[1]}, {t[2]})"
        ),
        inner.map("round({})".format),
        inner.map("int({})".format),
        st.tuples(st.sampled_from(["2", "n_steps", "(1 + 2)"]), st.integers(-3, 5)).map(
            lambda t: f"{t[0]} ** {t[1]}"
        ),
    ),
    max_leaves=12,
)


@given(EXPRESSIONS)
def test_the_value_and_its_type_are_those_of_python(text):
    names = {"n_steps": 100, "lr": 1e-3, "min": min, "max": max, "round": round, "int": int}
    try:
        expected = eval(text, {"__builtins__": {}}, names)
    except (ZeroDivisionError, OverflowError):
        with pytest.raises(UsageError):
            parse(text).value(FOUND)
        return
    value = parse(text).value(FOUND)
    assert value == expected
    assert type(value) is type(expected)


def test_a_column_of_a_table_is_one_name():
    assert parse("size.depth * 64").names == {"size.depth"}
    assert parse("size.depth * 64").value(FOUND) == 768


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "unfinished"),
        ("1 +", "unfinished"),
        ("(1", "missing"),
        ("2 3", "unexpected '3'"),
        ("a; b", "unexpected ';'"),
        ("__import__('os')", "unexpected"),
        ("abs(1)", "function abs"),
        ("round(1, 2)", "takes one"),
        ("9 ** 9 ** 9", "256 bits"),
        ("1.5 ** 99999", "no finite value"),
        ("(-8) ** 0.5", "root"),
        ("n_steps / 0", "division by zero"),
        ("steps", "Did you mean n_steps"),
        ("run_id + 1", "the text 'ab'"),
        ("(" * 60 + "1" + ")" * 60, "levels"),
        ("+".join("1" * 400), "500 characters"),
    ],
)
def test_anything_else_is_refused(text, words):
    with pytest.raises(UsageError, match=".*".join(words.split())):
        parse(text).value(FOUND)

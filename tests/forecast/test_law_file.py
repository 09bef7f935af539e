"""Saved laws: a round trip for every form, exports that equal the law, and files that are wrong."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.errors import DataError
from scalelab.fit.intervals import Interval
from scalelab.fit.outcome import FitWarning
from scalelab.forecast.law_export import formula, to_python, to_tex
from scalelab.forecast.law_file import SavedLaw, parse_law, rows_hash
from scalelab.theory.laws import LAWS, Chinchilla

CONSTANTS = {"A": 482.0, "B": 2085.0, "E": 1.8, "alpha": 0.35, "beta": 0.37}
MINIMAL = {"schema": 1, "form": "chinchilla", "constants": CONSTANTS}
FORMS = pytest.mark.parametrize("form", LAWS, ids=lambda form: form.name)
POINT = {"n_experts": 16.0, "granularity": 4.0, "loss_nats": 2.3, "flops": 6e18}
POINT |= {"n_params": 1e8, "n_tokens": 1e10, "unique_tokens": 2e9}
POINT |= {"bits_weights": 8.0, "bits_activations": 8.0, "bits_kv": 16.0, "bits": 8.0}
POINT |= {"density": 0.25, "n_streams": 4.0, "vocab_size": 3e4}


def law_of(form, shares):
    """Return a law with constants in the bounds of its form."""
    values = dict(zip(form.names(), (0.05 + 0.8 * share for share in shares), strict=False))
    if form.name in ("routed", "experts"):
        values["E_max"] = 300.0
    if form.name == "farseer":
        values |= dict.fromkeys("qba", -0.1)  # positive stretches overflow
    return form(**values)


def saved(law, **more):
    draws = np.array([[law.params[name] for name in law.names()]] * 3) * [[1.0], [1.01], [1.1]]
    return SavedLaw(**{"name": "a", "law": law, "draws": draws, **more})


@given(
    form=st.sampled_from(LAWS),
    shares=st.lists(st.floats(0, 1), min_size=9, max_size=9),
    noise=st.none() | st.lists(st.floats(-0.1, 0.1), min_size=1, max_size=5),
    inflation=st.floats(1, 10),
    text=st.text(),
)
@settings(max_examples=30, deadline=None)
def test_a_file_gives_back_the_saved_law(form, shares, noise, inflation, text):
    one = saved(
        law_of(form, shares),
        residual="linear",
        noise=None if noise is None else np.array(noise),
        inflation=inflation,
        unit=text,
        param_convention="kaplan",
        flop_convention="6nd",
        domain={"n_params": (1e6, 1e9)},
        warnings=(FitWarning(code="misfit", message=text),),
        provenance={"source": text, "n_rows": 12},
    )
    two = parse_law(json.dumps(one.to_dict(), allow_nan=False), "x.json")
    assert two.law == one.law
    assert two.to_dict() == one.to_dict()
    np.testing.assert_array_equal(two.draws, one.draws)


@FORMS
def test_the_exported_function_equals_the_law(form):
    random = np.random.default_rng(5)
    for _ in range(5):
        law = law_of(form, random.uniform(0, 1, 9))
        space = {}
        exec(to_python(saved(law)), space)
        columns = {name: POINT[name] * random.uniform(0.8, 1.25) for name in law.columns}
        expected = float(law.loss(columns))
        assert math.isfinite(expected)
        assert space[law.target](**columns) == pytest.approx(expected, rel=1e-10)


def test_the_exported_function_keeps_the_order_of_operations():
    class Odd(Chinchilla):
        @classmethod
        def evaluate(cls, theta, columns):
            x, y = columns["n_params"], columns["n_tokens"]
            a, b = x - (y - theta[0]) - 2.0, x / (y * theta[2])
            return a * -3.0 - (-(a + b)) + (a - b) / (b / (x / y)) + np.minimum(x, -y)

    odd, space = Odd(**CONSTANTS), {}
    exec(to_python(saved(odd)), space)
    expected = float(odd.loss({"n_params": 3.0, "n_tokens": 7.0}))
    assert space["loss_nats"](3.0, 7.0) == pytest.approx(expected, rel=1e-12)


@FORMS
def test_the_formula_in_latex_has_every_constant(form):
    law = law_of(form, [0.5] * 9)
    tex = to_tex(saved(law), {n: Interval(value=1.0, low=0.5, high=2.0) for n in law.names()}, 0.9)
    assert "=" in formula(form)
    assert formula(form) in tex
    assert formula(form).count("{") == formula(form).count("}")
    assert tex.count("[$0.5$, $2$]") == len(law.names())
    for name in law.names():
        assert re.search(name.partition("_")[0], formula(form))


def test_a_name_or_source_cannot_break_the_exports():
    odd = saved(Chinchilla(**CONSTANTS), provenance={"source": 'a"""\n\\x } %'}, unit='"""\\')
    space = {}
    exec(to_python(odd), space)
    assert space["loss_nats"](1e9, 1e10) > 1.8
    lines = to_tex(odd, odd.intervals(0.9), 0.9).splitlines()
    assert [line for line in lines if "\\x }" in line] == ['% source: a""" \\x } %']


def test_a_file_needs_only_form_and_constants_and_may_have_unknown_keys():
    found = parse_law(json.dumps({**MINIMAL, "colour": "red", "noise": None}), "x.json")
    assert found.law == Chinchilla(**CONSTANTS)
    assert not found.has_uncertainty
    assert found.fitted_range() is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 2}, "schema 2"),
        ({"schema": "one"}, "schema 'one'"),
        ({"form": "chinchila"}, "form 'chinchila'"),
        ({"constants": {"A": 1.0, "E": 1.0}}, "without the constants B, alpha, beta"),
        ({"constants": {**CONSTANTS, "A": -1.0}}, "A = -1"),
        ({"constants": {**CONSTANTS, "A": "much"}}, "values of constants"),
        ({"constants": [1, 2]}, "constants that are not an object"),
        ({"draws": {"A": [1.0, 2.0]}}, "draws of different length"),
        ({"draws": {"A": [None]}}, "draws.A"),
        ({"draws": [1]}, "draws that is not an object"),
        ({"noise": {"quantiles": [0.1], "residual": "cubic"}}, "'cubic'"),
        ({"inflation": 0.5}, "inflation 0.5"),
        ({"inflation": 10**400}, "inflation"),
        ({"domain": {"n_params": [2.0, 1.0]}}, "domain.n_params"),
        ({"conventions": {"n_params": "mine"}}, "'mine' of n_params"),
        ({"warnings": [1]}, "warnings"),
    ],
)
def test_a_wrong_file_is_an_error_that_says_what_is_wrong(change, told):
    with pytest.raises(DataError) as error:
        parse_law(json.dumps({**MINIMAL, **change}), "x.json")
    assert told in error.value.given
    assert error.value.given.startswith("x.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"schema": 1}', "NaN", "\x00"])
def test_a_file_that_is_no_law_is_an_error(text):
    with pytest.raises(DataError, match=r"x\.json"):
        parse_law(text, "x.json")


def test_the_hash_of_rows_depends_on_values_only():
    columns = {"a": np.array([3.0, 1.0, 2.0]), "b": np.array([1.0, 2.0, 3.0])}
    other = {"b": columns["b"][::-1], "a": columns["a"][::-1]}
    assert rows_hash(columns) == rows_hash(other)
    assert rows_hash(columns) != rows_hash({**columns, "b": columns["a"]})

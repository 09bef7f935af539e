"""Quantities, ranges, durations and money are read and printed one way."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.errors import UsageError
from scalelab.units import (
    format_duration,
    format_energy,
    format_flops,
    format_money,
    format_quantity,
    parse_quantity,
    parse_range,
    plural,
    round_significant,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e18", 1e18),
        ("7B", 7e9),
        ("7b", 7e9),
        ("1.2T", 1.2e12),
        ("350M", 3.5e8),
        ("12k", 12e3),
        ("7_000", 7000.0),
        (".5M", 5e5),
        (" 3e4 ", 3e4),
        (42, 42.0),
        ("2 million", 2e6),
        ("20 Billion parameters", 2e10),
        ("8e12 FLOP", 8e12),
        ("3e18 flops", 3e18),
        ("7B tokens", 7e9),
        ("$1.6M", 1.6e6),
    ],
)
def test_a_quantity_is_read_as_it_is_written(text, value):
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "abc",
        "",
        "-1",
        "0",
        "nan",
        "inf",
        "1e999",
        "٣",
        "7Q",
        "1e",
        "7B7",
        "million",
        "7 bananas",
        "7BB",
    ],
)
def test_a_text_that_is_not_a_quantity_is_refused_with_its_name(text):
    with pytest.raises(UsageError) as caught:
        parse_quantity(text, what="budget")
    assert repr(text) in caught.value.given
    assert "budget" in caught.value.given


def test_a_range_has_two_points_a_decade_and_both_ends():
    assert parse_range("1e18..1e20") == (1e18, 3.2e18, 1e19, 3.2e19, 1e20)


def test_a_counted_range_is_geometric_at_two_digits():
    assert parse_range("2e11..2e12:4") == (2e11, 4.3e11, 9.3e11, 2e12)
    assert parse_range("1e18..1e20:3") == (1e18, 1e19, 1e20)


def test_a_fine_range_gets_the_digits_that_keep_it_even():
    points = parse_range("1M..1B:100")
    assert len(points) == 100
    steps = [math.log(b / a) for a, b in itertools.pairwise(points)]
    assert max(steps) < 1.3 * min(steps)


def test_a_list_is_sorted_and_a_single_value_is_one_point():
    assert parse_range("3e18,1e18") == (1e18, 3e18)
    assert parse_range("7B") == (7e9,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1e20..1e18", "not below its second"),
        ("1e18..", "missing end"),
        ("..1e18", "missing end"),
        ("1e18..1e18", "not below its second"),
        ("1e18..1e20:1", "points"),
        ("1e18..1e20:x", "points"),
        ("1e18..1e20:\u00b2", "points"),
        ("1e18..1e20:" + 5000 * "9", "points"),
        ("1e18..1.000001e18:40", "are equal"),
        ("1e18,1e18", "repeated value"),
        ("abc", "abc"),
        ("-1..5", "range '-1..5' with '-1'"),
        ("1,000", "range '1,000' with '000'"),
    ],
)
def test_an_invalid_range_is_refused(text, words):
    with pytest.raises(UsageError) as caught:
        parse_range(text)
    assert words in caught.value.given
    assert caught.value.allowed
    assert caught.value.do


@given(low=st.floats(1.0, 1e24), decades=st.floats(0.6, 6), count=st.integers(2, 12))
def test_a_range_rises_from_end_to_end_with_the_count_asked_for(low, decades, count):
    low = round_significant(low, 3)
    high = round_significant(low * 10**decades, 3)
    values = parse_range(f"{low!r}..{high!r}:{count}")
    assert (len(values), values[0], values[-1]) == (count, low, high)
    steps = [math.log(b / a) for a, b in itertools.pairwise(values)]
    # Inner points are rounded to two digits, which moves each by at most 5 %.
    assert max(steps) - min(steps) <= 4 * math.log(1.05)


@given(st.floats(1e-2, 1e30))
def test_what_is_printed_is_read_back_to_the_digits_shown(value):
    assert parse_quantity(format_quantity(value)) == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(7e9, "7B"), (1.25e12, "1.25T"), (999.96, "1K"), (12.5, "12.5"), (1e18, "1e18"), (0.5, "0.5")],
)
def test_quantities_are_short(value, text):
    assert format_quantity(value) == text


def test_flops_are_powers_of_ten():
    assert format_flops(3.2e18) == "3.2e18"
    assert format_flops(1e20) == "1e20"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "1 s"), (100, "1.7 min"), (7200, "2 h"), (864000, "10 days"), (1e10, "317 years")],
)
def test_durations_are_in_the_unit_that_a_person_would_use(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (0.0001, "< $0.01"),
        (0, "$0.00"),
        (12.5, "$12.50"),
        (1250, "$1,250"),
        (806_876, "$807K"),
        (3.1e6, "$3.1M"),
    ],
)
def test_money_never_rounds_to_nothing(usd, text):
    assert format_money(usd) == text


@pytest.mark.parametrize(
    ("kwh", "text"),
    [(0, "0 Wh"), (0.00151, "1.5 Wh"), (12.4, "12 kWh"), (155_000, "155 MWh"), (1.2e6, "1.2 GWh")],
)
def test_energy_is_written_in_the_unit_that_fits(kwh, text):
    assert format_energy(kwh) == text


@pytest.mark.parametrize(
    ("n", "words", "text"),
    [
        (0, ("row",), "0 rows"),
        (1, ("row",), "1 row"),
        (12_345, ("row",), "12,345 rows"),
        (1, ("query", "queries"), "1 query"),
        (2, ("query", "queries"), "2 queries"),
    ],
)
def test_a_count_and_its_noun_agree(n, words, text):
    assert plural(n, *words) == text

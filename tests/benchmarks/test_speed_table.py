"""No command takes a larger share of the yardstick's CPU time than the committed one, plus 20 %."""

import sys

import pytest

from tests.benchmarks.speed_table import behind, measure


@pytest.mark.bench
@pytest.mark.timeout(0)
def test_no_command_is_slower_than_committed(tmp_path):
    found = measure({"here": sys.executable}, tmp_path)
    assert not behind(found), "\n".join(behind(found))

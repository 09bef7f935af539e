"""No command takes a larger share of the yardstick's CPU time than the committed one, plus 20 %."""

import json
import sys

import pytest

from tests.benchmarks import speed_table
from tests.benchmarks.speed_table import behind, measure


def test_a_ratio_more_than_a_fifth_above_the_committed_one_is_behind(tmp_path, monkeypatch):
    committed = tmp_path / "ratios.json"
    committed.write_text(json.dumps({"slower": 1.0, "same": 1.0}))
    monkeypatch.setattr(speed_table, "COMMITTED", committed)
    found = {name: {"here": {"ratio": ratio}} for name, ratio in (("slower", 1.21), ("same", 1.19))}
    assert behind({**found, "new": {"here": {"ratio": 9.0}}}) == ["slower: ratio 1.21, committed 1"]


@pytest.mark.bench
@pytest.mark.timeout(0)
def test_no_command_is_slower_than_committed(tmp_path):
    found = measure({"here": sys.executable}, tmp_path)
    assert not behind(found), "\n".join(behind(found))

"""A line of `make bench` that is slower than committed, or that failed, ends it with an error."""

import json

import pytest

from tests.benchmarks import speed_table


def test_a_ratio_more_than_a_fifth_above_the_committed_one_is_behind():
    found = [
        speed_table.Line(name="slower", goal="", seconds=1.0, ratio=1.21),
        speed_table.Line(name="same", goal="", seconds=1.0, ratio=1.19),
        speed_table.Line(name="new", goal="", seconds=1.0, ratio=9.0),
        speed_table.Line(name="no AMX", goal="", note="not measured: this CPU has no AMX"),
        speed_table.Line(name="broken", goal="", note="failed: no module named x"),
    ]
    assert speed_table.behind(found, {"slower": 1.0, "same": 1.0, "no AMX": 1.0}) == [
        "slower: ratio 1.21, committed 1",
        "broken: failed: no module named x",
    ]


@pytest.mark.parametrize("slower_by", [1.0, 1.3])
def test_the_program_fails_for_a_command_that_became_slower(
    slower_by, tmp_path, monkeypatch, capsys
):
    ratios = tmp_path / "ratios.json"
    ratios.write_text(json.dumps({"a command": 2.0}))
    monkeypatch.setattr(speed_table, "COMMITTED", ratios)
    monkeypatch.setattr(
        speed_table,
        "light_works",
        lambda folder: iter(
            [speed_table.Work(name="a command", goal="1 s", seconds=lambda python: slower_by)]
        ),
    )
    monkeypatch.setattr(speed_table, "step_lines", lambda: iter([]))
    monkeypatch.setattr(speed_table, "process_seconds", lambda command: 0.5)
    monkeypatch.setattr("sys.argv", ["speed_table.py", "--light"])
    if slower_by > 1.2:
        with pytest.raises(SystemExit, match=r"a command: ratio 2\.6, committed 2"):
            speed_table.main()
    else:
        speed_table.main()
    assert f"| a command | 1 s | {slower_by:.3g} s |" in capsys.readouterr().out

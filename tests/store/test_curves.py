"""Reading a curve in pieces gives the same rows as reading it at once."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.store import curves
from scalelab.store.curves import Progress, read_new_rows

LINES = st.one_of(
    st.integers(1, 40).map(lambda k: json.dumps({"step": k, "tokens": k, "loss_nats": 1 / k})),
    st.sampled_from(
        [
            "", "{", "null", "[]", '{"step": 3}', '{"step": true, "tokens": 1, "loss_nats": 1}',
            '{"step": 3, "tokens": 1, "loss_nats": "x"}', '{"step": 1.5, "tokens": 1}', "\r", "é",
            '{"step": 99999999999999999999, "tokens": 1, "loss_nats": 1}',
        ]
    ),
)  # fmt: skip


def read_all(path, progress):
    rows = []
    while True:
        new, reached = read_new_rows(str(path), progress)
        if reached == progress:
            return rows, progress
        rows, progress = rows + new, reached


@given(lines=st.lists(LINES, max_size=25), cuts=st.lists(st.integers(0, 3000), max_size=6))
@settings(max_examples=150, deadline=None)
def test_in_pieces_or_at_once_the_rows_are_the_same(lines, cuts, tmp_path_factory):
    path = tmp_path_factory.mktemp("curve") / "metrics.jsonl"
    data = "".join(line + "\n" for line in lines).encode()
    progress, rows = Progress(token="t"), []
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        path.write_bytes(data[:cut])
        new, progress = read_all(path, progress)
        rows += new
    at_once, reached = read_all(path, Progress(token="t"))
    assert (rows, progress) == (at_once, reached)
    assert progress.bytes_read == len(data)
    assert len(rows) + progress.torn == len(lines)
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))


def test_a_file_longer_than_a_chunk_is_read_in_several(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "CHUNK_BYTES", 100)
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": k, "tokens": k, "loss_nats": 1.0}) for k in range(1, 30)]
    path.write_text("\n".join([*lines[:10], "x" * 350, *lines[10:]]) + "\n")
    rows, progress = read_all(path, Progress(token="t"))
    assert [row["step"] for row in rows] == list(range(1, 30))
    assert progress.bytes_read == path.stat().st_size


def test_a_missing_file_has_no_rows(tmp_path):
    assert read_new_rows(str(tmp_path / "none"), Progress(token="t")) == ([], Progress(token="t"))


def test_fields_of_a_newer_version_are_ignored(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "tokens": 9, "loss_nats": 2.5, "phase": "decay", "more": {}}\n')
    rows, progress = read_new_rows(str(path), Progress(token="t"))
    assert (len(rows), progress.torn) == (1, 0)

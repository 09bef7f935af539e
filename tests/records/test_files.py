"""Files are complete or absent, also for concurrent readers and killed writers."""

import multiprocessing

import pytest

from scalelab.records.files import list_entries, read_json, write_atomically


def test_a_reader_sees_the_old_or_the_new_content(tmp_path):
    path = tmp_path / "f.json"
    contents = ['{"a": "' + letter * 20_000 + '"}' for letter in "xy"]
    write_atomically(path, contents[0])

    def write():
        for i in range(300):
            write_atomically(path, contents[i % 2])

    writer = multiprocessing.get_context("fork").Process(target=write)
    writer.start()
    seen = set()
    while writer.is_alive():
        seen.add(path.read_text())
    writer.join()
    assert seen <= set(contents)
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_a_failed_write_leaves_the_old_content_and_no_other_file(tmp_path):
    path = tmp_path / "f"
    write_atomically(path, "old", durable=True)
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe"])
def test_read_json_returns_none_without_a_json_object(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    assert read_json(tmp_path / "f") is None
    assert read_json(tmp_path / "none") is None


def test_a_missing_folder_has_no_entries(tmp_path):
    (tmp_path / "f").write_text("")
    assert list_entries(tmp_path / "none") == []
    assert list_entries(tmp_path / "f") == []
    assert list_entries(tmp_path) == [tmp_path / "f"]

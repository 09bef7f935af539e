"""Files are whole or absent, whoever is killed or reads in between."""

import multiprocessing

import pytest

from scalelab.records.files import list_entries, read_json, write_atomically


def test_a_reader_sees_the_old_content_or_the_new_never_a_part(tmp_path):
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


def test_a_write_that_fails_leaves_the_old_content_and_no_rest(tmp_path):
    path = tmp_path / "f"
    write_atomically(path, "old", durable=True)
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe"])
def test_what_is_no_json_object_reads_as_none(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    assert read_json(tmp_path / "f") is None
    assert read_json(tmp_path / "none") is None


def test_no_folder_has_no_entries(tmp_path):
    (tmp_path / "f").write_text("")
    assert list_entries(tmp_path / "none") == []
    assert list_entries(tmp_path / "f") == []
    assert list_entries(tmp_path) == [tmp_path / "f"]

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from scalelab.corpus.dataset import prepare
from scalelab.corpus.source import DataSource, find_files
from scalelab.errors import DataError, UsageError


def found(tmp_path: Path, *paths: str) -> dict[str, tuple[str, bool]]:
    files = find_files(DataSource(paths=paths), tmp_path / "results")
    return {str(f.path.relative_to(tmp_path)): (f.kind, f.is_named) for f in files}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        *("a/one.txt", "a/b/two.md", "a/b/rows.jsonl", "a/table.PARQUET", "a/no_ending"),
        *("a/.hidden", "a/.git/config", "results/data/x.txt", "three.txt"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    return tmp_path


def test_a_folder_means_all_files_beneath_it(tree: Path) -> None:
    assert found(tree, str(tree / "a")) == {
        "a/one.txt": ("text", False),
        "a/b/two.md": ("text", False),
        "a/b/rows.jsonl": ("lines", False),
        "a/table.PARQUET": ("parquet", False),
        "a/no_ending": ("text", False),
    }


def test_the_results_folder_is_never_text(tree: Path) -> None:
    assert "results/data/x.txt" not in found(tree, str(tree))
    assert "three.txt" in found(tree, str(tree))


def test_globs_bring_files_and_folders(tree: Path) -> None:
    assert set(found(tree, str(tree / "a/**/*.md"))) == {"a/b/two.md"}
    assert set(found(tree, str(tree / "*/b"))) == {"a/b/two.md", "a/b/rows.jsonl"}


def test_a_file_named_twice_is_one_file_that_was_named(tree: Path) -> None:
    file = str(tree / "a/one.txt")
    for paths in ((file, str(tree / "a")), (str(tree / "a"), file), (str(tree / "a/o*"), file)):
        assert found(tree, *paths)["a/one.txt"] == ("text", True)
    assert found(tree, str(tree / "a/o*"))["a/one.txt"] == ("text", False)


def test_a_path_with_glob_characters_that_exists_is_that_path(tree: Path) -> None:
    odd = tree / "odd[1].txt"
    odd.write_text("text")
    assert found(tree, str(odd)) == {"odd[1].txt": ("text", True)}


def test_a_link_to_a_folder_is_not_followed_round_in_circles(tree: Path) -> None:
    (tree / "a/b/loop").symlink_to(tree / "a")
    (tree / "a/b/gone.txt").symlink_to(tree / "nowhere")
    assert len(found(tree, str(tree / "a"))) == 5


@pytest.mark.parametrize(
    ("path", "problem"),
    [("none.txt", "does not exist"), ("*.none", "matches nothing"), ("empty", "no file in")],
)
def test_what_is_not_there_is_said(tree: Path, path: str, problem: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match=problem):
        found(tree, str(tree / path))


def test_a_pipe_is_not_read(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with pytest.raises(DataError, match="no file in"):
        found(tree, str(tree / "pipe"))


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_may_not_be_read_is_said(
    public_folder: Path, mode: int, ordinary_user: Callable[[], AbstractContextManager[None]]
) -> None:
    inner = public_folder / "inner"
    inner.mkdir()
    (inner / "a.txt").write_text("text")
    inner.chmod(mode)
    source = DataSource(paths=(str(public_folder),))
    with ordinary_user(), pytest.raises(DataError, match="cannot be read"):
        prepare(source, public_folder / "results")
    inner.chmod(0o755)


def test_the_default_is_the_standard_library_without_what_a_build_or_program_wrote() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    names = {str(f.path.relative_to(root)) for f in find_files(DataSource(), Path("results"))}
    assert {"os.py", "json/decoder.py", "asyncio/events.py"} <= names
    assert all(name.endswith(".py") for name in names)
    for part in ("site-packages", "_sysconfigdata", "config-", "encodings/"):
        assert not any(name.startswith(part) for name in names), part


@pytest.mark.parametrize(
    "tokenizer",
    [
        *("bpe", "bpe:", "bpe:abc", "bpe:299", "bpe:200001", "bpe:-4", "words", ""),
        *("bpe:" + 5000 * "9", "bpe:\u0664\u0660\u0669\u0666"),
    ],
)
def test_an_invalid_tokenizer_is_refused(tokenizer: str) -> None:
    with pytest.raises(UsageError, match="bytes, bpe:SIZE"):
        DataSource(tokenizer=tokenizer)


def test_an_empty_path_is_not_the_present_folder() -> None:
    with pytest.raises(UsageError, match="empty path"):
        DataSource(paths=("text", ""))


@pytest.mark.parametrize("eval_tokens", [0, -3])
def test_an_evaluation_set_has_tokens(eval_tokens: int) -> None:
    with pytest.raises(UsageError, match="evaluation set"):
        DataSource(eval_tokens=eval_tokens)


def test_the_size_of_the_vocabulary_is_read_from_the_name() -> None:
    assert DataSource(tokenizer="bpe:4096").bpe_size == 4096
    assert DataSource().bpe_size is None

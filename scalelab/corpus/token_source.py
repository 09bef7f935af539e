"""`TokenSource`: tokens that another program wrote, and where they lie in its files.

A reader of a format (`scalelab.corpus.token_formats`) returns a `TokenSource`. If the files hold
the tokens uncompressed, it lists `Stretch`es that a worker maps into memory; nothing is copied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import DataError

MARK_DOCUMENTS = 1000
"""Number of documents from which a reader takes the token that ends a document."""

Arrays = Callable[[], Iterator[NDArray[Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Consecutive tokens in a file: its path, where they begin in bytes, and how many."""

    path: Path
    offset: int
    n_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSource:
    """Tokens in files of one format, in order.

    Attributes
    ----------
    format : str
        Name of the format, for people.
    dtype : str
        One of `TOKEN_DTYPES`.
    stretches : tuple of Stretch
        Where the tokens are; empty if the files are compressed or have no such layout.
    arrays : callable or None
        Without stretches, yields the tokens as arrays, shape (n,), in order.
    converted : tuple of Path
        Without stretches, the files.
    n_estimated : int
        Without stretches, the number of tokens, exact or estimated from the size of the files.
    end_token : int or None
        Token that ends a document, if the files say so.
    """

    format: str
    dtype: str
    stretches: tuple[Stretch, ...] = ()
    arrays: Arrays | None = None
    converted: tuple[Path, ...] = ()
    n_estimated: int = 0
    end_token: int | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens of all stretches; an estimate if there are none."""
        return self.n_estimated or sum(stretch.n_tokens for stretch in self.stretches)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the tokens, each once."""
        return self.converted or tuple(dict.fromkeys(s.path for s in self.stretches))

    def read(self) -> Iterator[NDArray[Any]]:
        """Yield the tokens as arrays, shape (n,), in order."""
        if self.arrays is not None:
            yield from self.arrays()
        for stretch in self.stretches:
            yield mapped(stretch.path, self.dtype, stretch.offset, stretch.n_tokens)


def joined(sources: Sequence[TokenSource]) -> TokenSource:
    """Return several sources as one; raise DataError unless all have the same type of token."""
    first = sources[0]
    for other in sources[1:]:
        if other.dtype != first.dtype:
            raise DataError(
                f"token files of {first.dtype} ({first.format}) and {other.dtype} "
                f"({other.format}) together",
                "files whose tokens have the same type",
                f"Name files of one type, for example --data {first.files[0]}.",
            )
    is_in_place = all(source.arrays is None for source in sources)
    marks = {source.end_token for source in sources}

    def arrays() -> Iterator[NDArray[Any]]:
        for source in sources:
            yield from source.read()

    return TokenSource(
        format=", ".join(dict.fromkeys(source.format for source in sources)),
        dtype=first.dtype,
        stretches=tuple(s for source in sources for s in source.stretches) if is_in_place else (),
        arrays=None if is_in_place else arrays,
        converted=() if is_in_place else tuple(file for s in sources for file in s.files),
        n_estimated=0 if is_in_place else sum(source.n_tokens for source in sources),
        end_token=marks.pop() if len(marks) == 1 else None,
    )


def mapped(path: Path, dtype: str, offset: int = 0, n_tokens: int = -1) -> NDArray[Any]:
    """Return tokens of a file as an array, memory-mapped, shape (n_tokens,)."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype=dtype)
    content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    kind = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(content, dtype=kind, count=n_tokens, offset=offset)


def common_last_token(
    tokens: NDArray[Any], lengths: NDArray[np.integer] | Sequence[int]
) -> int | None:
    """Return the token that ends all of the first documents, None if they end differently.

    Parameters
    ----------
    tokens : ndarray, shape (n,)
        Tokens of the documents, one after the other.
    lengths : sequence of int
        Tokens of each document. Needs at least two documents to tell.
    """
    ends = np.cumsum(np.asarray(lengths[:MARK_DOCUMENTS], dtype=np.int64)) - 1
    ends = ends[(ends >= 0) & (ends < len(tokens))]
    if len(ends) < 2:
        return None
    last = tokens[ends]
    return int(last[0]) if (last == last[0]).all() else None


def inside(folder: Path, name: str) -> Path:
    """Return a file that an index names; raise DataError if it is outside the index's folder."""
    path = Path(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
        raise damaged_tokens(
            folder,
            f"names {name!r}, outside the folder",
            "Use only data of a source that you trust, and correct the name.",
        )
    return folder / path


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises
    ------
    DataError
        When there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise damaged_tokens(path, "does not exist") from error
    except (ValueError, RecursionError) as error:
        raise damaged_tokens(path, f"no JSON ({error})") from error
    if not isinstance(content, dict):
        raise damaged_tokens(path, "no JSON object")
    return content


def damaged_tokens(path: Path, problem: str, do: str = "") -> DataError:
    """Return the error for a token file that its format does not allow."""
    return DataError(
        f"{path}: {problem}",
        "a complete token file",
        do
        or "Write or copy the file again, or name its layout, for example --data-format raw "
        "--token-dtype uint16.",
    )

"""Text of a Parquet file: strings or UTF-8 as binary, in a column, a struct or a list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scalelab.corpus.fields import NUL, document_of
from scalelab.corpus.opening import FREE_BYTES, MOST_RATIO, damaged, too_large
from scalelab.corpus.rejects import Reject, shown
from scalelab.errors import DataError

MOST_BATCH_ROWS = 1024
BATCH_BYTES = 32 << 20
MOST_ROWS_PER_BYTE = 20
"""Rows claimed per byte of the file; a page of nulls or equal rows is short, texts are not."""
FREE_ROWS = 1_000_000


def read_parquet(path: Path, column: str) -> Iterator[bytes | Reject]:
    """Yield the text of each row, or why it has none.

    Raises
    ------
    DataError
        When the file is damaged, has no such column, or claims more than it can hold.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _damage_named(path), pq.ParquetFile(path, buffer_size=1 << 20) as table:
        schema = table.schema_arrow
        root, inner = _find(schema, column)
        if root is None:
            raise DataError(
                f"no column {column!r} in {path}, which has {', '.join(_names(schema))}",
                "the name of the text column; a dot enters a nested one, as in meta.text",
                "Give its name, for example --column content.",
            )
        kind = _leaf(schema.field(root).type, inner)
        if kind is None or not _is_text(kind):
            raise DataError(
                f"column {column!r} of {path}, which holds {kind or schema.field(root).type}",
                "a column of strings, or of binary with UTF-8",
                "Name a column of text, for example --column text.",
            )
        _require_plausible(path, table.metadata)
        has_list = _has_list(schema.field(root).type, inner)
        name = root if has_list or not inner else column
        number = 0
        n_bytes, limit = 0, max(FREE_BYTES, MOST_RATIO * path.stat().st_size)
        for rows in table.iter_batches(_batch_rows(table.metadata), columns=[name]):
            values = rows.column(rows.schema.get_field_index(root))
            for document in (
                _from_lists(values, inner, column, number)
                if has_list
                else _from_texts(_enter(values, inner), pa, column, number)
            ):
                n_bytes += len(document) if isinstance(document, bytes) else 0
                if n_bytes > limit:
                    raise too_large(path)
                yield document
            number += len(rows)


def _from_texts(values: Any, pa: Any, column: str, number: int) -> Iterator[bytes | Reject]:
    # As bytes, because one string that is not UTF-8 would end the whole batch.
    for content in values.cast(pa.large_binary()).to_pylist():
        number += 1
        if content is None:
            yield Reject(place=f"row {number}", reason=f"has null as {column!r}")
        elif b"\0" in content:
            yield Reject(place=f"row {number}", reason=NUL, start=shown(content))
        else:
            try:
                content.decode("utf-8")
            except UnicodeDecodeError as error:
                yield Reject(
                    place=f"row {number}",
                    reason=f"is not UTF-8 (byte {content[error.start]:#04x})",
                    start=shown(content),
                )
            else:
                yield content


def _from_lists(
    values: Any, inner: tuple[str, ...], column: str, number: int
) -> Iterator[bytes | Reject]:
    for index in range(len(values)):
        place = f"row {number + index + 1}"
        try:
            row: Any = values[index].as_py()
            for name in inner:
                row = _entered(row, name)
            yield document_of({column: _as_text(row)}, column, place, b"")
        except UnicodeDecodeError as error:
            reason = f"is not UTF-8 (byte {error.object[error.start]:#04x})"
            yield Reject(place=place, reason=reason)


def _entered(row: Any, name: str) -> Any:
    if isinstance(row, list):
        return [_entered(member, name) for member in row]
    return None if row is None else row[name]


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_text(member) for member in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _enter(values: Any, inner: tuple[str, ...]) -> Any:
    import pyarrow.compute as pc

    for name in inner:
        values = pc.struct_field(values, name)
    return values


def _find(schema: Any, column: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the top-level column and the names below it; a whole name goes first."""
    names = [name for name in schema.names if column == name or column.startswith(name + ".")]
    for name in sorted(names, key=len, reverse=True):
        rest = column[len(name) + 1 :]
        inner = tuple(rest.split(".")) if rest else ()
        if _leaf(schema.field(name).type, inner) is not None:
            return name, inner
    return None, ()


def _leaf(kind: Any, inner: tuple[str, ...]) -> Any:
    """Return the type at the end of the names, without lists and dictionaries; None if absent."""
    import pyarrow as pa

    while True:
        if pa.types.is_dictionary(kind) or _is_list(kind):
            kind = kind.value_type
        elif not inner:
            return kind
        elif not pa.types.is_struct(kind) or kind.get_field_index(inner[0]) < 0:
            return None
        else:
            kind, inner = kind.field(inner[0]).type, inner[1:]


def _has_list(kind: Any, inner: tuple[str, ...]) -> bool:
    if _is_list(kind):
        return True
    return bool(inner) and _has_list(kind.field(inner[0]).type, inner[1:])


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    checks = (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    )
    return any(check(kind) for check in checks)


def _names(schema: Any) -> list[str]:
    """Return the columns with text, nested ones by their path; all columns if none has text."""
    import pyarrow as pa

    def below(name: str, kind: Any) -> Iterator[str]:
        if pa.types.is_dictionary(kind) or _is_list(kind):
            yield from below(name, kind.value_type)
        elif pa.types.is_struct(kind):
            for field in kind:
                yield from below(f"{name}.{field.name}", field.type)
        elif _is_text(kind):
            yield name

    found = [path for name in schema.names for path in below(name, schema.field(name).type)]
    return sorted(found) or sorted(schema.names)


def _require_plausible(path: Path, metadata: Any) -> None:
    n_bytes = path.stat().st_size
    if metadata.num_rows > max(FREE_ROWS, MOST_ROWS_PER_BYTE * n_bytes):
        raise damaged(path, f"it claims {metadata.num_rows:,} rows in {n_bytes:,} bytes")


def _batch_rows(metadata: Any) -> int:
    """Return the rows to read at once, fewer where they are long."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    longest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    return int(min(MOST_BATCH_ROWS, max(1, BATCH_BYTES / max(longest, 1))))


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}, which is not Parquet ({str(error).splitlines()[0]})",
            "a complete Parquet file",
            "Write the file again, or rename it to the ending of its real format.",
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise damaged(path, (str(error) or "a page cannot be read").splitlines()[0]) from error
    except (pa.ArrowException, MemoryError) as error:
        raise damaged(path, (str(error) or "a page cannot be read").splitlines()[0]) from error

"""Tokens of a Hugging Face dataset on disk (``save_to_disk``), in Arrow files.

An uncompressed Arrow file has the tokens of a batch of rows one after the other, so pyarrow is
needed only to find where they are. Compressed files are converted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.source import TOKEN_DTYPES
from scalelab.corpus.token_source import (
    Stretch,
    TokenSource,
    common_last_token,
    damaged_tokens,
    inside,
    joined,
    read_json_object,
)
from scalelab.errors import DataError

COLUMNS = ("input_ids", "tokens", "token_ids", "ids")
"""Columns of tokens, the first found is used."""
DICT_FILE, STATE_FILE, INFO_FILE = "dataset_dict.json", "state.json", "dataset_info.json"
TRAIN = "train"
MASK = "attention_mask"
ARROW_FILE_MAGIC = b"ARROW1"
CHECKED_MASKS = 256
"""Batches of rows whose attention mask is checked for padding."""


def is_huggingface(folder: Path) -> bool:
    """Return whether a folder is a dataset, or a dictionary of datasets, on disk."""
    return (folder / DICT_FILE).is_file() or (
        (folder / STATE_FILE).is_file() and (folder / INFO_FILE).is_file()
    )


def read_huggingface(folder: Path, column: str | None = None) -> TokenSource:
    """Return the tokens of a dataset on disk; of a dictionary of datasets, those of ``train``.

    Parameters
    ----------
    folder : Path
        The folder that ``save_to_disk`` wrote, or one Arrow file.
    column : str or None
        Column of the tokens; None for the first of `COLUMNS`, or the only one of whole numbers.

    Raises
    ------
    DataError
        When the folder is damaged, or the column does not hold tokens without padding.
    """
    if folder.is_file():
        return _read_arrow(folder, column)
    if (folder / DICT_FILE).is_file():
        splits = read_json_object(folder / DICT_FILE).get("splits")
        if not isinstance(splits, list) or TRAIN not in splits:
            raise DataError(
                f"{folder}, a dictionary of the datasets {splits}",
                f"a dataset, or a dictionary with {TRAIN}",
                f"Name one of them, for example --data {folder}/{(splits or [TRAIN])[0]}.",
            )
        folder = folder / TRAIN
    state = read_json_object(folder / STATE_FILE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise damaged_tokens(
            folder,
            "rows in an order that a list of indices gives",
            "Write them in order: dataset.flatten_indices().save_to_disk(FOLDER).",
        )
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise damaged_tokens(folder, f"{STATE_FILE} without its data files") from error
    if not names:
        raise damaged_tokens(folder, "no data files")
    files = [inside(folder, name) for name in names]
    return joined([_read_arrow(file, column) for file in files])


def _read_arrow(path: Path, wanted: str | None) -> TokenSource:
    import pyarrow as pa

    try:
        batches = list(_batches(path))
        if not batches:
            raise damaged_tokens(path, "no rows")
        return _tokens(path, batches, wanted)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise damaged_tokens(path, f"not a complete Arrow file ({reason})") from error


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows of a file, and the address of the file in memory."""

    rows: Any
    address: int
    size: int


def _batches(path: Path) -> Iterator[_Batch]:
    import pyarrow as pa
    import pyarrow.ipc as ipc

    content = pa.memory_map(str(path)).read_buffer()
    if content.size == 0:
        return
    if content[: len(ARROW_FILE_MAGIC)].to_pybytes() == ARROW_FILE_MAGIC:
        reader = ipc.open_file(content)
        rows = (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        rows = iter(ipc.open_stream(content))
    for batch in rows:
        batch.validate()
        if batch.num_rows:
            yield _Batch(batch, content.address, content.size)


def _tokens(path: Path, batches: list[_Batch], wanted: str | None) -> TokenSource:
    name = _column(path, batches[0].rows.schema, wanted)
    values = [_values(path, batch.rows.column(name), name) for batch in batches]
    dtype = str(values[0][0].type)
    width = np.dtype(dtype).itemsize
    _refuse_padding(path, batches)
    stretches: list[Stretch] = []
    for batch, (numbers, _) in zip(batches, values, strict=True):
        address = numbers.buffers()[1].address + numbers.offset * width
        offset = address - batch.address
        if not 0 <= offset <= batch.size - len(numbers) * width:
            stretches = []
            break
        if len(numbers):
            stretches.append(Stretch(path=path, offset=offset, n_tokens=len(numbers)))
    first, lengths = values[0]
    is_ragged = len(lengths) > 1 and bool((lengths != lengths[0]).any())

    def arrays() -> Iterator[NDArray[Any]]:
        for numbers, _ in values:
            yield numbers.to_numpy(zero_copy_only=False)

    return TokenSource(
        format="huggingface",
        dtype=dtype,
        stretches=tuple(stretches),
        arrays=None if stretches else arrays,
        converted=() if stretches else (path,),
        n_estimated=0 if stretches else sum(len(numbers) for numbers, _ in values),
        end_token=common_last_token(first.to_numpy(), lengths) if is_ragged else None,
    )


def _column(path: Path, schema: Any, wanted: str | None) -> str:
    import pyarrow as pa

    def holds_numbers(field: Any) -> bool:
        kind = field.type
        is_list = (
            pa.types.is_list(kind) or pa.types.is_large_list(kind)
        ) or pa.types.is_fixed_size_list(kind)
        return is_list and str(kind.value_type) in TOKEN_DTYPES

    found = [field.name for field in schema if holds_numbers(field)]
    if wanted in found:
        return str(wanted)
    if wanted is None:
        for name in COLUMNS:
            if name in found:
                return name
        if len(found) == 1:
            return str(found[0])
    raise DataError(
        f"no column {wanted or ' or '.join(COLUMNS)} with lists of tokens in {path}, which has "
        f"{', '.join(f'{field.name} ({field.type})' for field in schema)}",
        f"a column of lists of {', '.join(TOKEN_DTYPES)}",
        f"Name it, for example --column {found[0]}."
        if found
        else "Tokenize the dataset first, or save its text as Parquet.",
    )


def _values(path: Path, column: Any, name: str) -> tuple[Any, NDArray[np.int64]]:
    """Return the numbers of a batch's lists as one array, and the length of each list."""
    import pyarrow as pa

    if column.null_count:
        raise damaged_tokens(
            path, f"rows without {name}", "Remove them: dataset.filter(lambda row: row[NAME])."
        )
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        lengths = np.full(len(column), size, dtype=np.int64)
        numbers = column.values.slice(column.offset * size, len(column) * size)
    else:
        places = column.offsets.to_numpy().astype(np.int64)
        lengths = np.diff(places)
        numbers = column.values.slice(int(places[0]), int(places[-1] - places[0]))
    if numbers.null_count:
        raise damaged_tokens(path, f"missing tokens in {name}", "Write the dataset without nulls.")
    return numbers, lengths


def _refuse_padding(path: Path, batches: list[_Batch]) -> None:
    """Raise DataError when the attention mask of a row leaves out tokens, which are padding."""
    if MASK not in batches[0].rows.schema.names:
        return
    step = max(1, len(batches) // CHECKED_MASKS)
    for batch in batches[::step]:
        column = batch.rows.column(MASK)
        if not hasattr(column, "flatten"):
            return
        if (column.flatten().to_numpy(zero_copy_only=False) == 0).any():
            raise damaged_tokens(
                path,
                f"{MASK} is 0 for some tokens, which are padding",
                "Tokenize without padding and save the dataset again.",
            )

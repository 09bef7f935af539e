"""The tokenizer of prepared data: encode new text as the training text was encoded."""

from __future__ import annotations

from scalelab.corpus.dataset import Dataset
from scalelab.corpus.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer
from scalelab.corpus.tokenizer_files import open_tokenizer
from scalelab.corpus.tokenizer_names import BPE
from scalelab.errors import DataError

BYTES = "bytes"


def prepared_tokenizer(dataset: Dataset) -> Tokenizer:
    """Return the tokenizer of a dataset, from the copy in its folder.

    Raises
    ------
    DataError
        If the tokenizer of token files is unknown, or its copy is missing or damaged.
    UsageError
        If the library of its format is missing.
    """
    manifest = dataset.manifest
    if manifest.tokenizer == BYTES:
        return ByteTokenizer()
    found = sorted(dataset.folder.glob("tokenizer.*"))
    if manifest.tokenizer_sha256 is None or not found:
        raise DataError(
            f"data {dataset.fingerprint}, which are token files without their tokenizer",
            "data whose tokenizer is known, because new text is encoded with it",
            "Name the tokenizer that made the token files when you plan, for example --tokenizer "
            "tokenizer.json.",
        )
    if manifest.tokenizer.startswith(BPE):
        return BpeTokenizer(found[0])
    return open_tokenizer(
        found[0],
        pattern=manifest.tokenizer_pattern,
        end_token=manifest.end_token,
        is_special_parsed=manifest.special_tokens,
    )

"""Names of tokenizers: ``bytes``, ``bpe:SIZE``, a file, or ``hf:NAME``.

``hf:NAME`` is a model of Hugging Face: a local folder, or a name in the local cache.

A name is checked without reading a file; `find_tokenizer` finds the file. Nothing is downloaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from scalelab.errors import DataError, UsageError
from scalelab.units import parse_quantity

END_TOKEN = 0
"""Token that ends each document, in all tokenizers made here."""
BPE_SIZES = (300, 200_000)
BPE, HUB = "bpe:", "hf:"
FILE_SUFFIXES = (".json", ".model", ".tiktoken")
"""Endings of a file of the tokenizers library, of sentencepiece, and of tiktoken."""
FILE_NAMES = ("tokenizer.json", "tokenizer.model")
"""Files that a folder of a model may have, the first found is used."""
PATH_STARTS = ("/", "./", "../", "~")
"""How the name of a local folder begins."""
ALLOWED = (
    f"bytes, bpe:SIZE with SIZE from {BPE_SIZES[0]} to {BPE_SIZES[1]}, a file "
    "(tokenizer.json, *.model of sentencepiece, *.tiktoken), or hf:NAME"
)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


def tokenizer_name(text: str) -> str:
    """Return the name with a size as digits: ``bpe:32K`` is ``bpe:32000``.

    Raises
    ------
    UsageError
        When it names no tokenizer.
    """
    name = text.strip()
    low, high = BPE_SIZES
    if name.startswith(BPE):
        try:
            size = parse_quantity(name.removeprefix(BPE), what="the size of the tokenizer")
        except UsageError:
            size = 0.0
        if low <= size <= high and size == int(size):
            return f"{BPE}{int(size)}"
    elif name.startswith(HUB):
        model = name.removeprefix(HUB)
        if _HUB_NAME.fullmatch(model) or model.startswith(PATH_STARTS):
            return name
    elif name == "bytes" or name.lower().endswith(FILE_SUFFIXES):
        return name
    do = "Write for example --tokenizer bpe:4096."
    if _HUB_NAME.fullmatch(name):
        do += f" For a model in the local cache of Hugging Face: --tokenizer {HUB}{name}."
    raise UsageError(f"tokenizer {text!r}", ALLOWED, do)


def is_file_name(name: str) -> bool:
    """Return whether a tokenizer is read from a file, and not made here."""
    return name != "bytes" and not name.startswith(BPE)


def short_name(name: str) -> str:
    """Return the name that runs have: of a file without its folder, which differs by machine."""
    model = name.removeprefix(HUB)
    is_hub_name = name.startswith(HUB) and not model.startswith(PATH_STARTS)
    return name if is_hub_name else name[: -len(model)] + Path(model).name


def find_tokenizer(name: str) -> Path:
    """Return the file of a tokenizer that is a file or ``hf:NAME``.

    Raises
    ------
    DataError
        When it does not exist on this machine.
    """
    if not name.startswith(HUB):
        file = Path(os.path.expanduser(name))
        if not file.is_file():
            raise DataError(
                f"tokenizer {name}, which does not exist",
                "a file of a tokenizer",
                f"Write the path from the current folder, {Path.cwd()}.",
            )
        return file
    model = name.removeprefix(HUB)
    local = Path(os.path.expanduser(model))
    if local.is_dir() or model.startswith(PATH_STARTS):
        folders, where = [local], local
    else:
        where = _hub_cache()
        folders = _snapshots(where / f"models--{model.replace('/', '--')}")
    for folder in folders:
        for file_name in FILE_NAMES:
            if (folder / file_name).is_file():
                return folder / file_name
    if where is local:
        raise DataError(
            f"tokenizer {name}: no {' or '.join(FILE_NAMES)} in {local}",
            "the folder of a model with its tokenizer",
            "Name the file of the tokenizer, for example --tokenizer models/tokenizer.json.",
        )
    raise DataError(
        f"tokenizer {name}, which is not in {where}",
        "a model whose tokenizer is in the local cache of Hugging Face; scalelab downloads nothing",
        f"Run `hf download {model} tokenizer.json` where there is a network, or name the file, for "
        "example --tokenizer models/tokenizer.json.",
    )


def _hub_cache() -> Path:
    """Return the cache as huggingface_hub finds it (huggingface_hub/constants.py)."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    return Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")))


def _snapshots(folder: Path) -> list[Path]:
    """Return the downloaded revisions of a model, that of ``main`` first."""
    try:
        main = (folder / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        main = ""
    found = sorted(folder.glob("snapshots/*"))
    return sorted(found, key=lambda path: path.name != main)

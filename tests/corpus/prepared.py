"""What the tests of a preparation ask of its files."""

from __future__ import annotations

from pathlib import Path

from scalelab.corpus.dataset import Dataset
from scalelab.corpus.source import DataSource


def train_text(dataset: Dataset) -> bytes:
    return b"".join((dataset.folder / shard.name).read_bytes() for shard in dataset.manifest.train)


def eval_text(dataset: Dataset) -> bytes:
    return b"".join(
        (dataset.folder / shard.name).read_bytes() for shard in dataset.manifest.evaluation
    )


def train_documents(dataset: Dataset) -> list[bytes]:
    content = train_text(dataset)
    assert content.endswith(b"\0")
    return content[:-1].split(b"\0")


def source_of(folder: Path, eval_tokens: int = 600, tokenizer: str = "bytes") -> DataSource:
    return DataSource(paths=(str(folder),), eval_tokens=eval_tokens, tokenizer=tokenizer)


def leftovers(results: Path) -> list[str]:
    data = results / "data"
    return [p.name for p in data.iterdir() if p.name.startswith(".")] if data.exists() else []

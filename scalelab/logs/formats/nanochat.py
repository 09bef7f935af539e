"""What karpathy/nanochat's base_train prints.

Layout: the print calls of ``scripts/base_train.py`` at commit 92d63d4. A line ``step 00007/00030``
is the loss before update 8; ``Step 00030 | Validation bpb`` is the loss after 30 updates, in bits
per byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from scalelab.logs.files import read_lines, sibling_document
from scalelab.logs.types import Derived, RawRun
from scalelab.logs.values import as_number, flatten, load_json

_TRAIN = re.compile(r"step (\d{1,12})/(\d{1,12}) \([\d.]+%\) \| loss: (\S+) \| lrm: (\S+) ")
_EVAL = re.compile(r"Step (\d{1,12}) \| Validation bpb: (\S+)")
_COUNT = re.compile(r"(\w+)\s*: ([\d,]+)\s*$")
_BATCH = re.compile(r"Total batch size ([\d,]+) =>")
_RESUME = re.compile(r"Resuming optimization from step (\d{1,12})")
_LONGEST_CONFIG = 200
_BLOCKS = ("transformer_matrices", "scalars")


class NanoChat:
    """nanochat."""

    name = "nanochat"
    title = "nanochat base_train (standard output)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether the text has nanochat's lines."""
        return b" | Validation bpb: " in head or (b"Model config:" in head and b"nanochat" in head)

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the run."""
        run = RawRun(reader=self.name, path=path, name=path.stem)
        counts: dict[str, float] = {}
        resumed_at = 0
        lines = iter(read_lines(path))
        for line in lines:
            if found := _TRAIN.match(line):
                step = int(found[1])
                run.planned_steps = float(found[2])
                run.steps_done = max(run.steps_done or 0, step + 1)
                for name, text in (("train_loss", found[3]), ("lr_multiplier", found[4])):
                    if (value := as_number(text)) is not None:
                        run.history.add(step, name, value)
            elif found := _EVAL.match(line):
                run.steps_done = max(run.steps_done or 0, int(found[1]))
                if (value := as_number(found[2])) is not None:
                    run.history.add(int(found[1]), "val_bpb", value)
            elif line.startswith("Model config:"):
                run.config |= _model_config(lines)
            elif found := _RESUME.match(line):
                resumed_at = int(found[1])
            elif found := _BATCH.match(line):
                run.tokens_per_step = Derived(
                    value=as_number(found[1]) or 0.0, source="total batch size in tokens"
                )
            elif found := _COUNT.match(line):
                counts[found[1]] = as_number(found[2]) or 0.0
        _add_counts(run, counts)
        model = sorted((name, str(value)) for name, value in run.config.items())
        run.key = f"{path.parent}: {model} {run.planned_steps} {run.tokens_per_step}"
        run.order = (resumed_at, path.name)
        for meta in sorted(path.parent.glob("meta_*.json"))[-1:]:
            about = sibling_document(meta)
            shape = {str(k): str(v) for k, v in flatten(about.get("model_config")).items()}
            if shape == {name: str(value) for name, value in run.config.items()}:
                run.config |= flatten(about.get("user_config"))
        yield run


def _model_config(lines: Iterator[str]) -> dict[str, str | int | float | bool | None]:
    """Return the JSON object that the next lines print."""
    text = ""
    for _, line in zip(range(_LONGEST_CONFIG), lines, strict=False):
        text += line
        if line.startswith("}"):
            break
    return flatten(load_json(text))


def _add_counts(run: RawRun, counts: dict[str, float]) -> None:
    if counts.get("total"):
        run.n_params = Derived(
            value=counts["total"], source="total parameters, printed by nanochat", is_counted=True
        )
    if counts.get(_BLOCKS[0]):
        run.n_params_kaplan = Derived(
            value=sum(counts.get(name, 0.0) for name in _BLOCKS),
            source=f"{' + '.join(_BLOCKS)}, printed by nanochat",
        )

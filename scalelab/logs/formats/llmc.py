"""``main.log`` of karpathy/llm.c.

Layout: ``llmc/logger.h`` at commit f1e2ace: ``s:20 trl:2.41 lr:0.0003 norm:1.2`` (training loss),
``s:20 tel:2.50`` (validation loss), ``s:40 eval:0.25`` (HellaSwag). A resumed run appends to the
file, so steps occur again. The file holds no settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from scalelab.logs.files import read_lines
from scalelab.logs.types import RawRun
from scalelab.logs.values import as_number

_LINE = re.compile(r"s:(\d{1,15}) ((?:trl|tel|eval):.*)$")
_NAMES = {"trl": "train_loss", "tel": "val_loss", "eval": "hellaswag", "lr": "lr",
          "norm": "grad_norm"}  # fmt: skip


class LlmC:
    """llm.c."""

    name = "llmc"
    title = "llm.c (main.log)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether the first line is one of llm.c."""
        return bool(re.match(rb"s:\d{1,15} (?:trl|tel|eval):", head))

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the run."""
        name = path.parent.name if path.stem == "main" else path.stem
        run = RawRun(reader=self.name, path=path, name=name or path.stem)
        previous = highest = -1
        for line in read_lines(path):
            if (found := _LINE.match(line)) is None:
                continue
            previous = int(found[1])
            highest = max(highest, previous)
            for part in found[2].split():
                short, _, text = part.partition(":")
                if short in _NAMES and (value := as_number(text)) is not None:
                    run.history.add(previous, _NAMES[short], value)
        if previous < highest:
            run.notes.append(
                f"its last line is of step {previous:,}, below the highest step {highest:,}: the "
                "run was resumed, and the values written last count for each step"
            )
        yield run

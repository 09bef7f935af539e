"""What karpathy/nanoGPT's train.py prints.

Layout: the print calls of ``train.py`` and ``configurator.py`` at commit 3adf61e: ``Overriding: key
= value``, ``step 20: train loss 3.3, val loss 3.4``, ``iter 20: loss 3.4, time 3ms, mfu 0%``. The
loop evaluates after ``step`` updates and ends after the step ``max_iters``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from scalelab.logs.files import read_lines
from scalelab.logs.simple_yaml import parse_scalar
from scalelab.logs.types import Derived, RawRun
from scalelab.logs.values import as_number

_DEFAULTS = {
    "n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "batch_size": 12,
    "gradient_accumulation_steps": 40, "bias": False, "max_iters": 600_000,
    "learning_rate": 6e-4, "warmup_iters": 2_000,
}  # fmt: skip
"""The values of train.py, which it prints only where they are changed."""

_EVAL = re.compile(r"step (\d+): train loss (\S+), val loss (\S+)\s*$")
_ITER = re.compile(r"iter (\d+): loss ([^,\s]+), time [\d.]+ms, mfu")
_SETTING = re.compile(r"(?:Overriding: )?([a-z_]\w*) = (.+?)\s*(?:#.*)?$")
_PER_STEP = re.compile(r"tokens per iteration will be: ([\d,]+)")
_VOCAB = re.compile(r"found vocab_size = (\d+)")
_PARAMS = re.compile(r"num (?:non-)?decayed parameter tensors: \d+, with ([\d,]+) parameters")
_MARKS = (b"tokens per iteration will be:", b"number of parameters:", b": train loss ")


class NanoGpt:
    """nanoGPT."""

    name = "nanogpt"
    title = "nanoGPT (standard output)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether the text has nanoGPT's lines."""
        return _MARKS[0] in head or sum(mark in head for mark in _MARKS) == 2

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the run."""
        run = RawRun(reader=self.name, path=path, name=path.stem)
        changed: dict[str, str] = {}
        params: list[float] = []
        first: int | None = None
        stated = None
        is_resumed = False
        for line in read_lines(path):
            if found := _ITER.match(line):
                step, loss = int(found[1][:18]), as_number(found[2])
                if loss is not None:
                    run.history.add(step, "train_loss", loss)
            elif found := _EVAL.match(line):
                step = int(found[1][:18])
                for name, text in (("estimated_train_loss", found[2]), ("val_loss", found[3])):
                    if (loss := as_number(text)) is not None:
                        run.history.add(step, name, loss)
            else:
                is_resumed |= line.startswith("Resuming training from")
                if (found := _PER_STEP.match(line)) is not None:
                    stated = as_number(found[1])
                elif found := _VOCAB.match(line):
                    run.config["vocab_size"] = int(found[1][:18])
                elif found := _PARAMS.match(line):
                    params.append(as_number(found[1]) or 0.0)
                elif first is None and (found := _SETTING.match(line)):
                    changed[found[1]] = found[2]
                continue
            first = step if first is None else first
        run.config = {
            **_DEFAULTS, **run.config, **{k: parse_scalar(v) for k, v in changed.items()},
        }  # fmt: skip
        run.steps_done = run.history.last_step()
        _add_counts(run, params, stated)
        same = sorted(item for item in changed.items() if item[0] != "init_from")
        run.key = f"{path.parent}: {same}"
        run.order = (int(is_resumed), first or 0, path.name)
        yield run


def _add_counts(run: RawRun, params: list[float], per_step: float | None) -> None:
    if len(params) >= 2 and sum(params[-2:]) > 0:
        run.n_params = Derived(
            value=sum(params[-2:]),
            source="decayed and non-decayed parameters, printed by nanoGPT",
            is_counted=True,
        )
    product = 1.0
    for name in ("batch_size", "gradient_accumulation_steps", "block_size"):
        product *= as_number(run.config[name]) or 0.0
    if per_step and per_step != product:
        run.tokens_per_step = Derived(
            value=per_step, source="tokens per iteration, printed by nanoGPT"
        )

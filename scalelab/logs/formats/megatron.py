"""What Megatron-LM prints.

Layout: the format strings of ``megatron/training/training.py`` (training_log,
evaluate_and_print_results) at commit d98e8a6, and of ``arguments.py`` (_print_args). Losses are
averages since the previous line; ``consumed samples`` counts sequences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from scalelab.logs.files import read_lines
from scalelab.logs.losses import plain
from scalelab.logs.simple_yaml import parse_scalar
from scalelab.logs.types import Derived, RawRun
from scalelab.logs.values import as_count, as_number

_TRAIN = re.compile(r"(?:\s*\[[^\]]*\])?\s*iteration\s+(\d{1,15})/\s*(\d{1,15}) \|(.*)$")
_EVAL = re.compile(r"\s*validation loss at iteration (\d{1,15})(?: on ([\w ]+?) set)? \|(.*)$")
_ARGUMENT = re.compile(r"\s*(?:\d+: )?([a-z_]\w*) \.{2,} (.+?)\s*$")
_PADDED = re.compile(r"\s*> padded vocab .*\(new size: (\d{1,15})\)")
_SHARD = re.compile(r"\s*> number of parameters on \(tensor, pipeline\).*: (\d{1,18})\s*$")


class Megatron:
    """Megatron-LM."""

    name = "megatron"
    title = "Megatron-LM (standard output)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether the text has Megatron's lines."""
        return (
            re.search(rb"iteration\s+\d+/\s*\d+ \| consumed samples:", head) is not None
            or b"------------------------ arguments ------------------------" in head
            or (b"validation loss at iteration" in head and b"lm loss value" in head)
        )

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the run."""
        run = RawRun(reader=self.name, path=path, name=path.stem)
        shards: list[int] = []
        for line in read_lines(path):
            if found := _TRAIN.match(line):
                run.planned_steps = float(found[2])
                step = int(found[1])
                for name, text in _pairs(found[3]):
                    if (value := as_number(text)) is not None:
                        name = "train_loss" if name == "lm_loss" else name
                        run.history.add(step, name, value)
                        if name == "consumed_samples" and (
                            n := as_count(run.config.get("seq_length"))
                        ):
                            run.history.add(step, "consumed_tokens", value * n)
            elif found := _EVAL.match(line):
                group = "test" if (found[2] or "").strip() == "test" else "val"
                for name, text in _pairs(found[3]):
                    if (value := as_number(text)) is not None:
                        short = {"lm_loss_value": "loss", "lm_loss_ppl": "ppl"}.get(name, name)
                        run.history.add(int(found[1]), f"{group}_{short}", value)
            elif found := _ARGUMENT.match(line):
                run.config[found[1]] = parse_scalar(found[2])
            elif found := _PADDED.match(line):
                run.config["padded_vocab_size"] = int(found[1])
            elif found := _SHARD.match(line):
                shards.append(int(found[1]))
        is_whole = all(
            (as_count(run.config.get(f"{kind}_model_parallel_size")) or 1) == 1
            for kind in ("tensor", "pipeline")
        )
        if shards and is_whole and run.config:
            run.n_params = Derived(value=shards[0], source="parameters printed by Megatron-LM")
        batch = run.history.series.get("global_batch_size")
        length = as_count(run.config.get("seq_length"))
        if batch is not None and length:
            run.config["global_batch_size"] = float(batch.points()[1][-1])
        yield run


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split("|"):
        name, colon, value = part.rpartition(":")
        if colon:
            yield plain(name), value.strip()

"""``trainer_state.json`` of the Trainer of transformers, with ``config.json`` beside it.

Layout: ``transformers/trainer_callback.py``, class TrainerState: ``global_step``, ``max_steps``,
``log_history`` (one object a log, with ``step``), ``total_flos``, ``num_input_tokens_seen``.
A run that was stopped leaves the same files as one that ended; only ``global_step`` tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scalelab.logs.files import read_document, sibling_document, unreadable
from scalelab.logs.shapes import count_logged
from scalelab.logs.types import Derived, RawRun
from scalelab.logs.values import Settings, as_count, as_number, as_step, flatten
from scalelab.theory.accounting import tokens_at_6nd, train_flops_6nd

_CHECKPOINT = re.compile(r"checkpoint-\d+")
_AXES = ("step", "epoch", "total_flos")


class HuggingFace:
    """Trainer of transformers."""

    name = "huggingface"
    title = "Hugging Face Trainer (trainer_state.json)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether it is a ``trainer_state.json``."""
        return path.name.endswith("trainer_state.json") and head.lstrip()[:1] == b"{"

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the run."""
        state = read_document(path)
        if not isinstance(state, Mapping) or not isinstance(state.get("log_history"), list):
            raise unreadable(path, "it has no log_history")
        home = path.parent.parent if _CHECKPOINT.fullmatch(path.parent.name) else path.parent
        config = _config(home, path.parent)
        step = as_step(state.get("global_step"))
        run = RawRun(
            reader=self.name, path=home, name=home.name or "run", key=str(home),
            order=(step or 0, 0 if path.parent == home else -1), config=flatten(config),
            steps_done=step, planned_steps=_planned(state), is_step_from_zero=False,
        )  # fmt: skip
        for name in ("train_batch_size", "num_train_epochs"):
            if (value := as_number(state.get(name))) is not None:
                run.config[f"trainer/{name}"] = value
        for row in state["log_history"]:
            at = as_step(row.get("step")) if isinstance(row, Mapping) else None
            if at is not None:
                run.history.add_row(at, row, skip=_AXES)
        if step is not None:
            _add_results(run, home, step)
        _add_tokens(run, state, step)
        yield run


def _config(*folders: Path) -> dict[str, Any]:
    for folder in folders:
        if config := sibling_document(folder / "config.json"):
            return config
    return {}


def _planned(state: Mapping[str, Any]) -> float | None:
    planned = as_count(state.get("max_steps"))
    return planned or None


def _add_results(run: RawRun, home: Path, step: int) -> None:
    """Add the evaluation after the training, which ``log_history`` may lack."""
    for name, value in sibling_document(home / "all_results.json").items():
        number = as_number(value)
        if number is not None and name.startswith("eval_") and name not in run.history.series:
            run.history.add(step, name, number)


def _add_tokens(run: RawRun, state: Mapping[str, Any], step: int | None) -> None:
    """Derive the tokens of a step from total_flos where the trainer did not count tokens.

    transformers' ``floating_point_ops`` is 6 x tokens x parameters without input embeddings.
    """
    settings = Settings(run.config)
    counted, flops = count_logged(settings), as_number(state.get("total_flos"))
    seen = as_number(state.get("num_input_tokens_seen"))
    if counted is None and seen and flops and flops > 0:
        rest = tokens_at_6nd(flops, 1.0) / seen
        run.notes.append(
            f"no config.json with its shape; by total_flos it has {rest:,.0f} parameters without "
            f"the input embedding (--map n_params={rest:.6g})"
        )
    if seen or not step:
        return
    vocab, width = settings.count("vocab_size"), settings.count("hidden_size", "n_embd")
    if counted is None or not flops or not vocab or not width:
        return
    tokens = flops / train_flops_6nd(counted.total - vocab * width, 1.0)
    run.tokens_per_step = Derived(
        value=tokens / step,
        source="tokens of a step, from total_flos / (6 x parameters without input embedding)",
    )

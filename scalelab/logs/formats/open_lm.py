"""One JSON file a model, as mlfoundations/scaling keeps its runs.

Layout: ``exp_data/models/*.json`` at commit 041eb2f: ``hyperparameters`` with ``params``,
``tokens`` and ``lr``, and ``results``, a list with one loss for each evaluation set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from scalelab.logs.files import read_document, unreadable
from scalelab.logs.types import Derived, RawRun
from scalelab.logs.values import as_number, flatten


class OpenLm:
    """mlfoundations/scaling."""

    name = "open-lm"
    title = "mlfoundations/scaling (models/*.json)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether it is a model's JSON file."""
        return (
            path.suffix == ".json"
            and head.lstrip()[:1] == b"{"
            and b'"hyperparameters"' in head
            and b'"dataset_name"' in head
        )

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the run."""
        model = read_document(path)
        if not isinstance(model, Mapping) or not isinstance(model.get("hyperparameters"), Mapping):
            raise unreadable(path, "it has no hyperparameters")
        settings = flatten(model["hyperparameters"])
        run = RawRun(
            reader=self.name, path=path, name=str(model.get("name") or path.stem),
            config={**settings, "dataset_name": str(model.get("dataset_name"))},
        )  # fmt: skip
        for column, key in (("n_params", "params"), ("kaplan", "params_no_embed")):
            value = as_number(settings.get(key))
            if value is not None and value > 0:
                count = Derived(value=value, source=f"hyperparameters.{key}")
                if column == "n_params":
                    run.n_params = count
                else:
                    run.n_params_kaplan = count
        tokens = as_number(settings.get("tokens"))
        if tokens is not None:
            run.summary["tokens"] = tokens
        own = str(model.get("dataset_name") or "").partition("_")[0]
        results = model.get("results")
        for row in results if isinstance(results, list) else ():
            loss = as_number(row.get("loss")) if isinstance(row, Mapping) else None
            if loss is not None:
                name = _set_name(row)
                # The held-out set of the training corpus is the one to fit first.
                is_own = bool(own) and name.startswith(f"{own}_val")
                run.summary["val_loss" if is_own else f"val_loss/{name}"] = loss
        yield run


def _set_name(row: Mapping[str, Any]) -> str:
    """Return the folder of the evaluation set, ``c4_val`` of ``../c4_val/shard-0.tar``."""
    data = row.get("val_data")
    file = str(data[0]) if isinstance(data, list) and data else str(data or "")
    return PurePosixPath(file).parent.name or "set"

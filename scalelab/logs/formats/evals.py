"""Results of EleutherAI's lm-evaluation-harness.

Layout: ``results_*.json`` with ``results`` (``{task: {"metric,filter": value}}``) and ``config``
(``model_args.pretrained``, ``model_num_parameters``). The scores are added to the run whose name,
or a folder of whose log, is the last part of ``pretrained``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from scalelab.logs.files import read_document, unreadable
from scalelab.logs.types import Derived, RawRun
from scalelab.logs.values import as_number, flatten


class LmEval:
    """lm-evaluation-harness."""

    name = "lm-eval"
    title = "lm-evaluation-harness (results_*.json)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether it is a file of results."""
        return (
            path.name.startswith("results")
            and path.suffix == ".json"
            and head.lstrip().startswith(b"{")
            and b'"results"' in head
        )

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the scores of the model."""
        found = read_document(path)
        results = found.get("results") if isinstance(found, Mapping) else None
        if not isinstance(results, Mapping):
            raise unreadable(path, "it has no results")
        config = found.get("config") if isinstance(found.get("config"), Mapping) else {}
        assert isinstance(config, Mapping)
        run = RawRun(
            reader=self.name, path=path, name=_model_name(config) or path.stem,
            config={n: v for n, v in flatten(config).items() if v is not None},
            order=(as_number(found.get("date")) or 0.0, path.name),
        )  # fmt: skip
        run.key = f"{path.parent}: {run.name}"
        count = as_number(config.get("model_num_parameters"))
        if count is not None and count > 0:
            run.n_params = Derived(value=count, source="config.model_num_parameters")
        for task, scores in results.items():
            for metric, value in scores.items() if isinstance(scores, Mapping) else ():
                number = as_number(value)
                if number is not None and metric not in ("sample_len",):
                    run.summary[f"eval/{task}/{str(metric).removesuffix(',none')}"] = number
        yield run


def _model_name(config: Mapping[str, object]) -> str:
    arguments = config.get("model_args")
    text = arguments.get("pretrained") if isinstance(arguments, Mapping) else None
    if isinstance(arguments, str):
        pairs = dict(part.partition("=")[::2] for part in arguments.split(","))
        text = pairs.get("pretrained")
    return PurePosixPath(str(text)).name if text else ""

"""Named evaluation sets of runs that are done: prepared and evaluated on their kept weights.

The numbers are those that training would have found: the same tokens in the same sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.corpus.dataset import Dataset
from scalelab.corpus.eval_sets import EvalSet, Trained, prepare_eval_sets
from scalelab.corpus.eval_text import EvalText
from scalelab.corpus.mixed import MixedDataset, open_data
from scalelab.corpus.source import DataSource
from scalelab.corpus.tasks import TEXT
from scalelab.errors import DataError, UsageError
from scalelab.records.evaluations import Evaluation, save_evaluations
from scalelab.records.files import read_json
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.tables import DataTable

if TYPE_CHECKING:
    from scalelab.train.weights import Weights, WeightsModel

Known = Mapping[tuple[int, str, str], Evaluation]


@dataclass(slots=True)
class LaterSets:
    """Evaluation sets that are added to runs.

    Attributes
    ----------
    results : Path
    texts : Mapping of EvalText
        By name.
    progress : callable
    warnings : list of str
        What to know about the sets.
    """

    results: Path
    texts: Mapping[str, EvalText]
    progress: Callable[[str, int, int], None]
    warnings: list[str] = field(default_factory=list)
    _prepared: dict[str, tuple[EvalSet, ...]] = field(default_factory=dict)

    def evaluate(
        self, run: RunDir, model: WeightsModel, weights: Weights, known: Known, stage: str
    ) -> Iterator[tuple[Evaluation, bool]]:
        """Yield the evaluation of a run on each set, and whether it was computed now.

        Raises
        ------
        UsageError
            If the run has another set, or a source, of that name.
        DataError
            If a text cannot be used or was trained on, or the sweep of the run is not known.
        """
        if not self.texts:
            return
        spec = weights.spec
        for each in self._sets(run, spec):
            trained = {ref.name: ref.fingerprint for ref in spec.eval_sets}
            trained |= {source.name: source.fingerprint for source in spec.mixture}
            if each.name in trained:
                if trained[each.name] != each.dataset.fingerprint:
                    raise _taken(run, each.name)
                self._note(
                    f"{each.name}: evaluated in training already; see the rows of source training "
                    "in the table evals"
                )
                continue
            earlier = known.get((weights.step, each.name, TEXT))
            if earlier is not None and earlier.fingerprint == each.dataset.fingerprint:
                yield earlier, False
                continue
            found = self._evaluated(model, weights, each, f"{stage}: {each.name}")
            save_evaluations(run.path, [found])
            yield found, True

    def _evaluated(
        self, model: WeightsModel, weights: Weights, each: EvalSet, stage: str
    ) -> Evaluation:
        from scalelab.train.evaluation import Evaluated

        seq_len = weights.spec.seq_len
        sequences = each.dataset.eval_sequences(seq_len)
        losses = model.sequence_losses(
            sequences, lambda done: self.progress(stage, done, len(sequences))
        )
        found = Evaluated(losses)
        per_token = each.dataset.bytes_per_token
        n_tokens = losses.size * seq_len
        return Evaluation(
            step=weights.step,
            set=each.name,
            kind=TEXT,
            fingerprint=each.dataset.fingerprint,
            loss_nats=found.loss,
            bits_per_byte=None if not per_token else found.loss / math.log(2) / per_token,
            stderr=found.stderr,
            n_tokens=n_tokens,
            n_bytes=None if not per_token else round(n_tokens * per_token),
        )

    def _sets(self, run: RunDir, spec: RunSpec) -> tuple[EvalSet, ...]:
        """Return the prepared sets for the data of a run."""
        key = spec.data_fingerprint
        if key not in self._prepared:
            source, trained = self._trained(run, key)
            self._prepared[key] = prepare_eval_sets(
                self.texts, source, trained, self.results, self.progress
            )
            for each in self._prepared[key]:
                for text in each.warnings():
                    self._note(text)
        return self._prepared[key]

    def _trained(self, run: RunDir, fingerprint: str) -> tuple[DataSource, Trained]:
        """Return how the training text of a run was read, and its sources with their tokens."""
        table = self._data_table(run)
        found = open_data(Results(self.results).dataset(fingerprint))
        if isinstance(found, MixedDataset):
            sources = table.sources()
            return table.source(), tuple((sources[n], each) for n, each in found.sources.items())
        assert isinstance(found, Dataset)
        return table.source(), ((table.source(), found),)

    def _data_table(self, run: RunDir) -> DataTable:
        """Return ``[data]`` of a sweep of a run."""
        results = Results(self.results)
        for name in results.sweep_names():
            if run.run_id in results.load_plan(name).run_ids:
                content: Any = read_json(results.sweep(name) / "spec.json") or {}
                content = content.get("sweep", content)
                if "data" in content:
                    return DataTable(**content["data"])
        raise DataError(
            f"run {run.run_id}, whose sweep is not in {self.results}",
            "a run of a sweep, whose data options say how a text is read",
            "Evaluate runs of a sweep, or write the texts to a JSONL file for --tasks.",
        )

    def _note(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


def _taken(run: RunDir, name: str) -> UsageError:
    return UsageError(
        f"--eval-set {name}, a name that run {run.run_id} has for another text",
        "a name that the run does not have for an evaluation set or a source",
        f"Write another name, for example --eval-set {name}_2=PATH.",
    )

"""What `scalelab evaluate` found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scalelab.records.evaluations import Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedRun:
    """One evaluation of one run.

    Attributes
    ----------
    run_id, label : str
        The run, and the name of its shape.
    n_params, n_tokens : float
        Parameters N by the Chinchilla convention and training tokens D.
    evaluation : Evaluation
    is_new : bool
        Whether it was computed now; else it was there.
    """

    run_id: str
    label: str
    n_params: float
    n_tokens: float
    evaluation: Evaluation
    is_new: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """The evaluations of runs.

    Attributes
    ----------
    rows : tuple of EvaluatedRun
        By run and set.
    left_out : Mapping of str
        Why a run was not evaluated, by run_id.
    warnings : tuple of str
        What to know about the numbers.
    """

    rows: tuple[EvaluatedRun, ...]
    left_out: Mapping[str, str]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of ``--json``."""
        rows = []
        for row in self.rows:
            numbers = asdict(row.evaluation)
            del numbers["fingerprint"]
            rows.append(
                {
                    "run_id": row.run_id,
                    "n_params": row.n_params,
                    "n_train_tokens": row.n_tokens,
                    "is_new": row.is_new,
                    **numbers,
                }
            )
        return {
            "schema": 1,
            "command": "evaluate",
            "evaluations": rows,
            "left_out": dict(self.left_out),
            "warnings": list(self.warnings),
        }

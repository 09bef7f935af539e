"""From a sweep specification to a plan: all runs, before the first one starts.

`make_plan` is a pure function of the specification and of facts about the text. Use ``isoflop`` to
find the best size at each budget (several sizes at equal FLOPs), ``grid`` to vary N and D
independently for a parametric fit, and ``ladder`` for the same runs with one constant-rate trunk
per size, at about half the steps.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scalelab.errors import UsageError
from scalelab.sweep.evaluation import MUCH_EVALUATION, evaluation_share
from scalelab.sweep.isoflop_sizes import budget_shapes, expected_tokens_per_param
from scalelab.sweep.mixture_design import mixture_design
from scalelab.sweep.planned_run import DataFacts, PlannedRun, planned_run
from scalelab.sweep.program import ProgramSpec
from scalelab.sweep.program_table import ProgramTable
from scalelab.sweep.repeats import epochs_by_source, find_repeats
from scalelab.sweep.rules import FEW_STEPS, rule_texts
from scalelab.sweep.run_size import model_size
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.shapes import chosen_shapes
from scalelab.sweep.size_table import SizeRow, budget_rows, nearest_rows
from scalelab.sweep.spec import MAX_PLANNED_RUNS, SweepSpec
from scalelab.sweep.trunk import shared_steps
from scalelab.theory.decay_rules import CONSTANT
from scalelab.theory.epochs import MAX_EPOCHS
from scalelab.theory.shape import ModelShape
from scalelab.units import format_quantity, plural

PARTS = ("training", "held-out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every run of a sweep.

    Attributes
    ----------
    name, kind : str
        As in the specification.
    rows : tuple of PlannedRun
        Budget by budget, smallest model first.
    data : DataFacts
        The text that they share.
    rules : Mapping[str, str]
        Rules of the shapes, the learning rate, the batch and the schedule, as text.
    n_merged : int
        Rows left out because, in whole steps, they equal another row.
    notes : tuple of str
        Warnings about a user's program, or about the design of a sweep over mixtures.
    """

    name: str
    kind: str
    rows: tuple[PlannedRun, ...]
    data: DataFacts
    rules: Mapping[str, str]
    n_merged: int = 0
    notes: tuple[str, ...] = ()

    @property
    def total_flops(self) -> float:
        """Training FLOPs of all rows, by their planned convention."""
        return sum(row.flops for row in self.rows)

    @property
    def executed_flops(self) -> float:
        """Training FLOPs of all rows, with shared trunk steps counted once."""
        shared = shared_steps([row.spec for row in self.rows])
        return sum(
            row.flops * (1 - shared[row.spec.run_id] / row.spec.n_steps) for row in self.rows
        )

    @property
    def has_experts(self) -> bool:
        """Whether a run trains a mixture of experts."""
        return any(row.spec.shape.n_experts for row in self.rows)

    def epochs(self, row: PlannedRun) -> float | None:
        """Return the epochs of a run over its text; None if its unique tokens are not known.

        Of a mixture, the epochs over the source that is repeated most.
        """
        return max(epochs_by_source(row.spec, self.data).values(), default=None)

    @property
    def evaluation_share(self) -> float:
        """Share of evaluation in the FLOPs of training and evaluation of all rows."""
        return evaluation_share([row.spec for row in self.rows], self.data.n_eval_tokens)

    @property
    def names_evaluation(self) -> bool:
        """Whether the sweep asks for more than the final held-out loss."""
        return any(row.spec.eval_sets or row.spec.eval_every for row in self.rows)

    def warnings(self) -> list[str]:
        """Return warnings to read before a launch."""
        found = [*self.notes, *self.data.warnings]
        if self.n_merged:
            found.append(
                f"{plural(self.n_merged, 'row')} left out: in whole steps, equal to another row of "
                "the same size."
            )
        for unique, held_out, name in self._parts():
            if unique is not None and unique < held_out:
                text = f"the text of source {name}" if name else "the text"
                found.append(
                    f"{text} is too small to hold out {format_quantity(held_out)} tokens and train "
                    "on as many; a launch will fail. Try --eval-tokens 16K."
                )
        found += [repeat.warning(len(self.rows)) for repeat in find_repeats(self.rows, self.data)]
        if self.names_evaluation and (share := self.evaluation_share) > MUCH_EVALUATION:
            found.append(
                f"evaluation takes {share:.0%} of the compute. Evaluate on fewer tokens, for "
                f"example --eval-tokens {self._fewer_eval_tokens(share)}, or less often "
                "(--eval-every)."
            )
        short = [row for row in self.rows if row.spec.n_steps < FEW_STEPS]
        if short:
            fewest = min(row.spec.n_steps for row in short)
            found.append(
                f"{plural(len(short), 'run')} with fewer than {FEW_STEPS} steps (minimum "
                f"{fewest}): warm-up dominates their losses. Use a smaller --batch-seqs."
            )
        return found

    def _fewer_eval_tokens(self, share: float) -> int:
        """Return a size of each set at which evaluation takes less than the share that warns."""
        factor = MUCH_EVALUATION / (1 - MUCH_EVALUATION) * (1 - share) / share
        sizes = [self.data.n_eval_tokens, *(ref.n_tokens for ref in self.data.eval_sets)]
        each = sum(sizes) * factor / len(sizes)
        return int(2 ** math.floor(math.log2(max(1.0, each))))

    def refuse_repeats(self, *, allow_repeats: bool) -> None:
        """Raise UsageError when a run exceeds 4 epochs and that is not allowed."""
        for repeat in find_repeats(self.rows, self.data)[:1]:
            if repeat.epochs > MAX_EPOCHS and not allow_repeats:
                raise repeat.error()

    def _parts(self) -> list[tuple[int | None, int, str]]:
        """Return training tokens, held-out tokens and name of each source, or of the only text."""
        if self.data.sources:
            return [(s.n_train_tokens, s.n_eval_tokens, s.name) for s in self.data.sources]
        return [(self.data.n_train_tokens, self.data.n_eval_tokens, "")]


def make_plan(
    sweep: SweepSpec, data: DataFacts, *, precision: str, program: ProgramSpec | None = None
) -> Plan:
    """Return the plan of a sweep; ``precision`` applies if the sweep does not set it.

    ``program`` is what the program of ``[program]`` computes, without a row of its table of sizes.

    Raises
    ------
    UsageError
        When the axes give no valid plan: no shape of a size, more sizes than shapes, less than one
        step, two budgets with the same run, or a sequence longer than the text.
    """
    n_seeds = len(set(sweep.train.seeds))
    count = (
        n_seeds
        * len(sweep.model.experts())
        * sweep.n_sizes()
        * max(len(sweep.budgets), len(sweep.n_tokens))
        * (sweep.runs if sweep.kind == "mixture" else 1)
    )
    if count > MAX_PLANNED_RUNS:
        raise UsageError(
            f"{count:,} runs",
            f"at most {MAX_PLANNED_RUNS:,}",
            "Use fewer points, for example --n-params 1M..100M:5, or fewer --seeds.",
        )
    _require_sequences(sweep.train.seq_len, data)
    make_rows = {"isoflop": _isoflop_rows, "grid": _grid_rows, "ladder": _ladder_rows}
    precision = sweep.train.precision or precision
    notes: tuple[str, ...] = ()
    if sweep.kind == "mixture":
        planned, notes = _mixture_rows(sweep, data, precision)
    else:
        planned = make_rows[sweep.kind](sweep, data, precision, program)
    distinct = _distinct(planned)
    rows = tuple(
        dataclasses.replace(row, spec=dataclasses.replace(row.spec, seed=seed))
        for row in distinct
        for seed in dict.fromkeys(sweep.train.seeds)
    )
    return Plan(
        name=sweep.default_name(),
        kind=sweep.kind,
        rows=rows,
        data=data,
        rules=rule_texts(sweep),
        n_merged=len(planned) - len(distinct),
        notes=notes,
    )


def _require_sequences(seq_len: int, data: DataFacts) -> None:
    for ref in data.eval_sets:
        if seq_len > ref.n_tokens - 1:
            raise UsageError(
                f"sequences of {seq_len:,} tokens from {plural(ref.n_tokens, 'token')} of "
                f"evaluation set {ref.name}",
                f"sets with more tokens than a sequence, at least {seq_len + 1:,}",
                f"Add text to the set, for example --eval-set {ref.name}=MORE, or use --seq-len "
                f"{max(1, ref.n_tokens - 1)} or less.",
            )
    parts = [(source.n_train_tokens, source.n_eval_tokens) for source in data.sources]
    parts = parts or [(data.n_train_tokens or 0, data.n_eval_tokens)]
    for part, n_tokens in [pair for each in parts for pair in zip(PARTS, each, strict=True)]:
        if not n_tokens:
            continue  # a program's data that is not declared
        # The last token of a part is a target, never an input.
        if seq_len > n_tokens - 1:
            raise UsageError(
                f"sequences of {seq_len:,} tokens from {n_tokens:,} {part} tokens",
                f"sequences of at most {n_tokens - 1:,} tokens",
                f"Use --seq-len {max(1, n_tokens - 1)} or less, or add text, for example "
                "--data corpus/.",
            )


def _distinct(rows: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the rows, each run once; raise UsageError when two budgets share a run."""
    found: dict[RunSpec, PlannedRun] = {}
    for row in rows:
        other = found.setdefault(row.spec, row)
        if row.budget_flops != other.budget_flops:
            raise UsageError(
                f"budgets {format_quantity(other.budget_flops or 0, 6)} and "
                f"{format_quantity(row.budget_flops or 0, 6)}, both of which train "
                f"{format_quantity(row.n_params)} parameters for {row.spec.n_steps:,} steps",
                "budgets that differ by at least one step at every size",
                "Remove one of these --budgets, or use --batch-seqs "
                f"{max(1, row.spec.batch_seqs // 4)}.",
            )
    return list(found.values())


Models = list[tuple[ModelShape, ProgramSpec | None]]


def _isoflop_rows(
    sweep: SweepSpec, data: DataFacts, precision: str, program: ProgramSpec | None
) -> list[PlannedRun]:
    rows = []
    for budget in sweep.budgets:
        for shape, of_size in _budget_models(sweep, budget, data, program):
            size = model_size(shape, sweep.train.seq_len, of_size)
            n_tokens = budget / size.planned_per_token
            rows.append(planned_run(shape, n_tokens, budget, sweep.train, data, precision, of_size))
    return rows


def _grid_rows(
    sweep: SweepSpec, data: DataFacts, precision: str, program: ProgramSpec | None
) -> list[PlannedRun]:
    return [
        planned_run(shape, n_tokens, None, sweep.train, data, precision, of_size)
        for shape, of_size in _models(sweep, data, program)
        for n_tokens in sweep.n_tokens
    ]


def _mixture_rows(
    sweep: SweepSpec, data: DataFacts, precision: str
) -> tuple[list[PlannedRun], tuple[str, ...]]:
    """Return the runs of each designed mixture at each size, and what to know of the design."""
    most = max(sweep.n_tokens)
    limits = {source.name: 1.0 for source in data.sources}
    if not sweep.allow_repeats:
        for source in data.sources:
            # A source may be drawn a few sequences more often than its weight says.
            slack = (len(data.sources) + 1) * sweep.train.seq_len
            limits[source.name] = (MAX_EPOCHS * source.n_train_tokens - slack) / most
    design = mixture_design(sweep.runs, limits)
    unique = {source.name: source.n_train_tokens for source in data.sources}
    notes = tuple(
        f"the corner of source {name} is at {limit:g}, because {MAX_EPOCHS:g} epochs of its "
        f"{format_quantity(unique[name])} unique tokens fill no more of {format_quantity(most)}. "
        "Add text, or use fewer --n-tokens."
        for name, limit in design.moved.items()
    )
    rows = [
        planned_run(shape, n_tokens, None, sweep.train, data.with_weights(weights), precision)
        for shape in _shapes(sweep, data)
        for n_tokens in sweep.n_tokens
        for weights in design.mixtures
    ]
    return rows, notes


def _budget_models(
    sweep: SweepSpec, budget: float, data: DataFacts, program: ProgramSpec | None
) -> Models:
    """Return the models of an isoFLOP curve with their programs, smallest first."""
    if sweep.program is None or program is None or not sweep.program.rows():
        shapes = budget_shapes(sweep, budget, data.tokenizer, data.vocab_size)
        return [(shape, program) for shape in shapes]
    if sweep.n_params:
        return _of_rows(_asked_rows(sweep), sweep.program, program)
    ratio = sweep.tokens_per_param or expected_tokens_per_param(data.tokenizer)
    rows = budget_rows(
        sweep.program.sizes(),
        budget,
        sizes=sweep.n_sizes(),
        is_most="sizes" not in sweep.model_fields_set,
        span=sweep.span,
        tokens_per_param=ratio,
    )
    return _of_rows(rows, sweep.program, program)


def _models(sweep: SweepSpec, data: DataFacts, program: ProgramSpec | None) -> Models:
    """Return the models of a grid with their programs."""
    if sweep.program is None or program is None or not sweep.program.rows():
        return [(shape, program) for shape in _shapes(sweep, data)]
    rows = sorted(sweep.program.sizes(), key=lambda row: row.n_params)
    if sweep.n_params:
        rows = _asked_rows(sweep)
    return _of_rows(rows, sweep.program, program)


def _asked_rows(sweep: SweepSpec) -> list[SizeRow]:
    """Return the rows of the table of sizes that are nearest to the sizes asked for."""
    assert sweep.program is not None
    return nearest_rows(sweep.program.sizes(), sweep.n_params, asked="a number of --n-params of")


def _of_rows(rows: Sequence[SizeRow], table: ProgramTable, program: ProgramSpec) -> Models:
    return [
        (
            row.shape(table.vocab_size),
            dataclasses.replace(
                program,
                size=row.identity,
                n_params=row.n_params,
                flops_per_token=row.flops_per_token,
            ),
        )
        for row in rows
    ]


def _shapes(sweep: SweepSpec, data: DataFacts) -> list[ModelShape]:
    """Return the shapes of a grid or ladder, one mixture of experts after the other."""
    return [
        shape
        for rule in sweep.shape_rules()
        for shape in chosen_shapes(sweep.n_params, data.vocab_size, rule)
    ]


def _ladder_rows(
    sweep: SweepSpec, data: DataFacts, precision: str, program: ProgramSpec | None
) -> list[PlannedRun]:
    """Return the branches of one trunk per size, with the rules' values at the mean length.

    The warm-up is that of the shortest branch, so that all branches leave the trunk after it.
    """
    shortest = min(sweep.n_tokens)
    mean = math.exp(statistics.fmean(math.log(n_tokens) for n_tokens in sweep.n_tokens))
    rows = []
    for shape in _shapes(sweep, data):
        middle = planned_run(shape, mean, None, sweep.train, data, precision).spec
        shared = {name: getattr(middle, name) for name in ("batch_seqs", "lr", "weight_decay")}
        train = sweep.train.model_copy(update={**shared, "weight_decay_rule": CONSTANT})
        first = planned_run(shape, shortest, None, train, data, precision).spec
        for n_tokens in sweep.n_tokens:
            row = planned_run(shape, n_tokens, None, train, data, precision)
            spec = dataclasses.replace(row.spec, warmup_steps=first.warmup_steps)
            rows.append(dataclasses.replace(row, spec=spec))
    return rows


def longest_first(rows: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the rows by decreasing FLOPs, so that a long run does not start last."""
    return sorted(rows, key=lambda row: -row.flops)

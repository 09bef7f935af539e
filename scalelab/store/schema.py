"""THE columns of the public tables: name, SQL type, unit and meaning, stated once.

The collector creates its tables from here, ``docs/reference/tables.md`` is printed from
here, and the comments that DuckDB shows beside each column are these. Times are Unix seconds,
losses nats per token, counts exact whole numbers.

``runs``, ``attempts``, ``attempt_metrics``, ``sweeps`` and ``imports`` are tables, ``metrics`` is a
view: the rows of ``attempt_metrics`` that belong to the curve of each run's accepted attempt. Rows
have no order; ask for one with ORDER BY.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelab.theory.accounting import (
    DEFAULT_FLOP_CONVENTION,
    DEFAULT_PARAM_CONVENTION,
    FLOP_CONVENTIONS,
    PARAM_CONVENTIONS,
)

SCHEMA_VERSION = 4
"""Raised with every change of a table; an older live database is then built anew from the files."""

TEXT = "VARCHAR"
WHOLE = "BIGINT"
REAL = "DOUBLE"
CLAIM = "BOOLEAN"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a public table.

    Attributes
    ----------
    name : str
        Its name, the same word as the field or option that it comes from.
    type : str
        DuckDB type.
    unit : str
        Unit of a number, empty for names, counts of things and claims.
    meaning : str
        What it says, and when it is NULL.
    """

    name: str
    type: str
    unit: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Table:
    """One public table: what a row is, which columns name it, and all columns."""

    name: str
    row: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    def column_names(self) -> tuple[str, ...]:
        """Return the names of the columns, in order."""
        return tuple(column.name for column in self.columns)


_PARAM_COUNTS = tuple(
    Column(f"n_params_{name}", WHOLE, "parameters", f"Parameters: {meaning}.")
    for name, meaning in PARAM_CONVENTIONS.items()
)
_FLOP_COUNTS = tuple(
    Column(
        f"flops_{name}",
        REAL,
        "FLOP",
        f"Training compute: {meaning}." + (" NULL before the end." if name == "executed" else ""),
    )
    for name, meaning in FLOP_CONVENTIONS.items()
)

_SHAPE = (
    Column("n_layers", WHOLE, "", "Blocks."),
    Column("d_model", WHOLE, "", "Width of the residual stream."),
    Column("n_heads", WHOLE, "", "Query heads."),
    Column("d_head", WHOLE, "", "Size of a head."),
    Column("d_ff", WHOLE, "", "Width of the SwiGLU hidden layer."),
    Column("vocab_size", WHOLE, "", "Tokens that occur, without padding."),
    Column("n_kv_heads", WHOLE, "", "Key and value heads; 0 means as many as n_heads."),
    Column("is_tied", CLAIM, "", "Whether the output head is the embedding matrix."),
    Column("has_qk_norm", CLAIM, "", "Whether queries and keys are normalised per head."),
    Column("n_experts", WHOLE, "", "Routed experts in a block; 0 is a dense model."),
    Column("n_active_experts", WHOLE, "", "Experts that each token passes through."),
)

_RECIPE = (
    Column("seq_len", WHOLE, "tokens", "Tokens in a sequence."),
    Column("batch_seqs", WHOLE, "sequences", "Sequences in an optimizer step, over all devices."),
    Column("tokens_per_step", WHOLE, "tokens", "batch_seqs x seq_len."),
    Column("n_steps", WHOLE, "steps", "Optimizer steps as planned; the schedule ends there."),
    Column("lr", REAL, "", "Peak learning rate."),
    Column("warmup_steps", WHOLE, "steps", "Steps of linear warm-up."),
    Column("schedule", TEXT, "", "cosine or wsd."),
    Column("decay_steps", WHOLE, "steps", "Steps of the closing decay under wsd."),
    Column("lr_end_ratio", REAL, "", "Learning rate at the last step over the peak."),
    Column("optimizer", TEXT, "", "Name of the optimizer."),
    Column("beta1", REAL, "", "Decay of the first moment."),
    Column("beta2", REAL, "", "Decay of the second moment."),
    Column("epsilon", REAL, "", "Added to the root of the second moment."),
    Column("weight_decay", REAL, "", "Decoupled weight decay."),
    Column("grad_clip", REAL, "", "Largest global gradient norm."),
    Column("z_loss", REAL, "", "Weight of the squared log-normaliser in the training loss."),
    Column("init_std", REAL, "", "Standard deviation of the embedding's initial weights."),
    Column("parametrization", TEXT, "", "standard or mup."),
    Column("precision", TEXT, "", "Number format of matrix products: fp32 or bf16."),
    Column("seed", WHOLE, "", "Seeds the initialisation and the order of the data."),
    Column("tokenizer", TEXT, "", "Name of the tokenizer."),
    Column("data_fingerprint", TEXT, "", "Content hash of the training tokens."),
    Column("eval_fingerprint", TEXT, "", "Content hash of the held-out tokens."),
    Column("ema_decay", REAL, "", "Decay of the average of the weights; 0 where none is kept."),
    Column("numerics_revision", WHOLE, "", "Revision of the trainer's mathematics."),
)

_EXECUTION = (
    Column("device", TEXT, "", "cpu or cuda."),
    Column("device_name", TEXT, "", "Name of the processor, as the driver or system gives it."),
    Column("step_mode", TEXT, "", "How a step runs: eager, compiled or graph."),
    Column("kernels", TEXT, "", "reference or triton."),
    Column("attention", TEXT, "", "explicit, sdpa, cudnn, flash or triton."),
    Column("n_threads", WHOLE, "threads", "CPU threads of the worker."),
    Column("micro_batch_seqs", WHOLE, "sequences", "Sequences in a forward pass; 0 is all."),
    Column("batched_runs", WHOLE, "runs", "Runs trained in the same step."),
    Column("n_devices", WHOLE, "devices", "Devices that shared the run."),
    Column("tensor_parallel", WHOLE, "devices", "Of them, how many share every block; 1 is none."),
    Column("recomputes_blocks", CLAIM, "", "Whether activations were computed again."),
)

RUNS = Table(
    "runs",
    "One run: what was planned, how it stands, and the result of its accepted attempt.",
    ("run_id",),
    (
        Column("run_id", TEXT, "", "Hash of everything that changes the science."),
        Column("status", TEXT, "", "planned, queued, running, done, diverged, failed, preempted "
               "or cancelled, as its files tell it."),
        Column("n_params", WHOLE, "parameters",
               f"Parameters N by the default convention, {DEFAULT_PARAM_CONVENTION}."),
        Column("n_tokens", WHOLE, "tokens",
               "Training tokens D, repeats included: as seen once it ended, before as planned."),
        Column("flops", REAL, "FLOP",
               f"Training compute C by the default convention, {DEFAULT_FLOP_CONVENTION}."),
        Column("loss_nats", REAL, "nats/token", "Final held-out loss; NULL unless done."),
        Column("loss_se_nats", REAL, "nats/token",
               "Standard error of that mean over held-out sequences, common to a sweep's runs."),
        Column("ema_loss_nats", REAL, "nats/token",
               "The same loss of the average of the weights; NULL where the run keeps none."),
        Column("unique_tokens", WHOLE, "tokens", "Distinct training tokens; NULL before the end."),
        Column("epochs", REAL, "", "n_tokens / unique_tokens; NULL before the end."),
        *_PARAM_COUNTS,
        *_FLOP_COUNTS,
        *_SHAPE,
        *_RECIPE,
        Column("attempts", WHOLE, "attempts", "Attempts made so far."),
        Column("accepted_attempt", WHOLE, "", "Which attempt counts; NULL before one does."),
        Column("steps_taken", WHOLE, "steps", "Optimizer steps of the result; NULL before one."),
        Column("wall_s", REAL, "s", "Seconds of training, over all attempts resumed from."),
        Column("energy_j", REAL, "J", "Energy over the same time; NULL where no counter tells."),
        Column("diverged_at_step", WHOLE, "steps", "Step at which divergence was established."),
        Column("reason", TEXT, "", "Why the run, or its newest attempt, ended when not as done."),
        *_EXECUTION,
    ),
)  # fmt: skip

ATTEMPTS = Table(
    "attempts",
    "One attempt at a run, accepted or not: where it ran, with what, and how it ended.",
    ("run_id", "attempt"),
    (
        Column("run_id", TEXT, "", "The run."),
        Column("attempt", WHOLE, "", "Number of the attempt, from 1; a newer one fences older."),
        Column("status", TEXT, "", "How it ended, or running when it has not said so."),
        Column("is_accepted", CLAIM, "", "Whether it is the attempt that counts."),
        Column("loss_nats", REAL, "nats/token", "Loss of its own record, superseded or not."),
        Column("reason", TEXT, "", "Why it ended, when not as done."),
        Column("resumed_from_attempt", WHOLE, "", "Whose checkpoint it started from, if any."),
        Column("resumed_from_step", WHOLE, "steps", "The step of that checkpoint."),
        Column("curve_after_step", WHOLE, "steps",
               "Its rows after this step are part of the run's curve; NULL when none is."),
        Column("curve_to_step", WHOLE, "steps", "Up to this step; NULL for all that follow."),
        Column("torn_lines", WHOLE, "lines", "Lines of its curve that could not be read."),
        Column("started_s", REAL, "Unix s", "When it started."),
        Column("ended_s", REAL, "Unix s", "When it ended; NULL when it has not said so."),
        Column("host", TEXT, "", "Name of the machine."),
        Column("job_id", TEXT, "", "SLURM job, if any."),
        Column("restart_count", WHOLE, "", "How often SLURM had requeued that job."),
        Column("energy_j", REAL, "J", "Energy of this attempt; NULL where no counter tells."),
        *_EXECUTION,
        Column("git_commit", TEXT, "", "Commit of the trainer's source; NULL when installed."),
        Column("is_dirty", CLAIM, "", "Whether that source was edited since."),
        Column("versions", TEXT, "", "JSON: versions of Python and the libraries."),
    ),
)  # fmt: skip

_METRIC_COLUMNS = (
    Column("run_id", TEXT, "", "The run."),
    Column("attempt", WHOLE, "", "The attempt that wrote the row."),
    Column("step", WHOLE, "steps", "Optimizer steps taken so far."),
    Column("tokens", WHOLE, "tokens", "Tokens seen so far."),
    Column("loss_nats", REAL, "nats/token", "Training loss of this step's batch."),
    Column("lr", REAL, "", "Learning rate used in this step."),
    Column("grad_norm", REAL, "", "Global gradient norm before clipping."),
    Column("tokens_per_s", REAL, "tokens/s", "Throughput since the previous row."),
    Column("tflops_per_s", REAL, "TFLOP/s", "Exact-convention compute of each device since then."),
    Column("mfu", REAL, "", "Share of the device's peak; NULL where that is not known."),
    Column("loss_scale", REAL, "", "Scale of the loss where a trainer scales it, else NULL."),
    Column("eval_loss_nats", REAL, "nats/token", "Held-out loss, where it was evaluated."),
    Column("noise_trace", REAL, "", "Gradient noise scale: trace of the covariance."),
    Column("noise_grad_sq", REAL, "", "Gradient noise scale: squared norm of the gradient."),
    Column("time_s", REAL, "Unix s", "When the row was written."),
)

ATTEMPT_METRICS = Table(
    "attempt_metrics",
    "One row of the training curve of any attempt, as it was written.",
    ("run_id", "attempt", "step"),
    _METRIC_COLUMNS,
)

METRICS = Table(
    "metrics",
    "One row of the training curve of a finished run: its accepted attempt, and before the step "
    "from which that one resumed the attempt that it resumed from. Each step occurs once.",
    ("run_id", "step"),
    _METRIC_COLUMNS,
)

SWEEPS = Table(
    "sweeps",
    "One run as a member of one sweep; sweeps share runs.",
    ("sweep", "run_id"),
    (
        Column("sweep", TEXT, "", "Name of the sweep."),
        Column("run_id", TEXT, "", "The run."),
        Column("position", WHOLE, "", "Place of the run in the plan, from 1."),
        Column("budget_flops", REAL, "FLOP", "Nominal budget of its isoFLOP curve; NULL if none."),
        Column("kind", TEXT, "", "What was planned: isoflop, grid, .."),
        Column("created_s", REAL, "Unix s", "When the sweep was first launched."),
    ),
)

IMPORTS = Table(
    "imports",
    "One result made elsewhere, from the rows that `scalelab import` accepted.",
    ("import", "line"),
    (
        Column("import", TEXT, "", "Name of the import."),
        Column("line", WHOLE, "", "Line of the imported file."),
        Column("n_params", REAL, "parameters", "Parameters N, counted as param_convention says."),
        Column("n_tokens", REAL, "tokens", "Training tokens D."),
        Column("loss_nats", REAL, "nats/token", "Final loss (or in the file's own unit)."),
        Column("flops", REAL, "FLOP", "Training compute C, counted as flop_convention says."),
        Column("budget_flops", REAL, "FLOP", "Nominal isoFLOP budget; NULL if none."),
        Column("cluster", TEXT, "", "Rows that share noise share it; one of its own if not given."),
        Column("param_convention", TEXT, "", "How N is counted; unstated when not said."),
        Column("flop_convention", TEXT, "", "How C is counted."),
        Column("imported_s", REAL, "Unix s", "When it was imported."),
        Column("extra", TEXT, "", "JSON: the file's further columns."),
    ),
)

TABLES = (RUNS, METRICS, SWEEPS, IMPORTS, ATTEMPTS, ATTEMPT_METRICS)
"""The public tables, in the order in which they are documented."""

STORED = (RUNS, SWEEPS, IMPORTS, ATTEMPTS, ATTEMPT_METRICS)

_METRICS_VIEW = """
CREATE VIEW metrics AS
SELECT m.* FROM attempt_metrics AS m JOIN attempts AS a USING (run_id, attempt)
WHERE m.step > a.curve_after_step AND (a.curve_to_step IS NULL OR m.step <= a.curve_to_step)
"""

_COLLECTOR_TABLES = """
CREATE SCHEMA collector;
CREATE TABLE collector.store (schema BIGINT, generation BIGINT);
CREATE TABLE collector.runs (run_id VARCHAR, signature VARCHAR);
CREATE TABLE collector.files (
    run_id VARCHAR, attempt BIGINT, token VARCHAR, bytes_read BIGINT, last_step BIGINT, torn BIGINT
);
CREATE TABLE collector.sources (kind VARCHAR, name VARCHAR, signature VARCHAR);
"""
"""What the collector remembers between two calls; not public."""


def create_statements() -> str:
    """Return the SQL that makes an empty database, comments included."""
    parts = [_COLLECTOR_TABLES, f"INSERT INTO collector.store VALUES ({SCHEMA_VERSION}, 0);"]
    for table in STORED:
        columns = ", ".join(f'"{column.name}" {column.type}' for column in table.columns)
        parts.append(f"CREATE TABLE {table.name} ({columns});")
    parts.append(f"{_METRICS_VIEW.strip()};")
    for table in TABLES:
        kind = "VIEW" if table is METRICS else "TABLE"
        parts.append(f"COMMENT ON {kind} {table.name} IS {_text(table.row)};")
        for column in table.columns:
            unit = f" [{column.unit}]" if column.unit else ""
            parts.append(
                f'COMMENT ON COLUMN {table.name}."{column.name}" IS {_text(column.meaning + unit)};'
            )
    return "\n".join(parts)


def as_markdown() -> str:
    """Return the documentation of the tables: ``docs/reference/tables.md``, whole."""
    lines = [
        "# The tables of scalelab.duckdb",
        "",
        "Printed from `scalelab/store/schema.py` by `python -m scalelab.store.schema`; "
        "a test holds it to that.",
        "",
        "Open `<results>/scalelab.duckdb` read-only at any time, also while a sweep runs; "
        "`scalelab collect` brings it up to date.",
        "Rows have no order of their own: ask with ORDER BY.",
    ]
    for table in TABLES:
        key = ", ".join(f"`{name}`" for name in table.key)
        lines += ["", f"## {table.name}", "", table.row, f"Key: {key}.", ""]
        lines += ["| column | type | unit | meaning |", "|---|---|---|---|"]
        lines += [f"| `{c.name}` | {c.type} | {c.unit} | {c.meaning} |" for c in table.columns]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


if __name__ == "__main__":
    print(as_markdown(), end="")

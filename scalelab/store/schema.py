"""Columns of the public tables: name, SQL type, unit and meaning.

The collector creates the tables and their DuckDB comments from this module, and
``docs/reference/tables.md`` is generated from it. Times are Unix seconds, losses nats per token,
counts exact integers.

``metrics`` is a view of ``attempt_metrics``: the rows that form the curve of each run's accepted
attempt. The others are tables. Rows have no fixed order; use ORDER BY.
"""

from __future__ import annotations

from scalelab.store.table_types import BOOL, INT, REAL, TEXT, Column, Table
from scalelab.theory.accounting import (
    DEFAULT_FLOP_CONVENTION,
    DEFAULT_PARAM_CONVENTION,
    FLOP_CONVENTIONS,
    PARAM_CONVENTIONS,
)

SCHEMA_VERSION = 9
"""Increase it with every change of a table; the collector then rebuilds an older database."""

_PARAM_COUNTS = tuple(
    Column(f"n_params_{name}", INT, "parameters", f"Parameters: {meaning}.")
    for name, meaning in PARAM_CONVENTIONS.items()
)
_FLOP_COUNTS = tuple(
    Column(
        f"flops_{name}",
        REAL,
        "FLOPs",
        f"Training compute: {meaning}." + (" NULL until the end." if name == "executed" else ""),
    )
    for name, meaning in FLOP_CONVENTIONS.items()
)

_SHAPE = (
    Column("n_layers", INT, "", "Transformer blocks."),
    Column("d_model", INT, "", "Width of the residual stream."),
    Column("n_heads", INT, "", "Query heads."),
    Column("d_head", INT, "", "Dimension of a head."),
    Column("d_ff", INT, "", "Width of the SwiGLU hidden layer, or of one routed expert."),
    Column("vocab_size", INT, "", "Tokens in the vocabulary, without padding."),
    Column("n_kv_heads", INT, "", "Key and value heads; 0 means n_heads."),
    Column("is_tied", BOOL, "", "Whether the output head is the embedding matrix."),
    Column("has_qk_norm", BOOL, "", "Whether queries and keys are normalised per head."),
    Column("n_experts", INT, "", "Routed experts per block; 1 for a dense model."),
    Column("n_active_experts", INT, "", "Routed experts per token; 1 for a dense model."),
    Column("d_shared_expert", INT, "", "Width of the expert that all tokens pass; 0 for none."),
    Column(
        "granularity", REAL, "", "8/3 d_model over the width of an expert; 1 for a dense model."
    ),
    Column("density", REAL, "", "Active parameters over all parameters."),
)

_RECIPE = (
    Column("seq_len", INT, "tokens", "Tokens per sequence."),
    Column("batch_seqs", INT, "sequences", "Sequences per optimizer step, over all devices."),
    Column("tokens_per_step", INT, "tokens", "batch_seqs x seq_len."),
    Column("n_steps", INT, "steps", "Planned optimizer steps, the length of the schedule."),
    Column("lr", REAL, "", "Peak learning rate."),
    Column("warmup_steps", INT, "steps", "Steps of linear warm-up."),
    Column("schedule", TEXT, "", "cosine or wsd."),
    Column("decay_steps", INT, "steps", "Steps of the final decay of a wsd schedule."),
    Column("lr_end_ratio", REAL, "", "Learning rate of the last step divided by the peak."),
    Column("optimizer", TEXT, "", "Name of the optimizer."),
    Column("beta1", REAL, "", "Decay rate of the first moment."),
    Column("beta2", REAL, "", "Decay rate of the second moment."),
    Column("epsilon", REAL, "", "Added to the square root of the second moment."),
    Column("weight_decay", REAL, "", "Decoupled weight decay."),
    Column("grad_clip", REAL, "", "Global gradient norm above which gradients are scaled down."),
    Column("z_loss", REAL, "", "Weight of the squared log-normaliser in the training loss."),
    Column("logit_softcap", REAL, "", "Cap of the logits in training and evaluation; 0 for none."),
    Column("is_document_masked", BOOL, "", "Whether attention stays inside a document."),
    Column("end_token", INT, "", "Token that ends a document, where attention stays inside."),
    Column("balance_weight", REAL, "", "Weight of the load-balance loss of a mixture of experts."),
    Column("router_z_weight", REAL, "", "Weight of the squared log-normaliser of the router."),
    Column("init_std", REAL, "", "Standard deviation of the initial embedding weights."),
    Column("parametrization", TEXT, "", "standard, mup or completep."),
    Column("precision", TEXT, "", "Number format of matrix products: fp32, bf16 or fp8."),
    Column("seed", INT, "", "Seed of the initial weights and the data order."),
    Column("tokenizer", TEXT, "", "Name of the tokenizer."),
    Column("data_fingerprint", TEXT, "", "Hash of the training tokens."),
    Column("eval_fingerprint", TEXT, "", "Hash of the held-out tokens."),
    Column("ema_decay", REAL, "", "Decay rate of the moving average of the weights; 0 for none."),
    Column("eval_sets", TEXT, "", "Named evaluation sets with fingerprint and tokens, a JSON list; "
           "NULL without."),
    Column("eval_every", REAL, "", "Share of the schedule between evaluations; 0: only at its "
           "end."),
    Column("mixture", TEXT, "", "Sources of the training tokens with fingerprint and weight, a "
           "JSON list; NULL for one text."),
    Column("numerics_revision", INT, "", "Revision of the trainer's numerics."),
)  # fmt: skip

_PROGRAM = (
    Column("program", TEXT, "", "Command of the program that trained the run, a JSON list; NULL "
           "for the built-in trainer. Columns that it does not receive are NULL."),
    Column("program_version", TEXT, "", "Its version: declared, or commit and hash of changes."),
    Column("program_size", TEXT, "", "Its row of a table of sizes, as JSON; NULL without one."),
    Column("program_format", TEXT, "", "Format of its training log."),
)  # fmt: skip

_EXECUTION = (
    Column("device", TEXT, "", "cpu or cuda."),
    Column("device_name", TEXT, "", "Model name of the GPU or CPU."),
    Column("step_mode", TEXT, "", "How a step runs: eager, compiled, graph or direct."),
    Column("kernels", TEXT, "", "reference or triton."),
    Column("attention", TEXT, "", "explicit, sdpa, flash, triton or cudnn."),
    Column(
        "requested",
        TEXT,
        "",
        "Step, kernels and attention as requested: auto, or for example auto + triton + auto.",
    ),
    Column("n_threads", INT, "threads", "CPU threads of the worker."),
    Column("micro_batch_seqs", INT, "sequences", "Sequences per forward pass; 0 for all."),
    Column("batched_runs", INT, "runs", "Runs trained in the same step."),
    Column("n_devices", INT, "devices", "Devices that trained the run together."),
    Column("tensor_parallel", INT, "devices", "Devices that share each block; 1 for none."),
    Column("recomputes_blocks", BOOL, "", "Whether the backward pass recomputed activations."),
)

RUNS = Table(
    "runs",
    "One run: its plan, its status, and the result of its accepted attempt.",
    ("run_id",),
    (
        Column("run_id", TEXT, "", "Hash of all settings that affect the result."),
        Column("status", TEXT, "", "planned, running, done, diverged, failed, pruned, preempted or "
               "cancelled, from the run's files."),
        Column("n_params", INT, "parameters",
               f"Parameters N by the default convention, {DEFAULT_PARAM_CONVENTION}."),
        Column("n_tokens", INT, "tokens",
               "Training tokens D, including repeats; planned tokens until the run ends."),
        Column("flops", REAL, "FLOPs", "Training compute C by flop_convention."),
        Column("flop_convention", TEXT, "",
               f"Convention of flops: {DEFAULT_FLOP_CONVENTION}, or reported or 6nd for a program "
               "whose shape is unknown."),
        Column("loss_nats", REAL, "nats/token", "Final held-out loss; NULL unless done."),
        Column("loss_se_nats", REAL, "nats/token",
               "Standard error of that mean over held-out sequences, shared by a sweep's runs."),
        Column("ema_loss_nats", REAL, "nats/token",
               "Held-out loss of the moving average of the weights; NULL if the run keeps none."),
        Column("bits_per_byte", REAL, "bits/byte",
               "Final held-out loss per byte of text: loss_nats / (ln 2 x bytes_per_token)."),
        Column("bytes_per_token", REAL, "bytes/token",
               "Mean bytes of text per held-out token; NULL if the tokenizer is unknown."),
        Column("unique_tokens", INT, "tokens", "Distinct training tokens; NULL until the end."),
        Column("epochs", REAL, "", "n_tokens / unique_tokens; NULL until the end."),
        *_PARAM_COUNTS,
        *_FLOP_COUNTS,
        *_SHAPE,
        *_RECIPE,
        *_PROGRAM,
        Column("attempts", INT, "attempts", "Attempts made so far."),
        Column("accepted_attempt", INT, "", "Number of the accepted attempt; NULL if none."),
        Column("steps_taken", INT, "steps", "Optimizer steps of that attempt; NULL if none."),
        Column("wall_s", REAL, "s", "Training time, including the attempts it resumed from."),
        Column("energy_j", REAL, "J", "Energy over the same time; NULL without an energy counter."),
        Column("diverged_at_step", INT, "steps", "Step at which divergence was detected."),
        Column("reason", TEXT, "", "Why the run or its newest attempt ended, unless done."),
        *_EXECUTION,
    ),
)  # fmt: skip

ATTEMPTS = Table(
    "attempts",
    "One attempt at a run, accepted or not: machine, software, execution and end.",
    ("run_id", "attempt"),
    (
        Column("run_id", TEXT, "", "The run."),
        Column("attempt", INT, "", "Number of the attempt, from 1; a newer one stops it."),
        Column("status", TEXT, "", "How it ended; running if it recorded no end."),
        Column("is_accepted", BOOL, "", "Whether the run's result is from this attempt."),
        Column("loss_nats", REAL, "nats/token", "Loss of this attempt, whether accepted or not."),
        Column("kind", TEXT, "",
               "How a user's program failed, such as usage; NULL without a failure."),
        Column("reason", TEXT, "", "Why it ended, unless done."),
        Column("evals", TEXT, "",
               "Other measurements at the end that a user's program reports, as JSON."),
        Column("resumed_from_attempt", INT, "",
               "Attempt whose checkpoint it resumed from; NULL if it started from step 0."),
        Column("resumed_from_step", INT, "steps", "Step of that checkpoint."),
        Column("curve_after_step", INT, "steps",
               "Its rows after this step are part of the run's curve; NULL if none are."),
        Column("curve_to_step", INT, "steps",
               "Its rows up to this step are part of it; NULL: no limit."),
        Column("torn_lines", INT, "lines", "Unreadable lines of its curve and its evaluations."),
        Column("started_s", REAL, "Unix s", "Start time."),
        Column("ended_s", REAL, "Unix s", "End time; NULL if it recorded no end."),
        Column("host", TEXT, "", "Host name of the machine."),
        Column("job_id", TEXT, "", "SLURM job id; NULL without SLURM."),
        Column("restart_count", INT, "", "How often SLURM had requeued the job."),
        Column("energy_j", REAL, "J", "Energy of this attempt; NULL without an energy counter."),
        *_EXECUTION,
        Column("git_commit", TEXT, "", "Commit of the scalelab source; NULL if installed."),
        Column("is_dirty", BOOL, "", "Whether the source had uncommitted changes."),
        Column("versions", TEXT, "", "Versions of Python and libraries, as JSON."),
    ),
)  # fmt: skip

_METRIC_COLUMNS = (
    Column("run_id", TEXT, "", "The run."),
    Column("attempt", INT, "", "Number of the attempt that wrote the row."),
    Column("step", INT, "steps", "Optimizer steps taken so far."),
    Column("tokens", INT, "tokens", "Tokens seen so far."),
    Column("loss_nats", REAL, "nats/token", "Training loss of the step's batch."),
    Column("lr", REAL, "", "Learning rate of the step."),
    Column("grad_norm", REAL, "", "Global gradient norm before clipping."),
    Column("tokens_per_s", REAL, "tokens/s", "Throughput since the previous row."),
    Column("tflops_per_s", REAL, "TFLOP/s",
           "FLOPs per device (exact convention) since the previous row."),
    Column("mfu", REAL, "", "Fraction of the device's peak FLOPs; NULL if unknown."),
    Column("loss_scale", REAL, "", "Loss scale of mixed precision; NULL without one."),
    Column("eval_loss_nats", REAL, "nats/token", "Held-out loss; NULL where it was not evaluated."),
    Column("noise_trace", REAL, "", "Gradient noise scale: trace of the gradient covariance."),
    Column("noise_grad_sq", REAL, "", "Gradient noise scale: squared norm of the gradient."),
    Column("time_s", REAL, "Unix s", "Time at which the row was written."),
)  # fmt: skip

ATTEMPT_METRICS = Table(
    "attempt_metrics",
    "One row of the training curve of an attempt.",
    ("run_id", "attempt", "step"),
    _METRIC_COLUMNS,
)

METRICS = Table(
    "metrics",
    "One row of the training curve of a finished run. Rows before the step at which the accepted "
    "attempt resumed are from the attempt it resumed from, so each step occurs once.",
    ("run_id", "step"),
    _METRIC_COLUMNS,
)

SWEEPS = Table(
    "sweeps",
    "One run in one sweep; several sweeps may share a run.",
    ("sweep", "run_id"),
    (
        Column("sweep", TEXT, "", "Name of the sweep."),
        Column("run_id", TEXT, "", "The run."),
        Column("position", INT, "", "Position of the run in the plan, from 1."),
        Column("budget_flops", REAL, "FLOPs", "Budget of its isoFLOP curve; NULL if none."),
        Column("kind", TEXT, "", "Kind of the sweep: isoflop, grid, ladder, .."),
        Column("created_s", REAL, "Unix s", "Time of the first launch of the sweep."),
    ),
)

IMPORTS = Table(
    "imports",
    "One row of an imported table that `scalelab import` accepted.",
    ("import", "line"),
    (
        Column("import", TEXT, "", "Name of the import."),
        Column("line", INT, "", "Line number in the imported file."),
        Column("n_params", REAL, "parameters", "Parameters N, counted by param_convention."),
        Column("n_tokens", REAL, "tokens", "Training tokens D."),
        Column("loss_nats", REAL, "nats/token", "Final loss, in the unit of the file."),
        Column("flops", REAL, "FLOPs", "Training compute C, counted by flop_convention."),
        Column("budget_flops", REAL, "FLOPs", "isoFLOP budget; NULL if none."),
        Column("cluster", TEXT, "", "Label of rows with correlated noise; unique by default."),
        Column("param_convention", TEXT, "", "How N is counted; unstated if unknown."),
        Column("flop_convention", TEXT, "", "How C is counted; unstated if unknown."),
        Column("imported_s", REAL, "Unix s", "Time of the import."),
        Column("extra", TEXT, "", "Other columns of the file, as JSON."),
    ),
)

EVALS = Table(
    "evals",
    "One evaluation of a finished run, or a measurement that it reports, or a loss of an imported "
    "row. Evaluations during training are from the same attempts as the rows of `metrics`.",
    ("run_id", "step", "set", "kind"),
    (
        Column("run_id", TEXT, "", "The run; IMPORT/LINE for an imported row."),
        Column("step", INT, "steps", "Optimizer steps taken so far; NULL if unknown."),
        Column("set", TEXT, "", "Name of the evaluation set, task or measurement; heldout is the "
               "part of the training text that every run evaluates."),
        Column("kind", TEXT, "", "text: a loss on a text. task: items with choices. reported: a "
               "number of a user's program."),
        Column("loss_nats", REAL, "nats/token", "Mean loss per token."),
        Column("bits_per_byte", REAL, "bits/byte", "Loss per byte of the text; for a task with "
               "choices, of the right answer. NULL if the bytes are unknown."),
        Column("accuracy", REAL, "", "Share of items whose right answer has the highest mean "
               "log-likelihood per byte; NULL for a text."),
        Column("ema_loss_nats", REAL, "nats/token", "Loss of the moving average of the weights; "
               "NULL if the run keeps none."),
        Column("stderr", REAL, "", "Standard error of loss_nats for a text, of accuracy for a "
               "task."),
        Column("n_tokens", INT, "tokens", "Tokens that the evaluation predicts; NULL if unknown."),
        Column("n_bytes", INT, "bytes", "Bytes of text of these tokens; NULL if unknown."),
        Column("n_items", INT, "", "Items of a task; NULL for a text."),
        Column("value", REAL, "", "A reported measurement, in the unit of its program."),
        Column("is_final", BOOL, "", "Whether the run's training had ended."),
        Column("source", TEXT, "", "training, evaluate (scalelab evaluate), program or import."),
    ),
)  # fmt: skip

MIXTURES = Table(
    "mixtures",
    "One source of the mixture of texts that a run trains on.",
    ("run_id", "source"),
    (
        Column("run_id", TEXT, "", "The run."),
        Column("source", TEXT, "", "Name of the source; the evaluation set of this name is its "
               "held-out part."),
        Column("weight", REAL, "", "Its share of the training tokens."),
        Column("n_tokens", INT, "tokens", "Training tokens that the planned run draws from it, "
               "repeats included."),
        Column("unique_tokens", INT, "tokens", "Distinct training tokens that it has; NULL until "
               "the end of the run."),
        Column("epochs", REAL, "", "n_tokens / unique_tokens; below 1, a part of it is not used. "
               "NULL until the end of the run."),
    ),
)  # fmt: skip

TABLES = (RUNS, METRICS, EVALS, MIXTURES, SWEEPS, IMPORTS, ATTEMPTS, ATTEMPT_METRICS)
"""The public tables, in the order of the documentation."""

STORED = (RUNS, EVALS, MIXTURES, SWEEPS, IMPORTS, ATTEMPTS, ATTEMPT_METRICS)

RUN_TABLES = (RUNS, ATTEMPTS, EVALS, MIXTURES, ATTEMPT_METRICS)
"""Tables with rows from run folders."""

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
"""State of the collector between two calls; not public."""


def create_statements() -> str:
    """Return the SQL that creates an empty database with its comments."""
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
    """Return the content of ``docs/reference/tables.md``."""
    lines = [
        "# The tables of scalelab.duckdb",
        "",
        "Generated from `scalelab/store/schema.py` by `python -m scalelab.store.schema`; "
        "a test checks that this page is up to date.",
        "",
        "Open `<results>/scalelab.duckdb` read-only at any time, also while a sweep runs. "
        "`scalelab collect` updates it.",
        "Rows have no fixed order; use ORDER BY.",
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

"""What a sweep with a program of the user may set: keys that the program cannot see are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalelab.errors import UsageError

if TYPE_CHECKING:
    from scalelab.sweep.program_table import ProgramTable
    from scalelab.sweep.spec import SweepSpec

NO_PLACEHOLDER = (
    *("optimizer", "parametrization", "epsilon", "z_loss", "logit_softcap", "is_document_masked"),
    *("init_std", "ema_decay", "eval_every", "balance_weight", "router_z_weight", "precision"),
)
"""Keys of ``[train]`` that only the built-in trainer has."""
PLACEHOLDERS_OF = {
    "lr": ("lr", "lr_end"),
    "lr_rule": ("lr", "lr_end"),
    "lr_end_ratio": ("lr_end", "lr_end_ratio"),
    "schedule": ("schedule", "decay_steps", "decay_ratio"),
    "warmup": ("warmup_steps", "warmup_ratio"),
    "decay": ("decay_steps", "decay_ratio"),
    "weight_decay": ("weight_decay",),
    "weight_decay_rule": ("weight_decay",),
    "beta1": ("beta1",),
    "beta2": ("beta2",),
    "grad_clip": ("grad_clip",),
}
"""Placeholders by which a program receives the keys of ``[train]``."""
BUILT_IN_EXECUTION = ("step", "kernels", "attention", "batched_runs", "checkpoint_interval_s")
"""Keys of ``[execution]`` that only the built-in trainer has."""


def refuse_unused_tables(sweep: SweepSpec, program: ProgramTable) -> None:
    """Raise UsageError for keys of a sweep that have no effect with its program."""
    if sweep.kind == "ladder":
        raise UsageError(
            "a ladder with [program]",
            "isoflop or grid: a ladder's trunk needs checkpoints of the built-in trainer",
            "Write kind = 'grid', with the same n_params and n_tokens.",
        )
    if sweep.data.mix:
        raise UsageError(
            f"a mixture of {', '.join(sweep.data.mix)} with [program]",
            "one text in [data], or data that the program mixes itself",
            "Remove the sources, or train with the built-in trainer.",
        )
    fields = type(sweep.train).model_fields
    given = [
        name
        for name in NO_PLACEHOLDER
        if name in sweep.train.model_fields_set
        and getattr(sweep.train, name) != fields[name].default
    ]
    if given:
        raise UsageError(
            f"train.{given[0]} with [program]",
            "settings that the program receives by a placeholder",
            f"Remove {given[0]}, and set it in program.command.",
        )
    if sweep.data.eval:
        name = next(iter(sweep.data.eval))
        raise UsageError(
            f"evaluation set {name} ([data.eval], --eval-set) with [program]",
            "sets that the program evaluates itself and reports under their names",
            "Remove it, and let the program report the loss: scalelab.program_log's "
            f'final(.., evals={{"{name}": loss}}), or the line {{"evals": {{"{name}": 2.31}}}}. It '
            "is then in the table evals.",
        )
    fields = type(sweep.execution).model_fields
    given = [
        name
        for name in BUILT_IN_EXECUTION
        if getattr(sweep.execution, name) not in (fields[name].default, 0)
    ]
    if given:
        raise UsageError(
            f"execution.{given[0]} with [program]",
            "settings that only the built-in trainer has, without [program]",
            f"Remove {given[0]} from [execution] and from the options: the program decides.",
        )
    if sweep.has_experts:
        raise UsageError(
            "mixtures of experts in [model] with [program]",
            "dense shapes, or a table of sizes of the program's own models",
            "Write size = {by = 'table', table = 'sizes.csv'} with the columns n_params, "
            "n_params_active and flops_per_token.",
        )
    if sweep.data.paths and (program.train_data or "train_data" not in program.used()):
        raise UsageError(
            "data.paths (--data) with a program that does not receive it",
            "a command with {train_data}, and no program.train_data",
            "Add '{train_data}' to program.command, or remove data.paths.",
        )
    if program.size.by == "table" and sweep.model.model_fields_set:
        raise UsageError(
            f"model.{min(sweep.model.model_fields_set)} with a table of sizes",
            "[model], or program.size.by = table: both give the models",
            "Remove [model], or remove program.size.",
        )
    if len(set(sweep.train.seeds)) > 1 and "seed" not in program.used():
        raise UsageError(
            f"{len(set(sweep.train.seeds))} seeds for a command without {{seed}}",
            "a command that receives the seed, because equal commands are one run",
            "Add for example '--seed={seed}' to program.command, or use one seed.",
        )


def unused_settings(sweep: SweepSpec, program: ProgramTable) -> list[str]:
    """Return the given keys of ``[train]`` that the program does not receive."""
    used = program.used()
    return [
        name
        for name, placeholders in PLACEHOLDERS_OF.items()
        if name in sweep.train.model_fields_set and not used.intersection(placeholders)
    ]

"""``scalelab tune``: laws of the best learning rate and batch, from a search or a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scalelab.cli.options import FROM_HELP, PlanOptions, option
from scalelab.cli.spec_options import SpecValues, spec_values, spread_options
from scalelab.cli.sweep_spec import checked, content_of, gives_sizes
from scalelab.cli.tune_view import print_answer, search
from scalelab.errors import UsageError

SEARCH, TABLE, ANSWER = "Search", "Use existing runs", "Answer"


@spread_options
def tune(
    context: typer.Context,
    options: PlanOptions,
    from_file: Annotated[
        Path | None,
        option(TABLE, FROM_HELP, "--from"),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        option(
            TABLE,
            "OURS=THEIRS,..: the file's column or SQL expression for n_params, n_tokens, "
            "loss_nats, lr, batch_tokens or batch_seqs, and cluster. Example: lr=peak_lr.",
            "--map",
        ),
    ] = None,
    where: Annotated[
        str | None,
        option(TABLE, "SQL condition on the file's columns. Example: lr < 0.1."),
    ] = None,
    transfer: Annotated[
        bool,
        option(
            SEARCH,
            "Check whether the best learning rate stays put over widths and depths, under each "
            "--parametrization. Without sizes: 16 times the width, 4 times the depth, tiny models. "
            "--lr sets the ends of the learning rates, --trials their number (default 7).",
            "--transfer",
        ),
    ] = False,
    predict: Annotated[
        str | None,
        option(ANSWER, "Model to recommend values for. Example: N=1e9,D=1e11."),
    ] = None,
    level: Annotated[float, option(ANSWER, "Confidence level of the intervals.")] = 0.9,
    bootstrap: Annotated[
        int,
        option(ANSWER, "Bootstrap replicates; 0 for no intervals."),
    ] = 300,
    seed: Annotated[int, option(ANSWER, "Random seed of the search and bootstrap.")] = 0,
) -> int:
    """Find how the best learning rate and batch depend on N and D.

    Searches here with --n-params and --n-tokens, or uses the runs of a table with --from.

    Example: scalelab tune --n-params 20K..80K:3 --n-tokens 500K,1M --name small
    Example: scalelab tune --transfer --dry-run
    Example: scalelab tune --from runs.csv --map lr=peak_lr --predict N=1e9,D=1e11 --seq-len 2048
    """
    from scalelab.store.read_options import parse_map
    from scalelab.sweep.option import validated
    from scalelab.sweep.train_table import TrainTable
    from scalelab.tune.spec import TuneSpec

    values = spec_values(context)
    if transfer:
        given = {"--from": from_file, "--map": mapping, "--where": where, "--predict": predict}
        return _transfer(values, given, level, seed, options)
    cells = [gives_sizes(values) or values.get("n_params"), values.get("n_tokens")]
    if (from_file is None) != all(cells) or (from_file is not None and any(cells)):
        raise UsageError(
            "no table and no cells to run" if from_file is None else "a table and cells to run",
            "either --from FILE, or --n-params with --n-tokens",
            "Try --n-params 20K..80K:3 --n-tokens 500K,1M.",
        )
    if from_file is not None:
        seq_len = values.get("train", "seq_len")
        if seq_len is not None:
            table = validated(TrainTable, {"seq_len": seq_len}, source="the options")
            seq_len = table.seq_len
        from scalelab.api.tuning import tune_law

        given = values.get("metric")
        answer = tune_law(
            from_file,
            metric=None if given is None else str(given),
            mapping=parse_map(mapping or []),
            where=where,
            seq_len=seq_len,
            predict=predict,
            level=level,
            n_replicates=bootstrap,
            seed=seed,
        )
        print_answer(answer, as_json=options.as_json)
        return answer.exit_code
    content = content_of(values, kind="grid")
    own = {name: content.pop(name) for name in TuneSpec.model_fields if name in content}
    spec = validated(TuneSpec, {"sweep": content, "seed": seed, **own}, source="the options")
    checked(spec.sweep, values)
    asked = {"predict": predict, "level": level, "n_replicates": bootstrap}
    return search(spec, asked, options)


def _transfer(
    values: SpecValues, given: dict[str, Any], level: float, seed: int, options: PlanOptions
) -> int:
    """Check the transfer of learning rates with the options that apply to it."""
    from scalelab.cli.transfer_view import check_transfer
    from scalelab.sweep.option import validated
    from scalelab.tune.spec import TuneSpec
    from scalelab.tune.transfer import N_RATES, with_defaults

    searched = {"--wave": values.get("wave"), "--prune": values.get("is_pruned")}
    wrong = [flag for flag, value in {**given, **searched}.items() if value not in (None, [])]
    if wrong:
        raise UsageError(
            f"{wrong[0]} with --transfer",
            "shapes to train: --shape-list or --n-params, --n-tokens, --lr, --trials",
            f"Remove {wrong[0]}.",
        )
    content = content_of(values, kind="grid")
    own = {name: content.pop(name) for name in TuneSpec.model_fields if name in content}
    whole = {"trials": N_RATES, **own, "sweep": with_defaults(content), "seed": seed}
    spec = validated(TuneSpec, whole, source="the options")
    checked(spec.sweep, values)
    is_one = values.get("train", "parametrization") is not None
    return check_transfer(
        spec, spec.sweep.train.parametrization if is_one else None, level, options
    )

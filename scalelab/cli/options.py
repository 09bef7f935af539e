"""Options that several commands share, spelled once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from scalelab.cli.output import set_results
from scalelab.errors import UsageError

DEFAULT_RESULTS = Path("results")


def _checked_results(context: typer.Context, results: Path) -> Path:
    """Return the results folder; refuse a place where a file is in the way of one."""
    there = next(place for place in (results, *results.absolute().parents) if os.path.exists(place))
    if not os.path.isdir(there):
        raise UsageError(
            f"--results {results}, " + ("a file" if there == results else f"where {there} is one"),
            "a folder, or a place for one",
            "Name another with --results.",
        )
    default = os.environ.get("SCALELAB_RESULTS") or context.lookup_default("results")
    set_results(None if results == Path(default or DEFAULT_RESULTS) else results)
    return results


def results_option(panel: str | None = None) -> Any:
    """Return the option that names the results folder, in a panel of the help."""
    return typer.Option(
        "--results",
        envvar="SCALELAB_RESULTS",
        help="Results folder.",
        callback=_checked_results,
        rich_help_panel=panel,
    )


ResultsOption = Annotated[Path, results_option()]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout; everything else on stderr.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, whatever it costs.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan and its cost; prepare and start nothing.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the sweep; the same name continues it.")
]
LauncherOption = Annotated[
    str,
    typer.Option("--launcher", envvar="SCALELAB_LAUNCHER", help="local or slurm."),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Runs at once; default one a core, or one a GPU."),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", envvar="SCALELAB_DEVICE", help="cpu or cuda; default cuda where there is one."
    ),
]
KeepWeightsOption = Annotated[
    bool, typer.Option("--keep-weights", help="Keep each run's last checkpoint.")
]
ExtendOption = Annotated[
    bool, typer.Option("--extend", help="Add these runs to the sweep that has this name.")
]
AllowRepeatsOption = Annotated[
    bool, typer.Option("--allow-repeats", help="Allow more than 4 passes over the text.")
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="File, folder or glob of text, JSONL or Parquet; repeatable. Default: the source "
        "text of the running Python's standard library.",
    ),
]
TokenizerOption = Annotated[
    str | None, typer.Option("--tokenizer", help="bytes, or bpe:SIZE trained on the text.")
]
FieldOption = Annotated[
    str | None, typer.Option("--field", help="Field that holds the text in JSONL.")
]
ColumnOption = Annotated[
    str | None, typer.Option("--column", help="Column that holds the text in Parquet.")
]
EvalTokensOption = Annotated[
    str | None, typer.Option("--eval-tokens", help="Held-out tokens; default 262,144.")
]
SeqLenOption = Annotated[int | None, typer.Option("--seq-len", help="Tokens in a sequence.")]
BatchSeqsOption = Annotated[
    int | None, typer.Option("--batch-seqs", help="Sequences in a step; default by rule.")
]
LrOption = Annotated[
    float | None, typer.Option("--lr", help="Peak learning rate of every run; default by rule.")
]
LrRuleOption = Annotated[
    str | None,
    typer.Option(
        "--lr-rule",
        help="width, kaplan, deepseek, steplaw, olmo, or tuned:NAME (of `scalelab tune`).",
    ),
]
LrCheckOption = Annotated[
    bool,
    typer.Option(
        "--lr-check",
        help="Afterwards train each budget's best run at half and twice its learning rate, and "
        "say whether the rule held.",
    ),
]
ScheduleOption = Annotated[str | None, typer.Option("--schedule", help="cosine or wsd.")]
PrecisionOption = Annotated[
    str | None,
    typer.Option("--precision", help="fp32 or bf16; default fp32 on CPU, bf16 on CUDA."),
]
SeedsOption = Annotated[
    str | None, typer.Option("--seeds", help="Seeds, such as 0,1,2: one run of each size for each.")
]


def checked_device(device: str | None) -> str | None:
    """Return the device when it is one."""
    if device not in (None, "cpu", "cuda"):
        raise UsageError(f"device {device!r}", "cpu or cuda", "Choose one of the two.")
    return device

"""``scalelab bench qualify``: check and time the ways to execute a step on this machine's GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.cli.machine import MISSING, OK, PROBLEM, Check
from scalelab.cli.options import (
    DEFAULT_RESULTS,
    AttentionOption,
    DeviceOption,
    JsonOption,
    KernelsOption,
    PrecisionOption,
    ResultsOption,
    StepOption,
)
from scalelab.errors import EXIT_OK
from scalelab.sweep.execution import AUTO

if TYPE_CHECKING:
    from scalelab.sweep.run_spec import RunSpec

DEFAULT_SHAPES = {"cuda": ["1M", "10M", "124M"], "cpu": ["2L-16d-2h"]}
DEFAULT_SEQ_LEN = {"cuda": 1024, "cpu": 32}
REASON_LENGTH = 100


def qualify(
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            help="Layers, width and heads, such as 4L-64d-2h, or a model size, such as 124M; "
            "repeat for several. Default: 1M, 10M and 124M.",
        ),
    ] = None,
    sweep: Annotated[
        str | None, typer.Option("--sweep", help="Use the shapes of this sweep.")
    ] = None,
    device: DeviceOption = None,
    seq_len: Annotated[
        int | None, typer.Option(min=1, help="Tokens per sequence; default 1,024.")
    ] = None,
    batch_seqs: Annotated[int, typer.Option(min=1, help="Sequences per step.")] = 16,
    vocab_size: Annotated[int, typer.Option(min=2, help="Vocabulary size.")] = 32_000,
    precision: PrecisionOption = None,
    step: StepOption = AUTO,
    kernels: KernelsOption = AUTO,
    attention: AttentionOption = AUTO,
    force: Annotated[
        bool, typer.Option("--force", help="Measure again what was measured before.")
    ] = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Check and time the ways to execute a training step on this GPU.

    A worker does this by itself, in at most two minutes, the first time that it meets a GPU.
    Kernels and whole steps are compared with plain PyTorch; wrong ones are ruled out. The verdict
    is kept in the user's cache, and in the results folder if that has verdicts.

    Example: scalelab bench qualify --shape 124M
    """
    from scalelab.cli.bench import requested
    from scalelab.cli.output import console, emit_json
    from scalelab.launch.executable import require_executable
    from scalelab.records.qualification import cached_verdicts, read_verdict
    from scalelab.records.sweep_dir import Results
    from scalelab.sweep.execution import QualifyRequest, default_precision, representative_specs
    from scalelab.train.engine import require_device
    from scalelab.train.qualify.choose import qualified

    request = requested(device, step=step, kernels=kernels, attention=attention)
    require_device(request)
    kept = Results(results)
    if sweep is None:
        specs = _specs(
            shape or DEFAULT_SHAPES[request.device],
            seq_len or DEFAULT_SEQ_LEN[request.device],
            batch_seqs if request.device == "cuda" else min(batch_seqs, 4),
            vocab_size if request.device == "cuda" else min(vocab_size, 256),
            precision or default_precision(request.device),
        )
    else:
        specs = [kept.run(run_id).read_spec() for run_id in kept.load_plan(sweep).run_ids]
    require_executable(request, specs)
    specs = list(representative_specs(specs))
    folder = kept.qualification if kept.qualification.exists() else cached_verdicts()
    asked = QualifyRequest(folder or kept.qualification, tuple(specs))
    chosen, note = qualified(request, specs[-1], n_runs=1, request_=asked, is_forced=force)
    verdict = read_verdict(Path(note["file"])) if note.get("file") else None
    if as_json:
        emit_json({"schema": 1, "command": "bench qualify", **note, "verdict": verdict})
        return EXIT_OK
    out = console()
    if verdict is None:
        out.print(
            f"Nothing to measure on {chosen.device}: a run takes {chosen.step} + {chosen.kernels} "
            f"+ {chosen.attention}.",
            soft_wrap=True,
        )
        return EXIT_OK
    out.print(f"{verdict['platform']['device']}, measured in {verdict['took_s']:.0f} s")
    for line in verdict_lines(verdict):
        out.print(line, soft_wrap=True)
    out.print(f"Verdict: {note['file']}", soft_wrap=True)
    return EXIT_OK


def _specs(
    shapes: Sequence[str], seq_len: int, batch_seqs: int, vocab_size: int, precision: str
) -> list[RunSpec]:
    from scalelab.cli.bench import shape_named
    from scalelab.sweep.shape_rule import ALIGNED
    from scalelab.train.calibrate import synthetic_run

    shape = functools.partial(shape_named, vocab_size=vocab_size, table=ALIGNED)
    return [
        replace(
            synthetic_run(shape(text), seq_len=seq_len, batch_seqs=batch_seqs),
            precision=precision,
        )
        for text in shapes
    ]


def verdict_lines(verdict: Mapping[str, Any]) -> Iterator[str]:
    """Yield the result of each kernel that is not right, and of each way at each shape."""
    from scalelab.records.qualification import name_of
    from scalelab.units import plural

    checks = [check for entry in verdict["kernels"] for check in entry["checks"]]
    bad = [check for check in checks if check["status"] != "ok"]
    yield f"{plural(len(checks), 'kernel check')}, {len(checks) - len(bad)} right"
    for check in bad:
        yield f"  {check['op']} ({check['size']}): {check['status']}, {check['reason']}"
    for entry in verdict["shapes"]:
        runs = f", {entry['n_runs']} batched runs" if entry["n_runs"] > 1 else ""
        size = f"{entry['batch_seqs']}x{entry['seq_len']} tokens, {entry['kind']['precision']}"
        yield f"{entry['label']}, {size}{runs}"
        for candidate in entry["candidates"]:
            is_chosen = entry["chosen"] is not None and name_of(candidate) == name_of(
                entry["chosen"]
            )
            found = candidate["status"]
            if candidate.get("step_ms") is not None:
                found = f"{candidate['step_ms']:.3g} ms"
            reason = f", {candidate['reason'][:REASON_LENGTH]}" if candidate["reason"] else ""
            taken = ", taken" if is_chosen else ""
            yield f"  {name_of(candidate)}: {found}{reason}{taken}"


def check_qualification(results: Path, gpus: Sequence[str]) -> list[Check]:
    """Return a line of ``scalelab doctor`` for each GPU with a verdict, or one that asks for it."""
    from scalelab.records.qualification import RULED_OUT, cached_verdicts, name_of, read_verdicts
    from scalelab.records.sweep_dir import Results
    from scalelab.units import plural

    use = "fast and right steps on GPUs"
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder in (Results(results).qualification, cached_verdicts()):
        for path, verdict in read_verdicts(folder).items():
            found.setdefault(path.name, (path, verdict))
    checks = []
    for path, verdict in found.values():
        chosen = dict.fromkeys(name_of(e["chosen"]) for e in verdict["shapes"] if e["chosen"])
        out = dict.fromkeys(
            f"{name_of(c)} ({c['status']})"
            for e in verdict["shapes"]
            for c in e["candidates"]
            if c["status"] in RULED_OUT
        )
        platform = verdict["platform"]
        text = (
            f"{platform['device']}, driver {platform['driver']}, torch {platform['torch']}: "
            f"{', '.join(chosen) or 'no way qualified'} at "
            f"{plural(len(verdict['shapes']), 'shape')}; {path}"
        )
        checks.append(
            Check(
                name="qualification",
                status=PROBLEM if out else OK,
                found=text + (f". Ruled out: {', '.join(out)}" if out else ""),
                needed_for=use,
                do="Runs do not use what is ruled out. To measure again: scalelab bench qualify "
                "--sweep NAME --force"
                if out
                else "",
            )
        )
    measured = {verdict["platform"]["device"] for _, verdict in found.values()}
    checks += [
        Check(
            name="qualification",
            status=MISSING,
            found=f"{gpu}: not measured yet",
            needed_for=use,
            do="Nothing to do: the first run measures. To do it now: scalelab bench qualify",
        )
        for gpu in dict.fromkeys(gpus)
        if gpu not in measured
    ]
    return checks

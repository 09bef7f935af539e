"""Tables of a sweep specification: data, execution and launcher.

Each field is an option of the commands and a key of sweep files; see `scalelab.sweep.option`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, model_validator

from scalelab.corpus.source import AUTO as DETECTED
from scalelab.corpus.source import (
    DEFAULT_BPE_SAMPLE,
    DEFAULT_EVAL_TOKENS,
    DEFAULT_MAX_REJECTS,
    FINGERPRINTS,
    FORMATS,
    TOKEN_DTYPES,
    DataSource,
)
from scalelab.errors import UsageError
from scalelab.sweep.devices import require_divisible_devices
from scalelab.sweep.execution import ATTENTIONS, AUTO, KERNELS, STEPS, ExecutionSpec
from scalelab.sweep.gpu_counts import gpu_numbers
from scalelab.sweep.mix_table import Mix, MixWeights, split_named, with_weights
from scalelab.sweep.option import (
    DATA,
    EXECUTION,
    KINDS,
    LAUNCHER,
    NOT_TUNE,
    SLURM,
    Table,
    option,
)
from scalelab.sweep.site_options import KNOWN_OPTIONS, is_known, option_name, split_pairs
from scalelab.sweep.values import (
    AutoCount,
    Count,
    EvalTexts,
    Gigabytes,
    GpuCounts,
    Minutes,
    SiteOptions,
    Texts,
    TokenizerName,
)
from scalelab.theory.hardware import HARDWARE, find_hardware

MIX_WEIGHTS = (*KINDS, "adaptive", "tune")
"""Commands that train one mixture; a sweep over mixtures chooses the weights."""
SLURM_WORD = r"^[A-Za-z0-9_][A-Za-z0-9_.,-]*$"


class DataTable(Table):
    """``[data]``: the text and how it becomes tokens."""

    panel: ClassVar[str] = DATA

    paths: Texts = option(
        (), "Text to train on: a file, folder or glob of text, JSON, CSV or Parquet, also "
        "compressed; repeatable. Without it, the source text of Python's standard library",
        flag="--data", example="corpus/*.txt"
    )  # fmt: skip
    tokenizer: TokenizerName = option(
        "bytes", "bytes, bpe:SIZE trained on the text, a file (tokenizer.json, *.model of "
        "sentencepiece, *.tiktoken), or hf:NAME from the local cache of Hugging Face",
        example="bpe:4096"
    )  # fmt: skip
    field: str = option(
        "text", "Field of the text in JSON files; a dot enters a nested field", example="meta.text"
    )  # fmt: skip
    column: str = option(
        "text", "Column of the text in CSV and Parquet files; a dot enters a nested column",
        example="content"
    )  # fmt: skip
    eval_tokens: Count = option(
        DEFAULT_EVAL_TOKENS, "Tokens of the evaluation set; more tokens give a more precise loss",
        example="64K", ge=1
    )  # fmt: skip
    format: Literal[FORMATS] = option(  # type: ignore[valid-type]
        DETECTED, "How the files are read: text (each file is one document, markup included), rows "
        "of json, csv or parquet, or tokens in the format of another program. auto decides by "
        "ending and content, and reads .bin, .idx and .npy files and folders of Hugging Face or "
        "MosaicML as tokens", flag="--data-format", example="raw"
    )  # fmt: skip
    max_rejects: float = option(
        DEFAULT_MAX_REJECTS, "Largest share of documents that may be unusable (null, NUL, cut, not "
        "UTF-8); they are left out and listed", example="0.02", ge=0, le=1
    )  # fmt: skip
    eval_paths: Texts = option(
        (), "Token files of the evaluation set; repeatable. Without it, a part of the training "
        "tokens is held out", flag="--eval-data", example="val.bin"
    )  # fmt: skip
    dtype: Literal[(DETECTED, *TOKEN_DTYPES)] = option(  # type: ignore[valid-type]
        DETECTED, "Type of a token in files without a header; auto is uint16",
        flag="--token-dtype", example="uint32"
    )  # fmt: skip
    vocab_size: Count | None = option(
        None, "Vocabulary size of token files. Default: the largest token + 1", example="50257",
        ge=1
    )  # fmt: skip
    end_token: int | None = option(
        None, "Token that ends a document, of token files or of a tokenizer from a file. Default: "
        "what the files say", example="50256", ge=0
    )  # fmt: skip
    fingerprint: Literal[FINGERPRINTS] = option(  # type: ignore[valid-type]
        "sampled", "Token files are identified by samples, or by all their tokens",
        example="whole"
    )  # fmt: skip
    tokenizer_pattern: str | None = option(
        None, "How a *.tiktoken tokenizer cuts text into words: gpt2, cl100k, o200k or a regular "
        "expression", example="cl100k"
    )  # fmt: skip
    special_tokens: bool = option(
        False, "Read special tokens that the text spells, such as <|endoftext|>, as such; "
        "otherwise they are text", example="true"
    )  # fmt: skip
    bpe_sample: Count = option(
        DEFAULT_BPE_SAMPLE, "Bytes of text that a bpe:SIZE tokenizer is trained on; a larger "
        "sample takes longer and gives slightly fewer tokens", example="64M", ge=1
    )  # fmt: skip
    mix: Mix = option(
        {}, "Source of a mixture of texts, NAME=PATH; repeatable, and again for more paths of the "
        "same source. In a sweep file a table [data.mix] of sources by name, each with paths and "
        "weight, and if it differs, field, column and format", flag="--mix-source",
        example="code=src/"
    )  # fmt: skip
    mix_weight: MixWeights = option(
        {}, "Share of the training tokens that come from a source, NAME=SHARE; repeatable. The "
        "weights sum to 1", flag="--mix-weight", example="code=0.7", commands=MIX_WEIGHTS
    )  # fmt: skip

    eval: EvalTexts = option(
        {}, "Another evaluation set, which every run evaluates beside the held-out text: its name "
        "and a file, folder or glob; repeatable, also for more paths of a set",
        flag="--eval-set", example="code=eval/*.py"
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _weights_join_sources(cls, content: Any) -> Any:
        """Move the weights of ``--mix-weight`` into the sources."""
        given = content.get("mix_weight") if isinstance(content, Mapping) else None
        if not given:
            return content
        if not isinstance(given, Mapping):
            pairs = [given] if isinstance(given, str) else given
            given = split_named(pairs, "data.mix_weight", "code=0.7")
        mixed = with_weights(content.get("mix") or {}, given)
        return {**{k: v for k, v in content.items() if k != "mix_weight"}, "mix": mixed}

    @model_validator(mode="after")
    def _mixture_is_the_text(self) -> DataTable:
        if not self.mix:
            return self
        for flag, is_set in (("--data", self.paths), ("--eval-data", self.eval_paths)):
            if is_set:
                raise UsageError(
                    f"{flag} with a mixture of {', '.join(self.mix)}",
                    "either one text, or a mixture of sources, each with its own held-out part",
                    f"Remove {flag}, or name its text with --mix-source NAME=PATH.",
                )
        return self

    @model_validator(mode="after")
    def _sets_are_no_sources(self) -> DataTable:
        both = sorted(set(self.eval) & set(self.mix))
        if both:
            raise UsageError(
                f"evaluation set {both[0]}, which is also a source of the mixture",
                "another name: the held-out part of each source is evaluated under its name",
                f"Remove --eval-set {both[0]}, or rename the set or the source.",
            )
        return self

    def source(self) -> DataSource:
        """Return the text and its tokenizer, without a mixture."""
        return DataSource(**self.model_dump(exclude={"mix", "mix_weight", "eval"}))

    def sources(self) -> dict[str, DataSource]:
        """Return the sources of the mixture by name; empty without one."""
        base = self.source()
        return {
            name: replace(
                base,
                paths=source.paths,
                field=source.field or base.field,
                column=source.column or base.column,
                format=source.format or base.format,
            )
            for name, source in self.mix.items()
        }


class ExecutionTable(Table):
    """``[execution]``: how steps are executed; the runs and their run_ids do not depend on it."""

    panel: ClassVar[str] = EXECUTION

    step: Literal[(AUTO, *STEPS)] = option(  # type: ignore[valid-type]
        AUTO,
        "How a step is executed; auto takes the fastest way that the device qualifies",
        example="eager",
    )
    kernels: Literal[(AUTO, *KERNELS)] = option(  # type: ignore[valid-type]
        AUTO, "Operations of a step: plain torch (reference), or fused Triton kernels",
        envvar="SCALELAB_KERNELS", example="reference"
    )  # fmt: skip
    attention: Literal[(AUTO, *ATTENTIONS)] = option(  # type: ignore[valid-type]
        AUTO, "Attention of a step; auto takes only ways whose results repeat bit for bit",
        envvar="SCALELAB_ATTENTION", example="flash"
    )  # fmt: skip
    micro_batch_seqs: AutoCount = option(
        AUTO, "Sequences in a forward pass of a device; auto is its whole batch, or less if memory "
        "runs out", flag="--micro-batch", example="4", ge=0, validate_default=True
    )  # fmt: skip
    batched_runs: AutoCount = option(
        AUTO, "Maximum number of small runs in one step; auto batches runs where that is faster, "
        "1 trains each run alone", example="1", ge=0, validate_default=True
    )  # fmt: skip
    checkpoint_interval_s: float = option(
        30.0,
        "Seconds between checkpoints of a run; longer if checkpoints would take over 2 % of the "
        "time", flag="--checkpoint-interval", example="300", gt=0
    )  # fmt: skip

    def request(self, device: str, *, keeps_weights: bool = False) -> ExecutionSpec:
        """Return the request to execute runs this way on a device, ``cpu`` or ``cuda``."""
        return ExecutionSpec(device=device, keeps_weights=keeps_weights, **self.model_dump())


class SlurmTable(Table):
    """``[launcher.slurm]``: resources that jobs request from SLURM, and spending caps."""

    panel: ClassVar[str] = SLURM
    model_config = ConfigDict(
        # Editors accept options of sbatch beside the keys of the table.
        json_schema_extra={"additionalProperties": {"type": ["string", "number", "boolean"]}}
    )

    partition: str | None = option(None, "SLURM partition", example="gpu", pattern=SLURM_WORD)
    account: str | None = option(None, "SLURM account", example="lab", pattern=SLURM_WORD)
    qos: str | None = option(None, "SLURM quality of service", example="high", pattern=SLURM_WORD)
    gpus_per_run: GpuCounts = option(
        1, "GPUs of a run; 0 trains on the CPU. Conditions on the FLOPs of a run give large runs "
        "more, for example <1e19=1,>=1e19=8", example="8"
    )  # fmt: skip
    tensor_parallel: int = option(
        1, "GPUs that share each layer of a run (tensor parallelism); must divide --gpus-per-run",
        example="4", ge=1
    )  # fmt: skip
    gpus_per_node: int = option(
        8, "GPUs in a node; a run that needs more uses several nodes", example="4", ge=1
    )
    gpu: str = option(
        "h100", f"GPU model for time and cost estimates: {', '.join(HARDWARE)}", example="a100"
    )
    cpus: int = option(
        4, "CPU cores for each GPU's task, or for the job without a GPU", example="8", ge=1
    )
    mem_gb: Gigabytes | None = option(
        None, "Memory of a job on each node, GB if no unit is given; 0 for all memory of the node. "
        "Default: from the models of the jobs, at least 16 GB", flag="--mem", example="80G", ge=0
    )  # fmt: skip
    time_min: Minutes = option(
        240, "Largest time limit of a job: minutes, H:MM:SS or D-HH:MM:SS. Jobs with a shorter "
        "predicted time get a shorter limit", flag="--time", example="4:00:00", ge=1
    )  # fmt: skip
    array_parallelism: int = option(
        64, "Maximum number of jobs of the sweep that run at once", example="16", ge=1
    )
    target_job_minutes: float = option(
        30.0,
        "Group small runs into jobs of about this many minutes; 0 gives each run its own job",
        example="60", ge=0
    )  # fmt: skip
    max_gpu_hours: float | None = option(
        None, "Stop if used plus requested GPU-hours would exceed this; retries count",
        panel=LAUNCHER, example="100", gt=0
    )  # fmt: skip
    max_usd: float | None = option(
        None, "Stop if used plus requested cost in US dollars would exceed this; retries count",
        panel=LAUNCHER, example="50", gt=0
    )  # fmt: skip
    sbatch: SiteOptions = option(
        {}, "Option of sbatch that your site requires, such as constraint, reservation, gres or "
        "exclusive; repeatable. KEY=false leaves out an option that the launcher writes",
        example="constraint=a100"
    )  # fmt: skip
    setup: tuple[str, ...] = option(
        (), "Shell line to run before a job's runs; repeatable", example="module load cuda"
    )
    snapshot: bool = option(False, "Run jobs from a frozen copy of the source code", example="true")

    @model_validator(mode="before")
    @classmethod
    def _site_options_at_top(cls, content: Any) -> Any:
        """Move keys that are options of sbatch into ``sbatch``, which takes precedence."""
        if not isinstance(content, Mapping):
            return content
        moved = {key for key in content if key not in cls.model_fields and is_known(key)}
        for key in set(content).difference(cls.model_fields, moved):
            near = get_close_matches(option_name(key), sorted(KNOWN_OPTIONS), n=1, cutoff=0.8)
            if near and not get_close_matches(key, list(cls.model_fields), n=1):
                raise UsageError(
                    f"unknown key {key} in [launcher.slurm]",
                    "a key of the table, or an option of sbatch",
                    f"Did you mean {near[0]}?",
                )
        if not moved:
            return content
        kept = {key: value for key, value in content.items() if key not in moved}
        inner = kept.get("sbatch") or {}
        inner = inner if isinstance(inner, Mapping) else split_pairs(inner)
        top = {option_name(key): content[key] for key in moved}
        return {**kept, "sbatch": {**top, **{option_name(k): v for k, v in inner.items()}}}

    @model_validator(mode="after")
    def _gpus_are_valid(self) -> SlurmTable:
        find_hardware(self.gpu)
        numbers = gpu_numbers(self.gpus_per_run)
        if 0 in numbers and len(numbers) > 1:
            raise UsageError(
                f"gpus_per_run {self.gpus_per_run!r}, with runs on the CPU and on GPUs",
                "GPUs for all runs of a sweep or for none, because their data types differ",
                "Write at least 1 GPU in each condition.",
            )
        for number in numbers:
            require_divisible_devices(max(1, number), self.tensor_parallel)
        return self

    @property
    def uses_gpus(self) -> bool:
        """Whether runs train on GPUs."""
        return gpu_numbers(self.gpus_per_run) != (0,)


class LauncherTable(Table):
    """``[launcher]``: where runs are executed."""

    panel: ClassVar[str] = LAUNCHER

    name: Literal["local", "slurm"] = option(
        "local", "Where to run: on this machine, or as SLURM jobs", flag="--launcher",
        envvar="SCALELAB_LAUNCHER", example="slurm", commands=(*NOT_TUNE, "tune")
    )  # fmt: skip
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = option(
        (),
        "Tracker that also receives the training curves; repeatable",
        flag="--tracker",
        example="tensorboard",
    )
    largest_last: bool = option(
        False, "Train the largest budget after all others, and register forecasts of its runs "
        "before they start (see `scalelab scores`); without budgets, the runs with the most FLOPs",
        example="true", commands=KINDS
    )  # fmt: skip
    stop_hopeless: bool = option(
        False, "Stop a run whose predicted final loss is above the range that the finished runs "
        "of the sweep allow; its status is then pruned, and fits leave it out", example="true",
        commands=(*KINDS, "adaptive", "resume", "retry")
    )  # fmt: skip
    slurm: SlurmTable = SlurmTable()

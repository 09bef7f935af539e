"""Predicted time of a training step and of a kernel on a named GPU: the roofline.

What to use when:

- One kernel of known bytes and FLOPs: ``kernel_seconds(find_hardware("h200"), n_bytes=34e9)``.
- A whole step: ``step_seconds(find_hardware("h200"), StepConfig(shape=.., seq_len=2048,
  batch_seqs=32))``.
- A step part by part, with MFU and what bounds each part: `predict_step`.
- The head alone, by either route: `head_seconds`.

The module needs only the standard library, so a GPU machine without scalelab's other dependencies
can import it.

A kernel takes the longer of its compute and memory time. Matrix products leave a part of the
shorter one unhidden. No kernel is shorter than a fixed time, and there is a gap after each one.
Peaks and bandwidths are those of `scalelab.theory.hardware`, times the shares that long kernels
sustain. The table ``calibration`` of hardware.toml has the constants that no data sheet states.

References
----------
Williams et al. 2009, doi.org/10.1145/1498765.1498785 (roofline).
Chowdhery et al. 2022, arXiv:2204.02311, appendix B (MFU).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scalelab.errors import UsageError
from scalelab.theory.accounting import train_flops_per_token
from scalelab.theory.hardware import CALIBRATION, HARDWARE, Hardware
from scalelab.theory.head_work import head_work
from scalelab.theory.shape import ModelShape
from scalelab.theory.step_counts import step_work
from scalelab.theory.step_work import PARTS, StepConfig, Work

MICRO = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class PartTime:
    """Predicted time of one part of a step.

    Attributes
    ----------
    seconds : float
        Time of the part.
    flops : float
        FLOPs of the matrix units.
    n_bytes : float
        Bytes read and written in device memory.
    n_launches : float
        Kernels.
    bound : str
        ``compute``, ``memory`` or ``launch``: what takes longest in the part's kernels.
    """

    seconds: float
    flops: float
    n_bytes: float
    n_launches: float
    bound: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Predicted time of a step.

    Attributes
    ----------
    seconds : float
        Time of the step.
    parts : dict of PartTime
        By the names of `PARTS`; their seconds sum to the step's.
    tokens_per_s : float
        Of all batched runs together.
    mfu : float
        Model FLOPs (PaLM convention) over the dense bf16 peak.
    """

    seconds: float
    parts: dict[str, PartTime]
    tokens_per_s: float
    mfu: float

    @property
    def longest(self) -> str:
        """Name of the part that takes longest."""
        return max(self.parts, key=lambda name: self.parts[name].seconds)


def matmul_flops_per_s(hardware: Hardware, precision: str) -> float:
    """Return the FLOP/s that large matrix products sustain.

    Raises
    ------
    UsageError
        If the device does not have the precision.
    """
    if precision == "fp32":
        return hardware.fp32_flops_per_s * hardware.matmul_share
    if precision == "fp8":
        if hardware.fp8_flops_per_s is None:
            able = [item.name for item in HARDWARE.values() if item.fp8_flops_per_s]
            raise UsageError(
                f"precision = fp8 on {hardware.name}",
                f"fp32 or bf16 there; fp8 on {', '.join(able)}",
                "Use for example --precision bf16.",
            )
        return hardware.fp8_flops_per_s * CALIBRATION["fp8_share"].value
    return hardware.peak_flops_per_s * hardware.matmul_share


def copy_bytes_per_s(hardware: Hardware) -> float:
    """Return the bandwidth that streaming kernels sustain, bytes read and written per second."""
    return hardware.memory_bytes_per_s * hardware.memory_share


def kernel_seconds(
    hardware: Hardware,
    *,
    n_bytes: float = 0.0,
    flops: float = 0.0,
    precision: str = "bf16",
    n_launches: float = 1,
) -> float:
    """Return the expected seconds of a kernel, or of a fused operation of several launches.

    Parameters
    ----------
    hardware : Hardware
        From `find_hardware` or `match_hardware`.
    n_bytes : float
        Bytes that it reads and writes in device memory.
    flops : float
        FLOPs of the matrix units.
    precision : str
        ``fp32``, ``bf16`` or ``fp8``.
    n_launches : float
        Launches.

    Raises
    ------
    UsageError
        If a number is negative, or the device does not have the precision.
    """
    for name, value in (("n_bytes", n_bytes), ("flops", flops), ("n_launches", n_launches)):
        if not value >= 0:
            raise UsageError(f"{name} = {value}", "a number from 0", f"Use {name} = 0 or more.")
    return work_seconds(
        hardware,
        Work(
            part="elementwise",
            name="kernel",
            n_launches=n_launches,
            n_bytes=n_bytes,
            flops=flops,
            precision=precision,
        ),
    )


def step_seconds(hardware: Hardware, config: StepConfig) -> float:
    """Return the expected seconds of one training step; see `predict_step`."""
    return predict_step(hardware, config).seconds


def predict_step(hardware: Hardware, config: StepConfig) -> StepTime:
    """Return the expected time of one training step, part by part.

    Raises
    ------
    UsageError
        If the device does not have the precision.
    """
    work = step_work(config)
    parts = {name: _part(hardware, [w for w in work if w.part == name]) for name in PARTS[:-1]}
    n_launches = sum(part.n_launches for part in parts.values())
    gaps = _gap_seconds(config, n_launches, sum(part.seconds for part in parts.values()))
    parts["gaps"] = PartTime(
        seconds=gaps, flops=0.0, n_bytes=0.0, n_launches=n_launches, bound="launch"
    )
    seconds = sum(part.seconds for part in parts.values())
    tokens_per_s = config.n_tokens / seconds
    palm = train_flops_per_token(config.shape, config.seq_len)["palm"]
    return StepTime(
        seconds=seconds,
        parts=parts,
        tokens_per_s=tokens_per_s,
        mfu=tokens_per_s * palm / hardware.peak_flops_per_s,
    )


def head_seconds(
    hardware: Hardware, route: str, *, d_model: int, vocab_size: int, n_tokens: int = 65_536
) -> float:
    """Return the seconds of linear + cross-entropy, forward and backward in bf16.

    Parameters
    ----------
    hardware : Hardware
    route : str
        ``fused`` or ``chunked``.
    d_model, vocab_size, n_tokens : int
        Sizes of the product.
    """
    config = StepConfig(
        shape=ModelShape(
            n_layers=1, d_model=d_model, n_heads=1, d_head=2, d_ff=1, vocab_size=vocab_size
        ),
        seq_len=n_tokens,
        batch_seqs=1,
        head=route,
    )
    work = head_work(config)
    busy = sum(work_seconds(hardware, item) for item in work)
    return busy + _gap_seconds(config, sum(item.n_launches for item in work), busy)


def work_seconds(hardware: Hardware, work: Work) -> float:
    """Return the seconds in which the device executes the work, without gaps."""
    compute, memory, floor = _times(hardware, work)
    unhidden = CALIBRATION["matmul_unhidden_share"].value if work.is_product else 0.0
    return max(max(compute, memory) + unhidden * min(compute, memory), floor)


def _times(hardware: Hardware, work: Work) -> tuple[float, float, float]:
    """Return compute time, memory time, and the least time of the launches, s."""
    busy = min(1.0, work.n_tiles / hardware.n_multiprocessors)
    compute = 0.0
    if work.flops:
        rate = matmul_flops_per_s(hardware, work.precision) * work.rate_share
        compute = work.flops / (rate * busy)
    compute += work.vector_flops / hardware.fp32_flops_per_s
    memory = work.n_bytes / copy_bytes_per_s(hardware)
    return compute, memory, work.n_launches * CALIBRATION["kernel_floor_us"].value * MICRO


def _part(hardware: Hardware, work: Iterable[Work]) -> PartTime:
    work = list(work)
    times = [_times(hardware, item) for item in work]
    compute, memory, floor = (sum(column) for column in zip(*times, strict=True))
    bounds = {"compute": compute, "memory": memory, "launch": floor}
    return PartTime(
        seconds=sum(work_seconds(hardware, item) for item in work),
        flops=sum(item.flops for item in work),
        n_bytes=sum(item.n_bytes for item in work),
        n_launches=sum(item.n_launches for item in work),
        bound=max(bounds, key=lambda name: bounds[name]),
    )


def _gap_seconds(config: StepConfig, n_launches: float, busy: float) -> float:
    """Return the time in which the device waits: between kernels, or for the host."""
    gaps = n_launches * CALIBRATION["graph_gap_us"].value * MICRO
    if config.step == "graph":
        return gaps
    name = "compiled_call_us" if config.step == "compiled" else "eager_call_us"
    return max(gaps, n_launches * CALIBRATION[name].value * MICRO - busy)

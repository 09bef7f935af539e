"""The cases of ``make gpu-quick`` and ``make gpu`` in the order of their value, and the goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpu_cases.case import CHECK, COMPILE, Case, Goal

KERNELS = (
    "linear_cross_entropy_sum",
    "linear_cross_entropy",
    "attention",
    "qk_norm_rope",
    "add_rms_norm",
    "rms_norm",
    "swiglu",
    "adamw",
    "permute and unpermute",
    "grouped_linear",
)
"""Operations of `scalelab_kernels.checks`, the slowest to compile first."""
STEPS = {
    "step d=768": {"shape": "wide"},
    "step small, 4 runs": {"shape": "small", "n_runs": 4},
    "step grouped heads, micro-batches": {"shape": "grouped", "micro": 2},
    "step muP, 3 runs": {"shape": "aligned", "n_runs": 3, "parametrization": "mup"},
    "step Muon, 2 runs": {"shape": "aligned", "n_runs": 2, "optimizer": "muon"},
    "step EMA + z-loss": {"shape": "aligned", "ema_decay": 0.9, "z_loss": 1e-4},
}


LIMITS = {"kernels in a graph": "captured", "memory of the head": "memory"}
MORE_LIMITS = {"kernels compiled by torch": "compiled", "very large tensors": "large"}


def checks(*dtypes: str, n_rows: int) -> list[Case]:
    """Return the checks of kernels and steps."""
    kernels = [
        Case(
            name=f"kernel {op}",
            call="gpu_cases.kernel_checks:check",
            arguments={"op": op, "dtypes": dtypes, "n_rows": n_rows},
            limit_s=150,
            kind=CHECK,
        )
        for op in KERNELS
    ]
    kernels.append(
        Case(
            name="other kernels",
            call="gpu_cases.kernel_checks:check",
            arguments={"but": KERNELS, "dtypes": dtypes, "n_rows": n_rows},
            limit_s=90,
            kind=CHECK,
        )
    )
    steps = [
        Case(
            name=name,
            call="gpu_cases.step_checks:check",
            arguments=arguments,
            limit_s=120,
            kind=CHECK,
        )
        for name, arguments in STEPS.items()
    ]
    documents = Case(
        name="attention with documents", call="gpu_cases.kernel_checks:documents", kind=CHECK
    )
    devices = Case(
        name="step on GPU and CPU", call="gpu_cases.step_checks:devices", limit_s=90, kind=CHECK
    )
    fp8 = Case(name="products in fp8", call="gpu_cases.precision:products", kind=CHECK)
    # Steps first: they show most, and a lane that checks a kernel has few shapes to compile.
    return [steps[0], steps[1], *kernels, *steps[2:], devices, documents, fp8, *limits(LIMITS)]


def limits(named: Mapping[str, str]) -> list[Case]:
    """Return checks of `gpu_cases.kernel_limits`."""
    return [
        Case(name=name, call=f"gpu_cases.kernel_limits:{call}", limit_s=90, kind=CHECK)
        for name, call in named.items()
    ]


def model(name: str, seq_len: int, seconds: float = 3.0) -> Case:
    """Return the speed of a model."""
    return Case(
        name=f"{name} T={seq_len}",
        call="gpu_cases.step_speed:model",
        arguments={"name": name, "seq_len": seq_len, "seconds": seconds},
        limit_s=75,
    )


def batched(name: str) -> Case:
    """Return the speedup of batched runs."""
    return Case(
        name=f"batched {name}",
        call="gpu_cases.step_speed:batched",
        arguments={"name": name, "seconds": 1.5},
        limit_s=75,
    )


def operation(name: str, call: str, **arguments: int) -> Case:
    """Return the speed of one operation."""
    return Case(
        name=name, call=f"gpu_cases.operation_speed:{call}", arguments=arguments, limit_s=75
    )


DEVICE = Case(name="device", call="gpu_cases.child:versions", kind=CHECK)
"""The first case: if it fails, the others do not run."""
CEILINGS = Case(name="ceilings", call="gpu_cases.timing:ceilings", limit_s=45)
HEADS = [
    operation(f"head d={d}", "head", d=d, n_vocab=n_vocab)
    for d, n_vocab in ((128, 50_304), (256, 32_768), (768, 50_304))
]
STREAMS = [
    operation("stream add + norm d=768", "add_norm", d=768),
    operation("stream SwiGLU d_ff=2048", "swiglu", d_ff=2048),
    operation("stream norm + RoPE D=64", "norm_rope", n_heads=12, n_kv_heads=12, d_head=64),
    operation("stream AdamW", "adamw"),
]
ATTENTION = [
    operation(f"attention T={length} D={d_head}", "attention", length=length, d_head=d_head)
    for length, d_head in ((2048, 64), (2048, 128))
]
WAYS = Case(
    name="124M beside torch",
    call="gpu_cases.step_speed:ways",
    arguments={"name": "124M", "seq_len": 1024, "seconds": 2.0},
    limit_s=150,
)
QUALIFICATION = Case(name="qualification", call="gpu_cases.qualification:qualify", limit_s=170)
MUON = Case(
    name="124M Muon",
    call="gpu_cases.step_speed:optimizers",
    arguments={"name": "124M", "seq_len": 1024, "seconds": 2.0},
    limit_s=90,
)
FP8 = Case(
    name="50M in fp8 beside bf16",
    call="gpu_cases.precision:losses",
    arguments={"name": "50M", "seq_len": 1024},
    limit_s=120,
)


def compilations(cases: Sequence[Case]) -> list[Case]:
    """Return cases that compile what the given ones need, so that these start with warm caches.

    Compiling keeps one core busy, so several run at a time. Models have one block there, which has
    the same kernels, except where torch compiles the whole step.
    """
    found = []
    for case in cases:
        arguments = dict(case.arguments)
        if case.call.startswith("gpu_cases.step_speed"):
            if case.call.endswith(":trace"):
                continue
            arguments["seconds"] = 0.0
            if not case.call.endswith(":ways"):
                arguments["n_layers"] = 1
        elif not case.call.startswith("gpu_cases.operation_speed"):
            continue
        name = f"compile {case.name}"
        found.append(
            Case(name=name, call=case.call, arguments=arguments, limit_s=120, kind=COMPILE)
        )
    return found


def trace(out: str) -> Case:
    """Return the profile of a step, written to a folder."""
    return Case(
        name="trace 124M",
        call="gpu_cases.step_speed:trace",
        arguments={"name": "124M", "seq_len": 2048, "out": out},
        limit_s=75,
    )


def quick(out: str) -> list[Case]:
    """Return the cases of ``make gpu-quick``."""
    return [DEVICE, *checks("bf16", n_rows=1003), *timings(out)]


def timings(out: str) -> list[Case]:
    """Return the timings of ``make gpu-quick``."""
    return [
        CEILINGS,
        model("124M", 2048),
        model("10M", 2048),
        batched("0.1M"),
        batched("0.3M"),
        *HEADS,
        *STREAMS,
        *ATTENTION,
        WAYS,
        trace(out),
        QUALIFICATION,
        model("350M", 2048),
        model("50M", 2048),
        model("1.3B", 2048),
        MUON,
        FP8,
    ]


def long(out: str) -> list[Case]:
    """Return the cases of ``make gpu``: those of ``make gpu-quick`` and more sizes."""
    return [
        DEVICE,
        *checks("bf16", "fp16", "fp32", n_rows=8191),
        *limits(MORE_LIMITS),
        *timings(out),
        *(model(name, 1024) for name in ("10M", "50M", "124M", "350M", "1.3B")),
        batched("1M"),
        operation("head d=768, odd vocabulary", "head", d=768, n_vocab=50_257),
        operation("stream add + norm d=512", "add_norm", d=512),
        operation("stream add + norm d=2048", "add_norm", d=2048),
        operation("stream SwiGLU d_ff=5504", "swiglu", d_ff=5504),
        operation("stream norm + RoPE D=128", "norm_rope", n_heads=16, n_kv_heads=4, d_head=128),
        operation("stream experts", "experts"),
        *(
            operation(f"attention T=1024 D={d_head}", "attention", length=1024, d_head=d_head)
            for d_head in (64, 128)
        ),
    ]


GOALS_ON = ("H200", "H100")
"""Devices for which the goals were set, both with a peak of 989 TFLOP/s."""
GOALS: Sequence[Goal] = (
    *(
        Goal(case=f"{name} T=2048", figure="mfu", wanted=wanted)
        for name, wanted in (
            ("10M", 0.36),
            ("50M", 0.46),
            ("124M", 0.50),
            ("350M", 0.53),
            ("1.3B", 0.60),
        )
    ),
    Goal(case="batched 0.1M", figure="speedup", wanted=6.0),
    Goal(case="batched 0.3M", figure="speedup", wanted=4.0),
    *(
        Goal(case=case.name, figure=figure, wanted=wanted)
        for case in HEADS
        for figure, wanted in (("eager_ratio", 1.5), ("compiled_ratio", 1.0))
    ),
    *(Goal(case=case.name, figure="share_of_copy", wanted=0.85) for case in STREAMS),
    Goal(case=WAYS.name, figure="compiled_ratio", wanted=1.25),
)
"""Speed to reach; MFU by the PaLM convention."""

"""The trainer beside a plain nanoGPT-style one: ``python tests/benchmarks/train_baseline.py``.

The baseline is what a careful person writes in an afternoon: `torch.nn` modules, SDPA, RMSNorm
from torch, fused query-key-value, torch's AdamW, one process with all cores. Ours is the pool: one
pinned single-thread process a core. Both train the same shapes at the same precision on random
bytes; each takes the machine for itself, in turns, and medians are compared. It needs a quiet
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SEQ_LEN = 256
VOCAB = 256
SHAPES = {
    "0.2M": {"d_model": 64, "n_layers": 4, "batch_seqs": 8},
    "0.9M": {"d_model": 128, "n_layers": 4, "batch_seqs": 8},
    "4.8M": {"d_model": 256, "n_layers": 6, "batch_seqs": 8},
}
SMALL = {"d_model": 24, "n_layers": 4, "batch_seqs": 8}


def baseline(d_model: int, n_layers: int, batch_seqs: int, seconds: float) -> float:
    """Return tokens/s of the plain trainer, all cores in one process."""
    import torch
    from torch import nn
    from torch.nn import functional

    n_heads = max(1, d_model // 32)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.RMSNorm(d_model), nn.RMSNorm(d_model)
            self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
            self.out = nn.Linear(d_model, d_model, bias=False)
            self.up = nn.Linear(d_model, 4 * d_model, bias=False)
            self.down = nn.Linear(4 * d_model, d_model, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            b, t, d = x.shape
            q, k, v = self.qkv(self.first(x)).split(d, dim=2)
            q, k, v = (y.view(b, t, n_heads, -1).transpose(1, 2) for y in (q, k, v))
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
            return x + self.down(functional.gelu(self.up(self.second(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(VOCAB, d_model)
            self.places = nn.Embedding(SEQ_LEN, d_model)
            self.blocks = nn.ModuleList(Block() for _ in range(n_layers))
            self.norm = nn.RMSNorm(d_model)
            self.head = nn.Linear(d_model, VOCAB, bias=False)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.tokens(tokens[:, :-1]) + self.places.weight
            for block in self.blocks:
                x = block(x)
            logits = self.head(self.norm(x))
            return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_flush_denormal(True)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(VOCAB, (batch_seqs, SEQ_LEN + 1))
    times = []
    while len(times) < 5 or sum(times[2:]) < seconds:
        started = time.perf_counter()
        loss = model(tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - started)
    return batch_seqs * SEQ_LEN / statistics.median(times[2:])


def ours(d_model: int, n_layers: int, batch_seqs: int, seconds: float, n_runs: int = 1) -> float:
    """Return tokens/s of one worker of the pool."""
    from scalelab.sweep.run_spec import ExecutionSpec
    from scalelab.theory.shape import ModelShape
    from scalelab.train.bench import bench_train
    from scalelab.train.calibrate import synthetic_run

    # The baseline's GELU block has 8 d^2 feed-forward weights; SwiGLU with 8/3 d has as many.
    shape = ModelShape(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=max(1, d_model // 32),
        d_head=min(32, d_model),
        d_ff=-(-8 * d_model // 24) * 8,
        vocab_size=VOCAB,
    )
    spec = synthetic_run(shape, seq_len=SEQ_LEN, batch_seqs=batch_seqs)
    found = bench_train(spec, ExecutionSpec(pack_size=n_runs), n_runs=n_runs, seconds=seconds)
    return float(found["tokens_per_s"])


def measure(kind: str, shape: dict[str, int], seconds: float, **options: int) -> float:
    """Run one side in fresh processes and return its tokens/s together."""
    cores = sorted(os.sched_getaffinity(0))
    groups = [cores] if kind == "baseline" else [[core] for core in cores]
    request = json.dumps({**shape, **options, "seconds": seconds})
    processes = [
        subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, group)), sys.executable, __file__, kind, request],
            stdout=subprocess.PIPE,
            text=True,
        )
        for group in groups
    ]
    return sum(float(process.communicate()[0]) for process in processes)


def main() -> None:
    """Print one JSON object: tokens/s of both sides and their ratio, shape by shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", nargs="?", choices=("baseline", "ours"))
    parser.add_argument("request", nargs="?")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.side:
        side = baseline if arguments.side == "baseline" else ours
        print(side(**json.loads(arguments.request)))
        return
    table = {}
    for name, shape in SHAPES.items():
        turns = [
            (
                measure("baseline", shape, arguments.seconds),
                measure("ours", shape, arguments.seconds),
            )
            for _ in range(arguments.turns)
        ]
        table[name] = summarise(turns)
    turns = [
        (
            measure("baseline", SMALL, arguments.seconds),
            measure("ours", SMALL, arguments.seconds, n_runs=4),
        )
        for _ in range(arguments.turns)
    ]
    table["8 runs of 0.04M"] = summarise(turns)
    print(json.dumps({"cores": len(os.sched_getaffinity(0)), "table": table}, indent=1))


def summarise(turns: list[tuple[float, float]]) -> dict[str, float]:
    """Return the medians of both sides and of their ratio."""
    return {
        "baseline_tokens_per_s": statistics.median(plain for plain, _ in turns),
        "ours_tokens_per_s": statistics.median(pool for _, pool in turns),
        "ratio": statistics.median(pool / plain for plain, pool in turns),
    }


if __name__ == "__main__":
    main()

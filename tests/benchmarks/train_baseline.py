"""Speed of the trainer and of two plain ones: ``python tests/benchmarks/train_baseline.py``.

* ``baseline``: a simple, careful trainer with `torch.nn` modules, SDPA, torch's RMSNorm, fused
  query-key-value and torch's AdamW, in one process with all cores.
* ``transformers``: Hugging Face's LlamaForCausalLM of the same shape (the ``bench`` extra; left out
  if not installed).
* ours: the local pool, one pinned single-thread process on each core.
* ``ceiling``: not trained; the pool's speed if a step were only its FLOPs at the rate of a large
  matrix product on each core.

All train the same shapes at the same precision on random bytes. They run one after the other,
several times, and medians are compared. It needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalelab.theory.shape import ModelShape

SEQ_LEN = 256
VOCAB = 256
SHAPES = {
    "0.2M": {"d_model": 64, "n_layers": 4, "batch_seqs": 8},
    "0.9M": {"d_model": 128, "n_layers": 4, "batch_seqs": 8},
    "4.8M": {"d_model": 256, "n_layers": 6, "batch_seqs": 8},
}
SMALL_NAME = "8 runs of 0.04M"
SMALL = {"d_model": 24, "n_layers": 4, "batch_seqs": 8}


def plain_model(d_model: int, n_layers: int, seq_len: int = SEQ_LEN) -> Any:
    """Return the plain decoder, a `torch.nn.Module` from tokens to their mean loss."""
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
            self.places = nn.Embedding(seq_len, d_model)
            self.blocks = nn.ModuleList(Block() for _ in range(n_layers))
            self.norm = nn.RMSNorm(d_model)
            self.head = nn.Linear(d_model, VOCAB, bias=False)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.tokens(tokens[:, :-1]) + self.places.weight
            for block in self.blocks:
                x = block(x)
            logits = self.head(self.norm(x))
            return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return Model()


def baseline(
    d_model: int, n_layers: int, batch_seqs: int, seconds: float, seq_len: int = SEQ_LEN
) -> float:
    """Return tokens/s of the plain trainer, all cores in one process."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_flush_denormal(True)
    model = plain_model(d_model, n_layers, seq_len)
    return trained_tokens_per_s(model, model, batch_seqs, seconds, seq_len)


def plain_step(
    loss_of: Any, model: Any, batch_seqs: int, seq_len: int = SEQ_LEN
) -> Callable[[], None]:
    """Return a function that takes a plain step: AdamW, clipping to norm 1, the loss read."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(VOCAB, (batch_seqs, seq_len + 1))

    def take() -> None:
        loss = loss_of(tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return take


def trained_tokens_per_s(
    loss_of: Any, model: Any, batch_seqs: int, seconds: float, seq_len: int = SEQ_LEN
) -> float:
    """Return tokens/s of plain steps."""
    take = plain_step(loss_of, model, batch_seqs, seq_len)
    times: list[float] = []
    while len(times) < 5 or sum(times[2:]) < seconds:
        started = time.perf_counter()
        take()
        times.append(time.perf_counter() - started)
    return batch_seqs * seq_len / statistics.median(times[2:])


def transformers(d_model: int, n_layers: int, batch_seqs: int, seconds: float) -> float:
    """Return tokens/s of LlamaForCausalLM with AdamW, all cores in one process."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_flush_denormal(True)
    model = llama(d_model, n_layers)
    return trained_tokens_per_s(
        lambda x: model(input_ids=x, labels=x).loss, model, batch_seqs, seconds
    )


def llama(d_model: int, n_layers: int, attention: str = "sdpa") -> Any:
    """Return a LlamaForCausalLM of our shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    n_heads = max(1, d_model // 32)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=d_model,
        intermediate_size=-(-8 * d_model // 24) * 8,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        max_position_embeddings=SEQ_LEN,
        attn_implementation=attention,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def our_shape(d_model: int, n_layers: int) -> ModelShape:
    """Return the shape; the baseline's GELU has 8 d^2 weights, as SwiGLU has with 8/3 d."""
    from scalelab.theory.shape import ModelShape

    return ModelShape(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=max(1, d_model // 32),
        d_head=min(32, d_model),
        d_ff=-(-8 * d_model // 24) * 8,
        vocab_size=VOCAB,
    )


def ceiling(d_model: int, n_layers: int, batch_seqs: int, seconds: float) -> float:
    """Return tokens/s of one core that does a step's FLOPs at a large product's rate."""
    import torch

    from scalelab.theory.accounting import train_flops_per_token
    from scalelab.train.bench import matmul_flops_per_s

    torch.set_num_threads(1)
    per_token = train_flops_per_token(our_shape(d_model, n_layers), SEQ_LEN)["exact"]
    return matmul_flops_per_s("cpu", "fp32", repeats=round(10 * seconds)) / per_token


def ours(d_model: int, n_layers: int, batch_seqs: int, seconds: float, n_runs: int = 1) -> float:
    """Return tokens/s of one worker of the pool."""
    from scalelab.sweep.execution import ExecutionSpec
    from scalelab.train.bench import bench_train
    from scalelab.train.calibrate import synthetic_run

    spec = synthetic_run(our_shape(d_model, n_layers), seq_len=SEQ_LEN, batch_seqs=batch_seqs)
    found = bench_train(
        spec, ExecutionSpec(step="direct", batched_runs=n_runs), n_runs=n_runs, seconds=seconds
    )
    return float(found["tokens_per_s"])


def measure(kind: str, shape: dict[str, int], seconds: float, **options: int) -> float:
    """Run one side in fresh processes and return its tokens/s together."""
    cores = sorted(os.sched_getaffinity(0))
    groups = [[core] for core in cores] if kind in ONE_PROCESS_A_CORE else [cores]
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
    """Print one JSON object: tokens/s of all sides and ratios, shape by shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", nargs="?", choices=tuple(SIDES))
    parser.add_argument("request", nargs="?")
    parser.add_argument("--shapes", default=",".join([*SHAPES, SMALL_NAME]))
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.side:
        print(SIDES[arguments.side](**json.loads(arguments.request)))
        return
    sides = [side for side in SIDES if side != "transformers" or find_spec("transformers")]
    table = {}
    for name in arguments.shapes.split(","):
        is_small = name == SMALL_NAME
        shape = SMALL if is_small else SHAPES[name]
        turns = []
        for _ in range(arguments.turns):
            turn = {side: measure(side, shape, arguments.seconds) for side in sides}
            if is_small:
                turn["ours, batched by 4"] = measure("ours", shape, arguments.seconds, n_runs=4)
            print(name, json.dumps(turn), file=sys.stderr, flush=True)
            turns.append(turn)
        table[name] = summarise(turns)
    print(json.dumps({"cores": len(os.sched_getaffinity(0)), "table": table}, indent=1))


def summarise(turns: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return each side's median tokens/s, and the median of ours over it."""
    return {
        side: {
            "tokens_per_s": statistics.median(turn[side] for turn in turns),
            "ours_over_it": statistics.median(turn["ours"] / turn[side] for turn in turns),
        }
        for side in turns[0]
    }


SIDES: dict[str, Callable[..., float]] = {
    "baseline": baseline,
    "transformers": transformers,
    "ours": ours,
    "ceiling": ceiling,
}
ONE_PROCESS_A_CORE = ("ours", "ceiling")

if __name__ == "__main__":
    main()

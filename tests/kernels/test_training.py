"""Steps of two batched tiny models with interpreted kernels and with references.

`tests/train/test_kernels.py` has fifty steps of the real trainer.
"""

from __future__ import annotations

import torch
from scalelab_kernels import operations, reference

N_LAYERS, D_MODEL, N_HEADS, N_KV_HEADS, D_FF, N_VOCAB, T = 1, 16, 2, 1, 24, 37, 12
HEAD_DIM = D_MODEL // N_HEADS


def make_parameters(n_runs):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(n_runs, *shape, generator=generator) * 0.2

    layers = [
        {
            "qkv": normal((N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM, D_MODEL),
            "out": normal(D_MODEL, D_MODEL),
            "gate_up": normal(2 * D_FF, D_MODEL),
            "down": normal(D_MODEL, D_FF),
            "attention_norm": 1 + normal(D_MODEL),
            "ffn_norm": 1 + normal(D_MODEL),
            "q_norm": 1 + normal(HEAD_DIM),
            "k_norm": 1 + normal(HEAD_DIM),
        }
        for _ in range(N_LAYERS)
    ]
    top = {"embedding": normal(N_VOCAB, D_MODEL), "norm": 1 + normal(D_MODEL)}
    return {f"{i}.{k}": v for i, layer in enumerate(layers) for k, v in layer.items()} | top


def forward(ops, attend, p, tokens, targets):
    n_runs = tokens.shape[0]
    index = tokens + N_VOCAB * torch.arange(n_runs)[:, None, None]
    stream = p["embedding"].flatten(0, 1)[index]
    cos, sin = reference.rope_tables(T, HEAD_DIM)

    def linear(x, weight):
        return torch.einsum("kbti,koi->kbto", x, weight)

    normed = ops.rms_norm(stream, p["0.attention_norm"])
    for i in range(N_LAYERS):
        q, k, v = ops.qk_norm_rope(
            linear(normed, p[f"{i}.qkv"]), p[f"{i}.q_norm"], p[f"{i}.k_norm"],
            cos, sin, N_HEADS, N_KV_HEADS,
        )  # fmt: skip
        mixed = attend(q, k, v).transpose(-2, -3).flatten(-2)
        normed, stream = ops.add_rms_norm(linear(mixed, p[f"{i}.out"]), stream, p[f"{i}.ffn_norm"])
        hidden = ops.swiglu(linear(normed, p[f"{i}.gate_up"]))
        following = p[f"{i + 1}.attention_norm"] if i + 1 < N_LAYERS else p["norm"]
        normed, stream = ops.add_rms_norm(linear(hidden, p[f"{i}.down"]), stream, following)
    total = ops.linear_cross_entropy_sum(normed, p["embedding"], targets, z_loss=1e-4)
    return total / (targets != reference.IGNORE_INDEX).sum((1, 2))


def train(implementation, n_runs, n_steps):
    ops = operations.get_operations(implementation, "cpu")
    attend = operations.get_attention("triton" if implementation == "triton" else "explicit", "cpu")
    start = make_parameters(n_runs)
    # Matrices, which have weight decay, come first.
    start = dict(sorted(start.items(), key=lambda item: item[1].ndim < 3))
    flat = torch.cat([v.flatten(1) for v in start.values()], 1)
    n_decay = sum(v[0].numel() for v in start.values() if v.ndim == 3)
    state = {"exp_avg": torch.zeros_like(flat), "exp_avg_sq": torch.zeros_like(flat)}
    hyper = reference.hyper_table(
        lr=[0.01 * (k + 1) for k in range(n_runs)], max_norm=1.0, n_runs=n_runs
    )
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(1, n_steps + 1):
        # Counting upwards from a random number, with a masked label now and then: learnable.
        first = torch.randint(0, N_VOCAB, (n_runs, 1, 1), generator=generator)
        text = (first + 3 * torch.arange(T + 1)) % N_VOCAB
        targets = text[..., 1:].clone()
        targets[..., 5] = reference.IGNORE_INDEX
        parts = torch.split(flat, [v[0].numel() for v in start.values()], 1)
        leaves = {
            name: part.view(v.shape).clone().requires_grad_()
            for (name, v), part in zip(start.items(), parts, strict=True)
        }
        loss = forward(ops, attend, leaves, text[..., :-1], targets)
        grads = torch.autograd.grad(loss.sum(), list(leaves.values()))
        grad = torch.cat([g.flatten(1) for g in grads], 1)
        ops.adamw_step_(flat, grad, **state, step=torch.tensor(step), hyper=hyper, n_decay=n_decay)
        losses.append(loss.detach())
    return torch.stack(losses)


def test_batched_runs_give_the_same_losses():
    kernels, references = train("triton", 2, 4), train("reference", 2, 4)
    torch.testing.assert_close(kernels, references, rtol=0, atol=1e-4)

"""Work of the output head and the loss, by each of its routes.

``fused`` recomputes tiles of logits on the chip, ``chunked`` keeps the logits of a chunk of tokens
in memory for the products of cuBLAS, and ``plain`` keeps all logits.
"""

from __future__ import annotations

from dataclasses import replace

from scalelab.theory.hardware import CALIBRATION
from scalelab.theory.product_work import precision_of, three_products
from scalelab.theory.step_work import FP32, StepConfig, Work


def chunk_rows(n_columns: int, element_bytes: int) -> int:
    """Return how many rows of logits the chunked head keeps in memory on a data-centre GPU.

    As `scalelab_kernels.configs.chunk_rows`: what fits in 16 MiB of the cache if that is 4,096 rows
    or more, else up to 8,192 rows in 1 GiB; a power of two.
    """
    row = n_columns * element_bytes
    rows = 2**24 // row
    if rows < 4096:
        rows = min(8192, max(1, 2**30 // row))
    return int(1 << (rows.bit_length() - 1))


def head_work(config: StepConfig) -> list[Work]:
    """Return the work of the head and the loss, forward and backward."""
    shape, size, n = config.shape, config.element_bytes, config.n_tokens
    d, v, k = shape.d_model, shape.vocab_size, config.batched_runs
    route = config.head_route
    if route == "fused":
        width = max(16, 1 << (d - 1).bit_length())
        name = "fused_head_share" if width <= 128 else "fused_head_wide_share"
        return [
            Work(
                part="head",
                name="fused",
                n_launches=7 * config.n_passes,
                # The logits stay on the chip.
                n_bytes=3 * size * (n * d + k * v * d * config.n_passes),
                flops=10.0 * n * v * width,
                precision="fp32" if config.precision == "fp32" else "bf16",
                rate_share=CALIBRATION[name].value,
                vector_flops=2 * 3 * CALIBRATION["fused_head_vector_ops"].value * n * v,
            )
        ]
    tokens = -(-config.batch_seqs // config.n_passes) * config.seq_len
    in_memory = chunk_rows(shape.padded_vocab, size) if route == "chunked" else k * tokens
    # Batched runs share a chunk if their tokens fit in it.
    rows = min(in_memory, tokens)
    n_uses = -(-tokens // rows) * config.n_passes
    launches = n_uses * -(-k // max(1, in_memory // rows))
    products = three_products(
        config, "head", f"{route} head", n, d, v, n_matrices=k, n_uses=n_uses, launches=launches,
        precision=precision_of(config, "head", shape.padded_vocab, d),
    )  # fmt: skip
    if route == "chunked":
        # Each chunk reads and writes the fp32 sum of the weight's gradient. The loss kernel reads
        # the logits and writes their gradients; two passes scale the gradients at the end.
        sums = (2 * FP32 - size) * k * v * d * n_uses
        products[2] = replace(products[2], n_bytes=products[2].n_bytes + sums)
        loss = size * (2 * n * v + 2 * n * d) + (size + FP32) * k * v * d * config.n_passes
        launches += 2 * config.n_passes
    else:
        # With the compiler, two reads and a write of the logits; without it, each operation of the
        # loss writes its own result in fp32 (38 V bytes a token with the products').
        loss = n * v * (3 * size if config.step == "compiled" else (32 if size == 2 else 28))
        launches = 10 * config.n_passes
    return [*products, Work(part="head", name="loss", n_launches=launches, n_bytes=loss)]

"""Write the table of sizes of nanoGPT: all parameters, and FLOPs as `estimate_mfu` counts them.

    python sizes.py > sizes.csv

The model is GPT-2 without biases (`bias = False`), with a tied head and learned positions.
"""

from __future__ import annotations

VOCAB_SIZE = 50304
BLOCK_SIZE = 1024
SHAPES = ((4, 256), (6, 384), (8, 512), (10, 640), (12, 768), (16, 1024), (24, 1024))


def main() -> None:
    """Print the table; heads are 64 wide."""
    print("n_layers,d_model,n_heads,n_params,n_params_kaplan,flops_per_token")
    for n_layers, d_model in SHAPES:
        blocks = 12 * n_layers * d_model**2 + (2 * n_layers + 1) * d_model
        without_positions = blocks + VOCAB_SIZE * d_model
        n_params = without_positions + BLOCK_SIZE * d_model
        flops = 6 * without_positions + 12 * n_layers * d_model * BLOCK_SIZE
        print(f"{n_layers},{d_model},{d_model // 64},{n_params},{blocks},{flops}")


if __name__ == "__main__":
    main()

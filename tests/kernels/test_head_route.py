"""The head takes the route, and the chunks, that the roofline counts."""

import pytest
from scalelab_kernels import configs

from scalelab.theory.head_work import chunk_rows
from scalelab.theory.shape import ModelShape
from scalelab.theory.step_work import StepConfig


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("d_model", [32, 64, 128, 160, 192, 256, 768])
def test_the_head_takes_the_route_of_the_roofline(d_model: int, precision: str) -> None:
    shape = ModelShape(
        n_layers=1, d_model=d_model, n_heads=1, d_head=d_model, d_ff=64, vocab_size=50_304
    )
    config = StepConfig(shape=shape, seq_len=1024, batch_seqs=8, precision=precision)
    is_fused = configs.recomputes_tiles("hopper", d_model, config.element_bytes)
    assert is_fused == (config.head_route == "fused")


@pytest.mark.parametrize("n_columns", [256, 1024, 2048, 2112, 32_000, 50_304, 262_144])
@pytest.mark.parametrize("element_bytes", [2, 4])
def test_a_chunk_has_the_rows_that_the_roofline_counts(n_columns: int, element_bytes: int) -> None:
    assert configs.chunk_rows("hopper", n_columns, element_bytes) == chunk_rows(
        n_columns, element_bytes
    )

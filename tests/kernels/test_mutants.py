"""The accuracy rule catches wrong kernels: each mutant has one wrong line.

A mutant that passes its comparison is a gap in the tests. Each is loaded from a changed copy of the
kernel's source, under another module name and another namespace of operations.
"""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import pytest
import scalelab_kernels
import torch
from scalelab_kernels import reference

SOURCES = Path(scalelab_kernels.__file__).parent
NUMBERS = itertools.count()


def load_copy(folder, file, line="", wrong=""):
    """Return a copy of the module ``file`` in which ``wrong`` replaces ``line``."""
    source = (SOURCES / f"{file}.py").read_text()
    assert line in source, f"{file}.py has no {line!r}"
    name = f"copy_{next(NUMBERS)}"
    source = source.replace(line, wrong, 1) if line else source
    path = folder / f"{name}.py"
    path.write_text(source.replace('"scalelab::', f'"{name}::'))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rms_inputs():
    return [torch.randn(9, 24) for _ in range(2)] + [torch.randn(24)]


def entropy_inputs(d):
    targets = torch.randint(0, 30, (15,))
    targets[3] = reference.IGNORE_INDEX
    return [torch.randn(15, d), torch.randn(30, d), targets]


def rope_inputs():
    qkv, weights = torch.randn(2, 5, 4 * 8), [torch.randn(8), torch.randn(8)]
    return [qkv, *weights]


def rope(module):
    def call(qkv, q_weight, k_weight):
        cos, sin = reference.rope_tables(5, 8, dtype=q_weight.dtype)
        return module.qk_norm_rope(qkv, q_weight, k_weight, cos, sin, 2, 1)

    return call


def attention_inputs():
    return [torch.randn(1, 4, 37, 8), torch.randn(1, 2, 37, 8), torch.randn(1, 2, 37, 8)]


def attend(module):
    return lambda q, k, v: module.causal_attention(q, k, v)


def norm(module):
    return module.add_rms_norm


def gated(module):
    return module.swiglu


def entropy(module):
    return module.linear_cross_entropy_sum


MUTANTS = {
    "norm: weight ignored": (
        "rms_norm", norm, rms_inputs,
        "scaled = value * inverse[:, None] * gain[None, :]", "scaled = value * inverse[:, None]",
    ),
    "norm: one row missing": (
        "rms_norm", norm, rms_inputs, "in_rows = row < n_rows", "in_rows = row < n_rows - 1",
    ),
    "norm: gradient's sign": (
        "rms_norm", norm, rms_inputs, "scaled - normed * dot", "scaled + normed * dot",
    ),
    "norm: last block of the weight's gradient lost": (
        "rms_norm", norm, rms_inputs, "tl.cdiv(n_rows, ROWS), n_programs",
        "n_rows // ROWS, n_programs",
    ),
    "norm: stream's gradient dropped": (
        "rms_norm", norm, rms_inputs,
        "if HAS_ADD:\n            result +=", "if False:\n            result +=",
    ),
    "swiglu: halves swapped": (
        "swiglu", gated, lambda: [torch.randn(5, 20)],
        "gate * tl.sigmoid(gate) * up", "up * tl.sigmoid(up) * gate",
    ),
    "swiglu: derivative of the gate": (
        "swiglu", gated, lambda: [torch.randn(5, 20)], "(1.0 + gate * (1.0 - gate_open))", "1.0",
    ),
    "rope: rotated the wrong way": (
        "qk_norm_rope", rope, rope_inputs, "x1 * c - x2 * s", "x1 * c + x2 * s",
    ),
    "rope: v is normalized too": (
        "qk_norm_rope", rope, rope_inputs,
        "tl.where(is_q | is_k, 1.0 / tl.sqrt(mean_square + eps), 1.0)",
        "1.0 / tl.sqrt(mean_square + eps)",
    ),
    "rope: weights of q and k swapped": (
        "qk_norm_rope", rope, rope_inputs,
        "tl.where(is_q[:, None], of_q, tl.where(is_k[:, None], of_k, 1.0))",
        "tl.where(is_q[:, None], of_k, tl.where(is_k[:, None], of_q, 1.0))",
    ),
    "chunks: gradient of masked labels": (
        "linear_cross_entropy", entropy, lambda: entropy_inputs(260),
        "tl.where(is_counted, grad * scale, 0.0)", "grad * scale",
    ),
    "chunks: a chunk's weight gradient replaces the last": (
        "linear_cross_entropy", entropy, lambda: entropy_inputs(260),
        "acc.baddbmm_(columns, hidden)", "acc.copy_(torch.bmm(columns, hidden))",
    ),
    "attention: sees the next key": (
        "attention", attend, attention_inputs,
        "where(col[None, :] <= row[:, None],", "where(col[None, :] <= row[:, None] + 1,",
    ),
    "attention: sum not shrunk": (
        "attention", attend, attention_inputs,
        "total = total * shrink + tl.sum(weights, 1)", "total = total + tl.sum(weights, 1)",
    ),
    "attention: wrong head of the group": (
        "attention", attend, attention_inputs,
        "k += multiple(batch * k_batch + head // GROUP",
        "k += multiple(batch * k_batch + head % (H // GROUP)",
    ),
}  # fmt: skip


SAMPLES = {file: (bind, make) for file, bind, make, *_ in MUTANTS.values()}


@pytest.mark.parametrize("file", SAMPLES)
def test_a_copy_without_a_change_passes(check_op, tmp_path, file):
    bind, make = SAMPLES[file]
    check_op(bind(load_copy(tmp_path, file)), bind(reference), make(), torch.float32)


# A kernel that skips a row reads uninitialized memory, of which NumPy can warn first.
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("what", MUTANTS)
def test_a_wrong_kernel_is_caught(check_op, tmp_path, what):
    file, bind, make, line, wrong = MUTANTS[what]
    mutant = load_copy(tmp_path, file, line, wrong)
    with pytest.raises(AssertionError, match=r"error|not finite"):
        check_op(bind(mutant), bind(reference), make(), torch.float32)

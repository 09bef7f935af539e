from __future__ import annotations

import contextlib
import inspect
import os
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from scalelab_kernels import flash, fp8, operations, reference, reference_gram, reference_moe
from scalelab_kernels.configs import NARROW
from scalelab_kernels.errors import KernelUnavailableError
from torch.utils._python_dispatch import TorchDispatchMode


def names():
    return [f.name for f in fields(operations.Operations) if f.name != "implementation"]


@pytest.mark.parametrize("implementation", operations.IMPLEMENTATIONS)
def test_operations_have_the_signatures_of_their_references(implementation):
    found = operations.get_operations(implementation, "cpu")
    assert found.implementation == implementation
    for name in names():
        modules = (reference, reference_moe, reference_gram)
        plain = next(getattr(module, name) for module in modules if hasattr(module, name))
        expected = list(inspect.signature(plain).parameters.values())
        given = list(inspect.signature(getattr(found, name)).parameters.values())
        assert [(p.name, p.kind, p.default) for p in given] == [
            (p.name, p.kind, p.default) for p in expected
        ], name


@pytest.mark.parametrize("path", ["explicit", "sdpa", "triton"])
def test_attention_paths_agree_on_a_cpu(path):
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    starts = reference.document_starts(torch.tensor([[0] * 5 + [1] * 4] * 2))
    expected = reference.causal_attention(q, k, v, starts=starts)
    found = operations.get_attention(path, "cpu")(q, k, v, starts=starts)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("path", ["cudnn", "flash", "tpu"])
def test_attention_that_cannot_run_here_is_an_error(path):
    with pytest.raises(KernelUnavailableError, match=path):
        operations.get_attention(path, "cpu")


def test_attention_on_a_gpu_names_the_backend_that_runs(monkeypatch):
    backends, asked = torch.nn.attention.SDPBackend, []

    @contextlib.contextmanager
    def sdpa_kernel(backend):
        asked.append(backend)
        yield

    monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", sdpa_kernel)
    q = torch.randn(1, 2, 3, 8)
    for path, backend in (("sdpa", backends.MATH), ("cudnn", backends.CUDNN_ATTENTION)):
        operations.get_attention(path, "cuda")(q, q, q)
        assert asked.pop() == backend
    assert operations.get_attention("flash", "cuda") is flash.causal_attention
    assert set(operations.ATTENTION_PATHS) - set(operations.REPEATABLE_PATHS) == {"cudnn"}


def test_an_unknown_implementation_is_an_error_that_lists_the_known_ones():
    with pytest.raises(KernelUnavailableError, match=r"'cuda'.*'reference' or 'triton'"):
        operations.get_operations("cuda", "cpu")


class Zeros(TorchDispatchMode):
    """Counts the buffers of zeros that are made."""

    n_made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n_made += "zeros" in func.__name__
        return func(*args, **(kwargs or {}))


def unused_outputs():
    """Give calls that leave an output of their operator unused, or that only the host can see."""
    ops = operations.get_operations("triton", "cpu")
    attend = operations.get_attention("triton", "cpu")
    x, gain = torch.randn(2, 8), torch.randn(8)
    yield "rms_norm", lambda x: ops.rms_norm(x, gain), x
    yield "add_rms_norm, stream unused", lambda x: ops.add_rms_norm(x, x, gain)[0], x
    yield "add_rms_norm, norm unused", lambda x: ops.add_rms_norm(x, x, gain)[1], x
    yield "attention", lambda x: attend(x, x, x), torch.randn(1, 1, 2, 8)
    targets = torch.zeros(2, dtype=torch.int64)
    for width in (8, NARROW + 8):
        head = torch.randn(5, width)
        yield (
            f"cross-entropy, width {width}",
            lambda x, head=head: ops.linear_cross_entropy_sum(x, head, targets),
            torch.randn(2, width),
        )
    in_fp8 = fp8.operations(ops)
    head = torch.randn(32, 32, dtype=torch.bfloat16)
    yield (
        "cross-entropy in fp8",
        lambda x: in_fp8.linear_cross_entropy_sum(x, head, torch.zeros(16, dtype=torch.int64)),
        torch.randn(16, 32, dtype=torch.bfloat16),
    )


@pytest.mark.parametrize("case", list(unused_outputs()), ids=lambda case: case[0])
def test_an_unused_output_costs_no_buffer_of_zeros_in_backward(case):
    _, function, x = case
    leaf = x.clone().requires_grad_()
    out = function(leaf).sum()
    with Zeros() as zeros:
        (grad,) = torch.autograd.grad(out, leaf)
    assert zeros.n_made == 0
    assert grad.isfinite().all()


WITHOUT_INTERPRETER = """
import sys
import torch
from scalelab_kernels import operations
from scalelab_kernels.errors import KernelUnavailableError
operations.get_operations("reference", "cpu").rms_norm(torch.ones(2, 3), torch.ones(3))
operations.get_attention("explicit", "cpu")
assert not any(m == "triton" or m.startswith("triton.") for m in sys.modules), "imported triton"
for ask in (operations.get_operations, operations.get_attention):
    try:
        ask("triton", "cpu")
    except KernelUnavailableError as error:
        assert "reference" in error.do and "cpu" in error.given
    else:
        raise AssertionError("fell back in silence")
assert not any(m == "triton" or m.startswith("triton.") for m in sys.modules), "imported triton"
from scalelab_kernels import rms_norm
try:
    rms_norm.rms_norm(torch.ones(2, 3), torch.ones(3))
except KernelUnavailableError as error:
    print(error)
"""


def test_without_the_interpreter_a_cpu_has_references_and_kernels_are_errors():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_INTERPRETER],
        env=environment | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "expected a CUDA device" in done.stdout

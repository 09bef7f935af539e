"""The micro-batch is halved until a step fits in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.launch.slurm.retries import classify
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ATTENTIONS, ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.train import execution as executions
from scalelab.train import gradients
from tests.train.outcome import curve, last_note, result


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Return a function that limits how many sequences of a forward pass fit in memory."""

    def limit(fits: int, *, after: int = 0) -> list[int]:
        tried: list[int] = []
        original = gradients.Autograd.take

        def take(self: gradients.Autograd, tokens: torch.Tensor) -> Any:
            micro = self.execution.micro_batch_seqs or tokens.shape[-2]
            tried.append(micro)
            if micro > fits and len(tried) > after:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return original(self, tokens)

        monkeypatch.setattr(gradients.Autograd, "take", take)
        return tried

    return limit


def test_the_largest_micro_batch_that_fits_is_found(
    spec: RunSpec, memory: Callable[..., list[int]]
) -> None:
    spec = replace(spec, batch_seqs=24)
    tried = memory(7)
    found = executions.fitting_execution([spec], ExecutionSpec())
    assert (found.micro_batch_seqs, tried) == (6, [24, 12, 6])
    assert executions.fitting_execution([spec] * 2, replace(found, micro_batch_seqs=7)) == replace(
        found, micro_batch_seqs=7
    )
    memory(0)
    with pytest.raises(torch.OutOfMemoryError):
        executions.fitting_execution([spec], ExecutionSpec())


def test_other_errors_are_not_treated_as_out_of_memory(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(self: gradients.Autograd, tokens: torch.Tensor) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(gradients.Autograd, "take", take)
    with pytest.raises(RuntimeError, match="shapes"):
        executions.fitting_execution([spec], ExecutionSpec())


# Texts of torch (c10/cuda/CUDAException.cpp, CUDACachingAllocator.cpp, ATen/cuda/Exceptions.h,
# c10/core/impl/alloc_cpu.cpp), Triton (third_party/nvidia/backend/driver.c) and NCCL (checks.h).
HELP = (
    "\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/cuda-runtime-api/"
    "group__CUDART__TYPES.html for more information.\nCUDA kernel errors might be asynchronously "
    "reported at some other API call, so the stacktrace below might be incorrect."
)
MEMORY_TEXTS = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)",
    f"CUDA error: out of memory{HELP}",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasLtCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasLtMatmul( ltHandle, computeDesc)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "Triton Error [CUDA]: out of memory",
    "NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled cuda error (run with NCCL_DEBUG=INFO for "
    "details), NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\nCuda failure 2 'out of memory'",
    "Last error:\nCuda failure 'out of memory'",
)
OTHER_TEXTS = (
    f"CUDA error: an illegal memory access was encountered{HELP}",
    f"CUDA error: device-side assert triggered{HELP}",
    "CUDA error: operation failed due to a previous error during capture",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm( handle, opa, opb)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "out of resource: shared memory, Required: 294912, Hardware limit: 232448.",
    "NCCL error in: ProcessGroupNCCL.cpp:3356, remote process exited or there was a network error",
)


@pytest.mark.parametrize("text", MEMORY_TEXTS)
def test_each_library_s_error_of_full_memory_is_recognised(text: str) -> None:
    assert executions.is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", OTHER_TEXTS)
def test_errors_that_are_not_of_full_memory_are_not(text: str) -> None:
    assert not executions.is_out_of_memory(RuntimeError(text))


def test_full_memory_during_a_capture_is_recognised_behind_the_error_of_its_end() -> None:
    end = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    assert not executions.is_out_of_memory(end)
    end.__context__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
    assert executions.is_out_of_memory(end)


def test_a_run_that_runs_out_of_memory_continues_with_smaller_micro_batches(
    make_run: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    memory: Callable[..., list[int]],
) -> None:
    straight, short = make_run("straight"), make_run("short")
    assert attempt_at(straight, micro_batch_seqs=0) == "done"
    memory(2, after=9)
    assert attempt_at(short, checkpoint_interval_s=0.0) == "done"
    notes = [attempt.read_note() for attempt in short.attempts()]
    assert [note["execution"]["micro_batch_seqs"] for note in notes] == [0, 3, 1]
    assert [note["ended"]["status"] for note in notes] == ["failed", "failed", "done"]
    assert notes[-1]["resumed_from"]["step"] > 0
    found, expected = (np.array(list(curve(run).values())) for run in (short, straight))
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert result(short).loss_nats == pytest.approx(result(straight).loss_nats, rel=2e-5)


def test_an_attempt_records_whether_its_bits_are_repeatable(
    make_run: Callable[..., RunDir], attempt_at: Callable[..., str]
) -> None:
    run = make_run(n_steps=2, warmup_steps=0)
    assert attempt_at(run) == "done"
    assert last_note(run)["is_repeatable"] is True
    assert [name for name in ATTENTIONS if not ExecutionSpec(attention=name).is_repeatable] == [
        "cudnn"
    ]


def test_a_run_whose_single_sequence_does_not_fit_fails(
    make_run: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    memory: Callable[..., list[int]],
) -> None:
    run = make_run()
    memory(0)
    assert attempt_at(run) == "failed"
    assert "OutOfMemoryError" in last_note(run)["ended"]["reason"]
    # The launcher does not retry: there is no smaller micro-batch.
    kind = classify("COMPLETED", last_note(run), is_accepted=False, is_first=True)
    assert kind == "exception"

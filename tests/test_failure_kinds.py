"""Exceptions sorted by whose fault they are, by type where there is one and by text where there is not."""

import pytest
import torch

from hfprep.pipeline.failures import Failure


def accelerator_error(text: str, code: int) -> Exception:
    error = torch.AcceleratorError(text)
    vars(error)["error_code"] = code  # as torch sets it
    return error


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    accelerator_error("CUDA error: an unfamiliar text", 2),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory"),
]
BROKEN = [
    accelerator_error("something no list of texts knows", 700),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("CUDA driver error: unspecified launch failure"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]
OTHER = [
    ValueError("CUDA error, says a text that is not torch's"),
    RuntimeError("ptxas not found"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    ZeroDivisionError("odd"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_memory_that_ran_out(error: Exception) -> None:
    found = Failure.of(error)
    assert (found.out_of_memory, found.device_broken) == (True, False)


@pytest.mark.parametrize("error", BROKEN, ids=str)
def test_a_device_that_is_broken(error: Exception) -> None:
    found = Failure.of(error)
    assert (found.out_of_memory, found.device_broken) == (False, True)


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_everything_else(error: Exception) -> None:
    found = Failure.of(error)
    assert (found.out_of_memory, found.device_broken, found.kind) == (False, False, type(error).__name__)

"""Classifies exceptions: out of memory, broken device, or other.

Provides `Failure`, an exception without its traceback. Takes any exception.
"""

from __future__ import annotations

from dataclasses import dataclass

from hfprep.errors import HfprepError

CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
# Some libraries only raise RuntimeError, so its text has to be searched. If a cuBLAS or cuDNN handle cannot be created,
# the reason is nearly always a lack of memory.
OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
)
BROKEN_DEVICE_TEXTS = (
    "CUDA error",
    "CUDA driver error",
    "Triton Error [CUDA]",
    "device-side assert",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_EXECUTION_FAILED",
)


class DeviceError(HfprepError):
    """The accelerator stopped working: no further batch can run in this process."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception without its traceback, which would keep a failed batch's tensors alive.

    `kind` is the exception's type: if many samples fail with the same kind, they probably have the same cause.
    """

    kind: str
    message: str
    out_of_memory: bool
    device_broken: bool

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Classify an exception by its type, and by its text if the type is not specific."""
        import torch

        kind, text = type(error).__name__, str(error)
        message = f"{kind}: {text.strip()}".splitlines()[0][:400]
        known = isinstance(error, torch.AcceleratorError)
        out_of_memory = (
            isinstance(error, (torch.OutOfMemoryError, MemoryError))
            or (known and getattr(error, "error_code", None) == CUDA_OUT_OF_MEMORY)
            or (isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY_TEXTS))
        )
        broken = known or (isinstance(error, RuntimeError) and any(words in text for words in BROKEN_DEVICE_TEXTS))
        return cls(kind, message, out_of_memory, broken and not out_of_memory)

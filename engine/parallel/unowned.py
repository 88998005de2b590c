"""A view of a tensor's memory that does not own it."""

from __future__ import annotations

import ctypes

import torch

# A view of raw memory. ctypes would create a new array type for each size, which is garbage later.
_memoryview = ctypes.pythonapi.PyMemoryView_FromMemory
_memoryview.argtypes, _memoryview.restype = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int), ctypes.py_object
_WRITABLE = 0x200  # PyBUF_WRITE


def unowned_view(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a flat tensor that does not own it. The caller keeps the owner until the call is complete.

    gloo's threads free their reference to a tensor some time after the wait. If it were the last one, memory would be freed at a
    random instant by a thread that the profiler does not see. NCCL follows the order of the stream.
    """
    assert tensor.is_contiguous()
    if tensor.device.type != "cpu":
        return tensor.view(-1)
    return torch.frombuffer(_memoryview(tensor.data_ptr(), tensor.nbytes, _WRITABLE), dtype=tensor.dtype)

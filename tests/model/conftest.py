"""Fixtures for tests of single layers against torch's functions or their formulas."""

from __future__ import annotations

import pytest
import torch

from engine.parallel.comm import Comm
from engine.parallel.tensor import TensorParallel


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors are slower with more threads, and much slower on busy cores."""
    torch.set_num_threads(1)


@pytest.fixture
def alone() -> TensorParallel:
    """A tp group of one."""
    return TensorParallel(Comm.alone(torch.device("cpu")))

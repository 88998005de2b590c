"""Layers of one rank, by themselves: held against torch's own functions or the formulas they stand for."""

from __future__ import annotations

import pytest
import torch

from engine.parallel.comm import Comm
from engine.parallel.tensor import TensorParallel


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors this small are slower with more, and much slower where the cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture
def alone() -> TensorParallel:
    """A tp group of one."""
    return TensorParallel(Comm.alone(torch.device("cpu")))

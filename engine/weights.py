"""The trained weights that come with this program, by each parameter's full name. Imports no torch.

They are plain arrays of 16-bit floats in a zip file, of whole parameters: every layout takes its shards of them, as it does of
weights that are drawn. Reading them runs nothing that is in the file. `engine.launch.trained_weights` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from engine.spec import WorkloadSpec

Weights = Mapping[str, NDArray[Any]]

FILE = Path(__file__).with_name("weights.npz")


def initial(workload: WorkloadSpec) -> Weights | None:
    """The weights to start from; None if they are drawn from the seed."""
    return read(FILE) if workload.weights == "trained" else None


def read(file: Path) -> Weights:
    """The weights in a file that `write` made."""
    with ZipFile(file) as arrays:
        return {name.removesuffix(".npy"): _array(arrays.read(name)) for name in arrays.namelist()}


def _array(content: bytes) -> NDArray[Any]:
    """Raises `ValueError` for an array of objects, which would have to be unpickled."""
    return np.lib.format.read_array(BytesIO(content), allow_pickle=False)


def write(weights: Weights, file: Path) -> None:
    """The same weights make the same bytes."""
    arrays: dict[str, Any] = {name: array.astype(np.float16) for name, array in sorted(weights.items())}
    with file.open("wb") as out:
        np.savez_compressed(out, **arrays)

"""The program that measures this machine's device: products, attention, a memory-bound pass, and the link between two ranks.

    python -m engine.launch.calibration.program --device cpu|cuda [--least SECONDS]

It writes one JSON object to standard output, with fields of `DeviceSpec`. A device is what one rank has: a GPU, or one core of a
processor, since ranks use one thread each. For the link it starts itself twice, with --rank.
`engine.launch.calibration.client` is the other end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.launch.host.client import environment
from engine.measure.recorder import Recorder
from engine.parallel.backend import choose_backend
from engine.parallel.comm import Comm
from engine.topology import Mesh

_WIDTHS = {"cpu": (128, 256, 512, 1024), "cuda": (1024, 2048, 4096, 8192)}
_LONGEST_S = 120.0  # of a call between the ranks
_SMALL, _LARGE = 1, 4 << 20  # numbers of fp32 that are reduced
_Run = Callable[[], object]


def best(run: _Run, least_s: float, device: torch.device) -> float:
    """Seconds of `run`: the least of many, since other programs on a machine make it slower and nothing makes it faster."""
    run()
    wait_for(device)
    times: list[float] = []
    until = time.perf_counter() + least_s
    while len(times) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        run()
        wait_for(device)
        times.append(time.perf_counter() - began)
    return min(times)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def figures(device: torch.device, least_s: float) -> dict[str, Any]:
    """What one device reaches: fields of `DeviceSpec`. Peaks are those that were measured, so they are reached."""
    precisions = {"fp32_flops": torch.float32, "bf16_flops": torch.bfloat16}
    products = {name: _products(device, dtype, least_s) for name, dtype in precisions.items()}
    peak = {name: max(found) for name, found in products.items()}
    copy = _copy(device, least_s)
    trained = "fp32_flops" if device.type == "cpu" else "bf16_flops"  # in the precision that models are trained in there
    attention = _attention(device, least_s) / peak[trained]
    return {
        **peak,
        "reachable": 1.0,
        "fp32_reachable": 1.0,
        "memory_bandwidth": copy,
        "matmul_efficiency": statistics.median(products[trained]) / peak[trained],
        "attention_efficiency": min(1.0, attention),
        "memory_efficiency": min(1.0, _elementwise(device, least_s) / copy),
        "memory_bytes": memory_of(device),
    }


def _products(device: torch.device, dtype: torch.dtype, least_s: float) -> list[float]:
    """FLOP/s of square products, by width: of the three that a linear layer has, one after the other.

    They are x·Wᵀ, and in backward dy·W and dyᵀ·x. How the operands lie in memory makes a large difference where a processor has
    no bf16 products: x·Wᵀ is several times as fast there as dy·W.
    """
    found = []
    for width in _WIDTHS[device.type]:
        one = torch.randn(width, width, device=device).to(dtype)
        out = torch.empty_like(one)
        pairs = ((one, one.t()), (one, one), (one.t(), one))
        seconds = [best(partial(torch.mm, *pair, out=out), least_s / len(pairs), device) for pair in pairs]
        found.append(len(pairs) * 2 * width**3 / sum(seconds))
    return found


def _copy(device: torch.device, least_s: float) -> float:
    """Bytes a second that a sum of two tensors reads and writes; on a processor of 4 MB, since what runs there fits its cache."""
    count = (1 if device.type == "cpu" else 256) << 20
    one, other, out = torch.randn(count, device=device), torch.randn(count, device=device), torch.empty(count, device=device)
    return 3 * one.nbytes / best(lambda: torch.add(one, other, out=out), least_s, device)


def _elementwise(device: torch.device, least_s: float) -> float:
    """Bytes a second of kernels as a layer has them: a norm, a softmax, a GELU. The median."""
    x = torch.randn(1024 if device.type == "cpu" else 16384, 1024, device=device)
    runs: list[_Run] = [
        lambda: torch.nn.functional.layer_norm(x, (1024,)),
        lambda: torch.softmax(x, -1),
        lambda: torch.nn.functional.gelu(x, approximate="tanh"),
    ]
    return statistics.median(2 * x.nbytes / best(run, least_s, device) for run in runs)


def _attention(device: torch.device, least_s: float) -> float:
    """FLOP/s of fused causal attention, forward, of the half of the scores that it computes."""
    heads, rows, width = (8, 256, 64) if device.type == "cpu" else (32, 4096, 128)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    q: Tensor = torch.randn(1, heads, rows, width, device=device).to(dtype)
    seconds = best(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True), least_s, device)
    return 0.5 * 4 * heads * rows**2 * width / seconds


def memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // (os.cpu_count() or 1)


# ------------------------------------------------------------------------------------------------------------- the link


def link(kind: str, least_s: float) -> dict[str, float]:
    """α and β of an all-reduce between two ranks of this machine: `intra_latency` in seconds, `intra_bandwidth` in bytes/s."""
    command = [sys.executable, "-P", "-m", "engine.launch.calibration.program", "--device", kind, "--least", str(least_s)]
    with tempfile.TemporaryDirectory(prefix="shardscope-") as folder:
        store = str(Path(folder) / "store")
        seen = environment(gpus=kind == "cuda")
        ranks = [
            subprocess.Popen([*command, "--store", store, "--rank", str(rank)], stdout=subprocess.PIPE, env=seen)
            for rank in (0, 1)
        ]
        try:
            said, _ = ranks[0].communicate()
            failed = [rank.wait() for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    if any(failed):
        raise RuntimeError("a rank that measures the link has failed")
    found: dict[str, float] = json.loads(said)
    return found


def _as_rank(rank: int, path: str, least_s: float) -> dict[str, float]:
    """An all-reduce over a ring of two takes 2·(α + size ÷ 2 ÷ β). Both ranks make as many calls as the first one needs."""
    backend = choose_backend(2, rank)
    comm = Comm.connect(dist.FileStore(path, 2), Mesh({"dp": 2}), rank, backend, _LONGEST_S, Recorder())
    seconds = []
    for count in (_SMALL, _LARGE):
        tensor = torch.ones(count, device=backend.device)
        took = _reduced(comm, tensor, 3)
        took = _reduced(comm, tensor, max(10, min(10_000, int(_agreed(comm, least_s / took)))))
        seconds.append(took)
    comm.disconnect()
    small, large = seconds
    return {"intra_latency": small / 2, "intra_bandwidth": 4 * _LARGE / max(1e-9, large - small), "intra_efficiency": 1.0}


def _reduced(comm: Comm, tensor: Tensor, times: int) -> float:
    """Seconds of one of several all-reduces: the least."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        comm.all_reduce(tensor, "dp", "max")
        wait_for(tensor.device)
        found.append(time.perf_counter() - began)
    return min(found)


def _agreed(comm: Comm, number: float) -> float:
    """The larger of both ranks' numbers."""
    return float(comm.all_reduce(torch.tensor([number], device=comm.device), "dp", "max").item())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=("cpu", "cuda"), required=True)
    options.add_argument("--least", type=float, default=0.2)
    options.add_argument("--rank", type=int)
    options.add_argument("--store", default="")
    asked = options.parse_args()
    torch.set_num_threads(1)  # as a rank has
    if asked.rank is not None:
        print(json.dumps(_as_rank(asked.rank, asked.store, asked.least)))
        return
    found: dict[str, Any] = figures(torch.device(asked.device), asked.least)
    if asked.device == "cpu" or torch.cuda.device_count() > 1:
        found |= link(asked.device, asked.least)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

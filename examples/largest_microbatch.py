"""The largest microbatch with which a model fits a device in a given layout, by bisection over the formula. Nothing is run.

python -m examples.largest_microbatch [--model llama3-8b] [--layout dp8.tp4.pp2] [--device h100-80gb]
"""

from __future__ import annotations

import argparse
import sys
from bisect import bisect_right

from engine import LayoutSpec, RequestError, RunSpec, WorkloadSpec, predict
from engine.catalog import model
from engine.devices import device


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="llama3-8b")
    options.add_argument("--layout", default="dp8.tp4.pp2")
    options.add_argument("--device", default="h100-80gb")
    chosen = options.parse_args()
    layout = LayoutSpec(**LayoutSpec.degrees(chosen.layout), recompute="layernorm+mlp_act")
    limit = device(chosen.device).memory_bytes

    def peak_bytes(size: int) -> int:
        workload = WorkloadSpec(precision="bf16", microbatches=2 * layout.pp, microbatch_size=size)
        return int(predict(RunSpec(model=model(chosen.model), layout=layout, workload=workload)).summary["peak_bytes"])

    largest = bisect_right(range(1, 4097), limit, key=peak_bytes)  # 0: not even one sequence does
    for size in filter(None, (largest, largest + 1)):
        print(f"microbatch of {size:,}: {peak_bytes(size) / 2**30:,.2f} of {limit / 2**30:,.2f} GiB")
    print(f"the largest that fits is {largest:,}" if largest else "none fits")


if __name__ == "__main__":
    try:
        main()
    except RequestError as error:
        sys.exit(str(error))

"""Search all layouts of a model, list the best, and print the first as the settings of another framework.

    python -m examples.best_layout [--model gpt3-175b] [--ranks 1024] [--device h100-80gb] [--to megatron] > settings.sh

The list goes to standard error. Only layouts count whose schedule is one of --schedules, those that Megatron-LM has.
"""

from __future__ import annotations

import argparse
import sys

from engine import RequestError, search
from engine.export import FRAMEWORKS, settings


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="gpt3-175b")
    options.add_argument("--ranks", type=int, default=1024)
    options.add_argument("--device", default="h100-80gb")
    options.add_argument("--to", choices=FRAMEWORKS, default="megatron")
    options.add_argument("--schedules", nargs="*", default=["1f1b", "interleaved"])
    chosen = options.parse_args()
    try:
        plan = search(chosen.model, chosen.ranks, chosen.device)
    except RequestError as error:
        sys.exit(str(error))
    table = plan.layouts
    usable = table[table["fits"] & table["schedule"].isin(chosen.schedules)]
    if usable.empty:
        sys.exit(f"none of {len(table):,} layouts fits")
    columns = ["layout", "schedule", "microbatch_size", "zero", "recompute", "step_s", "mfu"]
    print(usable[columns].head().to_string(index=False), file=sys.stderr)
    print(settings(plan.spec(int(usable.index[0])), chosen.to), end="")


if __name__ == "__main__":
    main()

"""The CPU instructions that torch and oneDNN use: `python -m benchmarks.machine` prints them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

# oneDNN prints its instruction set with its first operation.
_ASK = """
import torch
print("torch:", torch.backends.cpu.get_cpu_capability())
if torch.backends.mkldnn.is_available():
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        torch.ones(1).to_mkldnn()
"""


def instruction_set() -> str:
    """The CPU instructions that torch and oneDNN use, in one line. Another process finds them."""
    output = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True).stdout
    of_torch, of_onednn = (re.search(what, output, re.MULTILINE) for what in (r"^torch: (.*)", r",cpu,isa:(.*)"))
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return (
        f"torch uses {of_torch[1] if of_torch else 'what it does not say'}, "
        f"oneDNN {of_onednn[1] if of_onednn else 'is not used'} (ONEDNN_MAX_CPU_ISA {f'is {limit}' if limit else 'is not set'})"
    )


if __name__ == "__main__":
    print(instruction_set())

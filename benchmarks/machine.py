"""What this machine computes with: `python -m benchmarks.machine` says it in a line."""

from __future__ import annotations

import os
import re
import subprocess
import sys

# oneDNN says what it found when it first has something to do.
_ASK = """
import torch
print("torch:", torch.backends.cpu.get_cpu_capability())
if torch.backends.mkldnn.is_available():
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        torch.ones(1).to_mkldnn()
"""


def instruction_set() -> str:
    """The CPU's instructions that torch uses, and those that oneDNN does, in one line. Asked of a process of its own."""
    said = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True).stdout
    of_torch, of_onednn = (re.search(what, said, re.MULTILINE) for what in (r"^torch: (.*)", r",cpu,isa:(.*)"))
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return (
        f"torch uses {of_torch[1] if of_torch else 'what it does not say'}, "
        f"oneDNN {of_onednn[1] if of_onednn else 'is not used'} (ONEDNN_MAX_CPU_ISA {f'is {limit}' if limit else 'is not set'})"
    )


if __name__ == "__main__":
    print(instruction_set())

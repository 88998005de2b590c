"""What this machine computes with."""

from __future__ import annotations

import os
import re
import subprocess
import sys

# oneDNN says what it found when it first has something to do.
_ASK = """
import torch
print("torch:", torch.backends.cpu.get_cpu_capability())
with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
    torch.ones(1).to_mkldnn()
"""


def instruction_set() -> str:
    """The CPU's instructions that torch uses, and those that oneDNN does, in one line. Asked of a process of its own."""
    said = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True).stdout
    of_torch, of_onednn = re.search(r"^torch: (.*)", said, re.MULTILINE), re.search(r",cpu,isa:(.*)", said)
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return (
        f"torch uses {of_torch[1] if of_torch else 'it does not say what'}; "
        f"oneDNN uses {of_onednn[1] if of_onednn else 'it does not say what'} "
        f"({f'ONEDNN_MAX_CPU_ISA={limit}' if limit else 'ONEDNN_MAX_CPU_ISA is not set'})"
    )

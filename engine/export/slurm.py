"""Slurm: a batch script that runs the spec by this engine, with `torchrun` on each node (https://slurm.schedmd.com/sbatch.html)."""

from __future__ import annotations

from math import ceil

from engine.export.common import node_shape
from engine.spec import RunSpec

_PORT = 29500
_STARTING_S = 600  # for starting processes and loading torch, beside the time limit of the run


def script(spec: RunSpec) -> str:
    """The script. `sbatch` takes its first lines as options. It has the spec in it, and writes it where all nodes can read it."""
    layout = spec.layout
    nodes, here = node_shape(layout.ranks)
    minutes = ceil((spec.workload.time_limit + _STARTING_S) / 60)
    start = (
        f"torchrun --nnodes {nodes} --nproc-per-node {here} --node-rank {{rank}} --master-addr {{address}} --master-port {_PORT}"
    )
    run = "-m engine.launch.cluster --spec {file} --out runs"
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name=shardscope-{layout.code}",
        f"#SBATCH --nodes={nodes}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --gpus-per-node={here}",
        f"#SBATCH --time={minutes // 60:02}:{minutes % 60:02}:00",
        "#SBATCH --output=%x-%j.out",
        "#",
        f"# {layout.ranks} ranks as {layout.code}, run by this engine. Submit it with sbatch in the engine's folder, which",
        "# all nodes can read. Its Python environment is .venv, or that in the variable VENV. Without GPUs, leave out",
        "# --gpus-per-node.",
    ]
    if spec.workload.text is not None:
        lines += [f"# Each node reads the text {spec.workload.text!r}."]
    lines += [
        "#",
        "# Without Slurm, start this on each machine, with its number in NODE_RANK and the address of the first in MASTER_ADDR:",
        f"#   {start.format(rank='$NODE_RANK', address='$MASTER_ADDR')} {run.format(file='run.json')}",
        "",
        "set -euo pipefail",
        'source "${VENV:-.venv}/bin/activate"',
        # Without a pipe: where `head` has read its line, scontrol may get SIGPIPE, which would end the script.
        'HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "MASTER_ADDR=${HOSTS%%[[:space:]]*}",
        "SPEC=$PWD/shardscope-$SLURM_JOB_ID.json",
        "export MASTER_ADDR SPEC",
        "cat > \"$SPEC\" <<'END_OF_SPEC'",
        spec.model_dump_json(indent=2),
        "END_OF_SPEC",
        "srun --kill-on-bad-exit=1 bash -c '" + start.format(rank='"$SLURM_NODEID"', address='"$MASTER_ADDR"') + " \\",
        "  " + run.format(file='"$SPEC"') + "'",
    ]
    return "\n".join(lines) + "\n"

"""Makes the trained weights that come with this program: `make checkpoint`. How they were made is in `docs/generation.md`.

    python -m engine.launch.trained_weights FILE

The worker's own trainer trains `TRAINED` on the built-in text, unsharded and in this process. The learning rate rises, stays and
falls (warmup, stable, decay: Hu et al. 2024, MiniCPM, section 4).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from engine.parallel.comm import Comm
from engine.phases import SilentLink
from engine.spec import TRAINED, RunSpec, WorkloadSpec
from engine.weights import Weights, write
from engine.worker import Trainer

STEPS, WARMUP, DECAY = 2150, 100, 400
SEQUENCES = 16  # of a step
HIGHEST, LOWEST = 4e-3, 8e-5  # learning rates
_REPORTED = 50  # steps; the mean of their losses is printed


def learning_rate(step: int) -> float:
    """Of step `step`, counted from 1."""
    left = (STEPS - step) / DECAY
    return max(LOWEST, HIGHEST * min(1.0, step / WARMUP, left))


def train() -> Weights:
    """The weights after `STEPS` steps, by name. Prints losses."""
    torch.set_num_threads(1)  # the matrices are too small for more
    workload = WorkloadSpec(microbatches=1, microbatch_size=SEQUENCES, learning_rate=HIGHEST)
    trainer = Trainer(RunSpec(model=TRAINED, workload=workload), Comm.alone(torch.device("cpu")), SilentLink())
    began, losses = time.monotonic(), []
    for step in range(1, STEPS + 1):
        trainer.optimizer.set_learning_rate(learning_rate(step))
        trainer.run_step(step)
        losses.append(float(trainer.executor.loss))
        if step % _REPORTED == 0:
            mean = sum(losses[-_REPORTED:]) / _REPORTED
            print(f"step {step:,} of {STEPS:,}: loss {mean:.3f}, {time.monotonic() - began:,.0f} s", flush=True)
    (chunk,) = trainer.chunks.values()
    return {name: parameter.detach().numpy() for name, parameter in chunk.named_parameters()}


if __name__ == "__main__":
    write(train(), Path(sys.argv[1]))

"""What torchtitan demands of a job file: its fields and checks as data, each with its source.

Read at release 0.2.2 of github.com/pytorch/torchtitan, with torch's own schedules. The rules are in our own words.
Rules on features that no export uses are left out. A nightly test asks torchtitan itself.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.spec.numbers import evenly

CONFIG = "torchtitan/config/job_config.py"
DIMS = "torchtitan/distributed/parallel_dims.py"
PIPELINE = "torchtitan/distributed/pipeline_parallel.py"
PARALLELIZE = "torchtitan/models/llama3/infra/parallelize.py"
TORCH = "torch/distributed/pipelining/schedules.py"

# The fields that are written, and their types or choices; see CONFIG.
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "model": {"name": ("llama3",), "flavor": str},
    "training": {
        "local_batch_size": int,
        "global_batch_size": int,
        "seq_len": int,
        "max_norm": float,
        "steps": int,
        "mixed_precision_param": ("bfloat16", "float32"),
        "mixed_precision_reduce": ("float32",),
    },
    "optimizer": {"name": ("Adam", "AdamW"), "lr": float, "beta1": float, "beta2": float, "weight_decay": float},
    "lr_scheduler": {"warmup_steps": int, "decay_ratio": float},
    "parallelism": {
        "data_parallel_replicate_degree": int,
        "data_parallel_shard_degree": int,
        "fsdp_reshard_after_forward": ("default", "always", "never"),
        "tensor_parallel_degree": int,
        "pipeline_parallel_degree": int,
        "pipeline_parallel_schedule": (
            "1F1B", "GPipe", "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV",
        ),
        "pipeline_parallel_microbatch_size": int,
        "pipeline_parallel_first_stage_less_layers": int,
        "pipeline_parallel_last_stage_less_layers": int,
        "module_fqns_per_model_part": list,
    },
    "activation_checkpoint": {"mode": ("none", "selective", "full", "memory_budget"), "selective_ac_option": str},
    "debug": {"seed": int},
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A job file on so many ranks, for a model of so many layers."""

    sections: Mapping[str, Mapping[str, Any]]
    world: int
    layers: int

    def __getattr__(self, name: str) -> Any:
        return self.sections["parallelism"][name]

    @property
    def replicas(self) -> int:
        return int(self.data_parallel_replicate_degree * self.data_parallel_shard_degree)

    @property
    def one_chunk(self) -> bool:
        """Whether the schedule runs one chunk a stage; torch's `PipelineScheduleSingle`."""
        return self.pipeline_parallel_schedule in ("1F1B", "GPipe")

    @property
    def v_shaped(self) -> bool:
        return self.pipeline_parallel_schedule in ("ZBVZeroBubble", "DualPipeV")

    @property
    def chunk_layers(self) -> tuple[int, ...]:
        """Layers of each chunk. If the modules are not given, one or two chunks a stage, and layers as evenly as embedding and
        head allow, which count as so many layers (PIPELINE, `generate_llm_fqn_per_model_part`)."""
        given = self.sections["parallelism"].get("module_fqns_per_model_part")
        if given is not None:
            return tuple(sum(name.startswith("layers.") for name in part) for part in given)
        first, last = self.pipeline_parallel_first_stage_less_layers, self.pipeline_parallel_last_stage_less_layers
        counts = [*evenly(self.layers + first + last, self.pipeline_parallel_degree * (1 if self.one_chunk else 2))]
        counts[0] -= first
        counts[-1] -= last
        return tuple(counts)

    @property
    def microbatches(self) -> int:
        return int(self.sections["training"]["local_batch_size"] // self.pipeline_parallel_microbatch_size)


def read(text: str, world: int, layers: int) -> Job:
    return Job(tomllib.loads(text), world, layers)


@dataclass(frozen=True)
class Rule:
    """`holds` says whether a job keeps the rule; `piped`: the rule is on jobs with a pipeline alone."""

    source: str
    demand: str
    holds: Callable[[Job], bool]
    piped: bool = False


RULES: tuple[Rule, ...] = (
    Rule(
        f"{DIMS}:53",
        "the degrees multiply to the world",
        lambda job: job.replicas * job.tensor_parallel_degree * job.pipeline_parallel_degree == job.world,
    ),
    Rule(
        "torchtitan/train.py:203",
        "local batch × replicas divides the global batch",
        lambda job: (
            job.sections["training"]["global_batch_size"] % (job.sections["training"]["local_batch_size"] * job.replicas) == 0
        ),
    ),
    Rule(
        f"{PARALLELIZE}:70, {DIMS}:372",
        "2 × tp divides the length",
        lambda job: job.sections["training"]["seq_len"] % (2 * job.tensor_parallel_degree) == 0,
    ),
    Rule(
        f"{PARALLELIZE}:151",
        "replicas that do not shard are alone: DDP goes neither with tp nor with pp",
        lambda job: (
            job.data_parallel_shard_degree > 1
            or job.data_parallel_replicate_degree == 1
            or job.data_parallel_replicate_degree == job.world
        ),
    ),
    Rule(
        f"{PIPELINE}:189",
        "microbatches divide the local batch",
        lambda job: job.sections["training"]["local_batch_size"] % job.pipeline_parallel_microbatch_size == 0,
        piped=True,
    ),
    Rule(
        f"{PIPELINE}:457",
        "every stage has as many chunks",
        lambda job: len(job.chunk_layers) % job.pipeline_parallel_degree == 0,
        piped=True,
    ),
    Rule(
        f"{PIPELINE}:114",
        "1F1B and GPipe have one chunk a stage, other schedules more",
        lambda job: (len(job.chunk_layers) == job.pipeline_parallel_degree) == job.one_chunk,
        piped=True,
    ),
    Rule(
        f"{PIPELINE}:465",
        "V-shaped schedules have two chunks a stage",
        lambda job: not job.v_shaped or len(job.chunk_layers) == 2 * job.pipeline_parallel_degree,
        piped=True,
    ),
    Rule(
        f"{PIPELINE}:236, 289",
        "the chunks have all layers, and none has fewer than 0",
        lambda job: sum(job.chunk_layers) == job.layers and min(job.chunk_layers) >= 0,
        piped=True,
    ),
    Rule(
        f"{TORCH}, Schedule1F1B and ScheduleDualPipeV",
        "1F1B and DualPipeV have as many microbatches as chunks",
        lambda job: job.pipeline_parallel_schedule not in ("1F1B", "DualPipeV") or job.microbatches >= len(job.chunk_layers),
        piped=True,
    ),
    Rule(
        f"{TORCH}, ScheduleInterleaved1F1B",
        "interleaved 1F1B runs in equal rounds of microbatches",
        lambda job: (
            job.pipeline_parallel_schedule != "Interleaved1F1B"
            or job.microbatches % max(1, job.microbatches // job.pipeline_parallel_degree) == 0
        ),
        piped=True,
    ),
)


def broken(job: Job) -> Iterator[str]:
    """The fields that torchtitan does not have, and the rules that a job breaks."""
    for section, entries in job.sections.items():
        for name, value in entries.items():
            kind = FIELDS.get(section, {}).get(name)
            if kind is None:
                yield f"there is no {name} in [{section}] ({CONFIG})"
            elif value not in kind if isinstance(kind, tuple) else not isinstance(value, (int, float) if kind is float else kind):
                yield f"{name} in [{section}] is {value!r} ({CONFIG})"
    for rule in RULES:
        if (job.pipeline_parallel_degree > 1 or not rule.piped) and not rule.holds(job):
            yield f"{rule.demand} ({rule.source})"

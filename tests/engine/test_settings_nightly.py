"""torchtitan and DeepSpeed read what is exported for them: the releases that exports name, installed for these tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engine.export import deepspeed, settings, torchtitan
from engine.spec import RunSpec
from tests.engine.exported import ASKED, best_plans, drawn

pytestmark = pytest.mark.nightly


@cache
def specs() -> tuple[RunSpec, ...]:
    return (*(spec for name in ASKED for spec in best_plans(name)), *drawn())


# torchtitan's package imports what training needs. Reading a job file needs only these two modules of it.
_TORCHTITAN = """
import json, sys, tempfile, types
from pathlib import Path
from unittest.mock import MagicMock

sys.path.insert(0, sys.argv[1])
sys.modules["torchtitan"] = types.ModuleType("torchtitan")
sys.modules["torchtitan"].__path__ = [str(Path(sys.argv[1], "torchtitan"))]
for name in ("components", "components.loss", "protocols", "protocols.train_spec", "distributed.dual_pipe_v"):
    sys.modules["torchtitan." + name] = MagicMock()
from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class
from torchtitan.config import ConfigManager
from torchtitan.distributed.pipeline_parallel import generate_llm_fqn_per_model_part

for case in json.load(sys.stdin):
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(case["text"])
        file.flush()
        job = ConfigManager().parse_args(["--job.config_file=" + file.name]).parallelism
    parts = job.module_fqns_per_model_part
    if parts is None and job.pipeline_parallel_degree > 1:
        single = issubclass(get_schedule_class(job.pipeline_parallel_schedule), PipelineScheduleSingle)
        less = job.pipeline_parallel_first_stage_less_layers, job.pipeline_parallel_last_stage_less_layers
        parts = generate_llm_fqn_per_model_part(job.pipeline_parallel_degree * (1 if single else 2), case["layers"], *less)
    print("found", json.dumps([sum(name.startswith("layers.") for name in part) for part in parts or []]))
"""

# The optimizer is torch's, since DeepSpeed's own are built for GPUs.
_DEEPSPEED = """
import json, sys, types
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

sys.path.insert(0, sys.argv[1])
for name in ("tqdm", "tqdm.auto", "hjson", "msgpack", "psutil", "cpuinfo", "einops", "ninja"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        sys.modules[name] = MagicMock(__path__=[], __spec__=ModuleSpec(name, None))
import torch
import deepspeed.comm
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine import DeepSpeedEngine

deepspeed.comm.get_rank = lambda *_: 0
for case in json.load(sys.stdin):
    config = json.loads(case["text"])
    try:
        read = DeepSpeedConfig(config, types.SimpleNamespace(get_data_parallel_world_size=lambda: case["replicas"]))
        engine = object.__new__(DeepSpeedEngine)
        engine.__dict__.update(_config=read, global_rank=1, pipeline_parallelism=case["piped"])
        if config["optimizer"]["type"] != "Lion":
            made = getattr(torch.optim, config["optimizer"]["type"])
            engine._do_optimizer_sanity_check(made([torch.zeros(1, requires_grad=True)], **config["optimizer"]["params"]))
        print("found", json.dumps(""))
    except Exception as error:
        print("found", json.dumps(f"{type(error).__name__}: {error}"))
"""


def install(folder: Path, *arguments: str) -> Path:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *arguments]
    subprocess.run(pip, check=True, env=os.environ | {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}, timeout=600)
    return folder


def asked(program: str, folder: Path, cases: list[dict[str, Any]]) -> list[Any]:
    """What the program finds for each case."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        input=json.dumps(cases), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line.removeprefix("found ")) for line in done.stdout.splitlines() if line.startswith("found ")]


def test_torchtitan_reads_the_job_files_and_splits_layers_as_they_mean(tmp_path: Path) -> None:
    folder = install(tmp_path, f"torchtitan=={torchtitan.VERSION}", "--no-deps")
    install(tmp_path, "tyro")
    found = asked(_TORCHTITAN, folder, [{"text": settings(s, "torchtitan"), "layers": s.model.layers} for s in specs()])
    assert found == [[*spec.layout.chunk_layers(spec.model.layers)] if spec.layout.pp > 1 else [] for spec in specs()]


def test_deepspeed_accepts_the_configurations(tmp_path: Path) -> None:
    folder = install(tmp_path, f"deepspeed=={deepspeed.VERSION}", "--no-deps", "--no-build-isolation")
    cases = []
    for spec in specs():
        layout = spec.layout
        replicas = layout.dp if layout.pp > 1 else layout.ranks
        cases.append({"text": settings(spec, "deepspeed"), "replicas": replicas, "piped": layout.pp > 1})
    assert asked(_DEEPSPEED, folder, cases) == [""] * len(specs())

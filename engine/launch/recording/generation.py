"""Records what a chunk does when it generates: the pass of a whole prompt, and that of one more token."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from engine.inference import Inference
from engine.launch.recording.marks import MarkingRecorder, mark_instant, mark_modules, traced
from engine.launch.recording.probe import Probe
from engine.launch.recording.profiled import LAYER, Reading, SeenMicrobatch
from engine.ledger.form import Part, Structure, generating
from engine.model.chunk import TransformerChunk
from engine.model.layers import buckets_of
from engine.parallel.comm import Comm
from engine.parallel.data import ParameterUse, Streams
from engine.parallel.routing import Routing
from engine.phases import SilentLink
from engine.spec import GenerateSpec, LayoutSpec, RunSpec, WorkloadSpec
from engine.topology import Mesh, Subgroups

Seen = dict[str, SeenMicrobatch]


def generation(structure: Structure, part: Part, made: Probe) -> tuple[TransformerChunk, Seen]:
    """The chunk, and what it did, by name of the trace: for the prompt and for the last token, drawn and not drawn."""
    chunk, likeliest = _seen(structure, part, made, draws=False)
    _, drawn = _seen(structure, part, made, draws=True)
    return chunk, likeliest | drawn


def _seen(structure: Structure, part: Part, made: Probe, draws: bool) -> tuple[TransformerChunk, Seen]:
    inference = _inference(structure, part, made, draws)
    (chunk,) = inference.chunks.values()
    numbers = {module: number for number, module in enumerate(chunk.parts())}
    layers = {bucket: number for number, layer in enumerate(chunk.layers.values()) for bucket in buckets_of(layer)}
    chunk.through = partial(_through, numbers)
    mark_modules(chunk)
    tree = traced(inference.generator.run, inference.recorder)
    seen = Reading({}, {number: layers.get(module, -1) for module, number in numbers.items()}).read(tree)
    return chunk, {generating(False, draws): seen[0], generating(True, draws): seen[made.new_tokens - 1]}


def _inference(structure: Structure, part: Part, made: Probe, draws: bool) -> Inference:
    """The worker's own, of the one stage. Stages before and behind it are there in name."""
    ends = [made.start] * (not part.first), [made.model.layers - made.start - sum(part.recorded)] * (not part.last)
    split = (*ends[0], sum(part.recorded), *ends[1])
    spec = RunSpec(
        model=made.model,
        layout=LayoutSpec(tp=made.tp, pp=len(split), split=split),
        workload=WorkloadSpec(precision=structure.precision, attention=structure.attention),
        generate=GenerateSpec(
            prompt="x" * made.prompt, new_tokens=made.new_tokens, temperature=float(draws), skip_training=True
        ),
    )  # fmt: skip
    mesh, recorder = Mesh({**spec.layout.mesh, "dp": made.ep}), MarkingRecorder()
    comm = Comm.without_others(mesh, mesh.rank({"pp": int(not part.first)}), recorder, torch.device("cpu"), Subgroups(ep=made.ep))
    return Inference(spec, comm, SilentLink(), Routing(balanced=True, received=made.received))


def _through(numbers: Mapping[nn.Module, int], uses: list[ParameterUse], streams: Streams) -> Streams:
    """As a chunk does by itself, and marks the layer at work."""
    for use in uses:
        mark_instant(LAYER, numbers[use.layers[0]] if use.layers else -1)
        streams = use.run(streams)
    mark_instant(LAYER, -1)
    return streams

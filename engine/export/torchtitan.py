"""torchtitan: a job file in TOML.

Names and rules are those of release 0.2.2 (February 2026), the last that reads job files. Later ones are set up in Python, in the
`config_registry.py` of a model, by fields of the same names. `tests/engine/torchtitan_rules.py` has the rules with their sources,
and tests hold exports to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from engine import catalog
from engine.export.common import (
    global_batch,
    learning_rate,
    learning_rate_note,
    loss_note,
    optimizer_note,
    optimizer_settings,
    weights_note,
)
from engine.imports.torchtitan import DEEPSEEK, FLAVORS, with_bias
from engine.planner.frameworks import parts_lacked
from engine.spec import LayoutSpec, ModelSpec, RunSpec
from engine.spec.numbers import evenly

VERSION = "0.2.2"

_SAID = ("position=", "rotary_width=", "window=")  # parts that `_position_differences` tells of
_NAMES = {sizes[:-1]: name for name, sizes in FLAVORS.items()}  # of flavors, by their sizes


def toml(spec: RunSpec) -> str:
    """The text of a job file."""
    sections = {
        "model": _model(spec.model),
        "training": _training(spec),
        "optimizer": _optimizer(spec),
        "lr_scheduler": {"warmup_steps": 0, "decay_ratio": 0.0},
        "parallelism": _parallelism(spec),
        "activation_checkpoint": _checkpoint(spec.layout),
        "debug": {"seed": spec.workload.seed},
    }
    lines = [
        f"# torchtitan {VERSION}: {spec.layout.ranks} ranks as {spec.layout.code}.",
        "# Later releases have no job files: their config_registry.py sets the same fields in Python.",
    ]
    lines += [f"# Does not start: {text}." for text in _refusals(spec)]
    if not _has_flavor(spec.model):
        lines += [f"#     {_entry(spec.model)}"]
    lines += [f"# Not the same: {text}." for text in _differences(spec)]
    lines += [f"# {text}" for text in learning_rate_note(spec)]
    for name, entries in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in entries.items())]
    return "\n".join(lines) + "\n"


def _refusals(spec: RunSpec) -> Iterator[str]:
    """Why torchtitan does not start with the file as it is; nothing if it does."""
    model, layout = spec.model, spec.layout
    if not _has_flavor(model):
        yield "its sizes are flavors in its code; put the line below into torchtitan/models/llama3/__init__.py"
    if model.key_heads % layout.tp:
        yield f"tp={layout.tp} must divide its {model.key_heads} key heads; here ranks have copies of them"
    if model.seq % (2 * layout.tp):
        yield f"it cuts a sequence into 2 × tp = {2 * layout.tp} parts, which does not divide seq={model.seq}"


def _differences(spec: RunSpec) -> Iterator[str]:
    model, layout = spec.model, spec.layout
    if model.experts:
        yield from _expert_differences(model)
    elif model.family != "llama":
        yield f"torchtitan has no {model.family}; a Llama of this size stands in its place"
    elif lacked := [part for part in parts_lacked("torchtitan", model) if not part.startswith(_SAID)]:
        yield f"its Llama has no {', '.join(lacked)}; the parts of a Llama stand there"
    if model.head_dim and model.head_dim * model.heads != model.hidden:
        yield f"its heads are hidden ÷ heads wide, not {model.head_dim}"
    if model.family == "llama" and not model.experts:
        yield from _position_differences(model)
    yield from _schedule_differences(spec)
    yield from _sharding_differences(spec)
    if layout.tp > 1 and not layout.sequence_parallel:
        yield "its tensor parallelism is sequence parallel too"
    if spec.attention == "written":
        yield "its attention is always fused (scaled_dot_product_attention or FlexAttention); here the scores are written"
    yield from _recompute_differences(layout)
    yield from _precision_differences(spec)
    yield from optimizer_note(spec, "torchtitan", "torchtitan")
    yield from weights_note(spec)
    yield from loss_note(spec, "torchtitan keeps whole logits")
    if spec.generate.prompt:
        yield "nothing is generated after training"


def _recompute_differences(layout: LayoutSpec) -> Iterator[str]:
    if layout.recompute not in ("none", "full"):
        yield f"its selective recompute chooses among all operators; here {layout.recompute} is computed again"
    if layout.recompute_layers:
        yield f"it recomputes all layers or every n-th, and not the first {layout.recompute_layers} of a chunk; all are, there"


def _position_differences(model: ModelSpec) -> Iterator[str]:
    if model.parts.position != "rotary":
        yield f"its positions are rotary, and here they are {model.parts.position}"
    elif model.rotated < model.head_width:
        yield f"it rotates all {model.head_width} numbers of a head, and here {model.rotated} are rotated"
    if "window" in model.sized_parts:
        yield f"it has no window; here a token sees {model.window} tokens"


def _schedule_differences(spec: RunSpec) -> Iterator[str]:
    layout, named = spec.layout, spec.layout.facts.elsewhere.get("torchtitan")
    if layout.pp > 1 and named is None:
        yield f"torchtitan has no {layout.schedule} schedule; {_schedule(spec)} is the nearest"
    elif layout.pp > 1 and named != _schedule(spec):
        few = spec.workload.microbatches
        yield f"its 1F1B needs pp={layout.pp} microbatches or more, and there are {few}; {_schedule(spec)} runs instead"


def _model(model: ModelSpec) -> dict[str, Any]:
    return {"name": "deepseek_v3" if model.experts else "llama3", "flavor": expert_flavor(model) or _flavor(model)}


def expert_flavor(model: ModelSpec) -> str | None:
    """The flavor of its deepseek_v3 that has these sizes, of a model with experts."""
    known = {
        name: ModelSpec.model_validate(with_bias(catalog.model(ours)) | {"seq": model.seq}) for name, ours in DEEPSEEK.items()
    }
    if not model.experts:
        return None
    same = ModelSpec.model_validate(with_bias(model))
    return next((name for name, flavored in known.items() if flavored == same), None)


def _expert_differences(model: ModelSpec) -> Iterator[str]:
    if model.parts.balancing != "bias":
        yield f"it keeps loads alike by a bias of the router; here it is balancing={model.parts.balancing}"


def _flavor(model: ModelSpec) -> str:
    """The name of the flavor of these sizes. If torchtitan has none, the name that `_entry` gives it."""
    sizes = (model.layers, model.hidden, model.heads, model.key_heads, model.ffn_width, model.vocab)
    own = f"{model.layers}x{model.hidden}"
    return own if model.rotary_base else _NAMES.get(sizes, own)


def _has_flavor(model: ModelSpec) -> bool:
    return expert_flavor(model) is not None or _flavor(model) in FLAVORS


def _entry(model: ModelSpec) -> str:
    """A line of torchtitan's table of flavors. Its MLP is 8/3 hidden × `ffn_dim_multiplier`, rounded up to a `multiple_of`."""
    width = model.ffn_width
    found: dict[str, float] = {
        "dim": model.hidden,
        "n_layers": model.layers,
        "n_heads": model.heads,
        "n_kv_heads": model.key_heads,
    }
    found |= {"vocab_size": model.vocab, "multiple_of": width, "rope_theta": model.angle_base}
    if (usual := 8 * model.hidden / 3) > width:
        found["ffn_dim_multiplier"] = int(1e6 * width / usual) / 1e6
    return f'"{_flavor(model)}": TransformerModelArgs({", ".join(f"{name}={value}" for name, value in found.items())}),'


def _training(spec: RunSpec) -> dict[str, Any]:
    """With a pipeline, the local batch is split into microbatches. Without one, microbatches accumulate to the global batch."""
    workload = spec.workload
    piped = workload.microbatches if spec.layout.pp > 1 else 1
    return {
        "local_batch_size": workload.microbatch_size * piped,
        "global_batch_size": global_batch(spec),
        "seq_len": spec.model.seq,
        "max_norm": 1e9,  # clips nothing
        "steps": workload.steps,
        "mixed_precision_param": "bfloat16" if workload.precision == "bf16" else "float32",
        "mixed_precision_reduce": "float32",
    }


def _optimizer(spec: RunSpec) -> dict[str, Any]:
    return {**optimizer_settings(spec, "torchtitan"), "lr": learning_rate(spec)}


def _shards(spec: RunSpec) -> bool:
    """Whether torchtitan shards over dp × cp, as it always does with cp. Its other way, DDP, goes neither with tp nor with pp."""
    layout = spec.layout
    return layout.zero > 0 or layout.cp > 1 or (layout.dp > 1 and layout.tp * layout.pp > 1)


def _replicas(layout: LayoutSpec) -> int:
    """Its replicas are of dp alone, and cp is among the ranks that shard."""
    return layout.zero_replicas if layout.dp % layout.zero_replicas == 0 else 1


def _parallelism(spec: RunSpec) -> dict[str, Any]:
    """With a sharding degree it is ZeRO 2 if parameters are kept after forward, and ZeRO 3 if they are freed.

    A degree of replicas beside it makes that hybrid sharding.
    """
    layout = spec.layout
    sharded = _shards(spec)
    found: dict[str, Any] = {
        "data_parallel_replicate_degree": _replicas(layout) if sharded else layout.dp,
        "data_parallel_shard_degree": layout.dp // _replicas(layout) if sharded else 1,
    }
    if sharded:
        found["fsdp_reshard_after_forward"] = "always" if layout.zero == 3 else "never"
    found["tensor_parallel_degree"] = layout.tp
    if spec.model.experts:
        found["expert_parallel_degree"], found["expert_tensor_parallel_degree"] = layout.ep, layout.tp
    if layout.cp > 1:
        found["context_parallel_degree"] = layout.cp
        found["context_parallel_rotate_method"] = "alltoall" if layout.context_parallel == "ring" else "allgather"
    found["pipeline_parallel_degree"] = layout.pp
    if layout.pp > 1:
        found["pipeline_parallel_schedule"] = _schedule(spec)
        found["pipeline_parallel_microbatch_size"] = spec.workload.microbatch_size
        # As if embedding and head took no time: then its own arithmetic is an even split, the first chunks larger by one.
        found["pipeline_parallel_first_stage_less_layers"] = 0
        found["pipeline_parallel_last_stage_less_layers"] = 0
        counts = layout.chunk_layers(spec.model.layers)
        if layout.chunks > 2 or counts != evenly(spec.model.layers, len(counts)):
            found["module_fqns_per_model_part"] = _modules(spec)
    return found


def _sharding_differences(spec: RunSpec) -> Iterator[str]:
    layout = spec.layout
    if layout.zero == 0 and _shards(spec):
        yield "it has no replicas beside tp, cp or pp, so they shard optimizer and gradients, as with ZeRO 2"
    if layout.zero == 1:
        yield "torchtitan shards optimizer and gradients together, so ZeRO 1 becomes ZeRO 2"
    if layout.zero_replicas != _replicas(layout):
        yield f"its replicas are of dp alone, and dp={layout.dp} has no {layout.zero_replicas} of them; dp × cp shards as a whole"


def _precision_differences(spec: RunSpec) -> Iterator[str]:
    layout, workload = spec.layout, spec.workload
    if workload.bf16_optimizer:
        yield "its parameters and the optimizer's states are fp32, which training.dtype bfloat16 of later versions changes"
    elif workload.precision == "bf16" and layout.mesh.replicas == 1 and layout.ranks > 1:
        yield "its bf16 comes with FSDP, and dp=1 has none; it trains in fp32"
    elif workload.precision == "bf16" and not _shards(spec):
        yield "without sharding its bf16 is autocast over fp32 parameters; here parameters are bf16 with an fp32 copy"
    if workload.accumulate == "bf16" and workload.precision == "bf16":
        yield "it reduces gradients in fp32, not in bf16"


def _checkpoint(layout: LayoutSpec) -> dict[str, Any]:
    """Its selective mode with a number recomputes every n-th layer. By operator it keeps most matrix products and attention, and
    computes all else again.
    """
    if layout.recompute_every > 1:
        return {"mode": "selective", "selective_ac_option": str(layout.recompute_every)}
    if layout.recompute in ("none", "full"):
        return {"mode": layout.recompute}
    return {"mode": "selective", "selective_ac_option": "op"}


def _modules(spec: RunSpec) -> list[list[str]]:
    """The names of the modules of each chunk."""
    parts = [[f"layers.{layer}" for layer in layers] for layers in spec.layout.layer_ranges(spec.model.layers)]
    parts[0].insert(0, "tok_embeddings")
    parts[-1] += ["norm", "output"]
    return parts


def _schedule(spec: RunSpec) -> str:
    facts = spec.layout.facts
    named = facts.elsewhere.get("torchtitan", facts.nearest.get("torchtitan", "1F1B"))
    return "GPipe" if named == "1F1B" and spec.workload.microbatches < spec.layout.pp else named


def _value(value: Any) -> str:
    """A value in TOML. TOML writes these values as JSON does; lists of lists have a line each."""
    if isinstance(value, list):
        return "[\n" + "".join(f"  {json.dumps(part)},\n" for part in value) + "]"
    return json.dumps(value)

"""torchtitan's job file as a request. Names are those of release 0.2.2. `engine.export.torchtitan` is the inverse."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from engine import catalog
from engine.imports.fields import Fields, Imported, brief
from engine.imports.parts import Values
from engine.spec import SCHEDULE_FACTS, LayoutSpec, ModelSpec, RequestError, Sentence, WorkloadSpec, sentence
from engine.spec.numbers import evenly

# The flavors of its llama3: layers, hidden size, heads, key heads, width of the MLP, vocabulary and base of rotary positions.
# torchtitan 0.2.2, `torchtitan/models/llama3/__init__.py`.
FLAVORS: Mapping[str, tuple[int, ...]] = {
    "8B": (32, 4096, 32, 8, 14336, 128256, 0),
    "70B": (80, 8192, 64, 8, 28672, 128256, 0),
    "405B": (126, 16384, 128, 8, 53248, 128256, 0),
}
# The flavors of its deepseek_v3, by the names of the same models in the catalog. Loads are kept alike by a bias in all of them.
# torchtitan, `torchtitan/models/deepseek_v3/__init__.py`.
DEEPSEEK: Mapping[str, str] = {"16B": "deepseek-v2-lite", "236B": "deepseek-v2", "671B": "deepseek-v3"}
_SIZES = ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "rotary_base")
_PARTS = 64  # of a key with dots. tomllib's time grows with the square of their number
_LONG_KEY = re.compile(rf"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){{{_PARTS}}}""")
_ENTRY = re.compile(r'"(?P<flavor>[^"]+)": TransformerModelArgs\((?P<sizes>[^)]*)\)')
_REST = -1  # of a degree: as many ranks as are left
# What stands for entries that a file lacks. torchtitan 0.2.2, `torchtitan/config/job_config.py`.
_USUAL: Mapping[str, Mapping[str, Any]] = {
    "training": {"seq_len": 2048, "local_batch_size": 8, "global_batch_size": -1, "mixed_precision_param": "bfloat16"},
    "optimizer": {"lr": 8e-4},
    "parallelism": {
        "data_parallel_replicate_degree": 1, "data_parallel_shard_degree": _REST, "tensor_parallel_degree": 1,
        "pipeline_parallel_degree": 1, "pipeline_parallel_schedule": "1F1B", "pipeline_parallel_microbatch_size": 1,
        "pipeline_parallel_first_stage_less_layers": 1, "pipeline_parallel_last_stage_less_layers": 1,
    },
    "activation_checkpoint": {"mode": "selective", "selective_ac_option": "2"},
}  # fmt: skip
_SECTIONS = ("model", "training", "optimizer", "lr_scheduler", "parallelism", "activation_checkpoint", "debug")
_HARMLESS = ("job", "profiling", "metrics", "checkpoint", "comm", "validation", "compile", "experimental", "memory_estimation")
_ALSO_HARMLESS = (
    "tokenizer_path", "hf_assets_path", "converters", "dataset", "dataset_path", "max_norm", "gc_freq", "beta1", "beta2",
    "weight_decay", "eps", "implementation", "early_step_in_backward", "warmup_steps", "decay_ratio", "decay_type",
    "min_lr_factor", "deterministic", "mixed_precision_reduce", "enable_async_tensor_parallel",
    "pipeline_parallel_first_stage_less_layers", "pipeline_parallel_last_stage_less_layers", "pipeline_parallel_microbatch_size",
)  # fmt: skip


def request(text: str, name: str) -> Imported:
    """`name`: of the file. Raises `RequestError`."""
    if _LONG_KEY.search(text):
        raise RequestError(sentence("{name}: a key has more than {most} parts", name=name, most=_PARTS))
    try:
        entries = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the former also for a number of thousands of digits
        raise RequestError(sentence("{name} is not TOML: {error}", name=name, error=brief(error))) from error
    parts = {section: Fields(_table(entries, section), _USUAL.get(section, {})) for section in _SECTIONS}
    remarks: list[Sentence] = []
    model = _model(parts["model"], parts["training"], text)
    layout = _layout(parts, model, remarks)
    workload = _workload(parts, layout, remarks)
    for section, fields in parts.items():
        for key, value in fields.unread().items():
            if key not in _ALSO_HARMLESS:
                where = f"{section}.{key}"
                remarks.append(sentence("{name}={value} is not understood, and left out", name=brief(where), value=brief(value)))
    for section in entries:
        if section not in (*_SECTIONS, *_HARMLESS):
            remarks.append(sentence("[{section}] is not understood, and left out", section=brief(section)))
    return Imported(model, tuple(remarks), layout, workload)


def _table(entries: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = entries.get(name, {})
    if not isinstance(value, dict):
        raise RequestError(sentence("{name}={value} must be an object", name=name, value=brief(value)))
    return value


def _model(fields: Fields, training: Fields, text: str) -> ModelSpec:
    kind, flavor = fields.text("name"), fields.text("flavor")
    if kind == "deepseek_v3" and flavor in DEEPSEEK:
        return ModelSpec.model_validate(with_bias(catalog.model(DEEPSEEK[flavor])) | {"seq": training.whole("seq_len")})
    if kind == "deepseek_v3":
        raise RequestError(_unknown_flavor(flavor, DEEPSEEK))
    if kind != "llama3":
        text = sentence("torchtitan's model {name} is not known here; {known} are", name=brief(kind), known="llama3, deepseek_v3")
        raise RequestError(text)
    sizes: Values = dict(zip(_SIZES, FLAVORS[flavor], strict=True)) if flavor in FLAVORS else _own_flavor(flavor, text)
    return ModelSpec.model_validate({"family": "llama", "seq": training.whole("seq_len"), **sizes})


def with_bias(model: ModelSpec) -> Values:
    """The fields of a model with experts as torchtitan has it, whose loads are kept alike by a bias."""
    return model.model_dump() | {"balancing": "bias", "balancing_rate": 0.0}


def _own_flavor(flavor: str, text: str) -> Values:
    """The sizes of a flavor from a line as the export writes it: torchtitan has its flavors in code."""
    entry = next((match for match in _ENTRY.finditer(text) if match["flavor"] == flavor), None)
    if entry is None:
        raise RequestError(_unknown_flavor(flavor, FLAVORS))
    given = dict(re.findall(r"\b(\w+)=(\d{1,18})\b", entry["sizes"]))
    named = ("n_layers", "dim", "n_heads", "n_kv_heads", "multiple_of", "vocab_size", "rope_theta")
    if missing := [name for name in named if name not in given]:
        names = ", ".join(missing)
        raise RequestError(sentence("the line of the flavor {flavor} has no {names}", flavor=brief(flavor), names=names))
    found = dict(zip(_SIZES, (int(given[name]) for name in named), strict=True))
    follows = {"kv_heads": found["heads"], "ffn": 4 * found["hidden"], "rotary_base": 500_000}
    return found | {name: 0 for name, usual in follows.items() if found[name] == usual}


def _unknown_flavor(flavor: str, known: Iterable[str]) -> Sentence:
    names = ", ".join(known)
    return sentence("the flavor {flavor} is in torchtitan's code; {known} are known", flavor=brief(flavor), known=names)


def _layout(parts: Mapping[str, Fields], model: ModelSpec, remarks: list[Sentence]) -> LayoutSpec:
    fields = parts["parallelism"]
    shard, replicas = fields.whole("data_parallel_shard_degree"), fields.whole("data_parallel_replicate_degree")
    cp = fields.whole("context_parallel_degree") if "context_parallel_degree" in fields else 1
    methods = {"allgather": "all_gather", "alltoall": "ring"}  # it rotates keys and values by either
    kind = (
        fields.one_of("context_parallel_rotate_method", methods) if "context_parallel_rotate_method" in fields else "all_gather"
    )
    if shard == _REST:
        shard = 1
        remarks.append(_unknown_degree(replicas, cp))
    tp, pp = fields.whole("tensor_parallel_degree"), fields.whole("pipeline_parallel_degree")
    ep = fields.whole("expert_parallel_degree") if "expert_parallel_degree" in fields else 1
    if model.experts:
        fields.demand("expert_tensor_parallel_degree", tp)
    always = fields.get("fsdp_reshard_after_forward")
    sharded = shard * cp > 1  # its FSDP is over both, see `fsdp_enabled` in `torchtitan/distributed/parallel_dims.py`
    zero = 0 if not sharded else 2 if always == "never" or (always in (None, "default") and pp > 1) else 3
    mode, every = _recompute(parts["activation_checkpoint"])
    if mode not in ("none", "full"):
        remarks.append(sentence("activation_checkpoint.mode={mode} is left out: nothing is computed again", mode=brief(mode)))
        mode = "none"
    values: Values = {"dp": shard * replicas, "tp": tp, "pp": pp, "zero": zero, "sequence_parallel": tp > 1, "recompute": mode}
    values |= {"zero_replicas": replicas} if zero else {}
    values |= {"recompute_every": every} if every > 1 else {}
    values |= {"cp": cp, "context_parallel": kind} if cp != 1 else {}
    values |= {"ep": ep} if ep != 1 else {}
    return LayoutSpec.model_validate(values | _pipeline(fields, model, pp))


def _unknown_degree(dp: int, cp: int) -> Sentence:
    """The remark on a sharding degree that is the rest of the ranks."""
    if cp > 1:
        return sentence(
            "data_parallel_shard_degree=-1 depends on the number of ranks, so dp is {dp} and cp={cp} alone shards", dp=dp, cp=cp
        )
    return sentence("data_parallel_shard_degree=-1 depends on the number of ranks, so dp is {dp} and nothing is sharded", dp=dp)


def _recompute(fields: Fields) -> tuple[Any, int]:
    """Its mode, and every how many layers are recomputed: its selective mode with a number n recomputes every n-th whole.

    0 recomputes every layer there too, see `_apply_layer_sac` in `torchtitan/distributed/activation_checkpoint.py`.
    """
    mode, option = fields.get("mode"), str(fields.get("selective_ac_option"))
    if mode != "selective" or not re.fullmatch(r"\d{1,4}", option):
        return mode, 1
    return "full", max(1, int(option))


def _pipeline(fields: Fields, model: ModelSpec, pp: int) -> Values:
    named = fields.get("pipeline_parallel_schedule")
    modules = fields.get("module_fqns_per_model_part")
    if pp <= 1:  # the layout refuses a pp below 1
        return {}
    schedule = next((name for name, facts in SCHEDULE_FACTS.items() if facts.elsewhere.get("torchtitan") == named), None)
    if schedule is None:
        raise RequestError(sentence("there is no schedule {name} here", name=brief(named)))
    facts = SCHEDULE_FACTS[schedule]
    found: Values = {"schedule": schedule, "chunks": facts.chunks or facts.least_chunks}
    if isinstance(modules, list) and all(isinstance(part, list) for part in modules):
        counts = tuple(sum(str(module).startswith("layers.") for module in part) for part in modules)
        found["chunks"] = max(1, len(counts) // pp)
    else:
        counts = _counts(fields, model.layers, pp * found["chunks"])
    even = LayoutSpec(pp=pp, chunks=found["chunks"]).chunk_layers(model.layers)
    found["split"] = () if counts == even else counts
    return found


def _counts(fields: Fields, layers: int, chunks: int) -> tuple[int, ...]:
    """Layers of each chunk: even, with embedding and head counted as so many layers."""
    names = ("pipeline_parallel_first_stage_less_layers", "pipeline_parallel_last_stage_less_layers")
    first, last = (fields.whole(name) for name in names)
    if min(first, last) < 0 or max(first, last) > (layers + first + last) // chunks:
        text = sentence(
            "torchtitan cannot cut {layers} layers into {chunks} chunks of which the first has {first} less and the last {last}",
            layers=layers,
            chunks=chunks,
            first=first,
            last=last,
        )
        raise RequestError(text)
    middle = evenly(layers + first + last, chunks)
    return (middle[0] - first, *middle[1:-1], middle[-1] - last)


def _workload(parts: Mapping[str, Fields], layout: LayoutSpec, remarks: list[Sentence]) -> WorkloadSpec:
    training, optimizer, fields = parts["training"], parts["optimizer"], parts["parallelism"]
    local = training.whole("local_batch_size")
    whole = training.whole("global_batch_size")
    if whole < 0:  # unset
        whole = local * layout.dp
    each = fields.whole("pipeline_parallel_microbatch_size") if layout.pp > 1 else local
    if each < 1 or whole % (each * layout.dp):
        text = sentence("global_batch_size={batch} is not a multiple of {each} × dp={dp}", batch=whole, each=each, dp=layout.dp)
        raise RequestError(text)
    values: dict[str, Any] = {
        "microbatch_size": each,
        "microbatches": whole // (each * layout.dp),
        "learning_rate": optimizer.number("lr"),
    }
    named = optimizer.text("name") if "name" in optimizer else "AdamW"
    if named not in ("AdamW", "Adam"):
        raise RequestError(sentence("there is no optimizer {name} here; {known} are", name=brief(named), known="AdamW"))
    most = next(rule.le for rule in WorkloadSpec.model_fields["steps"].metadata if hasattr(rule, "le"))
    if "steps" in training and training.whole("steps") <= most:
        values["steps"] = training.whole("steps")
    elif "steps" in training:
        remarks.append(sentence("training.steps is left out: runs here have at most {most} steps", most=most))
    sharded = layout.zero > 0 or fields.get("data_parallel_shard_degree") == _REST
    values["precision"] = _precision(training, layout, sharded, remarks)
    seed = parts["debug"].get("seed")
    return WorkloadSpec.model_validate(values if seed is None else values | {"seed": seed})


def _precision(training: Fields, layout: LayoutSpec, sharded: bool, remarks: list[Sentence]) -> str:
    """Of parameters. torchtitan 0.2.2, `maybe_enable_amp` in `torchtitan/distributed/utils.py`. `sharded`: FSDP runs."""
    if training.get("mixed_precision_param") != "bfloat16":
        return "fp32"
    if sharded:
        return "bf16"
    if layout.tp * layout.pp > 1:
        remarks.append(
            sentence("mixed_precision_param=bfloat16 is left out: without sharding, torchtitan has fp32 beside tp or pp")
        )
        return "fp32"
    remarks.append(
        sentence("without sharding, torchtitan's bf16 is autocast over fp32 parameters; here they are bf16 with an fp32 copy")
    )
    return "bf16"

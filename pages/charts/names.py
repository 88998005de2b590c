"""Names for codes: memory categories, lanes, schedules, phases, columns. Tables hold the codes; readers see the names.

Terms that are the same in every language have no entry here: dp, tp, pp, all_reduce, ZeRO, fp32.
"""

from __future__ import annotations

import re
from typing import get_args

import pandas as pd

from engine.spec import SCHEDULE_FACTS, WHOLE_LOSS, Recompute
from engine.tables import KV_CACHE
from engine.topology import AXES
from pages.charts.words import Words


def categories(say: Words) -> dict[str, str]:
    """Memory category → name."""
    return {
        "parameters": say("parameters"),
        "gradients": say("gradients"),
        "optimizer": say("optimizer"),
        "activations": say("activations"),
        "communication": say("communication"),
        "temporary": say("temporary"),
        KV_CACHE: say("KV cache"),
    }


def lanes(say: Words) -> dict[str, str]:
    """Key of `Look.lane` → name."""
    return {
        "forward (F)": say("forward (F)"),
        "backward (B, I)": say("backward (B, I)"),
        "weight gradient (W)": say("weight gradient (W)"),
        "reduce, tie, gather, step": say("reduce, tie, gather, step"),
        "collective": say("collective"),
        "send, receive": say("send, receive"),
    }


def schedules(say: Words) -> dict[str, str]:
    return {name: say.sentence(facts.title) for name, facts in SCHEDULE_FACTS.items()}


def schedule(code: str, say: Words) -> str:
    return schedules(say).get(code, code)


def phases(say: Words) -> dict[str, str]:
    """Phase of traffic → name. A phase without an entry keeps its code."""
    return {
        "forward": say("forward"),
        "backward": say("backward"),
        "reduce": say("reduce"),
        "tie": say("tie"),
        "step": say("optimizer step"),
        "gather": say("gather"),
    }


def phase(code: str, say: Words) -> str:
    return phases(say).get(code, code)


def measures(say: Words) -> dict[str, str]:
    """The two measures of traffic."""
    return {"wire": say("wire"), "payload": say("payload")}


_ACTION = re.compile(r"(\w+)(?: (activation|gradient))?(?: chunk (\d+))?(?: microbatch (\d+))?")


def action(text: str, say: Words) -> str:
    """An action as tables write it: "F chunk 0 microbatch 1", "send gradient chunk 0 microbatch 1", "reduce chunk 0", "step"."""
    found = _ACTION.fullmatch(text)
    if not found:
        return text
    kind, flow, chunk, microbatch = found.groups()
    kind = _with_flow(kind, flow, say)
    if chunk and microbatch:
        return say("{kind} chunk {chunk} microbatch {microbatch}", kind=kind, chunk=chunk, microbatch=microbatch)
    if chunk:
        return say("{kind} chunk {chunk}", kind=kind, chunk=chunk)
    return say("{kind} microbatch {microbatch}", kind=kind, microbatch=microbatch) if microbatch else kind


def doing(text: str, chunks: int, say: Words) -> str:
    """An action as a sentence has it: "backward of microbatch 0". With several `chunks` on a rank, its chunk too."""
    found = _ACTION.fullmatch(text)
    if not found:
        return text
    code, flow, chunk, microbatch = found.groups()
    named = _with_flow(_kinds(say).get(code, code), flow, say)
    if microbatch:
        named = say("{kind} of microbatch {microbatch}", kind=named, microbatch=microbatch)
    return say("{kind}, chunk {chunk}", kind=named, chunk=chunk) if chunk and chunks > 1 else named


def _kinds(say: Words) -> dict[str, str]:
    return {
        "F": say("forward"),
        "B": say("backward"),
        "I": say("input gradient"),
        "W": say("weight gradient"),
        "reduce": say("gradient reduction"),
        "step": say("optimizer step"),
        "gather": say("parameter gather"),
    }


def _with_flow(kind: str, flow: str | None, say: Words) -> str:
    if not flow:
        return kind
    return say("{kind} activation", kind=kind) if flow == "activation" else say("{kind} gradient", kind=kind)


def sources(say: Words) -> dict[str, str]:
    """Source of a table → name."""
    return {"measured": say("measured"), "dry_run": say("dry run"), "formula": say("predicted")}


def context_kinds(say: Words) -> dict[str, str]:
    """Code of a kind of context parallelism → name."""
    return {
        "ring": say("keys and values passed round (ring)"),
        "all_gather": say("keys and values gathered (all_gather)"),
        "ulysses": say("heads exchanged for tokens (ulysses)"),
    }


def attentions(say: Words) -> dict[str, str]:
    return {"fused": say("fused"), "written": say("written")}


def loss_in_chunks(tokens: int, say: Words) -> str:
    """How the loss is computed, for a value of `WorkloadSpec.loss_chunk`."""
    if tokens == WHOLE_LOSS:
        return say("loss of whole logits")
    return say("loss in chunks of {count} tokens", count=f"{tokens:,}") if tokens else say("automatic chunks of the loss")


def recomputes(say: Words) -> dict[str, str]:
    names = {"none": say("none"), "core_attn": say("attention"), "layernorm": say("norms"), "mlp_act": say("activation")}
    names["full"] = say("full")
    return {kind: " + ".join(names[part] for part in kind.split("+")) for kind in get_args(Recompute)}


def recompute(kind: str, layers: int, every: int, say: Words) -> str:
    """What backward computes again, and of whole layers which: "full, first 4 layers of a chunk"."""
    named = recomputes(say)[kind]
    if layers:
        said = say.plural("{what}, first {count} layer of a chunk", "{what}, first {count} layers of a chunk", layers, what=named)
        return str(said)
    return say("{what}, one layer in {count}", what=named, count=every) if every > 1 else named


def microbatches(count: int, size: int, say: Words) -> str:
    """ "1 microbatch of 2", "8 microbatches of 2"."""
    return say.plural("{count} microbatch of {size}", "{count} microbatches of {size}", count, size=size)


def readable(table: pd.DataFrame, say: Words) -> pd.DataFrame:
    """The table with names instead of codes in its cells. Columns keep their codes: see `columns`."""
    named = {
        "source": sources(say),
        "category": categories(say) | {"total": say("total")},
        "schedule": schedules(say),
        "recompute": recomputes(say),
        "phase": phases(say),
        "lane": {"compute": say("computing"), "comm": say("communicating")},
        # values of any lever
        "value": schedules(say) | attentions(say) | recomputes(say) | {"True": say("on"), "False": say("off")},
    }
    in_words = {name: [known.get(cell, cell) for cell in table[name]] for name, known in named.items() if name in table}
    if "action" in table:
        in_words["action"] = [action(str(text), say) for text in table["action"]]
    return table.assign(**in_words)


def columns(say: Words) -> dict[str, str]:
    """Column of a table → name. A column without an entry keeps its code."""
    return {
        "source": say("source"),
        "rank": say("rank"),
        "pp": say("stage (pp)"),
        "dp": say("replica (dp)"),
        "tp": say("slice (tp)"),
        "category": say("category"),
        "bytes": say("bytes"),
        "total": say("total"),
        "axis": say("axis"),
        "collective": say("collective"),
        "phase": say("phase"),
        "group": say("group"),
        "calls": say("calls"),
        "payload_bytes": say("payload bytes"),
        "wire_bytes": say("wire bytes"),
        "t_ns": say("time (ns)"),
        "action": say("action"),
        "row": say("row"),
        "lane": say("lane"),
        "kind": say("kind"),
        "chunk": say("chunk"),
        "microbatch": say("microbatch"),
        "step": say("step"),
        "start": say("start"),
        "end": say("end"),
        "duration": say("duration"),
        "cpu": say("CPU time"),
        "start_ns": say("start (ns)"),
        "end_ns": say("end (ns)"),
        "cpu_ns": say("CPU time (ns)"),
        "loss": say("loss"),
        "grad_norm": say("gradient norm"),
        "step_ns": say("step time (ns)"),
        "tokens": say("tokens"),
        "layer": say("layer"),
        "expert": say("expert"),
        "share": say("times an even share"),
        "times": say("times an even share"),
        "parameter": say("parameter"),
        "max_abs": say("largest difference"),
        "max_rel": say("of the largest entry"),
        "stage": say("stage"),
        "critical": say("on the critical path"),
        "value": say("value"),
        "bubble": say("bubble"),
        "compute_s": say("compute (s)"),
        **{f"{axis}_s": say("waiting for {axis} (s)", axis=axis) for axis in AXES},
        "update_s": say("optimizer step (s)"),
        "idle_s": say("bubble (s)"),
        **{f"{axis}_bytes": say("{axis} traffic (bytes)", axis=axis) for axis in AXES},
        "model": say("model"),
        "ranks": say("devices"),
        "layout": say("layout"),
        "schedule": say("schedule"),
        "chunks": say("chunks"),
        "microbatches": say("microbatches"),
        "microbatch_size": say("microbatch size"),
        "zero": "ZeRO",
        "zero_replicas": say("ZeRO groups"),
        "sequence_parallel": say("sequence parallel"),
        "recompute": say("recompute"),
        "recompute_layers": say("recomputed layers of a chunk (0: all)"),
        "memory_bytes": say("memory (bytes)"),
        "fullest_stage": say("fullest stage"),
        "step_s": say("step time (s)"),
        "tokens_per_second": say("tokens/s"),
        "tflops_per_device": say("TFLOP/s of a device"),
        "mfu": "MFU",
        "fits": say("fits"),
        "pareto": say("on the Pareto front"),
        "reason": say("why"),
        "why": say("why"),
    } | categories(say)


def zero_stage(zero: int, replicas: int, say: Words) -> str:
    """A ZeRO stage, and with hybrid sharding how many groups of ranks shard."""
    return say("ZeRO {zero} in {count} groups", zero=zero, count=replicas) if replicas > 1 else f"ZeRO {zero}"

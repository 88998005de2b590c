"""Names of levers and of their values. Links, files and tables have the codes."""

from __future__ import annotations

from typing import Any

from pages.charts.names import attentions, loss_in_chunks, recomputes, schedule
from pages.charts.words import Words


def levers(say: Words) -> dict[str, str]:
    """A spec's dotted field → name."""
    return {
        "layout.dp": say("Data parallel (dp)"),
        "layout.cp": say("Context parallel (cp)"),
        "layout.tp": say("Tensor parallel (tp)"),
        "layout.pp": say("Pipeline parallel (pp)"),
        "layout.schedule": say("Pipeline schedule"),
        "layout.chunks": say("Chunks a stage"),
        "layout.zero": say("ZeRO stage"),
        "layout.zero_replicas": say("ZeRO groups"),
        "layout.sequence_parallel": say("Sequence parallel"),
        "layout.recompute": say("Recompute in backward"),
        "layout.recompute_layers": say("Recomputed layers of each chunk"),
        "layout.recompute_every": say("One recomputed layer in"),
        "workload.microbatches": say("Microbatches"),
        "workload.microbatch_size": say("Sequences a microbatch"),
        "workload.precision": say("Precision"),
        "workload.bf16_optimizer": say("Optimizer in bf16, without an fp32 copy"),
        "workload.attention": say("Attention"),
        "workload.loss_chunk": say("Tokens of a chunk of the loss"),
        "model.seq": say("Sequence length"),
    }


def value(lever: str, held: Any, say: Words) -> str:
    """The name of a lever's value."""
    if isinstance(held, bool):
        return say("on") if held else say("off")
    if lever == "layout.schedule":
        return schedule(held, say)
    if lever == "layout.recompute":
        return recomputes(say)[held]
    if lever == "layout.recompute_layers" and not held:
        return say("all")
    if lever == "workload.attention":
        return attentions(say)[held]
    if lever == "workload.loss_chunk":
        return loss_in_chunks(held, say)
    if lever == "layout.zero":
        return f"ZeRO {held}"
    return f"{held:,}" if isinstance(held, int) else str(held)

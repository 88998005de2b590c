"""The parts of a spec beside its model: layout, workload, text generation, and fault injection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any, Literal

from pydantic import Field, field_validator

from engine.spec.base import Spec
from engine.spec.errors import RequestError
from engine.spec.model import ModelSpec
from engine.spec.numbers import evenly
from engine.spec.schedules import SCHEDULE_FACTS, ScheduleFacts, ScheduleName
from engine.spec.sentence import brief, sentence
from engine.topology import AXES, AXES_AS_WRITTEN, EP, CallAxis, Mesh

# What backward computes again: nothing, parts of layers, or whole layers. `recomputes` reads it.
Recompute = Literal[
    "none", "core_attn", "layernorm", "mlp_act", "core_attn+layernorm", "core_attn+mlp_act", "layernorm+mlp_act",
    "core_attn+layernorm+mlp_act", "full",
]  # fmt: skip
RecomputePart = Literal["core_attn", "layernorm", "mlp_act"]
Precision = Literal["fp32", "bf16"]
AttentionName = Literal["fused", "written"]
ContextParallelName = Literal["ring", "all_gather", "ulysses"]
OptimizerName = Literal["adamw", "sgd", "lion"]
WeightsName = Literal["drawn", "trained"]


def recomputes(recompute: Recompute, part: RecomputePart) -> bool:
    """Whether backward computes that part of layers again, and not whole layers."""
    return part in recompute.split("+")


class LayoutSpec(Spec):
    """How the work is distributed over ranks. There is one rank for each coordinate of the mesh."""

    dp: int = Field(1, ge=1, le=65536, description="data-parallel replicas")
    cp: int = Field(1, ge=1, le=1024, description="context-parallel ranks: each has a part of every sequence")
    tp: int = Field(1, ge=1, le=1024, description="tensor-parallel ranks: each layer's weights are cut into that many slices")
    pp: int = Field(1, ge=1, le=1024, description="pipeline stages: each has consecutive layers")
    schedule: ScheduleName = Field("1f1b", description="order of forward and backward passes in the pipeline")
    chunks: int = Field(
        1,
        ge=1,
        le=1024,
        description="chunks per stage (virtual stages): 2 for a V-shaped schedule, 2 or more for an interleaved one, else 1",
    )
    split: tuple[int, ...] = Field((), description="layers of each chunk, such as 3,3,2; empty means as even as possible")

    zero: int = Field(0, ge=0, le=3, description="ZeRO stage: what dp shards; 1 optimizer, 2 gradients too, 3 parameters too")
    zero_replicas: int = Field(
        1,
        ge=1,
        le=65536,
        description="hybrid sharding: ZeRO shards over neighbours along dp (and cp), and there are that many such groups, which "
        "hold the same; their gradients are summed over the groups once a step; 1 means all of dp shards together",
    )
    ep: int = Field(
        1, ge=1, le=1024, description="expert-parallel ranks, which are neighbours along dp: each has some of the experts"
    )
    sequence_parallel: bool = Field(False, description="cut norms and residual stream along the sequence over tp")
    context_parallel: ContextParallelName = Field(
        "ring",
        description="how attention reaches the tokens of other cp ranks: keys and values passed from rank to rank (ring), or "
        "gathered (all_gather), or heads exchanged for tokens (ulysses)",
    )
    recompute: Recompute = Field(
        "none",
        description="what backward computes again: nothing, whole layers (full), or parts of them: attention between its "
        "linear layers (core_attn), norms (layernorm), the MLP's activation (mlp_act)",
    )
    recompute_layers: int = Field(
        0, ge=0, le=4096, description="with recompute=full, only the first so many layers of each chunk; 0 means all"
    )
    recompute_every: int = Field(
        1, ge=1, le=4096, description="with recompute=full, only every n-th layer of each stage; 1 means all"
    )

    @field_validator("recompute", mode="before")
    @classmethod
    def _in_one_order(cls, given: Any) -> Any:
        """Parts may come in any order. Older runs and links have selective, which is core_attn."""
        if not isinstance(given, str):
            return given
        return "+".join(sorted({"core_attn" if part == "selective" else part for part in given.split("+")}))

    @property
    def mesh(self) -> Mesh:
        return Mesh({axis: getattr(self, axis) for axis in AXES})

    @property
    def ranks(self) -> int:
        return self.mesh.size

    @property
    def shards(self) -> int:
        """The ranks over which ZeRO shards: those of `Mesh.shard_group`."""
        return self.mesh.replicas // self.zero_replicas

    @property
    def code(self) -> str:
        """The short form, such as dp2.tp2.pp2; with experts that are shared, dp4.tp2.pp2.ep4."""
        return self.mesh.code + (f".{EP}{self.ep}" if self.ep > 1 else "")

    @classmethod
    def degrees(cls, code: str) -> dict[CallAxis, int]:
        """Read a short form: "dp2.tp2.pp2" → {"dp": 2, "tp": 2, "pp": 2}. A missing axis is 1, and ep is left out if it is
        missing. Raises `RequestError`.
        """
        found: dict[str, int] = {}
        for part in code.split("."):
            match = re.fullmatch(rf"({'|'.join((*AXES, EP))})(\d{{1,6}})", part)
            if not match or match[1] in found:
                raise RequestError(sentence("layout {code!r} is not of the form dp2.tp2.pp2", code=brief(code)))
            found[match[1]] = int(match[2])
        shared: dict[CallAxis, int] = {EP: found[EP]} if EP in found else {}
        return {axis: found.get(axis, 1) for axis in AXES_AS_WRITTEN} | shared

    @classmethod
    def split_of(cls, text: str) -> tuple[int, ...]:
        """Read a split: "3,3,2" → (3, 3, 2), and "" → (). Raises `ValueError`."""
        return tuple(int(part) for part in text.split(",")) if text else ()

    @property
    def facts(self) -> ScheduleFacts:
        """The record of its schedule."""
        return SCHEDULE_FACTS[self.schedule]

    @property
    def placement(self) -> tuple[int, ...]:
        """The stage that holds each chunk: 0 to pp − 1 again and again; under a V-shaped schedule 0 to pp − 1 and back to 0."""
        down = tuple(range(self.pp))
        up = down[::-1] if self.facts.v_shaped else down
        return (down + up) * (self.chunks // 2) + down * (self.chunks % 2)

    def chunk_layers(self, layers: int) -> tuple[int, ...]:
        """Layers of each chunk. Without a split, as even as possible; the first chunks have one more."""
        return self.split or evenly(layers, self.pp * self.chunks)

    def layer_ranges(self, layers: int) -> tuple[range, ...]:
        """The layer numbers of each chunk. For chunks of 3, 3 and 2 layers they are 0–2, 3–5 and 6–7."""
        ends = [*accumulate(self.chunk_layers(layers))]
        return tuple(range(start, end) for start, end in pairwise([0, *ends]))

    @property
    def recomputes_some(self) -> bool:
        """Whether of whole layers only some may be recomputed."""
        return self.recompute == "full" and (self.recompute_layers > 0 or self.recompute_every > 1)

    def recomputed_whole(self, layers: int, encoder_layers: int = 0) -> tuple[tuple[bool, ...], ...]:
        """Of each chunk, which of its layers backward computes again whole.

        `recompute_layers`: the first so many of each stack in the chunk, or all if it has fewer, as Megatron-LM's `block`.
        `recompute_every`: every n-th layer of a stage, counted through its chunks, as torchtitan's selective mode with a number.
        `encoder_layers`: the first so many layers are an encoder's.
        """
        counted, found = [0] * self.pp, []
        for stage, chunk in zip(self.placement, self.layer_ranges(layers), strict=True):
            before = counted[stage]
            counted[stage] += len(chunk)
            turn = min(max(encoder_layers, chunk.start), chunk.stop)  # where the chunk's decoder begins
            found.append(
                tuple(
                    self.recompute == "full"
                    and (before + i + 1) % self.recompute_every == 0
                    and (not self.recompute_layers or layer - (chunk.start if layer < turn else turn) < self.recompute_layers)
                    for i, layer in enumerate(chunk)
                )
            )
        return tuple(found)

    def stage_layers(self, layers: int) -> tuple[int, ...]:
        """Layers of each stage, over all of its chunks. The layout must fit, see `misfits`."""
        counts = [0] * self.pp
        for stage, count in zip(self.placement, self.chunk_layers(layers), strict=True):
            counts[stage] += count
        return tuple(counts)


BYTES_OF: Mapping[Precision, int] = {"fp32": 4, "bf16": 2}  # of one number


WHOLE_LOSS = -1  # of `WorkloadSpec.loss_chunk`
LOSS_BUFFER = 256 << 20  # bytes of the fp32 logits of a chunk, at most, unless a number of tokens is given
_LOSS_CHUNKS = {"auto": 0, "whole": WHOLE_LOSS}


class WorkloadSpec(Spec):
    """The training of the model: data, steps, optimizer, precision."""

    steps: int = Field(20, ge=1, le=10_000, description="training steps")
    microbatches: int = Field(4, ge=1, le=65_536, description="microbatches of one replica in a step")
    microbatch_size: int = Field(2, ge=1, le=4096, description="sequences in a microbatch")
    learning_rate: float = Field(3e-3, gt=0, le=10, allow_inf_nan=False, description="the optimizer's learning rate")
    optimizer: OptimizerName = Field(
        "adamw",
        description="adamw keeps two numbers a parameter, lion one (it moves by the sign of an average of gradients), sgd one "
        "with momentum, else none",
    )
    momentum: float = Field(0.0, ge=0, lt=1, allow_inf_nan=False, description="momentum of sgd")
    precision: Precision = Field(
        "fp32", description="precision of parameters and activations; bf16 keeps an fp32 copy for the optimizer"
    )
    accumulate: Precision = Field("fp32", description="precision in which gradients are accumulated under bf16")
    bf16_optimizer: bool = Field(False, description="under bf16, no fp32 copy for the optimizer, and its states in bf16 too")
    attention: AttentionName = Field(
        "fused",
        description="fused never keeps the scores, written keeps them for backward; two-stream attention (xlnet) is always "
        "written, and so are T5's buckets, because torch has no fused operation with learned positions in scores",
    )
    loss_chunk: int = Field(
        0,
        ge=WHOLE_LOSS,
        le=10**9,
        description="tokens per chunk of the loss, whose logits exist at the same time; 0 or auto: as many as fit 256 MiB; -1 or "
        "whole: all",
    )
    balanced_router: bool = Field(
        False, description="tokens go to experts in turn, whatever the router says, so that all experts get as many"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the weights and of the order of the data")
    weights: WeightsName = Field(
        "drawn",
        description="initial weights: drawn at random from the seed, or trained: those that come with this program for gpt-mini",
    )
    text: str | None = Field(
        None, min_length=1, description="a UTF-8 text file to train on, at most 1 MB; otherwise the built-in text"
    )
    time_limit: float = Field(300.0, gt=0, le=86_400, allow_inf_nan=False, description="seconds after which the run is stopped")

    @field_validator("loss_chunk", mode="before")
    @classmethod
    def _named_loss_chunk(cls, value: Any) -> Any:
        return _LOSS_CHUNKS.get(value, value) if isinstance(value, str) else value

    def attention_of(self, model: ModelSpec) -> AttentionName:
        """The attention that a model really has: with learned positions in its scores it is always written."""
        return "written" if model.parts.position in ("relative", "buckets") else self.attention

    def adds_biases(self, model: ModelSpec) -> bool:
        """Whether each layer adds biases of distances to scores that are written out."""
        return model.parts.position in ("alibi", "buckets") and self.attention_of(model) == "written"

    @property
    def gradient_precision(self) -> Precision:
        """The precision in which gradients are accumulated."""
        return self.accumulate if self.precision == "bf16" else "fp32"

    @property
    def update_precision(self) -> Precision:
        """The precision of the values that the optimizer updates, and of its states."""
        return "bf16" if self.precision == "bf16" and self.bf16_optimizer else "fp32"

    @property
    def master_bytes(self) -> int:
        """Bytes of a parameter's copy for the optimizer; 0 if the optimizer updates the parameter itself."""
        return 0 if self.update_precision == self.precision else BYTES_OF[self.update_precision]

    def most_loss_tokens(self, model: ModelSpec, tp: Any) -> Any:
        """Tokens of a chunk of the loss, if a microbatch has more. Unlimited if it is whole. `tp` may be an array or a symbol."""
        if self.loss_chunk == WHOLE_LOSS:
            return 1 << 62
        return self.loss_chunk or LOSS_BUFFER // (4 * model.vocab_rows(tp))

    def loss_tokens(self, model: ModelSpec, tp: int, cp: int = 1) -> int | None:
        """Tokens of a chunk of the loss. None: the loss of a rank's part of a microbatch is computed as a whole."""
        most: int = self.most_loss_tokens(model, tp)
        return most if most < self.microbatch_size * (model.output_rows // cp) else None


class GenerateSpec(Spec):
    """Text generation: continuing a prompt, after training or without training."""

    prompt: str = Field("", max_length=100_000, description="text to continue, after training; empty means no text is generated")
    new_tokens: int = Field(32, ge=1, le=100_000, description="tokens to generate")
    temperature: float = Field(
        0.8, ge=0, le=100, allow_inf_nan=False, description="0 always takes the most likely token; above 0, tokens are sampled"
    )
    skip_training: bool = Field(False, description="generate without training, with the initial weights, and measure that")


class FaultSpec(Spec):
    """Fault injection: make one rank fail, to see how the run reports it."""

    kind: Literal["raise", "exit", "kill", "hang"]
    rank: int = Field(ge=0)
    step: int = Field(ge=1, description="the step, counted from 1, at whose start it happens")

    @classmethod
    def read(cls, text: str) -> FaultSpec:
        """Read "raise:3@2": rank 3 raises in step 2."""
        match = re.fullmatch(r"(\w+):(\d{1,9})@(\d{1,9})", text)
        if not match:
            raise RequestError(sentence("fault {text!r} is not of the form raise:3@2, which is kind:rank@step", text=brief(text)))
        return cls.model_validate({"kind": match[1], "rank": int(match[2]), "step": int(match[3])})

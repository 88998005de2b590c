"""What to run: the model, the layout, the workload. Validated, immutable, JSON both ways.

Every mistake a user can make in a spec raises `RequestError` with one sentence that shows the arithmetic.
`misfits` holds the rules that need more than one part of the spec, so that the form can show all of them at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.families import FAMILIES, Family, FamilyName, predicted

BYTE_VOCABULARY = 256  # the training text is read as bytes

ScheduleName = Literal["naive", "gpipe", "1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe-v"]
V_SHAPED: tuple[ScheduleName, ...] = ("zb-v", "dualpipe-v")
Recompute = Literal["none", "selective", "full"]
Precision = Literal["fp32", "bf16"]
OptimizerName = Literal["adamw", "sgd"]


class RequestError(Exception):
    """The request is wrong. The message is one sentence for the user."""


class Spec(BaseModel):
    """A frozen record that refuses unknown fields and speaks in sentences."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _say_it_in_one_sentence(cls, value: Any, handler: Any) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            raise RequestError(_sentence(cls, error)) from None

    @classmethod
    def read_json(cls, text: str | bytes) -> Self:
        """Read what `model_dump_json` wrote. Raises `RequestError`, for text that is not JSON too."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise RequestError(_sentence(cls, error)) from None


class ModelSpec(Spec):
    """The shape of a Transformer; `engine.families` says what its family is made of."""

    family: FamilyName = Field("gpt", description="model family")
    layers: int = Field(4, ge=1, le=1024, description="Transformer layers; of encoder and decoder together, where there are both")
    hidden: int = Field(64, ge=1, le=65536, description="width of the residual stream")
    heads: int = Field(4, ge=1, le=1024, description="attention heads")
    vocab: int = Field(256, ge=1, le=1_000_000, description="vocabulary size")
    seq: int = Field(64, ge=1, le=1_000_000, description="sequence length in tokens; of source and target each")
    ffn: int = Field(0, ge=0, le=1_000_000, description="inner width of the MLP; 0 means 4 × hidden")
    kv_heads: int = Field(0, ge=0, le=1024, description="heads of keys and values, which groups of heads share; 0 means heads")
    head_dim: int = Field(0, ge=0, le=65536, description="width of one head; 0 means hidden ÷ heads")
    decoder_layers: int = Field(0, ge=0, le=1024, description="how many of the layers are the decoder's; 0 means half")

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if not self.head_dim and self.hidden % self.heads:
            below = self.hidden - self.hidden % self.heads
            near = [str(h) for h in (below, below + self.heads) if h]
            raise RequestError(
                f"heads={self.heads} does not divide hidden={self.hidden}: each head would be "
                f"{self.hidden / self.heads:.4g} wide; hidden={' or '.join(near)} fits, "
                f"or heads={_listed(_divisors(self.hidden), near=self.heads)}"
            )
        return self

    @model_validator(mode="after")
    def _family_has_what_it_needs(self) -> Self:
        if self.heads % self.key_heads:
            raise RequestError(
                f"kv_heads={self.kv_heads} does not divide heads={self.heads}, so the groups that share one would differ "
                f"in size; {_listed(_divisors(self.heads))} would"
            )
        if self.parts.position == "relative" and self.key_heads != self.heads:
            raise RequestError(f"{self.family} has a key for every head; kv_heads=0 fits, not {self.kv_heads}")
        if self.parts.position == "rotary" and self.head_width % 2:
            raise RequestError(f"rotary positions turn pairs of numbers, and a head is {self.head_width} wide; even widths fit")
        if self.decoder_layers and not self.parts.encoder:
            given = f"decoder_layers={self.decoder_layers} is for encoder and decoder"
            raise RequestError(f"{given}, and {self.family} has one stack; 0 fits")
        if self.parts.encoder and not 0 < self.encoder_layers < self.layers:
            raise RequestError(
                f"layers={self.layers} are encoder and decoder together, and with decoder_layers={self.decoder_layers} one of "
                f"them has none; layers of 2 and more fit, decoder_layers below that"
            )
        if self.parts.objective == "permuted" and self.seq < 2:
            given = f"{self.family} predicts some tokens from the others"
            raise RequestError(f"{given}, and seq={self.seq} leaves none; 2 and more fit")
        return self

    @property
    def parts(self) -> Family:
        return FAMILIES[self.family]

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden // self.heads

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def ffn_width(self) -> int:
        return self.ffn or 4 * self.hidden

    @property
    def encoder_layers(self) -> int:
        """The layers before the first that attends to the encoder's output; 0 where there is no encoder."""
        return self.layers - (self.decoder_layers or self.layers // 2) if self.parts.encoder else 0

    @property
    def rows(self) -> int:
        """Tokens of one sequence that go through a layer: `seq`, and with two-stream attention one more for each predicted."""
        return self.seq + (predicted("permuted", self.seq) if self.parts.objective == "permuted" else 0)

    def parameters(self) -> int:
        """Number of parameters of the whole model, tied weights counted once and nothing padded."""
        queries, keys = self.heads * self.head_width, self.key_heads * self.head_width
        crossing = self.layers - self.encoder_layers if self.parts.encoder else 0
        total = self.parts.outer_parameters(self.hidden, self.vocab, self.seq)
        for count, cross in ((self.layers - crossing, False), (crossing, True)):
            total += count * self.parts.layer_parameters(self.hidden, self.ffn_width, queries, keys, cross)
        return total


class LayoutSpec(Spec):
    """How the work is split. Ranks = dp × tp × pp."""

    dp: int = Field(1, ge=1, le=65536, description="data-parallel replicas")
    tp: int = Field(1, ge=1, le=1024, description="tensor-parallel ranks: each layer's weights in that many slices")
    pp: int = Field(1, ge=1, le=1024, description="pipeline stages: the layers in that many runs")
    schedule: ScheduleName = Field("1f1b", description="order of forward and backward passes in the pipeline")
    chunks: int = Field(1, ge=1, le=1024, description="runs of layers on each stage; more than 1 for interleaved, zb-v and dualpipe-v")
    split: tuple[int, ...] = Field((), description="layers of each chunk in the model's order, such as 3,3,2; empty means as even as can be")

    zero: int = Field(0, ge=0, le=3, description="ZeRO stage: what dp shards; 1 optimizer, 2 gradients too, 3 parameters too")
    sequence_parallel: bool = Field(False, description="cut norms and residual stream along the sequence over tp")
    recompute: Recompute = Field("none", description="activations to compute again in backward: none, attention only, whole layers")

    @property
    def ranks(self) -> int:
        return self.dp * self.tp * self.pp

    @property
    def code(self) -> str:
        """The short form, such as dp2.tp2.pp2."""
        return f"dp{self.dp}.tp{self.tp}.pp{self.pp}"

    @classmethod
    def degrees(cls, code: str) -> dict[str, int]:
        """Read a short form: "dp2.tp2.pp2" → {"dp": 2, "tp": 2, "pp": 2}. An axis left out is 1."""
        found: dict[str, int] = {}
        for part in code.split("."):
            match = re.fullmatch(r"(dp|tp|pp)(\d{1,6})", part)
            if not match or match[1] in found:
                raise RequestError(f"layout {code!r} is not of the form dp2.tp2.pp2")
            found[match[1]] = int(match[2])
        return {"dp": 1, "tp": 1, "pp": 1} | found

    @property
    def placement(self) -> tuple[int, ...]:
        """The stage that holds each chunk: round and round, or down the stages and back up, in the shape of a V."""
        down = tuple(range(self.pp))
        up = down[::-1] if self.schedule in V_SHAPED else down
        return tuple(stage for run in range(self.chunks) for stage in (up if run % 2 else down))

    def chunk_layers(self, layers: int) -> tuple[int, ...]:
        """Layers of each chunk. Without a split, as even as can be, the earlier chunks taking what is left over."""
        return self.split or _evenly(layers, self.pp * self.chunks)

    def stage_layers(self, layers: int) -> tuple[int, ...]:
        """Layers of each stage, over all of its chunks. For a layout that `misfits` finds nothing wrong with."""
        counts = [0] * self.pp
        for stage, count in zip(self.placement, self.chunk_layers(layers), strict=True):
            counts[stage] += count
        return tuple(counts)


class WorkloadSpec(Spec):
    """What is done with the model: how much data, how many steps."""

    steps: int = Field(20, ge=1, le=10_000, description="training steps")
    microbatches: int = Field(4, ge=1, le=1024, description="microbatches of one replica in a step")
    microbatch_size: int = Field(2, ge=1, le=4096, description="sequences in a microbatch")
    learning_rate: float = Field(3e-3, gt=0, le=10, allow_inf_nan=False, description="the optimizer's learning rate")
    optimizer: OptimizerName = Field("adamw", description="adamw keeps two numbers a parameter, sgd one with momentum, else none")
    momentum: float = Field(0.0, ge=0, lt=1, allow_inf_nan=False, description="momentum of sgd")
    precision: Precision = Field("fp32", description="of parameters and activations; bf16 keeps an fp32 copy for the optimizer")
    accumulate: Precision = Field("fp32", description="in which gradients are added up under bf16")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the weights and of the order of the data")
    text: str | None = Field(None, description="a UTF-8 text file to train on, at most 1 MB; otherwise Python's own help texts")
    time_limit: float = Field(300.0, gt=0, le=86_400, allow_inf_nan=False, description="seconds after which the run is ended")


class GenerateSpec(Spec):
    """Continuing a prompt, after training or, with `steps` of the workload irrelevant, with the model as it was drawn."""

    prompt: str = Field("", max_length=100_000, description="text to continue, after training; empty means no text is generated")
    new_tokens: int = Field(32, ge=1, le=100_000, description="tokens to generate")
    temperature: float = Field(0.0, ge=0, le=100, allow_inf_nan=False, description="0 takes the likeliest token; above it, tokens are drawn")
    only: bool = Field(False, description="generate without training, and measure the generation instead")


class FaultSpec(Spec):
    """A drill: make one rank fail, to see what a run does then."""

    kind: Literal["raise", "exit", "kill", "hang"]
    rank: int = Field(ge=0)
    step: int = Field(ge=1, description="the step, counted from 1, at whose start it happens")

    @classmethod
    def read(cls, text: str) -> FaultSpec:
        """Read "raise:3@2": rank 3 raises in step 2."""
        match = re.fullmatch(r"(\w+):(\d+)@(\d+)", text)
        if not match:
            raise RequestError(f"fault {text!r} is not of the form raise:3@2, which is kind:rank@step")
        return cls.model_validate({"kind": match[1], "rank": int(match[2]), "step": int(match[3])})


class RunSpec(Spec):
    """All of a request. Constructing one that does not fit together raises `RequestError`."""

    model: ModelSpec = ModelSpec()
    layout: LayoutSpec = LayoutSpec()
    workload: WorkloadSpec = WorkloadSpec()
    generate: GenerateSpec = GenerateSpec()
    parity: bool = Field(False, description="also run the model unsharded and compare gradients and losses")
    fault: FaultSpec | None = Field(None, description="a drill: kind:rank@step, where kind is raise, exit, kill or hang")

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        found = misfits(self.model, self.layout, self.workload) + generation_misfits(self)
        if found:
            raise RequestError("; ".join(m.sentence for m in found))
        if self.fault and self.fault.rank >= self.layout.ranks:
            raise RequestError(f"fault.rank={self.fault.rank} is not one of the {self.layout.ranks} ranks, 0 to {self.layout.ranks - 1}")
        return self


@dataclass(frozen=True)
class Misfit:
    """One way in which the parts of a spec do not fit together."""

    field: str  # dotted name of the field to change first, such as "layout.tp"
    sentence: str  # with the arithmetic, and the nearest choices that fit
    choices: tuple[int, ...] = ()  # values of that field that would fit, nearest first


def misfits(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> list[Misfit]:
    """Everything in which the three do not fit together; empty when they do."""
    found: list[Misfit] = []
    keys = model.key_heads
    if keys % layout.tp:
        fits = _divisors(keys)
        what = f"{keys} heads" if keys == model.heads else f"{keys} key and value heads"
        found.append(
            Misfit(
                "layout.tp",
                f"tp={layout.tp} does not divide {what}; {_listed(fits)} {'do' if len(fits) > 1 else 'does'}",
                _nearest(fits, layout.tp),
            )
        )
    elif model.ffn_width % layout.tp:
        fits = [d for d in _divisors(model.ffn_width) if keys % d == 0]
        found.append(
            Misfit(
                "layout.tp",
                f"tp={layout.tp} does not divide the MLP's width of {model.ffn_width}; {_listed(fits)} would",
                _nearest(fits, layout.tp),
            )
        )
    found += _split_misfits(model, layout) + _schedule_misfits(model, layout, workload) + _lever_misfits(model, layout, workload)
    hides = model.parts.objective in ("masked", "permuted")
    needed = BYTE_VOCABULARY + hides
    if model.vocab < needed:
        more = ", and the token that hides another takes one more" if hides else ""
        text = f"vocab={model.vocab} is too small: text is read as bytes, which take {BYTE_VOCABULARY} values{more}"
        found.append(Misfit("model.vocab", text, (needed,)))
    return found


def generation_misfits(spec: RunSpec) -> list[Misfit]:
    """What stands in the way of generating the text that was asked for; empty when nothing was."""
    generate, model, layout = spec.generate, spec.model, spec.layout
    if not generate.prompt:
        return [Misfit("generate.prompt", "there is no prompt to continue; give one, or train")] if generate.only else []
    found = []
    if model.parts.objective != "causal":
        decoders = [name for name, family in FAMILIES.items() if family.objective == "causal"]
        found.append(Misfit("model.family", f"{model.family} does not predict the next token; {' and '.join(decoders)} do"))
    asked = len(generate.prompt.encode())
    if asked + generate.new_tokens > model.seq:
        text = f"a prompt of {asked} bytes and {generate.new_tokens} new tokens do not fit into seq={model.seq}; "
        room = model.seq - asked
        text += f"new_tokens up to {room} fits" if room > 0 else f"seq={asked + generate.new_tokens} fits"
        found.append(Misfit("generate.new_tokens", text, (room,) if room > 0 else ()))
    if layout.sequence_parallel:
        text = "generating goes token by token, and one token cannot be cut along the sequence; turn sequence_parallel off"
        found.append(Misfit("layout.sequence_parallel", text, (0,)))
    if generate.only and (layout.zero or spec.parity):
        what = f"zero={layout.zero} shards what training keeps" if layout.zero else "parity compares gradients"
        found.append(Misfit("layout.zero", f"{what}, and without training there is nothing of it; leave it out", (0,)))
    return found


def _lever_misfits(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> list[Misfit]:
    found = []
    if layout.zero and layout.dp == 1:
        text = f"zero={layout.zero} shards over the dp replicas, and dp=1 leaves nothing to share; zero=0 fits, or dp of 2 and more"
        found.append(Misfit("layout.zero", text, (0,)))
    if layout.sequence_parallel and layout.tp == 1:
        text = "sequence_parallel cuts the sequence over tp, and tp=1 leaves it whole; turn it off, or use tp of 2 and more"
        found.append(Misfit("layout.sequence_parallel", text, (0,)))
    if layout.sequence_parallel and model.rows % layout.tp:
        near = _cut_evenly(model, layout.tp)
        what = f"{model.seq} tokens" + (f" and {model.rows - model.seq} queries" if model.rows > model.seq else "")
        fits = f"; seq={' or '.join(map(str, near))} fits" if near else ""
        text = f"sequence_parallel cuts the {what} over tp={layout.tp}, which does not divide them{fits}"
        found.append(Misfit("model.seq", text, near))
    if workload.precision == "fp32" and workload.accumulate == "bf16":
        found.append(Misfit("workload.accumulate", "accumulate=bf16 needs precision=bf16: fp32 gradients are added up in fp32"))
    if workload.momentum and workload.optimizer == "adamw":
        found.append(Misfit("workload.momentum", f"momentum={workload.momentum:g} is a setting of sgd; adamw has its own two moments"))
    return found


def _schedule_misfits(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> list[Misfit]:
    """What each schedule asks of the chunks on a stage and of the microbatches."""
    name, pp, chunks, microbatches = layout.schedule, layout.pp, layout.chunks, workload.microbatches
    found = []
    if name in V_SHAPED and chunks != 2:
        text = f"{name} runs down the stages and back up, so a stage has two chunks and not chunks={chunks}; chunks=2 fits"
        found.append(Misfit("layout.chunks", text, (2,)))
    elif name == "interleaved" and chunks == 1:
        fits = tuple(range(2, max(2, min(4, model.layers // pp)) + 1))
        text = f"interleaved takes turns between chunks of a stage, and chunks=1 leaves nothing to take turns with; chunks={_listed(list(fits), word='or')} fits"
        found.append(Misfit("layout.chunks", text, fits))
    elif name not in ("interleaved", *V_SHAPED) and chunks != 1:
        text = f"{name} runs one chunk a stage and not chunks={chunks}; chunks=1 fits, or schedule=interleaved"
        found.append(Misfit("layout.chunks", text, (1,)))
    if name == "interleaved" and microbatches % (rounds := max(1, microbatches // pp)):
        text = (
            f"interleaved runs in equal rounds of pp={pp} microbatches or a few more, and {microbatches} do not make "
            f"{microbatches} // {pp} = {rounds} equal rounds; "
        )
        fits = _nearest((m for m in range(1, microbatches + pp + 1) if m % max(1, m // pp) == 0), microbatches)
        found.append(Misfit("workload.microbatches", text + f"microbatches={_listed(sorted(fits), word='or')} fits", fits))
    if name == "dualpipe-v" and microbatches < 2 * pp:
        text = f"dualpipe-v needs a microbatch for each of its 2 × {pp} = {2 * pp} chunks and has {microbatches}; microbatches={2 * pp} and more fits"
        found.append(Misfit("workload.microbatches", text, (2 * pp,)))
    return found


def _cut_evenly(model: ModelSpec, tp: int) -> tuple[int, ...]:
    """The next shorter and the next longer sequence whose rows tp divides, where there are such."""
    found = []
    for direction in (-1, 1):
        for seq in range(model.seq, model.seq + direction * 48 * tp, direction):
            if 2 <= seq <= 1_000_000 and model.model_copy(update={"seq": seq}).rows % tp == 0:
                found.append(seq)
                break
    return tuple(found)


def _split_misfits(model: ModelSpec, layout: LayoutSpec) -> list[Misfit]:
    chunks = layout.pp * layout.chunks
    product = f"pp={layout.pp}" + (f" × chunks={layout.chunks} = {chunks}" if layout.chunks > 1 else "")
    most = model.layers // layout.chunks  # stages that the model has layers for
    place = "chunk" if layout.chunks > 1 else "stage"
    if not layout.split:
        if chunks <= model.layers:
            return []
        needs = f"{product} needs at least {chunks} layers, one a {place}, and the model has {model.layers}; "
        if most == 0:
            return [Misfit("model.layers", needs + f"layers={chunks} and more fits", (chunks,))]
        return [Misfit("layout.pp", needs + f"pp up to {most} fits", _nearest(range(1, most + 1), layout.pp))]
    text = ",".join(map(str, layout.split))
    pp = min(layout.pp, max(1, most))
    even = ",".join(map(str, _evenly(model.layers, pp * layout.chunks)))
    near = f"{even} would fit" + (f" with pp={pp}" if pp != layout.pp else "")
    if len(layout.split) != chunks:
        return [Misfit("layout.split", f"split {text} names {len(layout.split)} {place}s and {product}; {near}")]
    if sum(layout.split) != model.layers:
        return [Misfit("layout.split", f"split {text} adds up to {sum(layout.split)} layers and the model has {model.layers}; {near}")]
    if min(layout.split) < 0:
        return [Misfit("layout.split", f"split {text} has a negative number of layers; {near}")]
    # The first has the embedding and the last the head; one between them without a layer would do nothing.
    if 0 in layout.split[1:-1]:
        return [Misfit("layout.split", f"split {text} leaves a middle {place} without a layer, so with nothing to do; {near}")]
    return []


def _evenly(layers: int, parts: int) -> tuple[int, ...]:
    each, rest = divmod(layers, parts)
    return tuple(each + (part < rest) for part in range(parts))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _nearest(values: Any, to: int) -> tuple[int, ...]:
    return tuple(sorted(values, key=lambda v: (abs(v - to), v))[:4])


def _listed(values: list[int], near: int | None = None, word: str = "and") -> str:
    """ "1, 2, 4 and 8"; with `near`, only the four nearest to it, and "or"."""
    if near is not None:
        values, word = sorted(_nearest(values, near)), "or"
    words = [str(v) for v in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {word} {words[-1]}"


def _sentence(cls: type[BaseModel], error: ValidationError) -> str:
    """The first thing pydantic found, in words, and how many more there are."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or cls.__name__
    if first["type"] == "extra_forbidden":
        text = f"there is no field {name!r}; {cls.__name__} has {', '.join(cls.model_fields)}"
    elif first["type"] == "json_invalid":
        text = f"this is not JSON: {first['ctx']['error']}"
    else:
        said = first["msg"].removeprefix("Input ").replace("should", "must", 1)
        text = f"{name}={first['input']!r} {said}" if name != cls.__name__ else f"{cls.__name__} {said}"
    more = len(error.errors()) - 1
    return text + (f" (and {more} more)" if more else "")

"""The tasks, by the name of their lesson. Their numbers are chosen so that several choices are right, and the first is not."""

from __future__ import annotations

from engine import catalog
from engine.planner.candidates import cheap_recompute
from engine.planner.search import MIXED
from engine.spec import WHOLE_LOSS, Recompute, RequestError, RunSpec, sentence
from pages.charts import names
from pages.charts.units import in_bytes, percent
from pages.charts.words import Words
from pages.learn.outcome import Outcome, outcome
from pages.learn.sizes import CARDS
from pages.learn.task import Goal, Setting, Task, Values, fits, is_fast, not_in_full, spec, talks_little

_LLAMA, _GPT = catalog.model("llama3-8b"), catalog.model("gpt3-13b")
_SELECTIVE = cheap_recompute(_LLAMA, MIXED)


def _recompute_name(say: Words, kind: Recompute) -> str:
    return names.recomputes(say)[kind]


def _size(options: tuple[int, ...], first: int) -> Setting:
    return Setting("size", lambda say: say("Sequences in a microbatch"), options, first)


def _recompute(options: tuple[Recompute, ...], first: Recompute) -> Setting:
    return Setting("recompute", lambda say: say("Recompute"), options, first, _recompute_name)


def _zero(options: tuple[int, ...], first: int) -> Setting:
    return Setting("zero", lambda say: say("ZeRO stage"), options, first)


# ------------------------------------------------------------------------------------------------------------- memory


def _one_device(values: Values) -> RunSpec:
    workload = {"bf16_optimizer": values["optimizer"] == "bf16", "accumulate": values["accumulate"]}
    return spec(catalog.model("gpt3-6.7b"), 8, dp=1, size=values["size"], workload=workload, recompute=values["recompute"])


MEMORY = Task(
    device="h100-80gb",
    asked=lambda say: say(
        "Train *gpt3-6.7b* on **one** h100-80gb with 8 sequences a step. Make it fit, and lose little time by it."
    ),
    settings=(
        Setting("optimizer", lambda say: say("Optimizer precision"), ("fp32", "bf16"), "fp32", lambda say, v: v),
        Setting("accumulate", lambda say: say("Gradient accumulation in"), ("fp32", "bf16"), "fp32", lambda say, v: v),
        _recompute(("none", _SELECTIVE, "full"), "none"),
        _size((1, 2, 4, 8), 4),
    ),
    spec=_one_device,
    goals=lambda task, found, say: [fits(found, say), is_fast(task, found, 0.1, say)],
    hints=(
        lambda say: say(
            "Count the states first: 18 bytes a parameter with gradients and optimizer in fp32. No recomputation makes them "
            "smaller."
        ),
        lambda say: say(
            "An optimizer in bf16 without an fp32 copy, and gradients in bf16, make it 8 bytes a parameter. The price is "
            "accuracy: small updates are lost to rounding."
        ),
        lambda say: say(
            "What is left is for activations. Smaller microbatches keep fewer of them. Full recomputation keeps the fewest, but "
            "it takes a third more time."
        ),
    ),
)


# ------------------------------------------------------------------------------------------------------------ replicas


_MOST_SEQUENCES = 512


def _replicas(values: Values) -> RunSpec:
    count = 64 * values["size"] * values["microbatches"]
    return spec(catalog.model("gpt2-1.5b"), count, dp=64, size=values["size"])


def _few_sequences(made: Outcome, say: Words) -> Goal:
    return Goal(
        made.sequences <= _MOST_SEQUENCES,
        say(
            "A step reads {count} sequences; at most {most} are wanted.",
            count=f"{made.sequences:,}",
            most=f"{_MOST_SEQUENCES:,}",
        ),
    )


DATA = Task(
    device="a100-80gb",
    asked=lambda say: say(
        "64 replicas of *gpt2-1.5b*, each on one a100-80gb. Bring communication to at most {most} of a step, with at most "
        "{count} sequences a step: a larger batch learns less from each sequence.",
        most=percent(0.05),
        count=_MOST_SEQUENCES,
    ),
    settings=(
        _size((1, 2, 4, 8), 1),
        Setting("microbatches", lambda say: say("Microbatches of each replica"), (1, 2, 4, 8, 16), 1),
    ),
    spec=_replicas,
    goals=lambda task, found, say: [fits(found, say), talks_little(found, 0.05, say), _few_sequences(found, say)],
    hints=(
        lambda say: say("Gradients are averaged once a step, whatever the batch. So their cost is shared by all sequences."),
        lambda say: say(
            "The all-reduce of a layer runs beside the backward of the layers before it. The more there is to compute in the "
            "last microbatch’s backward, the more is hidden."
        ),
        lambda say: say(
            "Fewer, larger microbatches hide more than many small ones. There are 8 sequences for each replica at most."
        ),
    ),
)


# -------------------------------------------------------------------------------------------------------------- tensor


def _cut(values: Values) -> RunSpec:
    tp = values["tp"]
    dp = 16 // tp
    return spec(
        _LLAMA, 64, dp=dp, tp=tp, size=values["size"], zero=1 if dp > 1 else 0,
        sequence_parallel=tp > 1, recompute=values["recompute"],
    )  # fmt: skip


TENSOR = Task(
    device="h100-80gb",
    asked=lambda say: say(
        "*llama3-8b* on 16 h100-80gb, 8 to a node, with 64 sequences a step and ZeRO 1 over the replicas. Make it fit, and "
        "bring communication to at most {most} of a step, with little lost time.",
        most=percent(0.1),
    ),
    settings=(
        Setting("tp", lambda say: say("Ranks (tp)"), (1, 2, 4, 8, 16), 8),
        _recompute(("none", _SELECTIVE, "full"), "none"),
        _size((1, 2, 4), 1),
    ),
    spec=_cut,
    goals=lambda task, found, say: [fits(found, say), talks_little(found, 0.1, say), is_fast(task, found, 0.1, say)],
    hints=(
        lambda say: say(
            "A higher tp makes every product smaller, and the messages stay as large. So the share of communication grows."
        ),
        lambda say: say("tp 16 leaves the node: its collectives go over the slow links. See what that does to the share."),
        lambda say: say(
            "The smallest tp that fits without full recomputation is best. A smaller microbatch, or selective recompute, helps."
        ),
    ),
)


# ------------------------------------------------------------------------------------------------------------ pipeline


def _staged(values: Values) -> RunSpec:
    schedule, chunks = values["schedule"].split("×")
    return spec(
        catalog.model("gpt3-175b"), 32, dp=1, tp=8, pp=8, size=32 // values["microbatches"],
        schedule=schedule, chunks=int(chunks), sequence_parallel=True, recompute=_SELECTIVE,
    )  # fmt: skip


def _half_the_bubble(task: Task, found: Outcome, say: Words) -> list[Goal]:
    before = outcome(task.spec(task.first), task.device)
    return [
        Goal(
            found.bubble <= before.bubble / 2,
            say(
                "The bubble is {share} of total time; at most {most} is wanted, half of the {before} at the start.",
                share=percent(found.bubble),
                most=percent(before.bubble / 2),
                before=percent(before.bubble),
            ),
        ),
        Goal(
            found.needs <= before.needs,
            say(
                "The fullest rank, on stage {stage}, needs {needs}; at the start it was {before}.",
                stage=found.stage,
                needs=in_bytes(found.needs),
                before=in_bytes(before.needs),
            ),
        ),
    ]


def _schedule_name(say: Words, choice: str) -> str:
    schedule, chunks = choice.split("×")
    return names.schedule(schedule, say) + (f" × {chunks}" if int(chunks) > 1 else "")


PIPELINE = Task(
    device="h100-80gb",
    asked=lambda say: say(
        "*gpt3-175b* on 8 stages of 8 tensor-parallel ranks, with 32 sequences a step. **Halve the bubble without more "
        "memory.** × is the number of chunks on each stage."
    ),
    settings=(
        Setting(
            "schedule",
            lambda say: say("Schedule"),
            ("gpipe×1", "1f1b×1", "interleaved×2", "interleaved×3", "interleaved×4", "zb-h1×1", "zb-v×2"),
            "1f1b×1",
            _schedule_name,
        ),
        Setting("microbatches", lambda say: say("Microbatches m"), (8, 16, 32), 16),
    ),
    spec=_staged,
    goals=_half_the_bubble,
    hints=(
        lambda say: say(
            "The bubble is (p − 1) ÷ (m + p − 1) under 1F1B. The sequences stay the same, so more microbatches are smaller ones."
        ),
        lambda say: say(
            "Smaller microbatches also keep less: stage 0 holds p microbatches in flight, whatever m is. That makes room."
        ),
        lambda say: say(
            "Interleaved chunks divide the bubble by the number of chunks, and keep somewhat more. Zero-bubble schedules keep "
            "inputs for weight gradients longer. Use the room that smaller microbatches made."
        ),
    ),
)


# ---------------------------------------------------------------------------------------------------------------- ZeRO


def _sharded(values: Values) -> RunSpec:
    return spec(_GPT, 64, dp=16, size=values["size"], zero=values["zero"], recompute=values["recompute"])


ZERO = Task(
    device="a100-40gb",
    asked=lambda say: say(
        "*gpt3-13b* on 16 a100-40gb, data parallelism only, 64 sequences a step. Make it fit with little lost time."
    ),
    settings=(_zero((0, 1, 2, 3), 1), _recompute(("none", _SELECTIVE, "full"), "none"), _size((1, 2, 4), 4)),
    spec=_sharded,
    goals=lambda task, found, say: [fits(found, say), is_fast(task, found, 0.08, say)],
    hints=(
        lambda say: say(
            "Without ZeRO the states take 18 bytes a parameter, {states}. See which stage brings them below {holds}.",
            states=in_bytes(18 * _GPT.parameters()),
            holds=in_bytes(CARDS["a100-40gb"]),
        ),
        lambda say: say("Then see what is left for activations, and whether a smaller microbatch fits into it."),
        lambda say: say(
            "With ZeRO 3, full recomputation fits every size, and costs a third more. Selective recomputation costs little, and "
            "leaves room for a larger microbatch, which computes faster."
        ),
    ),
)


# ----------------------------------------------------------------------------------------------------------- recompute


_LOSS, _LEAST = 0.03, 3


def _again(values: Values) -> RunSpec:
    return spec(_LLAMA, 192, dp=16, size=values["size"], zero=3, recompute=values["recompute"])


def _cheap(task: Task, found: Outcome, say: Words) -> list[Goal]:
    without = outcome(task.spec({"recompute": "none", "size": found.size}), task.device)
    lost = found.step_s / without.step_s - 1
    return [
        fits(found, say),
        Goal(
            lost <= _LOSS,
            say("Recomputing lengthens the step by {lost}; at most {most} is wanted.", lost=percent(lost), most=percent(_LOSS)),
        ),
        Goal(
            found.size >= _LEAST,
            say("A microbatch has {count} sequences; at least {least} are wanted.", count=found.size, least=_LEAST),
        ),
    ]


RECOMPUTE = Task(
    device="h200-141gb",
    asked=lambda say: say(
        "*llama3-8b* on 16 h200-141gb with ZeRO 3, fused attention, 192 sequences a step. Fit microbatches of at least {least} "
        "sequences, and lose at most {most} of time to recomputation.",
        least=_LEAST,
        most=percent(_LOSS),
    ),
    settings=(_recompute(("none", _SELECTIVE, "full"), "none"), _size((1, 2, 3, 4, 6), _LEAST)),
    spec=_again,
    goals=_cheap,
    zero=3,
    hints=(
        lambda say: say("Which parts keep much and are computed fast? Those are the ones to drop."),
        lambda say: say("Fused attention keeps no scores. So recomputing the attention’s core frees nearly nothing here."),
        lambda say: say(
            "Norms and the MLP’s activation are elementwise: they keep tensors as large as the products, and cost little to "
            "compute again."
        ),
    ),
)


# --------------------------------------------------------------------------------------------------------------- fused


def _long(values: Values) -> RunSpec:
    workload = {"attention": values["attention"], "loss_chunk": 0 if values["loss"] == "chunks" else WHOLE_LOSS}
    model, recompute = _LLAMA.model_copy(update={"seq": 24576}), values["recompute"]
    if values["attention"] == "written" and recompute == _SELECTIVE:
        recompute = "core_attn"
    return spec(model, 8, dp=8, size=1, workload=workload, zero=3, recompute=recompute)


FUSED = Task(
    device="h200-141gb",
    asked=lambda say: say(
        "*llama3-8b* with sequences of **24,576 tokens** on 8 h200-141gb, ZeRO 3, one sequence on each. Make it fit without "
        "full recomputation: a step may take 10% longer than the fastest that fits."
    ),
    settings=(
        Setting(
            "attention", lambda say: say("Attention"), ("written", "fused"), "written", lambda say, v: names.attentions(say)[v]
        ),
        Setting(
            "loss",
            lambda say: say("Loss"),
            ("whole", "chunks"),
            "whole",
            lambda say, v: say("in chunks") if v == "chunks" else say("whole"),
        ),
        _recompute(("none", _SELECTIVE, "full"), "none"),
    ),
    spec=_long,
    goals=lambda task, found, say: [fits(found, say), not_in_full(found, say), is_fast(task, found, 0.1, say)],
    zero=3,
    hints=(
        lambda say: say("a · s² · 2 bytes of scores in each of 32 layers: how much is that at 24,576 tokens?"),
        lambda say: say("The logits of one sequence are s · v · 4 bytes. See how much the loss in chunks takes off."),
        lambda say: say("What is left grows with s: recompute the parts that are cheap."),
    ),
)


# ------------------------------------------------------------------------------------------------------------ a layout


_DEVICES = 16


def _placed(values: Values) -> RunSpec:
    tp, pp = values["tp"], values["pp"]
    if tp * pp > _DEVICES:
        raise RequestError(sentence("tp={tp} × pp={pp} is more than {devices} devices", tp=tp, pp=pp, devices=_DEVICES))
    dp = _DEVICES // (tp * pp)
    zero = values["zero"] if dp > 1 else 0
    return spec(
        catalog.model("llama3-70b"), 32, dp=dp, tp=tp, pp=pp, size=1, zero=zero,
        sequence_parallel=tp > 1, recompute=values["recompute"],
    )  # fmt: skip


LAYOUT = Task(
    device="h200-141gb",
    asked=lambda say: say(
        "Make *llama3-70b* fit on **16** h200-141gb, 8 to a node, with the least lost time: 32 sequences a step, one in a "
        "microbatch. A step may take 8% longer than the fastest that fits. dp is what is left of the devices."
    ),
    settings=(
        Setting("tp", lambda say: "tp", (1, 2, 4, 8), 8),
        Setting("pp", lambda say: "pp", (1, 2, 4), 1),
        _zero((0, 1, 3), 1),
        _recompute((_SELECTIVE, "full"), "full"),
    ),
    spec=_placed,
    goals=lambda task, found, say: [fits(found, say), is_fast(task, found, 0.08, say)],
    hints=(
        lambda say: say("70 B parameters have 18 bytes of states each: 1.27 TB on 16 devices. What divides them?"),
        lambda say: say("tp 8 waits for its collectives in every layer. Look for less tp, and let ZeRO or stages do the rest."),
        lambda say: say(
            "Full recomputation adds a third to compute. A layout that fits without it may afford some communication."
        ),
    ),
)

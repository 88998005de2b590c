"""The tasks of the lessons on two more axes: context parallelism and experts. As in `pages.learn.tasks`."""

from __future__ import annotations

from engine import catalog
from engine.planner.candidates import cheap_recompute
from engine.planner.search import MIXED
from engine.spec import RunSpec
from pages.charts import names
from pages.charts.units import in_bytes, percent, short
from pages.charts.words import Words
from pages.learn.outcome import Outcome
from pages.learn.task import Goal, Setting, Task, Values, fits, is_fast, not_in_full, spec, talks_little

# -------------------------------------------------------------------------------------------------------- long sequences

_LONG = catalog.model("llama3-8b").model_copy(update={"seq": 131072})
_CHEAP = cheap_recompute(_LONG, MIXED)
_DEVICES, _WAIT = 8, 0.005


def _cut(values: Values) -> RunSpec:
    cp = values["cp"]
    return spec(
        _LONG, _DEVICES, dp=_DEVICES // cp, cp=cp, context_parallel=values["way"], zero=3, recompute=values["recompute"], size=1
    )


CONTEXT = Task(
    device="h200-141gb",
    asked=lambda say: say(
        "*llama3-8b* with sequences of **{s} tokens** on {count} h200-141gb, ZeRO 3 over all of them, {count} sequences a step. "
        "Make it fit without full recomputation, and let ranks wait for each other’s data at most {most} of a step. dp is "
        "{count} ÷ cp.",
        s=f"{_LONG.seq:,}",
        count=_DEVICES,
        most=percent(_WAIT),
    ),
    settings=(
        Setting("cp", lambda say: say("Ranks (cp)"), (1, 2, 4, 8), 1),
        Setting(
            "way",
            lambda say: say("Attention over cp ranks"),
            ("ring", "all_gather", "ulysses"),
            "all_gather",
            lambda say, way: {"ring": say("ring"), "all_gather": say("all-gather"), "ulysses": say("Ulysses")}[way],
        ),
        Setting(
            "recompute",
            lambda say: say("Recompute"),
            ("none", _CHEAP, "full"),
            "none",
            lambda say, kind: names.recomputes(say)[kind],
        ),
    ),
    spec=_cut,
    goals=lambda task, found, say: [fits(found, say), not_in_full(found, say), talks_little(found, _WAIT, say)],
    zero=3,
    hints=(
        lambda say: say(
            "States take {size} a rank, whatever cp is: ZeRO 3 shards them over dp × cp. The rest is activations, and cp "
            "divides them.",
            size=in_bytes(18 * _LONG.parameters() // _DEVICES),
        ),
        lambda say: say(
            "All-gather and Ulysses wait for their data before attention starts. The ring passes keys and values on while it "
            "computes with others."
        ),
        lambda say: say(
            "At {s} tokens a block of scores takes longer to compute than its keys and values take to arrive. Recompute the "
            "cheap parts if a smaller cp shall do.",
            s=f"{_LONG.seq:,}",
        ),
    ),
)


# --------------------------------------------------------------------------------------------------------------- experts

_MIXTURE = catalog.model("mixtral-8x7b")
_RANKS, _HELD, _SLACK = 16, 2, 0.2  # `_HELD`: the most experts of a layer that a rank shall hold


def _spread(values: Values) -> RunSpec:
    return spec(
        _MIXTURE, 64, dp=_RANKS, ep=values["ep"], zero=values["zero"], recompute=values["recompute"], size=values["size"],
        workload={"balanced_router": True},
    )  # fmt: skip


def _few_experts(found: Outcome, say: Words) -> Goal:
    held = _MIXTURE.experts // found.ep
    return Goal(
        held <= _HELD,
        say(
            "A rank holds {held} of the {count} experts of a layer; at most {most} are wanted.",
            held=held,
            count=_MIXTURE.experts,
            most=_HELD,
        ),
    )


EXPERTS = Task(
    device="h200-141gb",
    asked=lambda say: say(
        "*mixtral-8x7b* on {count} h200-141gb, 8 to a node, 64 sequences a step, tokens spread evenly over the experts. Make it "
        "fit with at most {most} of the {experts} experts of a layer on a rank. A step may take {slack} longer than the fastest "
        "that fits.",
        count=_RANKS,
        most=_HELD,
        experts=_MIXTURE.experts,
        slack=percent(_SLACK),
    ),
    settings=(
        Setting("ep", lambda say: say("Ranks that share experts (ep)"), (1, 2, 4, 8), 1),
        Setting("zero", lambda say: say("ZeRO stage"), (1, 3), 1),
        Setting(
            "recompute", lambda say: say("Recompute"), ("none", "full"), "none", lambda say, kind: names.recomputes(say)[kind]
        ),
        Setting("size", lambda say: say("Sequences in a microbatch"), (1, 2, 4), 2),
    ),
    spec=_spread,
    goals=lambda task, found, say: [fits(found, say), _few_experts(found, say), is_fast(task, found, _SLACK, say)],
    zero=1,
    hints=(
        lambda say: say(
            "Most of the {all} parameters are experts. ep divides their weights and gradients, and the all-to-all is paid in "
            "each layer of each microbatch.",
            all=short(_MIXTURE.parameters(), say),
        ),
        lambda say: say(
            "ZeRO 3 divides all parameters, and gathers those of the rank’s own experts for each microbatch. With few tokens in "
            "a microbatch that takes longer than computing."
        ),
        lambda say: say(
            "With ep 8 an all-to-all stays in the node, and little is left for gradients to carry between nodes. Is "
            "recomputation still needed?"
        ),
    ),
)

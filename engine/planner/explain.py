"""Why the best layout is faster than the second, and which changes make a layout fit.

A reason is a sentence and its numbers. A page translates the sentence before it inserts the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.grid import Grid
from engine.papers.accounting import accounting
from engine.planner.candidates import cheap_recompute
from engine.planner.search import Plan
from engine.predict.speed.cost import Cost
from engine.predict.speed.step_time import PARTS, estimate
from engine.spec import LayoutSpec, Recompute, RunSpec, misfits
from engine.spec.numbers import in_runs


@dataclass(frozen=True)
class Reason:
    """An English sentence with names in braces, and their values. A value may be a reason itself.

    The text is the key of the translation catalogs. So it must be written as a literal where a reason is made.
    """

    text: str
    values: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text.format(**self.values)


# --------------------------------------------------------------------------------------------------------------- ranked


def why(plan: Plan, first: int = 0, second: int = 1) -> list[Reason]:
    """Why row `first` is faster than row `second`: the difference, and then its parts, the largest first."""
    rows = plan.layouts.iloc[[first, second]]
    a, b = (label(plan, row) for row in (first, second))
    slow, fast = float(rows["step_s"].iloc[1]), float(rows["step_s"].iloc[0])
    out = [
        Reason(
            "{first} takes {fast:.3f} s a step and {second} {slow:.3f} s, which is {percent:.1f}% longer.",
            {"first": a, "second": b, "fast": fast, "slow": slow, "percent": 100 * (slow / fast - 1)},
        )
    ]
    found = []
    for part in PARTS:
        one, other = (float(getattr(plan.step_time, part)[row]) for row in (first, second))
        gap = abs(other - one)
        if gap >= 0.02 * max(slow - fast, 0.01 * fast) and f"{gap:.3f}" != "0.000":
            found.append((abs(other - one), _difference(part, one, other)))
    return out + [reason for _, reason in sorted(found, key=lambda pair: -pair[0])]


def label(plan: Plan, row: int) -> str:
    """A layout in a few words: its short form, and its other settings."""
    r = plan.layouts.iloc[row]
    levers = [f"{r['schedule']}" + (f" × {r['chunks']}" if r["chunks"] > 1 else ""), f"microbatch {r['microbatch_size']}"]
    levers += [f"{in_runs(LayoutSpec.split_of(r['split']))} layers"] if r["split"] else []
    levers += [f"ZeRO {r['zero']}" + (f" in {r['zero_replicas']} groups" if r["zero_replicas"] > 1 else "")] if r["zero"] else []
    levers += ["sequence parallel"] if r["sequence_parallel"] else []
    some = f" of {r['recompute_layers']} layers a chunk" if r["recompute_layers"] else ""
    levers += [f"{r['recompute']} recompute{some}"] if r["recompute"] != "none" else []
    return f"{r['layout']} ({', '.join(levers)})"


def _difference(part: str, one: float, other: float) -> Reason:
    """The difference of one part of a step. `one`, `other`: seconds of it in the first and in the second layout."""
    # Rounding errors may leave a sum slightly below 0, which would be written as "-0.000".
    values = {"one": max(0.0, one), "other": max(0.0, other), "gap": abs(other - one)}
    reasons = {
        "compute": (
            Reason("Its slowest stage computes for {one:.3f} s instead of {other:.3f} s: {gap:.3f} s less.", values),
            Reason("Its slowest stage computes for {one:.3f} s instead of {other:.3f} s: {gap:.3f} s more.", values),
        ),
        "tp": (
            Reason("It waits {one:.3f} s for collectives over tp instead of {other:.3f} s: {gap:.3f} s less.", values),
            Reason("It waits {one:.3f} s for collectives over tp instead of {other:.3f} s: {gap:.3f} s more.", values),
        ),
        "cp": (
            Reason("It waits {one:.3f} s for collectives over cp instead of {other:.3f} s: {gap:.3f} s less.", values),
            Reason("It waits {one:.3f} s for collectives over cp instead of {other:.3f} s: {gap:.3f} s more.", values),
        ),
        "ep": (
            Reason("It waits {one:.3f} s for tokens on their way to experts instead of {other:.3f} s: {gap:.3f} s less.", values),
            Reason("It waits {one:.3f} s for tokens on their way to experts instead of {other:.3f} s: {gap:.3f} s more.", values),
        ),
        "pp": (
            Reason("It waits {one:.3f} s for messages between stages instead of {other:.3f} s: {gap:.3f} s less.", values),
            Reason("It waits {one:.3f} s for messages between stages instead of {other:.3f} s: {gap:.3f} s more.", values),
        ),
        "dp": (
            Reason("Of its collectives over dp {one:.3f} s are not hidden instead of {other:.3f} s: {gap:.3f} s less.", values),
            Reason("Of its collectives over dp {one:.3f} s are not hidden instead of {other:.3f} s: {gap:.3f} s more.", values),
        ),
        "update": (
            Reason("The optimizer's step takes {one:.3f} s instead of {other:.3f} s: {gap:.3f} s less.", values),
            Reason("The optimizer's step takes {one:.3f} s instead of {other:.3f} s: {gap:.3f} s more.", values),
        ),
        "idle": (
            Reason(
                "Filling and draining the pipeline leaves it idle for {one:.3f} s instead of {other:.3f} s: {gap:.3f} s less.",
                values,
            ),
            Reason(
                "Filling and draining the pipeline leaves it idle for {one:.3f} s instead of {other:.3f} s: {gap:.3f} s more.",
                values,
            ),
        ),
    }
    return reasons[part][one > other]


# ---------------------------------------------------------------------------------------------------- what does not fit


@dataclass(frozen=True)
class Lever:
    """One change of a layout, with the memory and time of the changed layout."""

    reason: Reason
    spec: RunSpec
    memory_bytes: int  # of tensors
    with_reserve: int  # bytes
    step_s: float
    fits: bool


def levers(plan: Plan, spec: RunSpec) -> list[Lever]:
    """Every single change that lowers memory, the fastest layout first. `spec` has the ranks and the batch of `plan`."""
    changes = list(_changes(spec))
    memory, whole, step = _memory_and_step(plan, [spec, *(changed for _, changed in changes)])
    found = []
    columns = memory[1:].tolist(), whole[1:].tolist(), step[1:].tolist()
    for (change, changed), need, with_reserve, seconds in zip(changes, *columns, strict=True):
        if need >= memory[0] or with_reserve >= whole[0]:
            continue
        reason = Reason(
            "{change}: {need:.1f} GiB, {saved:.1f} GiB less, for {percent:+.1f}% of time.",
            {
                "change": change,
                "saved": (int(memory[0]) - need) / 2**30,
                "need": need / 2**30,
                "percent": 100 * (seconds / float(step[0]) - 1),
            },
        )
        found.append(Lever(reason, changed, need, with_reserve, seconds, with_reserve <= plan.device.memory_bytes))
    return sorted(found, key=lambda lever: lever.step_s)


def way_to_fit(plan: Plan, spec: RunSpec) -> list[Lever]:
    """Changes, one after the other, until the layout fits: each time the one with the lowest `_price`.

    The result is empty if the layout fits already. If no changes make it fit, all of them together leave it as small as possible.
    """
    way: list[Lever] = []
    _, whole, step = _memory_and_step(plan, [spec])
    need, seconds, have = int(whole[0]), float(step[0]), plan.device.memory_bytes
    while need > have:
        offered = levers(plan, way[-1].spec if way else spec)
        if not offered:
            break
        best = min(offered, key=lambda lever: _price(lever, need, seconds, have))
        way.append(best)
        need, seconds = best.with_reserve, best.step_s
    return way


def _price(lever: Lever, need: int, seconds: float, have: int) -> float:
    """Seconds that a change adds for each byte that it saves; bytes beyond those that are needed do not count.

    If a change makes the step faster, the price is the seconds that it adds, which is negative.
    """
    added, saved = lever.step_s - seconds, min(need - lever.with_reserve, need - have)
    return added / saved if added > 0 else added


def _settings(spec: RunSpec) -> dict[str, Any]:
    layout = spec.layout
    return {
        "zero": layout.zero, **layout.mesh.columns, "size": spec.workload.microbatch_size,
        "microbatches": spec.workload.microbatches,
    }  # fmt: skip


def _changes(spec: RunSpec) -> Iterator[tuple[Reason, RunSpec]]:
    """Single changes that may save memory, and keep ranks and batch. Only changes whose result is a valid spec."""
    layout, workload = spec.layout, spec.workload
    offers: list[tuple[Reason, dict[str, Any], dict[str, Any]]] = []
    if not layout.sequence_parallel:
        offers.append(
            (
                Reason("Sequence parallelism shards the activations between the blocks over tp={tp}"),
                {"sequence_parallel": True},
                {},
            )
        )
    offers += [
        (Reason("ZeRO {zero} shards over dp={dp}"), {"zero": zero}, {})  # what it shards is in the docstring of `LayoutSpec.zero`
        for zero in range(layout.zero + 1, 4)
    ]
    if layout.zero_replicas > 1:
        offers.append((Reason("ZeRO over all of dp={dp}, not in groups of it"), {"zero_replicas": 1}, {}))
    if layout.recompute == "none":
        cheap = cheap_recompute(spec.model, workload)
        offers.append((_cheap(cheap), {"recompute": cheap}, {}))
    if layout.recomputes_some:
        all_layers = {"recompute_layers": 0, "recompute_every": 1}
        offers.append((Reason("Full recompute keeps each layer's input alone"), all_layers, {}))
    if layout.recompute != "full":
        offers.append((Reason("Full recompute keeps each layer's input alone"), {"recompute": "full"}, {}))
    if workload.microbatch_size % 2 == 0:
        counts = {"microbatch_size": workload.microbatch_size // 2, "microbatches": workload.microbatches * 2}
        offers.append((Reason("Microbatches of {size}, {microbatches} of them"), {}, counts))
    if layout.facts.memory_repeats_after is None:
        fewer = {"schedule": "1f1b", "chunks": 1}
        offers.append((Reason("1F1B holds no more than pp={pp} microbatches in flight"), fewer, {}))
    offers += list(_other_degrees(spec))
    for change, of_layout, of_workload in offers:
        cuts = of_layout.get("tp", 1) > 1 and (layout.cp > 1 or spec.model.experts > 0)  # the sequence too, as in a search
        changed = spec.model_copy(
            update={
                "layout": layout.model_copy(update=of_layout | {"split": ()} | ({"sequence_parallel": True} if cuts else {})),
                "workload": workload.model_copy(update=of_workload),
            }
        )
        if not misfits(changed.model, changed.layout, changed.workload):
            yield replace(change, values=_settings(changed)), changed


def _cheap(recompute: Recompute) -> Reason:
    if recompute == "core_attn":
        return Reason("Selective recompute computes attention again in backward")
    if recompute == "mlp_act":
        return Reason("Selective recompute computes the MLP's activation again in backward")
    return Reason("Selective recompute computes norms and the MLP's activation again in backward")


def _other_degrees(spec: RunSpec) -> Iterator[tuple[Reason, dict[str, Any], dict[str, Any]]]:
    """Changes that double tp or pp and halve dp, or that double one of tp and pp and halve the other."""
    layout, m = spec.layout, spec.workload.microbatches
    if layout.dp % 2 == 0:
        freed: dict[str, Any] = {"dp": layout.dp // 2, "zero_replicas": 1} | ({"zero": 0} if layout.dp == 2 else {})
        yield Reason("tp={tp} instead, with dp={dp}"), freed | {"tp": layout.tp * 2}, {"microbatches": m * 2}
        yield Reason("pp={pp} instead, with dp={dp}"), freed | {"pp": layout.pp * 2}, {"microbatches": m * 2}
    if layout.pp % 2 == 0:
        yield Reason("tp={tp} instead, with pp={pp}"), {"tp": layout.tp * 2, "pp": layout.pp // 2}, {}
    if layout.tp % 2 == 0 and not (layout.sequence_parallel and layout.tp == 2):
        yield Reason("pp={pp} instead, with tp={tp}"), {"pp": layout.pp * 2, "tp": layout.tp // 2}, {}


def _memory_and_step(plan: Plan, specs: list[RunSpec]) -> tuple[Any, Any, Any]:
    """For each spec: bytes of tensors on the fullest rank; with the reserve; seconds of a step in closed form. (n,) each"""
    grid = Grid.of(specs)
    memory, _ = accounting(plan.accounting)(plan.model, plan.workload, grid)
    step = estimate(Cost(plan.model, plan.workload, grid, plan.device, plan.assumed)).step
    return np.asarray(memory), memory + plan.kept_free(grid, memory), step

"""Microbatches through the stages of a pipeline, and the activations that each stage keeps for backward."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from engine.schedule import Timed
from engine.schedule.timeline import Timeline
from pages.charts.look import Look, lane
from pages.learn.scene import WIDTH, Scene, box, text

_TOP, _STAGE_PX, _KEPT_TOP = 22, 46, 100
_SLOT_W, _SLOT_H = 22, 19
_PASSES = ("F", "B", "I", "W")


def scene(found: Timeline, style: Look) -> Scene:
    """A step for each time at which a pass begins. Under each stage: one square for each microbatch that it keeps."""
    say, stages = style.say, found.stages
    passes = sorted((t for t in found.timed if t.action.kind in _PASSES), key=lambda t: (t.start, t.stage))
    times = sorted({t.start for t in passes} | {max(t.end for t in passes)})
    wide = WIDTH / stages
    across = max(1, int((wide - 6) // _SLOT_W))
    made = Scene(say("Microbatches go forward through the stages and back; squares are kept activations."), 0)
    made.fixed = "".join(
        text((stage + 0.5) * wide, _TOP - 6, say("stage {stage}", stage=stage) if stages <= 6 else str(stage), bold=True)
        + box(stage * wide + 3, _TOP, wide - 6, _STAGE_PX, style.faint, frame=style.grey)
        for stage in range(stages)
    )
    kept = _kept(passes, times)
    most = max((slot for _, _, slot, _, _ in kept), default=0)
    for microbatch, stage, slot, first, end in kept:
        x = stage * wide + (wide - across * _SLOT_W) / 2 + (slot % across) * _SLOT_W
        y = _KEPT_TOP + slot // across * _SLOT_H
        square = box(1, 1, _SLOT_W - 2, _SLOT_H - 2, style.category["activations"], corner=2)
        mark = f'<g fill="{style.on_colour}">{text(_SLOT_W / 2, _SLOT_H - 5, str(microbatch), size=12)}</g>'
        thing = made.add(square + mark).put(first, x, y)
        if end < len(times):
            thing.hide(end)
    _walkers(made, passes, times, wide, style)
    counts = [_counts(kept, step, stages) for step in range(len(times))]
    for stage in range(stages):
        _numbers(made, [count[stage] for count in counts], (stage + 0.5) * wide)
    made.height = _KEPT_TOP + (most // across + 1) * _SLOT_H + 6
    made.said = [_sentence(passes, time, counts[step], style) for step, time in enumerate(times)]
    made.still = max(range(len(times)), key=lambda step: sum(counts[step]))
    return made


def _kept(passes: list[Timed], times: list[float]) -> list[tuple[int, int, int, int, int]]:
    """(microbatch, stage, slot, first step, step after the last) of each activation that a stage keeps."""
    until: dict[tuple[int, int, int], float] = {}
    for timed in passes:
        if timed.action.kind != "F":
            key = (timed.stage, timed.action.chunk, timed.action.microbatch)
            until[key] = max(until.get(key, 0.0), timed.end)
    steps = {time: step for step, time in enumerate(times)}
    taken: dict[int, dict[int, float]] = {}
    found = []
    for timed in (t for t in passes if t.action.kind == "F"):
        slots = taken.setdefault(timed.stage, {})
        slot = next(slot for slot in range(len(passes)) if slots.get(slot, 0.0) <= timed.start)
        end = until[timed.stage, timed.action.chunk, timed.action.microbatch]
        slots[slot] = end
        after = next((steps[time] for time in times if time >= end), len(times))
        found.append((timed.action.microbatch, timed.stage, slot, steps[timed.start], after))
    return found


def _walkers(made: Scene, passes: list[Timed], times: list[float], wide: float, style: Look) -> None:
    """A circle for each microbatch going forward, and one going back. It is seen while a stage works on it.

    Two stages can work on one microbatch at once, as zero-bubble schedules compute weight gradients after it went on. Then it has
    a circle on each.
    """
    steps = {time: step for step, time in enumerate(times)}
    by: dict[tuple[int, str], list[list[Timed]]] = {}
    for timed in passes:
        tracks = by.setdefault((timed.action.microbatch, lane(timed.action.kind)), [])
        free = next((track for track in tracks if track[-1].end <= timed.start), None)
        if free is None:
            tracks.append([timed])
        else:
            free.append(timed)
    for (microbatch, colour), tracks in by.items():
        disc = f'<circle r="15" fill="{style.lane[colour]}"/>'
        for track in tracks:
            thing = made.add(disc + f'<g fill="{style.on_colour}">{text(0, 5, str(microbatch), bold=True)}</g>')
            for timed in track:
                thing.put(steps[timed.start], (timed.stage + 0.5) * wide, _TOP + _STAGE_PX / 2)
                end = next((steps[time] for time in times if time >= timed.end), None)
                if end is not None and not any(steps[other.start] == end for other in track):
                    thing.hide(end)


def _counts(kept: Iterable[tuple[int, int, int, int, int]], step: int, stages: int) -> list[int]:
    found = [0] * stages
    for _, stage, _, first, end in kept:
        found[stage] += first <= step < end
    return found


def _numbers(made: Scene, counts: list[int], x: float) -> None:
    """The number of kept activations above their squares, as one shape for each value."""
    things = {count: made.add(text(0, 0, str(count), size=14)) for count in set(counts)}
    for count, thing in things.items():
        thing.put(0, x, _KEPT_TOP - 10, 1.0 if counts[0] == count else 0.0)
    for step, (before, now) in enumerate(pairwise(counts), start=1):
        if before != now:
            things[before].hide(step)
            things[now].put(step, x, _KEPT_TOP - 10)


def _sentence(passes: list[Timed], time: float, counts: list[int], style: Look) -> str:
    say = style.say
    kept = ", ".join(str(count) for count in counts)
    forward = sum(t.action.kind == "F" and t.start <= time < t.end for t in passes)
    back = sum(t.action.kind != "F" and t.start <= time < t.end for t in passes)
    waiting = len(counts) - forward - back
    return say(
        "Time {time}: {forward} forward, {back} backward, {waiting} idle. Activations kept by each stage: {kept}.",
        time=f"{time:g}",
        forward=forward,
        back=back,
        waiting=waiting,
        kept=kept,
    )

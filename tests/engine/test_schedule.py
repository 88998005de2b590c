"""Pipeline schedules for up to 8 stages and 16 microbatches, checked against rules that are written here independently."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from graphlib import TopologicalSorter
from itertools import pairwise, product

import pytest

from engine.schedule import (
    Action,
    Schedule,
    ScheduleError,
    Timed,
    bubble,
    check,
    compute_order,
    in_flight,
    in_flight_bound,
    plan,
    replay,
)
from engine.spec import LayoutSpec, ScheduleName

# One chunk a stage and undivided backward; tests/engine/test_schedule_chunks.py has the others.
SCHEDULES: tuple[ScheduleName, ...] = ("naive", "gpipe", "1f1b")
STAGES, MICROBATCHES = range(1, 9), range(1, 17)
Place = tuple[int, int]  # stage, position in its list


def every(name: ScheduleName) -> Iterator[tuple[int, int]]:
    return product(STAGES, MICROBATCHES)


def layout(name: ScheduleName, pp: int, dp: int = 2) -> LayoutSpec:
    return LayoutSpec(dp=dp, pp=pp, schedule=name)


# ------------------------------------------------------------------------------------------------------------ actions


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_passes_the_check(name: ScheduleName) -> None:
    for pp, m in every(name):
        for dp, tied in product((1, 2), (False, True)):
            check(plan(layout(name, pp, dp), m, tied))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_stage_runs_each_microbatch_forward_once_and_backward_once(name: ScheduleName) -> None:
    for pp, m in every(name):
        schedule = plan(layout(name, pp), m)
        assert schedule.placement == tuple(range(pp))
        for stage, actions in enumerate(schedule.stages):
            passes = sorted((a.kind, a.chunk, a.microbatch) for a in actions if a.kind in ("F", "B", "I", "W"))
            assert passes == [(kind, stage, microbatch) for kind in ("B", "F") for microbatch in range(m)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_list_has_the_order_that_defines_the_schedule(name: ScheduleName) -> None:
    for pp, m in every(name):
        computed = [[a for a in actions if a.kind in ("F", "B")] for actions in plan(layout(name, pp), m).stages]
        assert computed == compute_order(name, pp, m)


def test_one_stage_sends_nothing_and_one_replica_reduces_nothing() -> None:
    for name in SCHEDULES:
        kinds = {action.kind for actions in plan(layout(name, pp=1, dp=1), 4).stages for action in actions}
        assert kinds == {"F", "B", "step"}


def test_gradients_are_reduced_once_for_each_chunk_if_there_are_replicas() -> None:
    for name, pp in product(SCHEDULES, STAGES):
        for dp in (1, 2):
            reduced = [a.chunk for actions in plan(layout(name, pp, dp), 3).stages for a in actions if a.kind == "reduce"]
            assert reduced == (list(range(pp)) if dp > 1 else [])


def test_a_stage_sends_its_last_gradient_before_it_reduces() -> None:
    """The previous stage waits for that gradient. The other replicas are as busy as this one."""
    for name, pp, m in product(SCHEDULES, STAGES, (1, 3, 16)):
        for actions in plan(layout(name, pp), m).stages[1:]:
            before = actions[: actions.index(Action("reduce", actions[0].chunk))]
            assert sum(a.kind == "send" and a.flow == "gradient" for a in before) == m


def test_only_the_first_and_the_last_stage_share_the_embedding() -> None:
    for name, pp in product(SCHEDULES, STAGES):
        tying = [stage for stage, actions in enumerate(plan(layout(name, pp), 3).stages) if Action("tie") in actions]
        assert tying == ([0, pp - 1] if pp > 1 else [])
        assert Action("tie") not in sum(plan(layout(name, pp), 3, tied=False).stages, ())


# ------------------------------------------------------------------------------------------------------------ happens before


class Order:
    """The happens-before relation of the lists: a stage runs its actions in order, a message is received after it was sent, and a
    sender sends the next message to the same neighbour only after the last one was received.

    It is a vector clock: for each position, the latest position of each stage that must come before.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.at = {(stage, i): action for stage, actions in enumerate(schedule.stages) for i, action in enumerate(actions)}
        self.places: dict[tuple[int, Action], Place] = {(place[0], action): place for place, action in self.at.items()}
        assert len(self.places) == len(self.at), "no stage does the same thing twice"
        before: dict[Place, list[Place]] = {(s, i): [(s, i - 1)] if i else [] for s, i in self.at}
        channels: dict[tuple[int, int, str], list[tuple[Place, Place]]] = {}
        for place, action in self.at.items():
            if action.kind == "send":
                step = 1 if action.flow == "activation" else -1
                twin = replace(action, kind="recv", chunk=action.chunk + step, peer=place[0])
                received = self.places[action.peer, twin]
                before[received].append(place)
                channels.setdefault((place[0], action.peer, action.flow), []).append((place, received))
        for messages in channels.values():
            for (_, received), (next_sent, _) in pairwise(sorted(messages)):
                before[next_sent].append(received)
        self.clock: dict[Place, list[int]] = {}
        for place in TopologicalSorter(before).static_order():  # raises CycleError in a deadlock
            clock = [
                max(known) for known in zip([-1] * len(schedule.stages), *(self.clock[p] for p in before[place]), strict=True)
            ]
            clock[place[0]] = place[1]
            self.clock[place] = clock

    def surely(self, first: tuple[int, Action], then: tuple[int, Action]) -> bool:
        """Whether `first` must end before `then` begins; each is (stage, action)."""
        one, other = self.places[first], self.places[then]
        return one != other and self.clock[other][one[0]] >= one[1]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_action_comes_after_its_inputs_and_no_stage_deadlocks(name: ScheduleName) -> None:
    for pp, m in every(name):
        schedule = plan(layout(name, pp), m)
        order = Order(schedule)
        for stage, microbatch in product(range(pp), range(m)):
            forward, backward = (stage, Action("F", stage, microbatch)), (stage, Action("B", stage, microbatch))
            assert order.surely(forward, backward)
            assert order.surely(backward, (stage, Action("reduce", stage)))
            if stage + 1 < pp:
                assert order.surely(forward, (stage + 1, Action("F", stage + 1, microbatch)))
                assert order.surely((stage + 1, Action("B", stage + 1, microbatch)), backward)
        for stage in range(pp):
            assert order.surely((stage, Action("reduce", stage)), (stage, Action("step")))
            if (stage, Action("tie")) in order.places:
                assert order.surely((stage, Action("reduce", stage)), (stage, Action("tie")))
                assert order.surely((stage, Action("tie")), (stage, Action("step")))


@pytest.mark.parametrize("name", SCHEDULES)
def test_messages_are_received_in_the_order_in_which_they_were_sent(name: ScheduleName) -> None:
    """NCCL matches a send with a receive only by order."""
    for pp, m in every(name):
        stages = plan(layout(name, pp), m).stages
        for low, high in pairwise(range(pp)):
            for flow, source, target in (("activation", low, high), ("gradient", high, low)):
                sent = [a.microbatch for a in stages[source] if (a.kind, a.flow, a.peer) == ("send", flow, target)]
                received = [a.microbatch for a in stages[target] if (a.kind, a.flow, a.peer) == ("recv", flow, source)]
                assert sent == received
                assert sorted(sent) == list(range(m))


# -------------------------------------------------------------------------------------------------------- kept activations


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_stage_keeps_exactly_as_many_microbatches_as_the_schedules_definition_says(name: ScheduleName) -> None:
    """naive: one. GPipe: all. 1F1B: as many as there are stages from here to the end (Narayanan et al. 2021)."""
    definition: Callable[[int, int, int], int] = {
        "naive": lambda stage, pp, m: 1,
        "gpipe": lambda stage, pp, m: m,
        "1f1b": lambda stage, pp, m: min(pp - stage, m),
    }[name]
    for pp, m in every(name):
        schedule = plan(layout(name, pp), m)
        for stage in range(pp):
            assert in_flight(schedule, stage) == definition(stage, pp, m) == in_flight_bound(name, stage, pp, m)


# ------------------------------------------------------------------------------------------------------------------ bubble


def textbook(stage: int, action: Action) -> float:
    """Forward and backward take the same time, everything else takes none."""
    return 1.0 if action.kind in ("F", "B") else 0.0


def timed(name: ScheduleName, pp: int, m: int) -> list[Timed]:
    return replay(plan(layout(name, pp), m), textbook)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_bubble_in_textbook_times_is_the_closed_form(name: ScheduleName) -> None:
    """As a share of total time: (p − 1) ÷ (m + p − 1) for GPipe and 1F1B; naive leaves all stages but one idle."""
    for pp, m in every(name):
        expected = 1 - 1 / pp if name == "naive" else (pp - 1) / (m + pp - 1)
        assert bubble(timed(name, pp, m), pp) == pytest.approx(expected, abs=1e-12)


def test_the_bubble_does_not_depend_on_how_long_backward_takes() -> None:
    for pp, m in product((1, 2, 4, 8), (1, 4, 16)):
        for name in ("gpipe", "1f1b"):
            slow = replay(plan(layout(name, pp), m), lambda stage, a: {"F": 1.0, "B": 2.0}.get(a.kind, 0.0))
            assert bubble(slow, pp) == pytest.approx((pp - 1) / (m + pp - 1))


def test_the_bubble_is_a_share_of_total_and_not_of_ideal_time() -> None:
    """The papers' (p − 1) ÷ m is the same bubble as a share of ideal time."""
    share = bubble(timed("1f1b", 4, 8), 4)
    assert share == pytest.approx(3 / 11)
    assert share / (1 - share) == pytest.approx(3 / 8)


def test_slow_messages_make_the_bubble_larger() -> None:
    schedule = plan(layout("1f1b", 4), 8)
    slow = replay(schedule, lambda stage, a: 1.0 if a.kind in ("F", "B", "send") else 0.0)
    assert bubble(slow, 4) > bubble(timed("1f1b", 4, 8), 4)


# ------------------------------------------------------------------------------------------------------------------ replay


@pytest.mark.parametrize("name", SCHEDULES)
def test_replay_runs_each_action_once_and_one_at_a_time_on_each_stage(name: ScheduleName) -> None:
    for pp, m in every(name):
        schedule = plan(layout(name, pp), m)
        ran = replay(schedule, lambda stage, action: 1.0 + stage / 10)
        for stage, actions in enumerate(schedule.stages):
            mine = [t for t in ran if t.stage == stage]
            assert tuple(t.action for t in mine) == actions
            assert mine[0].start == 0
            assert all(one.end == other.start for one, other in pairwise(mine)), "waiting is part of a receive or a send"


def test_replay_by_hand_for_two_stages_and_two_microbatches() -> None:
    """F takes 2, B takes 4, a message 1. Worked out on paper."""
    took = {"F": 2.0, "B": 4.0, "send": 1.0}
    ran = replay(plan(LayoutSpec(pp=2, schedule="gpipe"), 2), lambda stage, a: took.get(a.kind, 0.0))
    passes = {(t.stage, str(t.action)): (t.start, t.end) for t in ran if t.action.kind in ("F", "B", "recv")}
    assert passes == {
        (0, "F chunk 0 microbatch 0"): (0, 2),
        (1, "recv activation chunk 1 microbatch 0"): (0, 3),
        (1, "F chunk 1 microbatch 0"): (3, 5),
        (0, "F chunk 0 microbatch 1"): (2, 4),
        (1, "recv activation chunk 1 microbatch 1"): (5, 5),
        (1, "F chunk 1 microbatch 1"): (5, 7),
        (1, "B chunk 1 microbatch 0"): (7, 11),
        (0, "recv gradient chunk 0 microbatch 0"): (4, 12),
        (0, "B chunk 0 microbatch 0"): (12, 16),
        (1, "B chunk 1 microbatch 1"): (11, 15),
        (0, "recv gradient chunk 0 microbatch 1"): (16, 16),
        (0, "B chunk 0 microbatch 1"): (16, 20),
    }


def test_a_sender_runs_ahead_of_a_slow_receiver_by_one_message() -> None:
    """The executor has at most one send in progress to a neighbour, so replay must have the same limit."""
    schedule = plan(LayoutSpec(pp=2, schedule="gpipe"), 4)
    ran = replay(schedule, lambda stage, a: {"F": 1.0, "B": 1.0}.get(a.kind, 0.0) * (10 if stage else 1))
    starts = [t.start for t in ran if t.stage == 0 and t.action.kind == "F"]
    # The third message is sent when the second is received, which is when the receiver has finished the first: at 11.
    assert starts == [0, 1, 2, 11]


# ----------------------------------------------------------------------------------------------------- what check() refuses


def edited(schedule: Schedule, stage: int, edit: Callable[[list[Action]], None]) -> Schedule:
    actions = list(schedule.stages[stage])
    edit(actions)
    return replace(schedule, stages=(*schedule.stages[:stage], tuple(actions), *schedule.stages[stage + 1 :]))


def where(actions: list[Action], kind: str, microbatch: int = -1, flow: str = "") -> int:
    return next(i for i, a in enumerate(actions) if (a.kind, a.microbatch, a.flow) == (kind, microbatch, flow))


def drop(kind: str, microbatch: int = -1, flow: str = "") -> Callable[[list[Action]], None]:
    return lambda actions: actions.__delitem__(where(actions, kind, microbatch, flow))


def repeat(kind: str, microbatch: int = -1, flow: str = "") -> Callable[[list[Action]], None]:
    return lambda actions: actions.insert(i := where(actions, kind, microbatch, flow), actions[i])


def move(kind: str, microbatch: int, flow: str, to: int) -> Callable[[list[Action]], None]:
    return lambda actions: actions.insert(to, actions.pop(where(actions, kind, microbatch, flow)))


def swap_passes(actions: list[Action]) -> None:
    one, other = where(actions, "F", 0), where(actions, "B", 0)
    actions[one], actions[other] = actions[other], actions[one]


GOOD = plan(layout("1f1b", 3), 4)


@pytest.mark.parametrize("stage", range(3))
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (drop("F", 1), "does not run F then B"),
        (drop("B", 1), "does not run F then B"),
        (repeat("F", 1), "does not run F then B"),
        (swap_passes, "does not run F then B"),
        (drop("reduce"), "not every chunk once"),
        (repeat("reduce"), "not every chunk once"),
        (move("reduce", -1, "", 0), "reduces chunk . before its last backward"),
        (drop("step"), "ends with"),
        (repeat("step"), "ends with"),
        (move("step", -1, "", 0), "ends with"),
        (lambda actions: actions.append(actions.pop(where(actions, "reduce"))), "ends with"),
        (lambda actions: actions.append(Action("F", 7, 0)), "runs what is not its own"),
        (lambda actions: actions.append(Action("F", 0, 9)), "runs what is not its own"),
    ],
)
def test_a_broken_stage_is_refused(stage: int, edit: Callable[[list[Action]], None], said: str) -> None:
    with pytest.raises(ScheduleError, match=said):
        check(edited(GOOD, stage, edit))


@pytest.mark.parametrize(
    ("stage", "edit"),
    [
        (0, drop("send", 1, "activation")),
        (1, drop("recv", 1, "activation")),
        (1, drop("send", 1, "gradient")),
        (0, drop("recv", 1, "gradient")),
        (0, repeat("send", 1, "activation")),
        (1, repeat("recv", 1, "activation")),
        (0, move("send", 1, "activation", 0)),  # before the pass that makes what is sent
        (1, move("recv", 0, "activation", 3)),  # after the pass that needs it
        (0, drop("tie")),
        (0, move("tie", -1, "", 0)),
        (1, lambda actions: actions.insert(-1, Action("tie"))),
    ],
)
def test_a_broken_exchange_is_refused(stage: int, edit: Callable[[list[Action]], None]) -> None:
    with pytest.raises(ScheduleError):
        check(edited(GOOD, stage, edit))


def test_a_message_that_is_missing_at_both_ends_is_refused() -> None:
    """Both lists are consistent then, but the pass has no input."""
    broken = edited(edited(GOOD, 0, drop("send", 1, "activation")), 1, drop("recv", 1, "activation"))
    with pytest.raises(ScheduleError, match="stage 1 comes to F chunk 1 microbatch 1 before recv activation"):
        check(broken)


def test_messages_in_different_orders_at_the_two_ends_are_refused() -> None:
    schedule = plan(layout("gpipe", 2), 2)

    def other_order(actions: list[Action]) -> None:
        sends = [i for i, a in enumerate(actions) if a.kind == "send"]
        one, other = (actions[i] for i in sends)
        for i in sends[::-1]:
            actions.pop(i)
        at = where(actions, "F", 1) + 1
        actions[at:at] = [other, one]

    with pytest.raises(ScheduleError, match="do not match one to one in the same order"):
        check(edited(schedule, 0, other_order))


def test_an_order_in_which_two_stages_wait_for_each_other_is_refused() -> None:
    """The first stage waits for a gradient before it sends the activation on which the gradient depends."""
    schedule = plan(LayoutSpec(pp=2, schedule="gpipe"), 2)

    def wait_too_early(actions: list[Action]) -> None:
        received = actions.pop(where(actions, "recv", 0, "gradient"))
        actions.insert(where(actions, "send", 1, "activation"), received)

    broken = edited(schedule, 0, wait_too_early)
    with pytest.raises(ScheduleError, match=r"deadlock: stage 0 waits at recv gradient .* stage 1 waits at recv activation"):
        check(broken)
    with pytest.raises(Exception, match="cycle"):
        Order(broken)


def test_an_action_is_written_in_words() -> None:
    assert str(Action("send", 0, 3, "activation", 1)) == "send activation chunk 0 microbatch 3"
    assert str(Action("step")) == "step"

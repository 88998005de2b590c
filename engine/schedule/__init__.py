"""Pipeline schedules as data: for each stage, the list of actions that its ranks carry out, in order.

The worker executes the list, the checks hold for it, `replay` times it, and the chart draws it.

    actions     what an entry of the list is
    orders      which F, B, I and W, in which order: this is what makes a schedule that schedule
    plans       the same with sends, receives, gradient reduction and the optimizer's step put in
    checks      what every plan must satisfy, whatever its name
    short       a stage's step with the middle of what repeats left out
    waiting     who waits for whom: the rules of every simulator
    clock       run a plan against a clock, given how long each action takes
"""

from engine.schedule.actions import SCHEDULES, Action, Flow, Kind, Schedule, ScheduleError
from engine.schedule.checks import check, in_flight
from engine.schedule.clock import Timed, bubble, replay
from engine.schedule.orders import compute_order, in_flight_bound
from engine.schedule.plans import entries, plan

__all__ = [
    "SCHEDULES",
    "Action",
    "Flow",
    "Kind",
    "Schedule",
    "ScheduleError",
    "Timed",
    "bubble",
    "check",
    "compute_order",
    "entries",
    "in_flight",
    "in_flight_bound",
    "plan",
    "replay",
]

"""Pipeline schedules as data: for each stage, the list of actions that its ranks run, in order.

The worker executes the list, the checks validate it, `replay` simulates it, and the chart draws it.

    actions       the entries of the list
    orders        the order of F, B, I and W, which defines a schedule
    plans         the whole list, with sends, receives, gradient reduction and the optimizer's step
    checks        the rules that every plan must keep
    waiting       which action waits for which: the rules of every simulator
    clock         the simulation of a plan, given the duration of each action
    simulation    the length of very many schedules, simulated at once
    stage_passes  what follows from the order of a stage's passes, as arrays: what waits, what is deferred
    timeline      the simulated timeline: textbook durations, the bubble, the critical path
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

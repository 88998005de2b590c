"""The lessons, in their order, and the tasks of some."""

from pages.learn import axis_tasks, tasks
from pages.learn.lesson_state import Lesson
from pages.learn.lessons import (
    attention,
    checklist,
    context,
    data,
    experts,
    fused,
    memory,
    pipeline,
    recompute,
    tensor,
    together,
    zero,
)
from pages.learn.task import Task

_ORDER: tuple[tuple[Lesson, Task | None], ...] = (
    (memory.LESSON, tasks.MEMORY),
    (attention.LESSON, None),
    (data.LESSON, tasks.DATA),
    (tensor.LESSON, tasks.TENSOR),
    (pipeline.LESSON, tasks.PIPELINE),
    (together.LESSON, None),
    (zero.LESSON, tasks.ZERO),
    (recompute.LESSON, tasks.RECOMPUTE),
    (fused.LESSON, tasks.FUSED),
    (checklist.LESSON, tasks.LAYOUT),
    (context.LESSON, axis_tasks.CONTEXT),
    (experts.LESSON, axis_tasks.EXPERTS),
)
LESSONS = tuple(lesson for lesson, _ in _ORDER)
TASKS = {number: task for number, (_, task) in enumerate(_ORDER, start=1) if task}  # number of the lesson → its task

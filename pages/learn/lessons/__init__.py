"""The lessons, in their order."""

from pages.learn.lesson_state import Lesson
from pages.learn.lessons import attention, checklist, data, fused, memory, pipeline, recompute, tensor, together, zero

LESSONS: tuple[Lesson, ...] = (
    memory.LESSON,
    attention.LESSON,
    data.LESSON,
    tensor.LESSON,
    pipeline.LESSON,
    together.LESSON,
    zero.LESSON,
    recompute.LESSON,
    fused.LESSON,
    checklist.LESSON,
)

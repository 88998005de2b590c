"""What a reader of a lesson can do: turn a knob, and answer a question before looking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Knob:
    """Something that the reader can change. `name` is how a link calls it; only `options` are ever taken."""

    name: str
    options: Sequence[Any]
    default: Any

    def read(self, text: str) -> Any:
        """The option that a link writes as `text`; None if there is none."""
        return next((option for option in self.options if str(option) == text), None)


@dataclass(frozen=True)
class AnswerChoice:
    """One of the answers to choose from. `name` is how a link calls it."""

    name: str
    label: str


@dataclass(frozen=True)
class Question:
    """A question whose answer is worked out, by the engine, from the numbers that it names.

    asked     the question, with its numbers
    right     the answer: the name of one of `choices`, or a number in `unit`; None as long as no run has told
    said      the right answer in words
    why       one sentence
    choices   what to choose from; none where a number is asked
    within    how far a number may be from the right one, as a share of it
    reveal    shows the formula, or the run, once the reader has committed
    """

    asked: str
    right: str | float | None
    said: str
    why: str
    choices: tuple[AnswerChoice, ...] = ()
    unit: str = ""
    within: float = 0.1
    reveal: Callable[[], object] = lambda: None

    def read(self, text: str) -> str | float | None:
        """An answer as a link writes it; None if it is not one."""
        if self.choices:
            return text if text in {choice.name for choice in self.choices} else None
        try:
            number = float(text)
        except ValueError:
            return None
        return number if abs(number) < 1e18 else None  # not a number is not less

    def judge(self, answer: str | float) -> bool:
        """Whether an answer is right. Only where it is known what is."""
        if isinstance(self.right, str) or isinstance(answer, str):
            return answer == self.right
        assert self.right is not None
        return abs(answer - self.right) <= self.within * abs(self.right)

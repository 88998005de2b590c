"""The controls and questions of a lesson."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Knob:
    """A value that the reader can set. `name` is its name in links. Only `options` are accepted."""

    name: str
    options: Sequence[Any]
    default: Any

    def read(self, text: str) -> Any:
        """The option whose text in a link is `text`; None if there is none."""
        return next((option for option in self.options if str(option) == text), None)


@dataclass(frozen=True)
class AnswerChoice:
    """One of the answers to choose from. `name` is its name in links."""

    name: str
    label: str


@dataclass(frozen=True)
class Question:
    """A question. The engine computes its answer from the numbers in it.

    asked     the question, with its numbers
    right     the answer: the name of one of `choices`, or a number in `unit`; None before a run
    said      the right answer in words
    why       one sentence
    choices   the answers to choose from; empty if the answer is a number
    within    the accepted relative error of a number
    reveal    shows the formula or the run after the reader's answer
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
        """The answer that a link has as `text`; None if it is not valid."""
        if self.choices:
            return text if text in {choice.name for choice in self.choices} else None
        try:
            number = float(text)
        except ValueError:
            return None
        return number if abs(number) < 1e18 else None  # NaN is refused too

    def judge(self, answer: str | float) -> bool:
        """Whether an answer is right. `right` must be known."""
        if isinstance(self.right, str) or isinstance(answer, str):
            return answer == self.right
        assert self.right is not None
        return abs(answer - self.right) <= self.within * abs(self.right)

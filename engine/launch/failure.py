"""The error of a failed run, for the program that started it."""

from __future__ import annotations


class RunError(Exception):
    """A run or a dry run failed, not because of the request. The message is one sentence.

    `traceback` is that of the rank that failed, as text, and `rank` its number; empty and None if no rank failed first.
    Python prints the traceback below the message if the error is not caught.
    """

    def __init__(self, message: str, traceback: str = "", rank: int | None = None) -> None:
        super().__init__(message)
        self.traceback, self.rank = traceback, rank
        if traceback:
            self.add_note(traceback.rstrip())

"""How a run ends badly, for the program that asked for it."""

from __future__ import annotations


class RunError(Exception):
    """A run or a dry run ended badly, by no fault of the request. The message is one sentence.

    `traceback` is that of the rank that failed, as text, and `rank` its number; empty and None where no rank is to blame.
    Python prints the traceback below the message where nobody catches the error.
    """

    def __init__(self, message: str, traceback: str = "", rank: int | None = None) -> None:
        super().__init__(message)
        self.traceback, self.rank = traceback, rank
        if traceback:
            self.add_note(traceback.rstrip())

"""The one exception for a user's mistake, and a mistake that can be made with anything that is handed in."""

from __future__ import annotations

from engine.spec.sentence import Sentence, sentence


class RequestError(Exception):
    """The request is wrong. The message is one sentence for the user."""

    @property
    def sentence(self) -> str:
        """The message as it was made: a `Sentence`, where it can be said in other languages."""
        return str(self) if len(self.args) != 1 or not isinstance(self.args[0], str) else self.args[0]


def too_large(name: str, size: int, most: int) -> Sentence:
    """`name` has `size` bytes, and that is more than `most`."""
    return sentence("{name} has {size:,} bytes; up to {most:,} are taken", name=name, size=size, most=most)

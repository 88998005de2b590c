"""The exception for a user's mistake, and the sentence for an input that is too large."""

from __future__ import annotations

from engine.spec.sentence import Sentence, sentence


class RequestError(Exception):
    """The request is wrong. The message is one sentence for the user."""

    @property
    def sentence(self) -> str:
        """The message as it was passed: a `Sentence` if it can be translated."""
        return str(self) if len(self.args) != 1 or not isinstance(self.args[0], str) else self.args[0]


def too_large(name: str, size: int, most: int) -> Sentence:
    """The sentence for an input `name` of `size` bytes, if at most `most` are allowed."""
    return sentence("{name} has {size:,} bytes; at most {most:,} are accepted", name=name, size=size, most=most)

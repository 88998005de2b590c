"""Generated text: what is the prompt, what is new, and every character that is not seen."""

from __future__ import annotations

import re
from html import unescape

from hypothesis import given
from hypothesis import strategies as st

from pages.charts.generated import as_html
from pages.charts.words import words

SAY = words("en")
INVISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍", "\x00": "␀", "\x1b": "␛", "\x7f": "␡"}


def test_prompt_and_continuation_are_told_apart() -> None:
    made = as_html("The", "end", SAY)
    assert '<span class="ss-prompt">The</span><span class="ss-new">end</span>' in made
    assert "Underlined: what the model wrote" in made


def test_what_is_not_seen_has_a_mark() -> None:
    made = as_html("", " ".join(INVISIBLE), SAY)
    assert made.count("<i> </i>") == len(INVISIBLE) - 1
    for mark in INVISIBLE.values():
        assert f'data-mark="{mark}"' in made


@given(st.text(max_size=50), st.text(max_size=50))
def test_text_that_is_copied_is_what_the_model_wrote(prompt: str, text: str) -> None:
    """Without marks, but for control characters, which an HTML page cannot have."""
    made = as_html(prompt, text, SAY).partition("</pre>")[0]
    copied = unescape(re.sub("<[^>]*>", "", made))
    assert copied == re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", prompt + text)

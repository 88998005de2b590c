"""Generated text as HTML: the prompt and what the model wrote, told apart, with blanks that can be seen.

Marks of blanks are drawn by CSS, so that text that is copied has only what the model wrote.
"""

from __future__ import annotations

import re
from html import escape

from pages.charts.words import Words

# For a page and for a report. An underline and a background: never a hue alone.
STYLE = """
.ss-generated { white-space: pre-wrap; overflow-wrap: anywhere; font: 0.95rem/1.7 "Source Code Pro", ui-monospace, monospace;
  border: 1px solid color-mix(in srgb, currentColor 18%, transparent); border-radius: 0.4rem; padding: 0.6rem 0.9rem; margin: 0; }
.ss-generated .ss-prompt { opacity: 0.8; }
.ss-generated .ss-new { background: color-mix(in srgb, #0072b2 16%, transparent);
  border-bottom: 2px solid color-mix(in srgb, #0072b2 70%, transparent); }
.ss-generated i { font-style: normal; background: no-repeat center
  radial-gradient(circle, color-mix(in srgb, currentColor 55%, transparent) 0.09em, transparent 0.1em); }
.ss-generated i[data-mark] { background: none; }
.ss-generated i[data-mark]::before { content: attr(data-mark); opacity: 0.55; }
.ss-generated-key { font-size: 0.82rem; margin: 0.2rem 0 0; }
"""

_MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍"}
_SPECIAL = re.compile(r"[\x00-\x20\x7f\ufffd]")


def as_html(prompt: str, text: str, say: Words) -> str:
    """The prompt and its continuation."""
    key = say("Plain: the prompt. Underlined: what the model wrote. · is a blank, ↵ a new line, � a byte that is no text.")
    return (
        f'<pre class="ss-generated"><span class="ss-prompt">{_marked(prompt)}</span>'
        f'<span class="ss-new">{_marked(text)}</span></pre><p class="ss-generated-key">{escape(key)}</p>'
    )


def _marked(text: str) -> str:
    pieces, last = [], 0
    for found in _SPECIAL.finditer(text):
        pieces += [escape(text[last : found.start()]), _mark(found[0])]
        last = found.end()
    return "".join(pieces) + escape(text[last:])


def _mark(character: str) -> str:
    """A character that is not seen, or not told from another, with its mark."""
    if character == " ":
        return "<i> </i>"
    if character == "\ufffd":
        return character
    if character in "\n\t":
        return f'<i data-mark="{_MARKS[character]}"></i>{character}'
    picture = _MARKS.get(character) or ("␡" if character == "\x7f" else chr(0x2400 + ord(character)))
    return f'<i data-mark="{picture}"></i>'

"""A predicted number as a sum of terms: the formula, and the formula with its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from engine.terms import Term, total
from pages.charts.look import Look
from pages.charts.units import in_bytes
from pages.charts.words import Words


def unfolded(
    parts: Mapping[str, Iterable[Term]], names: Mapping[str, str], measured: Mapping[str, int] | None, style: Look
) -> str:
    """HTML: a table with a row for each term, grouped by part (a memory category, or a kind of traffic).

    `names`: part → name. `measured`, if there is a run: part → measured bytes.
    """
    say = style.say
    head = "".join(
        f"<th scope='col'>{escape(text)}</th>" for text in (say("what"), say("formula"), say("with numbers"), say("bytes"))
    )
    body = "".join(
        _part(names.get(part, part), list(terms), None if measured is None else measured.get(part, 0), say)
        for part, terms in parts.items()
    )
    return f'<table class="ss-formula"><thead><tr>{head}</tr></thead>{body}</table>'


def _part(name: str, terms: list[Term], measured: int | None, say: Words) -> str:
    if not terms and not measured:
        return ""
    said = say("{size}, {bytes} bytes", size=in_bytes(total(terms)), bytes=f"{total(terms):,}")
    if measured is not None:
        said += " · " + say("measured {bytes}", bytes=f"{measured:,}")
    rows = "".join(
        f"<tr><td>{escape(say.described(term.name))}</td><td class='ss-math'>{escape(term.symbols)}</td>"
        f"<td class='ss-math'>{escape(term.numbers)}</td><td>{term.value:,}</td></tr>"
        for term in sorted(terms, key=lambda term: -term.value)
    )
    head = f"<tr class='ss-part'><th scope='rowgroup' colspan='3'>{escape(name)}</th><td>{escape(said)}</td></tr>"
    return f"<tbody>{head}{rows}</tbody>"


def glossary(terms: Iterable[Term], symbols: Mapping[str, str], style: Look) -> str:
    """HTML: the symbols that occur in the terms, and their meanings."""
    say = style.say
    text = " ".join(term.symbols for term in terms)
    used = [(symbol, meaning) for symbol, meaning in symbols.items() if _occurs(symbol, text)]
    return (
        "<p class='ss-glossary'>"
        + " · ".join(f"<b>{escape(symbol)}</b> {escape(say.described(meaning))}" for symbol, meaning in used)
        + "</p>"
    )


def _occurs(symbol: str, text: str) -> bool:
    """Whether the symbol is in the text as a whole word, with or without an index: Ψ in "Ψ_table/dp"."""
    words = "".join(c if c.isalnum() or c == "_" else " " for c in text).split()
    return symbol in {word.partition("_")[0] for word in words}

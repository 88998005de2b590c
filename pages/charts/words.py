"""The language of what is read on a page: its sentences, through gettext catalogs.

Every text for people is written in English where it is used, `say("Rank {rank} is fullest", rank=3)`: the English sentence is the
key of the catalog, and what is in braces is put in after it was translated. Messages are taken out of the code by these names:
`say(…)` and `plural(…)`, and the engine's `sentence(…)`, `Field(description=…)`, `Reason(…)` and the names of what its formulas
count, which this module says by their English.
"""

from __future__ import annotations

from functools import cache
from gettext import GNUTranslations, NullTranslations
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from engine.spec import Sentence

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
SOURCE_LANGUAGE: Language = "en"  # in which the messages stand in the code
LOCALE = Path(__file__).parents[1] / "locale"
DOMAIN = "shardscope"


class Words:
    """Says things in one language."""

    def __init__(self, language: Language, catalog: NullTranslations) -> None:
        self.language = language
        self._catalog = catalog

    def __call__(self, text: str, **values: Any) -> str:
        """`text` in this language, with `values` put in where it has their names in braces."""
        said = self._catalog.gettext(text)
        return said.format(**values) if values else said

    def plural(self, one: str, many: str, count: int, **values: Any) -> str:
        """ "1 rank", "8 ranks": `one` and `many` with {count} put in, with its thousands apart."""
        return self._catalog.ngettext(one, many, count).format(count=f"{count:,}", **values)

    def sentence(self, text: str) -> str:
        """A sentence of the engine's in this language; any other text as it is."""
        if not isinstance(text, Sentence):
            return text
        values = {name: self.sentence(value) if isinstance(value, str) else value for name, value in text.values.items()}
        return self._catalog.gettext(text.template).format(**values)

    def described(self, english: str) -> str:
        """What the engine says or calls something, which extraction finds where it is written.

        The description of a field of the spec, the name of a formula's term, the meaning of a symbol, a reason.
        """
        if isinstance(english, Sentence):
            return self.sentence(english)
        return self._catalog.gettext(english) if english else ""


@cache
def words(language: Language) -> Words:
    """The catalog of a language is read once; English is what stands in the code."""
    return Words(language, NullTranslations() if language == SOURCE_LANGUAGE else _catalog(language))


def _catalog(language: Language) -> NullTranslations:
    """Compiled from the text that translators edit, so that no compiled file can be out of date."""
    compiled = BytesIO()
    with (LOCALE / language / "LC_MESSAGES" / f"{DOMAIN}.po").open("rb") as file:
        write_mo(compiled, read_po(file, locale=language))
    compiled.seek(0)
    return GNUTranslations(compiled)

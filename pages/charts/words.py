"""Translation of the pages' texts, with gettext catalogs.

The code has every text in English where it is used: `say("Rank {rank} is fullest", rank=3)`. The English sentence is the key of
the catalog. Values in braces are put in after translation. Extraction finds messages by the names `say(…)` and `plural(…)`, and
in the engine by `sentence(…)`, `Field(description=…)`, `Reason(…)` and the names in formulas.
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
SOURCE_LANGUAGE: Language = "en"  # of the messages in the code
LOCALE = Path(__file__).parents[1] / "locale"
DOMAIN = "shardscope"


class Words:
    """Translates texts into one language."""

    def __init__(self, language: Language, catalog: NullTranslations) -> None:
        self.language = language
        self._catalog = catalog

    def __call__(self, text: str, **values: Any) -> str:
        """`text` in this language, with `values` in place of their names in braces."""
        said = self._catalog.gettext(text)
        return said.format(**values) if values else said

    def plural(self, one: str, many: str, count: int, **values: Any) -> str:
        """ "1 rank", "8 ranks": `one` or `many`, with {count} and its thousands separators put in."""
        return self._catalog.ngettext(one, many, count).format(count=f"{count:,}", **values)

    def sentence(self, text: str) -> str:
        """A sentence of the engine in this language; any other text unchanged."""
        if not isinstance(text, Sentence):
            return text
        values = {name: self.sentence(value) if isinstance(value, str) else value for name, value in text.values.items()}
        return self._catalog.gettext(text.template).format(**values)

    def together(self, *sentences: str) -> str:
        """Sentences of this language as one text. Chinese has no blank between them. Empty ones are left out."""
        return ("" if self.language == "zh" else " ").join(filter(None, sentences))

    def described(self, english: str) -> str:
        """A text of the engine, in this language. Extraction finds it where the engine defines it.

        The description of a field of the spec, the name of a formula's term, the meaning of a symbol, a reason.
        """
        if isinstance(english, Sentence):
            return self.sentence(english)
        return self._catalog.gettext(english) if english else ""


@cache
def words(language: Language) -> Words:
    """The words of a language. Its catalog is read once; English needs none."""
    return Words(language, NullTranslations() if language == SOURCE_LANGUAGE else _catalog(language))


def _catalog(language: Language) -> NullTranslations:
    """The catalog, compiled from the .po file when it is read, so that no compiled file can be out of date."""
    compiled = BytesIO()
    with (LOCALE / language / "LC_MESSAGES" / f"{DOMAIN}.po").open("rb") as file:
        write_mo(compiled, read_po(file, locale=language))
    compiled.seek(0)
    return GNUTranslations(compiled)

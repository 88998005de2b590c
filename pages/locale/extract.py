"""Extract messages from the code into the catalogs: `python -m pages.locale.extract`, or `make catalogs`.

A message is a literal in say("…") or words("…"), plural("…", "…"), the engine's sentence("…") and Reason("…"), in the description
of a field of the spec, or a name in a formula. A new message is added to each .po without a translation. A message that the code
no longer has is removed. Existing translations stay. There is no fuzzy matching: a changed message is a new one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

from pages.charts.words import DOMAIN, LANGUAGES, LOCALE, SOURCE_LANGUAGE

ROOT = Path(__file__).parents[2]
_WIDTH = 110


class Message(NamedTuple):
    """One message and its locations. `many` is the plural of `one`, if it has one."""

    one: str
    many: str | None
    path: str
    line: int


class NotLiteralError(Exception):
    """A message that is not a literal, so no catalog can have it."""


def messages() -> list[Message]:
    """All messages of app.py, the engine and the pages. Raises `NotLiteralError`."""
    files = [ROOT / "app.py", *sorted((ROOT / "engine").rglob("*.py")), *sorted((ROOT / "pages").rglob("*.py"))]
    return [message for file in files for message in _in_file(file)]


def _in_file(file: Path) -> Iterator[Message]:
    path = file.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Call):
            said = _literals(node, path)
            if said:
                yield Message(said[0], said[1] if len(said) > 1 else None, path, node.lineno)


def _literals(call: ast.Call, path: str) -> list[str]:
    """The literals in a call that translates; none for any other call."""
    name = _name(call.func)
    if name == "Field":
        return [_literal(k.value, path) for k in call.keywords if k.arg == "description"]
    if name == "say" and call.args:  # say() without arguments returns the page's Words
        return [_literal(call.args[0], path)]
    if name == "words" and call.args:  # a variable with the page's Words; words("zh") and words(language) return one
        literal = isinstance(call.args[0], ast.Constant) and call.args[0].value not in LANGUAGES
        return [_literal(call.args[0], path)] if literal else []
    if name == "sentence" and isinstance(
        call.func, ast.Name
    ):  # but not say.sentence(…), which translates a sentence made elsewhere
        return [_literal(call.args[0], path)]
    if name == "Reason":
        return [_literal(call.args[0], path)]
    if name == "plural":
        return [_literal(argument, path) for argument in call.args[:2]]
    return []


def _name(function: ast.expr) -> str:
    """The name of the called function; for say()("…") it is say."""
    if isinstance(function, ast.Call):
        return _name(function.func) if not function.args else ""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _literal(node: ast.expr, path: str) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise NotLiteralError(f"{path}:{node.lineno}: {ast.unparse(node)} is not a literal")


def template() -> Catalog:
    """The catalog without translations."""
    catalog = Catalog(domain=DOMAIN, project=DOMAIN, charset="utf-8", fuzzy=False)
    for message in messages():
        id = (message.one, message.many) if message.many else message.one
        catalog.add(id, locations=[(message.path, message.line)])
    return catalog


def read(language: str) -> Catalog:
    with _path(language).open("rb") as file:
        return read_po(file, locale=language)


def main() -> None:
    whole = template()
    _write(whole, LOCALE / f"{DOMAIN}.pot")
    for language in LANGUAGES:
        if language != SOURCE_LANGUAGE:
            catalog = read(language)
            catalog.update(whole, no_fuzzy_matching=True)
            catalog.obsolete.clear()
            _write(catalog, _path(language))
            left = [message.id for message in catalog if message.id and not message.string]
            print(f"{language}: {len(catalog)} messages, {len(left)} without a translation")


def _path(language: str) -> Path:
    return LOCALE / language / "LC_MESSAGES" / f"{DOMAIN}.po"


def _write(catalog: Catalog, path: Path) -> None:
    """Write without line numbers and dates, so that a file changes only with its messages."""
    text = BytesIO()
    write_po(text, catalog, width=_WIDTH, sort_output=True, no_location=False, include_lineno=False, omit_header=True)
    language = f'"Language: {catalog.locale}\\n"\n"Plural-Forms: {catalog.plural_forms}\\n"\n' if catalog.locale else ""
    header = f'msgid ""\nmsgstr ""\n"Project-Id-Version: {DOMAIN}\\n"\n{language}"Content-Type: text/plain; charset=utf-8\\n"\n\n'
    path.write_text(header + text.getvalue().decode("utf-8"), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Catalogs: no message is missing, and none is unused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from string import Formatter

import pytest

from engine.predict.memory import SYMBOLS, memory
from engine.predict.traffic import calls
from engine.spec import LayoutSpec, ModelSpec, RequestError, Sentence, WorkloadSpec, misfits, sentence
from engine.spec.sentence import joined, packed, unpacked
from pages.charts.words import words
from pages.locale import extract
from pages.shared.choice import DEFAULTS, description
from tests.predict.random_specs import random_specs

ZH = words("zh")


def ids(id: str | tuple[str, ...] | list[str]) -> list[str]:
    return [id] if isinstance(id, str) else list(id)


def placeholders(text: str) -> set[tuple[str, str, str]]:
    """Names in braces, each with its conversion and its format: {size:,} stays {size:,} in every language."""
    return {(name, conversion or "", spec or "") for _, name, spec, conversion in Formatter().parse(text) if name is not None}


def test_the_catalog_has_exactly_the_messages_of_the_code():
    assert {str(m.id) for m in extract.read("zh")} == {str(m.id) for m in extract.template()}, "run make catalogs"


def said(name: str) -> Iterator[str]:
    """The texts of a name and of the names that it contains."""
    yield name.template if isinstance(name, Sentence) else name
    for part in name.values.values() if isinstance(name, Sentence) else ():
        if isinstance(part, str):
            yield from said(part)


def test_every_name_in_a_formula_has_a_message():
    """Names come from the ledgers of the model's layers. This takes those of all layouts."""
    known = {message.one for message in extract.messages()}
    named: set[str] = set()
    for spec in random_specs(24, most=3):
        found = [term.name for peak in memory(spec).peaks for terms in peak.terms.values() for term in terms]
        found += [call.name for stage in range(spec.layout.pp) for call in calls(spec, stage)]
        named |= {text for name in found for text in said(name)}
    assert len(named) > 60
    assert named - known == set()
    assert set(SYMBOLS.values()) <= known


def test_everything_is_translated():
    catalog = extract.read("zh")
    assert len(catalog) > 400
    assert [m.id for m in catalog if m.id and not all(ids(m.string or ""))] == []
    assert [m.id for m in catalog if m.id and (m.fuzzy or m.string == "")] == []
    assert list(catalog.obsolete) == []


def test_a_translation_has_the_values_of_its_message():
    wrong = [
        (m.id, m.string)
        for m in extract.read("zh")
        if m.id
        for translated in ids(m.string)
        if placeholders(translated) != placeholders(ids(m.id)[-1])
    ]
    assert wrong == []


def test_bold_stays_bold():
    catalog = extract.read("zh")
    assert [m.id for m in catalog if m.id and ids(m.id)[-1].count("**") != ids(m.string)[0].count("**")] == []


def test_numbers_are_put_in_after_the_translation():
    assert ZH.plural("{count} layer", "{count} layers", 1200) == "1,200 层"
    assert words("en").plural("{count} layer", "{count} layers", 1) == "1 layer"


def test_a_misfit_is_translated_with_its_arithmetic():
    [misfit] = misfits(ModelSpec(), LayoutSpec(tp=3), WorkloadSpec())
    assert misfit.sentence == "tp=3 does not divide 4 heads; 1, 2 and 4 do"
    assert ZH.sentence(misfit.sentence) == "tp=3 不能整除 4 个头；1, 2 和 4 可以"


def test_an_error_of_the_engine_is_translated():
    with pytest.raises(RequestError) as caught:
        ModelSpec(heads=5)
    assert str(caught.value).startswith("heads=5 does not divide hidden=64: each head would be 12.8 wide")
    assert ZH.sentence(caught.value.sentence).startswith("heads=5 不能整除 hidden=64：每个头的宽度会是 12.8")


def test_a_text_without_a_translation_is_unchanged():
    assert ZH.sentence("RuntimeError: a drill") == "RuntimeError: a drill"
    assert ZH.sentence(RequestError("plain").sentence) == "plain"


@pytest.mark.parametrize(
    "through", [lambda s: pickle.loads(pickle.dumps(s)), lambda s: unpacked(json.loads(json.dumps(packed(s))))]
)
def test_a_sentence_survives_the_way_to_another_process(through):
    said = joined(sentence("{name} is empty", name=sentence("the text")), sentence("1 head"))
    arrived = through(said)
    assert isinstance(arrived, Sentence)
    assert arrived == said == "the text is empty; 1 head"
    assert ZH.sentence(arrived) == "文本是空的；1 个头"


def test_the_description_of_every_field_is_translated():
    same = [field for field in DEFAULTS if ZH.described(description(field)) == description(field)]
    assert same == []

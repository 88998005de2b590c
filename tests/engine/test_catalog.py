"""Named models."""

from __future__ import annotations

import pytest

from engine import catalog
from engine.spec import BYTE_VOCABULARY, LayoutSpec, ModelSpec, RequestError, WorkloadSpec, misfits
from tests.engine.published_counts import ACTIVE, PUBLISHED, WITHOUT


@pytest.mark.parametrize("name", catalog.MODELS)
def test_every_named_model_can_be_trained_on_bytes_unchanged(name: str) -> None:
    model = catalog.model(name)
    assert model.vocab >= BYTE_VOCABULARY
    assert misfits(model, LayoutSpec(), WorkloadSpec()) == []


@pytest.mark.parametrize("name", catalog.MODELS)
def test_a_model_is_found_by_its_name_and_its_name_by_the_model(name: str) -> None:
    assert catalog.name_of(catalog.model(name)) == name


def test_gpt_has_three_sizes_that_run_here() -> None:
    assert {"gpt-tiny", "gpt-small", "gpt-medium"} <= set(catalog.MODELS)
    sizes = [catalog.model(name).parameters() for name in ("gpt-tiny", "gpt-small", "gpt-medium")]
    assert sizes == sorted(sizes)
    assert catalog.model("gpt-tiny") == ModelSpec(), "the smallest is what a spec without a model means"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_as_many_parameters_as_its_checkpoint(name: str) -> None:
    published = PUBLISHED[name]
    assert catalog.model(name).parameters() == published.count - published.besides
    assert bool(published.besides) == bool(published.what)


@pytest.mark.parametrize("name", ACTIVE)
def test_a_token_goes_through_as_many_parameters_as_its_report_says(name: str) -> None:
    # The reports round to the nearest or leave digits out, such as 22B.
    assert catalog.model(name).active_parameters() / 1e9 == pytest.approx(ACTIVE[name], abs=0.1)


def test_every_released_model_has_a_count_with_its_source() -> None:
    assert set(catalog.MODELS) == set(PUBLISHED) | set(catalog.MAKERS[""]) | WITHOUT
    assert all(published.source for published in PUBLISHED.values())


def test_no_two_makers_have_a_model_of_one_name() -> None:
    assert sum(len(models) for models in catalog.MAKERS.values()) == len(catalog.MODELS)
    assert catalog.maker_of("llama3-8b") == "Meta"
    assert not set(catalog.ALIASES) & set(catalog.MODELS)


def test_other_names_of_a_shape_are_known_too() -> None:
    assert catalog.model("llama3.3-70b") == catalog.model("llama3-70b")


@pytest.mark.parametrize(("name", "told"), [("llama3-7b", "such as .*llama3-70b"), ("zzz", "such as gpt-tiny, llama3-8b, ")])
def test_the_refusal_of_an_unknown_name_has_names_like_it(name: str, told: str) -> None:
    with pytest.raises(RequestError, match=f"there is no model '{name}'; there are {len(catalog.MODELS)}, {told}"):
        catalog.model(name)


def test_a_shape_without_a_name_is_custom() -> None:
    assert catalog.name_of(ModelSpec(layers=3)) == "custom"

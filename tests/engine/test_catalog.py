"""Named models."""

from __future__ import annotations

import pytest

from engine import catalog
from engine.spec import BYTE_VOCABULARY, LayoutSpec, ModelSpec, RequestError, WorkloadSpec, misfits


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


def test_gpt2_has_as_many_parameters_as_published() -> None:
    """124M, as OpenAI's own checkpoint counts them: 124,439,808."""
    assert catalog.model("gpt2-124m").parameters() == 124_439_808


def test_the_refusal_of_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(RequestError, match=r"there is no model 'gpt-huge'; there are gpt-tiny, gpt-small, "):
        catalog.model("gpt-huge")


def test_a_shape_without_a_name_is_custom() -> None:
    assert catalog.name_of(ModelSpec(layers=3)) == "custom"

"""Parts of a model that differ from its family's, in the settings of other frameworks."""

from __future__ import annotations

from engine.export import settings
from engine.spec import ModelSpec, RunSpec
from tests.engine.test_export import megatron, notes


def test_parts_that_megatron_has_are_flags_and_others_are_in_the_notes() -> None:
    gemma = ModelSpec(
        family="llama", qk_norm="head", attention_bias="qkv", placement="both", inner="geglu", scaled_embedding=True
    )
    assert {"--qk-layernorm", "--add-qkv-bias", "--disable-bias-linear", "--swiglu"} <= set(megatron(RunSpec(model=gemma)))
    told = notes(settings(RunSpec(model=gemma), "megatron"))
    for what in ("not placement=both", "no GeGLU of the tanh form", "does not scale embeddings"):
        assert what in told
    falcon = ModelSpec(parallel="one_norm", inner="relu2", qk_norm="full", attention_bias="none")
    assert "--squared-relu" in megatron(RunSpec(model=falcon))
    told = notes(settings(RunSpec(model=falcon), "megatron"))
    for what in ("no attention and MLP in parallel", "no norm over all features", "biases both or neither"):
        assert what in told


def test_a_family_without_other_parts_has_no_notes_on_them() -> None:
    for family in ("gpt", "llama", "bert"):
        told = notes(settings(RunSpec(model=ModelSpec(family=family, vocab=300)), "megatron"))
        assert not any(what in told for what in ("placement", "biases", "scale", "in parallel"))

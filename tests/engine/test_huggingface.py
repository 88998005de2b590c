"""A model from Hugging Face's `config.json`, and a model as one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine import catalog, imports
from engine.__main__ import main
from engine.export import settings
from engine.imports.model_types import MODEL_TYPES
from engine.spec import ModelSpec, RequestError, RunSpec
from tests.engine.huggingface_configs import CONFIGS
from tests.predict.random_specs import random_specs

LLAMA = CONFIGS["llama3-8b"]


def read(entries: Any) -> imports.Imported:
    return imports.read(json.dumps(entries).encode(), "config.json")


def model(entries: Any) -> ModelSpec:
    found = read(entries).model
    assert found is not None
    return found


def remarks(entries: Any) -> str:
    return "\n".join(read(entries).remarks)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_released_config_is_the_catalogs_model_of_that_name(name: str) -> None:
    """Only sequences may be longer: a checkpoint takes more tokens than it was first trained on."""
    known, found = catalog.model(name), model(CONFIGS[name])
    assert found.seq >= known.seq
    assert found.model_copy(update={"seq": known.seq}) == known
    assert found.parameters() == known.parameters() or known.parts.position == "learned"


def test_plans_take_shorter_sequences_than_the_longest_that_a_model_takes() -> None:
    long = read(CONFIGS["llama3.2-1b"])
    assert (long.seq, catalog.model("llama3.2-1b").seq) == (8192, 8192)
    assert "so plans of it take 8192 tokens" in "\n".join(long.remarks)
    assert read(CONFIGS["gpt2-124m"] | {"n_positions": 16384}).seq is None, "learned positions are a table of that size"
    short = read(CONFIGS["llama3.2-1b"] | {"max_position_embeddings": 8192})
    assert short.seq is None
    assert "so plans of it" not in "\n".join(short.remarks)


def test_every_type_is_tried_with_a_released_config() -> None:
    tried = {config.get("text_config", config)["model_type"] for config in CONFIGS.values()}
    assert tried | {"gemma", "roberta", "xlnet"} == set(MODEL_TYPES)


def test_a_gemma_a_roberta_and_an_xlnet_are_read() -> None:
    gemma = {"model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8}
    gemma |= {"num_hidden_layers": 18, "num_key_value_heads": 1, "vocab_size": 256000, "max_position_embeddings": 8192}
    assert model(gemma).parameters() == 2_506_172_416  # gemma-2b, as keras-hub counts it
    roberta = CONFIGS["bert-base"] | {"model_type": "roberta", "max_position_embeddings": 514, "vocab_size": 50265}
    found = model(roberta | {"type_vocab_size": 1, "pad_token_id": 1})
    assert (found.family, found.seq, found.spare_positions) == ("roberta", 512, 2)
    xlnet = {"model_type": "xlnet", "d_model": 1024, "n_layer": 24, "n_head": 16, "d_inner": 4096, "d_head": 64}
    found = model(xlnet | {"vocab_size": 32000, "ff_activation": "gelu", "untie_r": True})
    assert found == catalog.model("xlnet-large")


def test_newer_files_have_rotary_positions_in_one_entry() -> None:
    entries = {name: value for name, value in CONFIGS["phi2"].items() if name not in ("rope_theta", "partial_rotary_factor")}
    assert model(entries | {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.4}}) == model(CONFIGS["phi2"])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"attention_dropout": 0.1}, "models here have no dropout; left out: attention_dropout=0.1"),
        ({"rope_scaling": {"factor": 8.0}}, "rope_scaling is left out"),
        ({"attn_logit_softcapping": 50.0}, "scores of attention are not capped"),
        ({"final_logit_softcapping": 30.0}, "logits are not capped"),
        ({"quantization_config": {"bits": 4}}, "the precision is chosen for the run"),
        ({"residual_multiplier": 0.22}, "residual_multiplier=0.22 is not understood, and left out"),
        ({"max_position_embeddings": 131072}, "sequences have 131072 tokens"),
    ],
)
def test_what_changes_no_size_is_named(changed: dict[str, Any], told: str) -> None:
    assert told in remarks(LLAMA | changed)


@pytest.mark.parametrize(
    ("name", "changed", "told"),
    [
        ("gemma2-9b", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar=144 is left out: scores of attention"),
        ("gemma2-9b", {"query_pre_attn_scalar": None, "head_dim": 128}, "query_pre_attn_scalar=256 is left out"),
        ("llama3-8b", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type=yarn is left out: it changes"),
    ],
)
def test_what_is_computed_otherwise_is_named(name: str, changed: dict[str, Any], told: str) -> None:
    assert told in remarks(CONFIGS[name] | changed)


def test_a_scale_and_a_base_as_here_leave_no_remark() -> None:
    same = {"query_pre_attn_scalar": 256, "rope_local_base_freq": 1e6, "rope_parameters": {"rope_type": "default"}}
    told = remarks(CONFIGS["gemma3-1b"] | same)
    assert "query_pre_attn_scalar" not in told
    assert "rotary" not in told


def test_the_base_of_layers_with_a_window_is_read_in_either_place() -> None:
    entries = CONFIGS["gemma3-1b"]
    both = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 20000}}
    assert model(entries).rotary_local_base == 10_000
    assert model(entries | {"rope_parameters": both}).rotary_local_base == 20_000
    assert model(entries | {"rope_local_base_freq": 1e6}).rotary_local_base == 0, "as in the other layers"
    with pytest.raises(RequestError, match=r"rope_local_base_freq=0.5 must be a whole number"):
        model(entries | {"rope_local_base_freq": 0.5})


def test_caps_that_a_gemma_2_has_by_default_are_named() -> None:
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    entries = {name: value for name, value in CONFIGS["gemma2-9b"].items() if name not in names}
    told = remarks(entries)
    assert "attn_logit_softcapping is not in the file, and then it is 50.0: attn_logit_softcapping is left out" in told
    assert "final_logit_softcapping is not in the file, and then it is 30.0" in told
    assert "softcapping" not in remarks(entries | dict.fromkeys(names))


def test_a_t5_counts_its_stacks_apart() -> None:
    entries = CONFIGS["t5-small"] | {"num_decoder_layers": 4}
    assert (model(entries).encoder_layers, model(entries).layers) == (6, 10)
    assert exported(model(entries))["num_decoder_layers"] == 4
    with pytest.raises(RequestError, match="relative_attention_num_buckets=64 is not supported here; only 32"):
        model(entries | {"relative_attention_num_buckets": 64})
    with pytest.raises(RequestError, match="6 layers of the encoder and 0 of the decoder: each needs 1 and more"):
        model(entries | {"num_decoder_layers": 0})
    with pytest.raises(RequestError, match="0 layers of the encoder and 4 of the decoder: each needs 1 and more"):
        model(entries | {"num_layers": 0})


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "phi4", "phi2", "olmo2-7b"])
def test_a_head_width_of_its_own_is_read(name: str) -> None:
    entries = CONFIGS[name]
    width = entries["hidden_size"] // entries["num_attention_heads"]
    assert model(entries | {"head_dim": 2 * width}).head_width == 2 * width
    assert model(entries | {"head_dim": width}) == model(entries)


def test_the_usual_first_layer_with_a_window_of_a_qwen_is_not_the_first() -> None:
    entries = {name: value for name, value in CONFIGS["qwen2.5-0.5b"].items() if name != "max_window_layers"}
    with pytest.raises(RequestError, match="max_window_layers=28 is not supported here; only 0"):
        model(entries | {"use_sliding_window": True, "layer_types": None, "sliding_window": 4096})


def test_the_row_of_segments_of_a_roberta_is_understood() -> None:
    entries = CONFIGS["bert-base"] | {"model_type": "roberta", "pad_token_id": 1}
    assert "type_vocab_size" not in remarks(entries | {"type_vocab_size": 1})
    with pytest.raises(RequestError, match="type_vocab_size=2 is not supported here; only 1"):
        read(entries | {"type_vocab_size": 2})
    assert exported(catalog.model("roberta-large"))["type_vocab_size"] == 1


def test_a_gemma_is_written_with_what_is_computed_here() -> None:
    spec = catalog.model("gemma2-9b").model_copy(update={"head_dim": 128})
    entries = exported(spec)
    assert (entries["model_type"], entries["query_pre_attn_scalar"]) == ("gemma2", 128)
    assert [entries[name] for name in ("attn_logit_softcapping", "final_logit_softcapping")] == [None, None]
    entries = exported(catalog.model("gemma3-1b"))
    assert (entries["query_pre_attn_scalar"], entries["rope_local_base_freq"]) == (256, 10_000)
    assert not [remark for remark in read(entries).remarks if "left out" in remark]


def test_what_is_understood_leaves_no_remark() -> None:
    assert not read(LLAMA).remarks
    assert not read(LLAMA | {"id2label": {"0": "LABEL_0"}, "attention_dropout": 0.0, "residual_multiplier": None}).remarks


def test_the_text_model_of_one_with_images_is_taken() -> None:
    assert "the text model of gemma3 is taken" in remarks(CONFIGS["gemma3-4b"])


def test_a_missing_sequence_length_is_named() -> None:
    assert "the file has no sequence length; 2048 tokens are taken" in remarks(CONFIGS["falcon-7b"])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_local_experts": 8}, "num_local_experts=8 means a mixture of experts, and models of the type llama have none here"),
        ({"kv_lora_rank": 512}, "kv_lora_rank=512 means latent attention"),
        ({"model_type": "mamba"}, "model_type=mamba is not known here; llama, mistral, "),
        ({"model_type": None}, "there is no model_type"),
        ({"model_type": ["llama"]}, "model_type=['llama'] is not known here"),
        ({"hidden_act": "tanh"}, "hidden_act=tanh is not supported here; only silu, "),
        ({"hidden_size": "many"}, "hidden_size=many must be a whole number"),
        ({"hidden_size": None}, "hidden_size is missing, and there is no usual value of it"),
        ({"hidden_size": 4095}, "heads=32 does not divide hidden=4095"),
        ({"num_hidden_layers": 10**9}, "layers=1000000000 must be less than or equal to 1024"),
        ({"num_hidden_layers": True}, "num_hidden_layers=true must be a whole number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings=no must be true or false"),
        ({"rope_theta": 10000.5}, "rope_theta=10000.5 must be a whole number"),
        ({"rope_parameters": [1]}, "rope_parameters=[1] is not supported here"),
        ({"text_config": {"model_type": "llama"}}, "num_hidden_layers is missing"),
    ],
)
def test_what_has_no_part_here_is_refused_in_one_sentence(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError) as error:
        read(LLAMA | changed)
    assert str(error.value).startswith(f"config.json: {told}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "changed", "told"),
    [
        ("opt-6.7b", {"word_embed_proj_dim": 512}, "word_embed_proj_dim=512 is not hidden_size=4096"),
        ("opt-6.7b", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=false is not supported here"),
        ("bloom-176b", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm=true"),
        (
            "bert-base",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type=relative_key is not supported here; only absolute",
        ),
        ("phi2", {"qk_layernorm": True}, "qk_layernorm=true is not supported here; only false"),
    ],
)
def test_a_variant_that_has_no_part_here_is_refused(kind: str, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        read(CONFIGS[kind] | changed)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "config.json is not JSON"),
        (b"\xff\xfe\x00", "config.json is not text in UTF-8"),
        (b"[1, 2]", "config.json is not an object"),
        (b"{}", "there is no model_type"),
        (b'{"a": ' * 50 + b"1" + b"}" * 50, "lists or objects more than 10 deep"),
        (b" " * (imports.LARGEST + 1), "config.json has 1,048,577 bytes; at most 1,048,576 are accepted"),
    ],
)
def test_garbage_is_refused_in_one_sentence(content: bytes, told: str) -> None:
    with pytest.raises(RequestError) as error:
        imports.read(content, "config.json")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_as_the_command_line_prints_it_is_read_too() -> None:
    chosen = ModelSpec(family="llama", qk_norm="head", tied=True)
    assert imports.read(chosen.model_dump_json().encode(), "mine.json").model == chosen


# ----------------------------------------------------------------------------------------------------------------- export


def exported(spec: ModelSpec) -> dict[str, Any]:
    return json.loads(settings(RunSpec(model=spec), "huggingface"))


def written() -> list[str]:
    """Names of models that a file can say whole: an XLNet's has no sequence length, a RoBERTa's has two positions more.

    No type has the experts of `gpt-tiny-moe`, which are without a gate.
    """
    known = {name: spec for name, spec in catalog.MODELS.items() if name != "gpt-tiny-moe"}
    return [name for name, spec in known.items() if spec.family not in ("transformer", "xlnet", "roberta")]


@pytest.mark.parametrize("name", written())
def test_a_model_of_the_catalog_is_the_same_when_it_is_read_again(name: str) -> None:
    entries = exported(catalog.model(name))
    besides = MODEL_TYPES[entries["model_type"]].besides
    assert entries.get("_comments", []) == [f"Not the same: the model has {what} in this file, and not here." for what in besides]
    assert all(f"are left out: {what}" in remarks(entries) for what in besides)
    again = model(entries)
    assert again.parts == catalog.model(name).parts
    assert again.parameters() == catalog.model(name).parameters()


@pytest.mark.parametrize(("name", "config"), CONFIGS.items())
def test_a_released_model_is_written_as_its_own_type(name: str, config: dict[str, Any]) -> None:
    """Or as another that has the same parts."""
    same = {"phi4": "llama", "mistral-7b": "mistral"}
    written = exported(catalog.model(name))["model_type"]
    assert written == same.get(name, config.get("text_config", config)["model_type"])


def test_what_no_type_has_is_told() -> None:
    assert exported(catalog.model("roberta-large"))["_comments"] == [
        "Not the same: spare_positions is 2 in this file, and 0 here.",
        "Not the same: the embedding has one row of segments in this file, and none here.",
    ]
    both = ModelSpec(family="llama", placement="both", qk_norm="full")
    entries = exported(both)
    assert len(entries["_comments"]) == 1
    assert "qk_norm" in entries["_comments"][0] or "placement" in entries["_comments"][0]


def test_any_model_is_written_and_every_difference_is_told() -> None:
    for spec in random_specs(60):
        entries = json.loads(settings(spec, "huggingface"))
        same = model(entries).parameters() == spec.model.parameters()
        assert same or entries["_comments"], spec.model


# ------------------------------------------------------------------------------------------------------------ command line


def test_a_file_stands_for_a_name_on_the_command_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIGS["gpt2-124m"]))
    assert main(["predict", "--model", str(file), "--layers", "2", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["spec"]["model"]["hidden"] == 768
    assert "models here have no dropout" in said.err


def test_a_wrong_file_is_one_sentence_on_the_command_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--model", str(tmp_path / "config.json")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert main(["predict", "--model", str(tmp_path)]) == 2
    assert "there is no model" in capsys.readouterr().err

"""Models from files, on Plan and in the form of a run; and parts of models in that form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.engine.huggingface_configs import CONFIGS
from tests.pages.opened import link, opened, text
from tests.pages.stand_in import service
from tests.pages.test_plan import linked, page


@pytest.fixture
def app(tmp_path: Path) -> AppTest:
    return opened("lab", service(tmp_path / "runs")[0])


def with_model_file(name: str, content: bytes) -> AppTest:
    app = page()
    app.session_state["unfolded/plan-model-file"] = True
    app.run()
    app.file_uploader[0].upload(name, content, "application/json").run()
    assert not app.exception
    return app


def test_a_models_file_is_planned_and_what_it_leaves_out_is_named() -> None:
    app = with_model_file("config.json", json.dumps(CONFIGS["gpt2-124m"]).encode())
    assert linked(app)["model"] == "gpt2-124m"
    assert any("models here have no dropout; left out: resid_pdrop=0.1" in caption.value for caption in app.caption)
    app.file_uploader[0].upload("mine.json", json.dumps(CONFIGS["gpt2-124m"] | {"n_layer": 6}).encode(), "application/json").run()
    assert not app.exception
    assert linked(app)["model"] == "gpt.l6.h768.a12.v50257.s1024.f0"
    assert "custom model on 8 × h100-80gb: " in text(app)
    assert app.selectbox(key="plan/model").value == "gpt.l6.h768.a12.v50257.s1024.f0"
    app.selectbox(key="plan/model").set_value("gpt3-6.7b").run()
    assert linked(app)["model"] == "gpt3-6.7b"


def test_a_models_file_that_is_not_understood_is_refused_with_the_reason() -> None:
    app = with_model_file("config.json", b'{"model_type": "mamba"}')
    assert "model_type=mamba is not known here" in app.error[0].value
    assert linked(app)["model"] == "gpt2-1.5b"


def test_a_plan_of_a_long_model_starts_with_shorter_sequences() -> None:
    app = with_model_file("config.json", json.dumps(CONFIGS["llama3.2-1b"]).encode())
    assert linked(app)["seq"] == "8192"
    assert any("so plans of it take 8192 tokens" in caption.value for caption in app.caption)


def test_the_vocabulary_that_a_script_leaves_to_its_tokenizer_is_asked_for() -> None:
    sizes = "--num-layers 12 --hidden-size 768 --num-attention-heads 12 --seq-length 1024 --max-position-embeddings 1024"
    app = with_model_file("train.sh", f"pretrain_gpt.py {sizes} --tokenizer-type HuggingFaceTokenizer".encode())
    assert "say how many tokens the vocabulary has" in app.error[0].value
    app.number_input(key="plan/model-file-vocabulary").set_value(50000).run()
    assert not app.exception
    assert not app.error
    assert ".v50000." in linked(app)["model"]
    assert all(field.key != "plan/model-file-vocabulary" for field in app.number_input)


def test_a_models_file_sets_its_sizes_and_parts(app: AppTest):
    app.session_state["unfolded/form-model-file"] = True
    app.run()
    small = CONFIGS["qwen3-32b"] | {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "vocab_size": 256}
    app.file_uploader[0].upload("config.json", json.dumps(small).encode(), "application/json").run()
    assert not app.exception
    code = link(app, "spec")
    assert code.startswith("llama.l4.h64.a4.v256.s64.f192.k2.rotary_base-1000000.qk_norm-head~dp2.tp2.pp2~")
    assert any(e.label == "Parts: Norm of queries and keys, Rotary base" for e in app.expander)


def test_parts_of_a_model_are_chosen_or_as_the_family_has_them(app: AppTest):
    next(s for s in app.selectbox if s.label == "Size").set_value("custom").run()
    app.session_state["unfolded/form-parts"] = True
    app.run()
    norm = next(s for s in app.selectbox if s.label == "Norm")
    assert norm.options == ["as the family (layer)", "layer", "rms"]
    norm.set_value("rms").run()
    next(s for s in app.selectbox if s.label == "Tied output").set_value(False).run()
    assert not app.exception
    assert ".norm-rms.tied-false~" in link(app, "spec")
    next(s for s in app.selectbox if s.label == "Norm").set_value(None).run()
    assert ".norm-rms" not in link(app, "spec")

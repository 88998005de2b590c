"""Configurations of Megatron-LM, torchtitan and DeepSpeed as requests: the inverse of exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import catalog, imports
from engine.__main__ import main
from engine.export import ENDINGS, Framework, settings
from engine.spec import GenerateSpec, LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec
from tests.engine.huggingface_configs import CONFIGS

SHAPES = {
    "gpt": catalog.model("gpt2-124m"),
    "llama": catalog.model("llama3-8b"),
    "llama2": catalog.model("llama2-70b"),
    "qwen2.5": catalog.model("qwen2.5-7b"),
    "mistral": catalog.model("mistral-7b"),
    "every other": ModelSpec(family="llama", window=16, global_every=2),
    "qwen3": catalog.model("qwen3-0.6b"),
    "rotated": ModelSpec(family="gpt", position="rotary", rotary_width=8, tied=False),
    "relu2": ModelSpec(inner="relu2", mlp_bias=False, attention_bias="none", position="none"),
    "opt": catalog.model("opt-125m").model_copy(update={"inner": None}),
}
LAYOUTS = [
    LayoutSpec(),
    LayoutSpec(dp=2, tp=2, zero=1, sequence_parallel=True, recompute="core_attn+layernorm"),
    LayoutSpec(dp=4, zero=3, recompute="full", recompute_layers=1),
    LayoutSpec(pp=2, schedule="interleaved", chunks=2, dp=2),
    LayoutSpec(pp=2, dp=8),
]
WORKLOADS = [
    WorkloadSpec(precision="bf16", microbatches=8, learning_rate=1e-4, seed=3, steps=7),
    WorkloadSpec(precision="bf16", accumulate="bf16", microbatch_size=1, seed=1),
    WorkloadSpec(optimizer="sgd", momentum=0.5, attention="written", seed=1),
]


def read(text: str, to: Framework) -> imports.Imported:
    return imports.read(text.encode(), f"file.{ENDINGS[to]}")


def again(spec: RunSpec, to: Framework) -> RunSpec:
    """What the target's file says, read again; and for DeepSpeed the model, which its file does not have."""
    found = read(settings(spec, to), to)
    assert found.layout is not None
    assert found.workload is not None
    return RunSpec(model=found.model or spec.model, layout=found.layout, workload=found.workload)


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_script_of_megatron_is_the_spec_that_it_was_made_from(name: str, layout: LayoutSpec, workload: WorkloadSpec) -> None:
    zero = layout.zero if workload.optimizer == "adamw" else 0  # only Adam is sharded
    fused = workload.attention if workload.precision == "bf16" else "written"
    spec = RunSpec(
        model=SHAPES[name],
        layout=layout.model_copy(update={"zero": zero}),
        workload=workload.model_copy(update={"attention": fused, "learning_rate": 1e-4}),
    )
    assert again(spec, "megatron") == spec


@pytest.mark.parametrize("name", ["bert-base", "transformer-base"])
def test_a_script_of_bert_or_t5_needs_the_size_of_its_vocabulary(name: str) -> None:
    spec = RunSpec(model=catalog.model(name), layout=LayoutSpec(dp=2), workload=WorkloadSpec(precision="bf16", seed=1))
    script = settings(spec, "megatron")
    with pytest.raises(RequestError, match="there is no --vocab-size"):
        read(script, "megatron")
    extra = 100 if spec.model.parts.encoder else 0  # the script has --vocab-extra-ids
    found = read(f"{script.rstrip()} --vocab-size {spec.model.vocab - extra}", "megatron")
    assert (found.model, found.layout) == (spec.model, spec.layout)


def test_an_uneven_split_comes_back() -> None:
    spec = RunSpec(layout=LayoutSpec(pp=2, split=(3, 1)), workload=WorkloadSpec(precision="bf16", seed=1))
    assert again(spec, "megatron") == spec


@pytest.mark.parametrize("name", ["llama3-8b", "llama3-70b", "llama2-7b"])
@pytest.mark.parametrize(
    "layout",
    [
        LayoutSpec(dp=8, zero=3),
        LayoutSpec(dp=4, zero=2, recompute="full", recompute_every=2),
        LayoutSpec(dp=2, tp=2, pp=2, zero=2, sequence_parallel=True),
        LayoutSpec(dp=2, pp=2, zero=2, schedule="interleaved", chunks=2),
        LayoutSpec(dp=2, pp=2, zero=2, schedule="zb-v", chunks=2),
        LayoutSpec(dp=2, pp=3, zero=2, split=(9, 12, 11)),
        LayoutSpec(dp=2, cp=2, zero=3, zero_replicas=2, context_parallel="all_gather"),
        LayoutSpec(cp=4, zero=2),
    ],
)
def test_a_job_file_of_torchtitan_is_the_spec_that_it_was_made_from(name: str, layout: LayoutSpec) -> None:
    model = catalog.model(name)
    if layout.split:
        model = catalog.model("llama3-8b")
    count = 4 if layout.pp > 1 else 1
    workload = WorkloadSpec(precision="bf16", microbatches=count, microbatch_size=2, learning_rate=1e-4, seed=5)
    spec = RunSpec(model=model, layout=layout, workload=workload)
    assert again(spec, "torchtitan") == spec


@pytest.mark.parametrize(
    ("layout", "workload"),
    [
        (LayoutSpec(dp=8, zero=3), WorkloadSpec(precision="bf16", accumulate="bf16", learning_rate=1e-4)),
        (LayoutSpec(dp=4, zero=1), WorkloadSpec(precision="bf16", bf16_optimizer=True, accumulate="bf16")),
        (LayoutSpec(dp=2), WorkloadSpec(optimizer="sgd", momentum=0.9, microbatch_size=3)),
        (LayoutSpec(), WorkloadSpec(optimizer="lion", microbatches=5)),
    ],
)
def test_a_configuration_of_deepspeed_has_layout_and_workload(layout: LayoutSpec, workload: WorkloadSpec) -> None:
    spec = RunSpec(layout=layout, workload=workload)
    assert again(spec, "deepspeed") == spec


SCRIPT = """#!/bin/bash
# Trains GPT-3 175B
GPUS_PER_NODE=8
NUM_NODES=16
TP=8
DISTRIBUTED_ARGS=(
    --nproc_per_node $GPUS_PER_NODE
    --nnodes $NUM_NODES
)
GPT_MODEL_ARGS=(
    --num-layers 96   # as in the paper
    --hidden-size 12288
    --num-attention-heads 96
    --seq-length 2048
    --max-position-embeddings 2048
    --vocab-size 50257
    --attention-dropout 0 --hidden-dropout 0.0
)
TRAINING_ARGS=(
    --micro-batch-size 1
    --global-batch-size 1536
    --fp16
    --lr 6.0e-5
    --train-iters 500000
    --tensor-model-parallel-size ${TP} \\
    --pipeline-model-parallel-size ${PP:-16}
    --weight-decay 0.1
    --sequence-parallel
    --use-distributed-optimizer
    --moe-router-topk 2
)
torchrun ${DISTRIBUTED_ARGS[@]} pretrain_gpt.py ${GPT_MODEL_ARGS[@]} ${TRAINING_ARGS[@]} --tensorboard-dir "$LOGS"
"""


def test_a_script_with_variables_is_read() -> None:
    found = imports.read(SCRIPT.encode(), "train_gpt3_175b.sh")
    assert found.model is not None
    assert found.model.padded_vocab(8) == 51200, "padded to a multiple of 128 × tp"
    assert found.model.model_copy(update={"vocab_multiple": 0}) == catalog.model("gpt3-175b")
    assert found.layout == LayoutSpec(tp=8, pp=16, sequence_parallel=True)
    assert found.workload == WorkloadSpec(
        microbatch_size=1, microbatches=1536, learning_rate=6e-5, precision="bf16", accumulate="bf16", seed=1234
    )
    assert [str(remark) for remark in found.remarks] == [
        "--train-iters is left out: runs here have at most 10000 steps",
        "--fp16 is taken as bf16, which has the same size",
        "--moe-router-topk is not understood, and left out",
    ]


QUOTED = """#!/bin/bash
# It's the style of older scripts
MESSAGE="it's old"
GPT_ARGS="
    --num-layers 24
    --hidden-size 1024 \\
    --num-attention-heads 16
    --seq-length 1024
    --max-position-embeddings 1024
    --vocab-size 50257
    --attention-dropout 0 --hidden-dropout 0
    --bf16
"
TRAINING_ARGS="--micro-batch-size 4 --global-batch-size 32"
torchrun $DISTRIBUTED_ARGS pretrain_gpt.py $GPT_ARGS $TRAINING_ARGS
"""


def test_arguments_in_quoted_variables_are_read() -> None:
    found = imports.read(QUOTED.encode(), "train.sh")
    assert found.model is not None
    assert found.workload is not None
    assert (found.model.layers, found.model.hidden, found.workload.microbatches) == (24, 1024, 8)
    assert found.workload.precision == "bf16"


def of_script(*changes: tuple[str, str]) -> imports.Imported:
    text = SCRIPT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return imports.read(text.encode(), "train.sh")


def test_without_a_global_batch_there_is_one_microbatch() -> None:
    found = of_script(("--global-batch-size 1536", "")).workload
    assert found is not None
    assert found.microbatches == 1


def test_fp16_accumulates_in_16_bits_unless_the_script_says_otherwise() -> None:
    accumulate = []
    for flags in ("--fp16", "--fp16 --accumulate-allreduce-grads-in-fp32", "--bf16", "--bf16 --grad-reduce-in-bf16"):
        found = of_script(("--fp16", flags)).workload
        assert found is not None
        accumulate.append(found.accumulate)
    assert accumulate == ["bf16", "fp32", "fp32", "bf16"]


def test_sequence_parallel_is_off_without_tp() -> None:
    found = of_script(("TP=8", "TP=1")).layout
    assert found == LayoutSpec(dp=8, pp=16, zero=1)
    alone = of_script(("TP=8", "TP=1"), ("--fp16", "--fp16 --num-distributed-optimizer-instances 8"))
    assert alone.layout == LayoutSpec(dp=8, pp=16)
    assert "--num-distributed-optimizer-instances=8 makes groups of one rank" in "\n".join(alone.remarks)


def test_a_block_of_no_layers_recomputes_nothing() -> None:
    flags = "--fp16 --recompute-granularity full --recompute-method block --recompute-num-layers 0"
    assert of_script(("--fp16", flags)).layout == of_script().layout


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            "--recompute-granularity full --recompute-method uniform --recompute-num-layers 2",
            "--recompute-method uniform of 2 layers",
        ),
        ("--recompute-granularity full --recompute-num-layers 4", "--recompute-method uniform of 4 layers is left out: every"),
        ("--fp8-format hybrid", "--fp8-format hybrid is left out: the precision is bf16"),
        ("--use-precision-aware-optimizer --exp-avg-dtype bf16", "Megatron-LM keeps an fp32 copy of the parameters"),
    ],
)
def test_what_a_script_has_and_a_request_has_not_is_named(flags: str, told: str) -> None:
    assert told in "\n".join(of_script(("--fp16", f"--bf16 {flags}")).remarks)
    assert told not in "\n".join(of_script(("--fp16", "--bf16 --recompute-granularity full --recompute-num-layers 1")).remarks)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("--seq-length 2048", "", "--seq-length is missing"),
        ("--num-layers 96", "--num-layers many", "--num-layers=many must be a whole number"),
        ("--fp16", "--num-experts 8 --expert-tensor-parallel-size 1", "--expert-tensor-parallel-size=1 is not supported here"),
        ("--fp16", "--num-experts 8 --moe-layer-freq [0]*95+2", "--moe-layer-freq=[0]*95+2 is not supported here"),
        ("GPUS_PER_NODE=8", "GPUS_PER_NODE=7", "tp=8 × pp=16 does not divide the 112 ranks of torchrun"),
        ("--micro-batch-size 1", "--micro-batch-size 7", "--global-batch-size 1536 is not a multiple of 7 × dp=1"),
        ("--fp16", "--recompute-granularity selective --recompute-modules moe", "--recompute-modules ['moe'] has parts"),
        ("--fp16", "--recompute-granularity full --recompute-method block", "--recompute-num-layers is missing"),
        ("--fp16", "--window-size 8,8", "--window-size=8,8 is not supported here; only 127,0"),
        ("--fp16", "--position-embedding-type yarn", "--position-embedding-type=yarn is not supported here; only "),
        ("--fp16", "--optimizer muon", "--optimizer=muon is not supported here; only adam, sgd and lion"),
        ("--fp16", "--quick-geglu", "--quick-geglu has no part here"),
        ("--fp16", "--moe-shared-expert-gate", "--moe-shared-expert-gate has no part here"),
        ("--fp16", "--mtp-num-layers 1", "--mtp-num-layers has no part here"),
        ("--fp16", "--attention-output-gate", "--attention-output-gate has no part here"),
        ('"$LOGS"', '"$LOGS', "train.sh is not a script: No closing quotation"),
    ],
)
def test_a_script_that_is_not_understood_is_refused_in_one_sentence(old: str, new: str, told: str) -> None:
    assert old in SCRIPT
    with pytest.raises(RequestError) as error:
        imports.read(SCRIPT.replace(old, new).encode(), "train.sh")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tokenizer", "tokens"), [("GPT2BPETokenizer", 50257), ("Llama2Tokenizer", 32000), ("TikTokenizer", 131072)]
)
def test_a_script_may_leave_its_vocabulary_to_a_tokenizer_that_is_known(tokenizer: str, tokens: int) -> None:
    found = of_script(("--vocab-size 50257", f"--tokenizer-type {tokenizer}"))
    assert found.model is not None
    assert found.model.vocab == tokens
    assert f"there is no --vocab-size; the usual {tokens} tokens of {tokenizer} are taken" in found.remarks
    extra = of_script(("--vocab-size 50257", f"--tokenizer-type {tokenizer} --vocab-extra-ids 100"))
    assert extra.model is not None
    assert extra.model.vocab == tokens + 100


@pytest.mark.parametrize(
    ("tokenizer", "told"),
    [
        ("--tokenizer-type HuggingFaceTokenizer", "there is no --vocab-size, and HuggingFaceTokenizer has its tokens in files"),
        ("", "there is no --vocab-size and no --tokenizer-type"),
    ],
)
def test_a_vocabulary_that_a_script_does_not_say_is_asked_for(tokenizer: str, told: str) -> None:
    script = SCRIPT.replace("--vocab-size 50257", tokenizer).encode()
    with pytest.raises(imports.VocabularyError, match=f"train.sh: {told}"):
        imports.read(script, "train.sh")
    found = imports.read(script, "train.sh", 151_936)
    assert found.model == imports.read(SCRIPT.replace("50257", "151936").encode(), "train.sh").model


def test_a_vocabulary_that_a_script_says_is_taken() -> None:
    assert imports.read(SCRIPT.encode(), "train.sh", 1000) == imports.read(SCRIPT.encode(), "train.sh")


def test_the_command_line_takes_the_vocabulary_of_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "train.sh"
    script.write_text(SCRIPT.replace("--vocab-size 50257", "").replace("--num-layers 96", "--num-layers 16"))
    asked = ["predict", "--model", str(script), "--layout", "dp1.tp8.pp1", "--microbatches", "1", "--json"]
    assert main(asked) == 2
    assert "say how many tokens the vocabulary has, with --vocab N" in capsys.readouterr().err
    assert main([*asked, "--vocab", "50304"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["model"]["vocab"] == 50304
    assert main(["search", "--model", str(script), "--ranks", "8", "--device", "h100-80gb", "--json", "--vocab", "50304"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["vocab"] == 50304


def test_generating_is_no_part_of_any_file() -> None:
    spec = RunSpec(generate=GenerateSpec(prompt="once"), workload=WorkloadSpec(precision="bf16", seed=1))
    assert again(spec, "megatron") == spec.model_copy(update={"generate": GenerateSpec()})


def test_a_script_brings_its_layout_to_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, deepspeed = tmp_path / "train.sh", tmp_path / "ds.json"
    script.write_text(settings(RunSpec(layout=LayoutSpec(dp=2, tp=2), workload=WorkloadSpec(precision="bf16")), "megatron"))
    deepspeed.write_text(settings(RunSpec(layout=LayoutSpec(dp=4, zero=1)), "deepspeed"))
    assert main(["predict", "--model", str(script), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["layout"]["tp"] == 2
    assert main(["predict", "--model", str(script), "--layout", "dp4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["spec"]
    assert (found["layout"]["dp"], found["layout"]["tp"], found["workload"]["precision"]) == (4, 1, "bf16")
    assert main(["predict", "--settings", str(deepspeed), "--model", "gpt-small", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["spec"]
    assert (found["layout"]["zero"], found["model"]["hidden"]) == (1, 256)
    assert main(["search", "--model", str(deepspeed), "--ranks", "8", "--device", "h100-80gb"]) == 2
    assert "does not say what the model is" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "max_position_embeddings"])
@pytest.mark.parametrize("number", [10**400, -(10**400), 0, True, "4096"])
def test_a_number_that_no_model_has_is_refused_with_a_sentence(name: str, number: object) -> None:
    entries = CONFIGS["llama3-8b"] | {name: number}
    with pytest.raises(RequestError):
        imports.read(json.dumps(entries).encode(), "config.json")


def test_megatrons_t5_with_relative_positions_is_a_t5_with_the_parts_that_it_has() -> None:
    spec = RunSpec(model=ModelSpec(family="t5", layers=12, hidden=512, heads=8, vocab=32128, seq=512, vocab_multiple=128))
    script = settings(spec, "megatron").rstrip() + " --vocab-size 32000 --relative-attention-num-buckets 32"
    found = imports.read(script.encode(), "t5.sh").model
    scaled = {"inner": "gelu_tanh", "scaled_scores": True, "scaled_output": False, "vocab": 32100}
    assert found == spec.model.model_copy(update=scaled)
    assert found.padded_vocab(1) == 32128
    with pytest.raises(RequestError, match="relative-attention-num-buckets=64 is not supported here; only 32"):
        imports.read(script.replace("buckets 32", "buckets 64").encode(), "t5.sh")
    unpadded = script.replace("--make-vocab-size-divisible-by 128", "--make-vocab-size-divisible-by 1")
    assert imports.read(unpadded.encode(), "t5.sh").model == found.model_copy(update={"vocab_multiple": 0}), "extra ids have rows"
    for stack in ("encoder", "decoder"):
        with pytest.raises(RequestError, match="each needs 1 and more"):
            imports.read(script.replace(f"--{stack}-num-layers 6", f"--{stack}-num-layers 0").encode(), "t5.sh")

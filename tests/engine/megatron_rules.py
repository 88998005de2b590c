"""What Megatron-LM demands of the arguments that are exported: its checks as data, each with its source.

Read at release core_v0.17.1 of github.com/NVIDIA/Megatron-LM; lines are those of that release. The rules are in our own words.
Rules on features that no export uses are left out.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ARGUMENTS = "megatron/training/arguments.py"
CONFIG = "megatron/core/transformer/transformer_config.py"
LAYOUT = "megatron/core/transformer/pipeline_parallel_layer_layout.py"
OPTIMIZER = "megatron/core/optimizer/optimizer_config.py"
SCHEDULES = "megatron/core/pipeline_parallel/schedules.py"

_PLAIN: Mapping[Any, str] = {
    int: """
        num-layers encoder-num-layers decoder-num-layers hidden-size ffn-hidden-size num-attention-heads kv-channels
        num-query-groups seq-length encoder-seq-length decoder-seq-length max-position-embeddings rotary-base vocab-size
        vocab-extra-ids make-vocab-size-divisible-by tensor-model-parallel-size context-parallel-size pipeline-model-parallel-size
        num-layers-per-virtual-pipeline-stage microbatch-group-size-per-virtual-pipeline-stage recompute-num-layers
        micro-batch-size global-batch-size train-iters seed log-interval num-experts moe-ffn-hidden-size moe-router-topk
        moe-router-num-groups moe-router-group-topk moe-shared-expert-intermediate-size expert-model-parallel-size
        expert-tensor-parallel-size q-lora-rank kv-lora-rank qk-head-dim qk-pos-emb-head-dim v-head-dim
        num-distributed-optimizer-instances""",
    float: """
        attention-dropout hidden-dropout lr weight-decay adam-beta1 adam-beta2 lion-beta1 lion-beta2 sgd-momentum clip-grad
        rotary-percent moe-router-topk-scaling-factor moe-aux-loss-coeff moe-router-bias-update-rate
        moe-expert-capacity-factor""",
    str: "vocab-file data-path pipeline-model-parallel-layout window-size window-attn-skip-freq moe-layer-freq",
    True: """
        group-query-attention swiglu squared-relu qk-layernorm add-qkv-bias disable-bias-linear
        untie-embeddings-and-output-weights bert-no-binary-head
        sequence-parallel use-distributed-optimizer use-megatron-fsdp no-gradient-accumulation-fusion bf16
        accumulate-allreduce-grads-in-fp32 grad-reduce-in-bf16 use-precision-aware-optimizer mock-data multi-latent-attention
        moe-router-pre-softmax moe-router-enable-expert-bias moe-grouped-gemm""",
}

# The arguments: the type of the value; True, a flag without one; a tuple, its choices.
FLAGS: Mapping[str, Any] = {
    **{name: kind for kind, names in _PLAIN.items() for name in names.split()},
    "moe-router-score-function": ("softmax", "sigmoid"),
    "moe-router-load-balancing-type": ("aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "none"),
    "moe-token-dispatcher-type": ("allgather", "alltoall", "flex"),
    "rope-type": ("rope", "yarn"),
    "cp-comm-type": ("p2p", "all_gather", "a2a", "a2a+p2p"),
    "attention-backend": ("flash", "fused", "unfused", "local", "auto"),
    "position-embedding-type": ("learned_absolute", "rope", "mrope", "yarn", "relative", "none"),
    "normalization": ("LayerNorm", "RMSNorm"),
    "tokenizer-type": ("BertWordPieceLowerCase", "BertWordPieceCase", "NullTokenizer"),
    "data-parallel-sharding-strategy": ("no_shard", "optim", "optim_grads", "optim_grads_params"),
    "ckpt-format": ("torch", "torch_dist", "torch_dcp", "fsdp_dtensor"),
    "main-grads-dtype": ("fp32", "bf16"),
    "exp-avg-dtype": ("fp32", "fp16", "bf16", "fp8"),
    "exp-avg-sq-dtype": ("fp32", "fp16", "bf16", "fp8"),
    "recompute-granularity": ("full", "selective"),
    "recompute-modules": ("core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts"),  # CONFIG:1378
    "recompute-method": ("uniform", "block"),
    "lr-decay-style": ("constant", "linear", "cosine", "inverse-square-root", "WSD"),
    "optimizer": ("adam", "sgd", "muon", "dist_muon", "lion"),  # core_v0.15.3 has only the first two
}


@dataclass(frozen=True)
class Script:
    """A script that was exported: what it hands to Megatron-LM."""

    program: str
    world: int
    environment: Mapping[str, str]
    given: argparse.Namespace  # underscores for dashes; None or False for what is not given

    @property
    def tp(self) -> int:
        return int(self.given.tensor_model_parallel_size)

    @property
    def pp(self) -> int:
        return int(self.given.pipeline_model_parallel_size)

    @property
    def dp(self) -> int:
        return self.world // (self.tp * self.pp)

    @property
    def seq(self) -> int:
        return int(self.given.seq_length or self.given.encoder_seq_length)

    @property
    def layers(self) -> int:
        return int(self.given.num_layers or self.given.encoder_num_layers)

    @property
    def stages(self) -> tuple[int, ...]:
        """Layers of each chunk: of all stages, then of all once more."""
        given = self.given
        if given.pipeline_model_parallel_layout:
            return tuple(part.count("t") for part in given.pipeline_model_parallel_layout.split("|"))
        each = given.num_layers_per_virtual_pipeline_stage or self.layers // self.pp
        return (each,) * (self.layers // each)

    @property
    def chunks(self) -> int:
        return len(self.stages) // self.pp

    @property
    def microbatches(self) -> int:
        return int(self.given.global_batch_size) // (int(self.given.micro_batch_size) * self.dp)

    @property
    def group(self) -> int:
        """Microbatches that go through a chunk before the next begins."""
        return int(self.given.microbatch_group_size_per_virtual_pipeline_stage or self.pp)


def parser() -> argparse.ArgumentParser:
    """Exits, as Megatron-LM does, on an argument that it does not know, or a value that is none of its choices."""
    made = argparse.ArgumentParser(allow_abbrev=False)
    for name, kind in FLAGS.items():
        if kind is True:
            made.add_argument(f"--{name}", action="store_true")
        elif isinstance(kind, tuple):
            made.add_argument(f"--{name}", choices=kind, nargs="*" if name == "recompute-modules" else None)
        else:
            made.add_argument(f"--{name}", type=kind)
    return made


# A torchrun that prints what it was started with.
_TORCHRUN = """torchrun() { printf '%s\\0' "${CUDA_DEVICE_MAX_CONNECTIONS-}" "$@"; }\n"""
_SET_BY_THE_USER = {"MASTER_ADDR": "first", "VOCAB_FILE": "vocabulary", "DATA_PATH": "corpus"}


class RefusedError(Exception):
    """The script ends before it starts Megatron-LM; its message."""


def read(text: str) -> Script:
    """What the script in `text` starts: bash runs it. Raises `RefusedError`."""
    ran = subprocess.run(
        ["bash", "-euc", _TORCHRUN + text], env=_SET_BY_THE_USER, capture_output=True, text=True, timeout=60, check=False
    )
    if ran.returncode:
        raise RefusedError(ran.stderr)
    connections, *words = ran.stdout.split("\0")[:-1]
    program = next(at for at, word in enumerate(words) if word.endswith(".py"))
    world = int(words[words.index("--nnodes") + 1]) * int(words[words.index("--nproc-per-node") + 1])
    given = parser().parse_args(words[program + 1 :])
    return Script(words[program], world, {"CUDA_DEVICE_MAX_CONNECTIONS": connections}, given)


@dataclass(frozen=True)
class Rule:
    """`holds` says whether a script keeps the rule."""

    source: str
    demand: str
    holds: Callable[[Script], bool]


def implies(condition: Any, demand: Any) -> bool:
    return bool(demand) if condition else True


RULES: tuple[Rule, ...] = (
    Rule(f"{ARGUMENTS}:318", "tp × pp divides the world", lambda s: s.dp * s.tp * s.pp == s.world),
    Rule(f"{ARGUMENTS}:564", "the microbatch size is positive", lambda s: (s.given.micro_batch_size or 0) > 0),
    Rule(
        "megatron/core/num_microbatches_calculator.py:177",
        "microbatch size × dp divides the global batch",
        lambda s: s.given.global_batch_size % (s.given.micro_batch_size * s.dp) == 0,
    ),
    Rule(
        f"{ARGUMENTS}:765",
        "a layout string, or layers of a virtual stage, or none of the two",
        lambda s: not (s.given.pipeline_model_parallel_layout and s.given.num_layers_per_virtual_pipeline_stage),
    ),
    Rule(f"{ARGUMENTS}:778", "pp divides the number of chunks of a layout string", lambda s: len(s.stages) % s.pp == 0),
    Rule(
        f"{ARGUMENTS}:801, 830",
        "without a layout string, pp divides the layers",
        lambda s: s.given.pipeline_model_parallel_layout or s.given.num_layers is None or s.layers % s.pp == 0,
    ),
    Rule(
        f"{ARGUMENTS}:805",
        "layers of a virtual stage divide the layers of a stage",
        lambda s: implies(v := s.given.num_layers_per_virtual_pipeline_stage, v and s.layers // s.pp % v == 0),
    ),
    Rule(f"{ARGUMENTS}:835", "interleaving needs a pipeline", lambda s: implies(s.chunks > 1, s.pp > 1)),
    Rule(
        f"{ARGUMENTS}:968",
        "its FSDP is not with CUDA_DEVICE_MAX_CONNECTIONS=1",
        lambda s: implies(s.given.use_megatron_fsdp, s.environment.get("CUDA_DEVICE_MAX_CONNECTIONS") != "1"),
    ),
    Rule(
        f"{ARGUMENTS}:972, 1341",
        "its FSDP, and it alone, has checkpoints in fsdp_dtensor",
        lambda s: s.given.use_megatron_fsdp == (s.given.ckpt_format == "fsdp_dtensor"),
    ),
    Rule(
        "megatron/core/optimizer/distrib_optimizer.py:520",
        "its distributed optimizer, which its FSDP uses, is with Adam",
        lambda s: implies(s.given.use_distributed_optimizer or s.given.use_megatron_fsdp, s.given.optimizer == "adam"),
    ),
    Rule(
        f"{ARGUMENTS}:999",
        "gradients are reduced in fp32 or in bf16",
        lambda s: not (s.given.accumulate_allreduce_grads_in_fp32 and s.given.grad_reduce_in_bf16),
    ),
    Rule(
        f"{ARGUMENTS}:999",
        "sums of gradients in fp32 have main gradients in fp32",
        lambda s: implies(s.given.accumulate_allreduce_grads_in_fp32, s.given.main_grads_dtype in (None, "fp32")),
    ),
    Rule(
        f"{OPTIMIZER}:395",
        "its precision-aware optimizer is Adam, and distributed",
        lambda s: implies(
            s.given.use_precision_aware_optimizer, s.given.optimizer == "adam" and s.given.use_distributed_optimizer
        ),
    ),
    Rule(
        f"{OPTIMIZER}:434",
        "another optimizer has main gradients and states in fp32",
        lambda s: implies(
            not s.given.use_precision_aware_optimizer,
            {s.given.main_grads_dtype, s.given.exp_avg_dtype, s.given.exp_avg_sq_dtype} <= {None, "fp32"},
        ),
    ),
    Rule(
        f"{ARGUMENTS}:1079",
        "the number of layers is given once",
        lambda s: (s.given.num_layers is None) != (s.given.encoder_num_layers is None),
    ),
    Rule(
        f"{ARGUMENTS}:1087",
        "width, heads and positions are given",
        lambda s: s.given.hidden_size and s.given.num_attention_heads and s.given.max_position_embeddings,
    ),
    Rule(
        f"{ARGUMENTS}:1105",
        "heads divide the width, or their width is given",
        lambda s: s.given.kv_channels or s.given.hidden_size % s.given.num_attention_heads == 0,
    ),
    Rule(
        f"{ARGUMENTS}:1114",
        "the length is given once",
        lambda s: (s.given.seq_length is None) != (s.given.encoder_seq_length is None),
    ),
    Rule(
        f"{ARGUMENTS}:1121, 1125",
        "positions reach as far as a sequence",
        lambda s: s.given.max_position_embeddings >= max(s.seq, s.given.decoder_seq_length or 0),
    ),
    Rule(
        f"{ARGUMENTS}:1192, {CONFIG}:1355",
        "full recompute, and it alone, has a method and a number of layers",
        lambda s: (
            {bool(s.given.recompute_method), bool(s.given.recompute_num_layers)} == {s.given.recompute_granularity == "full"}
        ),
    ),
    Rule(
        f"{ARGUMENTS}:1244",
        "tp > 1 has CUDA_DEVICE_MAX_CONNECTIONS=1 on GPUs before Blackwell, but for FSDP",
        lambda s: implies(s.tp > 1 and not s.given.use_megatron_fsdp, s.environment.get("CUDA_DEVICE_MAX_CONNECTIONS") == "1"),
    ),
    Rule(f"{ARGUMENTS}:1347", "there is one source of data", lambda s: s.given.mock_data + bool(s.given.data_path) == 1),
    Rule(
        "megatron/core/model_parallel_config.py:408",
        "sequence parallelism has tp > 1",
        lambda s: implies(s.given.sequence_parallel, s.tp > 1),
    ),
    Rule(
        "megatron/core/tensor_parallel/mappings.py, _split_along_first_dim",
        "with sequence parallelism tp divides the length",
        lambda s: implies(s.given.sequence_parallel, s.seq % s.tp == 0),
    ),
    Rule(f"{CONFIG}:1058", "tp divides the heads", lambda s: s.given.num_attention_heads % s.tp == 0),
    Rule(
        f"{CONFIG}:1076",
        "tp divides the key heads, or they divide tp",
        lambda s: implies(k := s.given.num_query_groups, k and (k % s.tp == 0 or s.tp % k == 0)),
    ),
    Rule(
        f"{LAYOUT}:96",
        "a layout string begins with the embedding, ends with the loss, and has every layer",
        lambda s: implies(
            text := s.given.pipeline_model_parallel_layout or "",
            text and re.fullmatch(r"E[t|]*L", text) and text.count("t") == s.layers,
        ),
    ),
    Rule(
        f"{SCHEDULES}:1032",
        "interleaving: a group has pp microbatches to all",
        lambda s: implies(s.chunks > 1, s.pp <= s.group <= s.microbatches),
    ),
    Rule(
        f"{SCHEDULES}:1040",
        "interleaving: the last group is whole, or has pp microbatches or more",
        lambda s: implies(s.chunks > 1, not 0 < s.microbatches % s.group < s.pp),
    ),
    Rule(
        "megatron/core/transformer/moe/moe_layer.py, forward",
        "experts are trained with tp under sequence parallelism alone",
        lambda s: implies(s.given.num_experts and s.tp > 1, s.given.sequence_parallel),
    ),
    Rule(
        "megatron/core/parallel_state.py, initialize_model_parallel",
        "ranks that share experts divide what tp and pp leave",
        lambda s: implies(s.given.num_experts, s.dp % (s.given.expert_model_parallel_size or 1) == 0),
    ),
    Rule("pretrain_t5.py:107", "T5 has no pipeline", lambda s: implies(s.program == "pretrain_t5.py", s.pp == 1)),
    Rule(
        "megatron/core/datasets/bert_dataset.py, t5_dataset.py",
        "BERT and T5 have no mock data",
        lambda s: implies(s.program in ("pretrain_bert.py", "pretrain_t5.py"), not s.given.mock_data),
    ),
    Rule(
        "TransformerEngine, transformer_engine/pytorch/attention/dot_product_attention/utils.py, get_attention_backend",
        "flash attention takes 16-bit numbers alone",
        lambda s: implies(s.given.attention_backend == "flash", s.given.bf16),
    ),
    Rule("megatron/training/initialize.py:428", "the seed is positive", lambda s: s.given.seed > 0),
    Rule("megatron/core/optimizer_param_scheduler.py:150", "the learning rate is not negative", lambda s: s.given.lr >= 0),
)


def broken(script: Script) -> Iterator[str]:
    """The rules that a script breaks."""
    for rule in RULES:
        if not rule.holds(script):
            yield f"{rule.demand} ({rule.source})"

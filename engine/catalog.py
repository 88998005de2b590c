"""Named models: small ones to run on this machine, and published ones with their sources."""

from __future__ import annotations

from engine.families import FamilyName
from engine.spec import ModelSpec, RequestError, sentence

# To run on this machine. With a mask token 257 values are needed. That is rounded up to a multiple of 8, so that tp up to 8
# divides it.
_TINY = {"layers": 4, "hidden": 64, "heads": 4, "seq": 64}
_SMALL = {"layers": 8, "hidden": 256, "heads": 8, "seq": 128}
_WITH_MASK = 264


def _sizes(family: FamilyName, vocab: int = 256) -> dict[str, ModelSpec]:
    """The models of a family to run on this machine."""
    both = {"tiny": _TINY, "small": _SMALL}
    return {f"{family}-{name}": ModelSpec(family=family, vocab=vocab, **size) for name, size in both.items()}


def _gpt3(layers: int, hidden: int, heads: int) -> ModelSpec:
    return ModelSpec(layers=layers, hidden=hidden, heads=heads, vocab=50257, seq=2048)


def _llama3(layers: int, hidden: int, ffn: int, heads: int) -> ModelSpec:
    return ModelSpec(family="llama", layers=layers, hidden=hidden, ffn=ffn, heads=heads, kv_heads=8, vocab=128256, seq=8192)


MODELS: dict[str, ModelSpec] = {
    **_sizes("gpt"),
    "gpt-medium": ModelSpec(layers=12, hidden=512, heads=8, vocab=1024, seq=256),
    **_sizes("bert", _WITH_MASK),
    **_sizes("roberta", _WITH_MASK),
    **_sizes("transformer"),
    **_sizes("xlnet", _WITH_MASK),
    "llama-tiny": ModelSpec(family="llama", vocab=256, kv_heads=2, ffn=192, **_TINY),
    "llama-small": ModelSpec(family="llama", vocab=256, kv_heads=4, ffn=704, **_SMALL),
    # Radford et al. 2019, Language Models are Unsupervised Multitask Learners, table 2. GPT-2's 1.5B has 25 heads of 64.
    "gpt2-124m": ModelSpec(layers=12, hidden=768, heads=12, vocab=50257, seq=1024),
    "gpt2-1.5b": ModelSpec(layers=48, hidden=1600, heads=25, vocab=50257, seq=1024),
    # Brown et al. 2020, Language Models are Few-Shot Learners, table 2.1 (there 13B has a width of 5140, which is not 40 heads of
    # 128).
    "gpt3-6.7b": _gpt3(32, 4096, 32),
    "gpt3-13b": _gpt3(40, 5120, 40),
    "gpt3-175b": _gpt3(96, 12288, 96),
    # Le Scao et al. 2022, BLOOM, table 3: 176.2B parameters. It has ALiBi and a norm behind the embedding; GPT's positions, which
    # stand in their place, are 0.02% of its parameters.
    "bloom-176b": ModelSpec(layers=70, hidden=14336, heads=112, vocab=250880, seq=2048),
    # Devlin et al. 2019, BERT, section 3; the vocabulary is that of the released uncased models.
    "bert-base": ModelSpec(family="bert", layers=12, hidden=768, heads=12, vocab=30522, seq=512),
    "bert-large": ModelSpec(family="bert", layers=24, hidden=1024, heads=16, vocab=30522, seq=512),
    # Liu et al. 2019, RoBERTa, section 5; the vocabulary is that of the released model.
    "roberta-large": ModelSpec(family="roberta", layers=24, hidden=1024, heads=16, vocab=50265, seq=512),
    # Vaswani et al. 2017, Attention Is All You Need, table 3: N = 6, so 6 + 6 layers; section 5.1 for the vocabulary. The paper
    # counts batches in tokens and does not give a sequence length; 512 is our choice.
    "transformer-base": ModelSpec(family="transformer", layers=12, hidden=512, heads=8, vocab=37000, seq=512),
    "transformer-big": ModelSpec(family="transformer", layers=12, hidden=1024, heads=16, vocab=37000, seq=512),
    # Raffel et al. 2020, T5, section 3.7 (11B): its shape, with the parts of Vaswani et al. T5 has other parts of the same size
    # (pre-norm without biases, relative position biases). The vocabulary is that of the released model.
    "t5-11b-shape": ModelSpec(
        family="transformer", layers=48, hidden=1024, heads=128, head_dim=128, ffn=65536, vocab=32128, seq=512
    ),
    # Yang et al. 2019, XLNet, section 3.1: the sizes of BERT large; the vocabulary is that of the released model.
    "xlnet-large": ModelSpec(family="xlnet", layers=24, hidden=1024, heads=16, vocab=32000, seq=512),
    # Llama team 2024, The Llama 3 Herd of Models, table 3; the vocabulary is that of the released models, 256 special tokens
    # included; sequences of 8,192 as in the first stage of pre-training (section 3.4.1).
    "llama3-8b": _llama3(32, 4096, 14336, 32),
    "llama3-70b": _llama3(80, 8192, 28672, 64),
    "llama3-405b": _llama3(126, 16384, 53248, 128),
}


def model(name: str) -> ModelSpec:
    """The model of that name. Raises `RequestError` with a list of the names."""
    if name not in MODELS:
        raise RequestError(sentence("there is no model {name!r}; there are {names}", name=name, names=", ".join(MODELS)))
    return MODELS[name]


def name_of(spec: ModelSpec) -> str:
    """The name of a model in the catalog, or "custom"."""
    return next((name for name, known in MODELS.items() if known == spec), "custom")

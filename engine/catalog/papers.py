"""Models of papers and released ones, of the families as they are."""

from __future__ import annotations

from engine.spec import ModelSpec


def _gpt2(layers: int, hidden: int, heads: int) -> ModelSpec:
    return ModelSpec(layers=layers, hidden=hidden, heads=heads, vocab=50257, seq=1024)


def _gpt3(layers: int, hidden: int, heads: int) -> ModelSpec:
    return ModelSpec(layers=layers, hidden=hidden, heads=heads, vocab=50257, seq=2048)


OPENAI: dict[str, ModelSpec] = {
    # Radford et al. 2019, Language Models are Unsupervised Multitask Learners, table 2. GPT-2's 1.5B has 25 heads of 64.
    "gpt2-124m": _gpt2(12, 768, 12),
    "gpt2-355m": _gpt2(24, 1024, 16),
    "gpt2-774m": _gpt2(36, 1280, 20),
    "gpt2-1.5b": _gpt2(48, 1600, 25),
    # Brown et al. 2020, Language Models are Few-Shot Learners, table 2.1 (there 13B has a width of 5140, which is not 40 heads of
    # 128).
    "gpt3-6.7b": _gpt3(32, 4096, 32),
    "gpt3-13b": _gpt3(40, 5120, 40),
    "gpt3-175b": _gpt3(96, 12288, 96),
}

ENCODERS: dict[str, ModelSpec] = {
    # Devlin et al. 2019, BERT, section 3; the vocabulary is that of the released uncased models.
    "bert-base": ModelSpec(family="bert", layers=12, hidden=768, heads=12, vocab=30522, seq=512),
    "bert-large": ModelSpec(family="bert", layers=24, hidden=1024, heads=16, vocab=30522, seq=512),
    # Liu et al. 2019, RoBERTa, section 5; the vocabulary is that of the released model.
    "roberta-large": ModelSpec(family="roberta", layers=24, hidden=1024, heads=16, vocab=50265, seq=512),
    # Yang et al. 2019, XLNet, section 3.1: the sizes of BERT large; the vocabulary is that of the released model.
    "xlnet-large": ModelSpec(family="xlnet", layers=24, hidden=1024, heads=16, vocab=32000, seq=512),
    # Vaswani et al. 2017, Attention Is All You Need, table 3: N = 6, so 6 + 6 layers; section 5.1 for the vocabulary. The paper
    # counts batches in tokens and does not give a sequence length; 512 is our choice.
    "transformer-base": ModelSpec(family="transformer", layers=12, hidden=512, heads=8, vocab=37000, seq=512),
    "transformer-big": ModelSpec(family="transformer", layers=12, hidden=1024, heads=16, vocab=37000, seq=512),
}

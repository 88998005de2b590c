"""The number of parameters of released checkpoints, each with its source.

All but BLOOM were counted a second time, in October 2026, from the model classes of transformers 5.24 on torch's meta device,
which share no code with this project. The two agree to the last parameter.
"""

from __future__ import annotations

from typing import NamedTuple

HUB = "safetensors.total of the checkpoint on Hugging Face"
KERAS = "params in keras-hub's presets, at commit 71453d0"
KERAS_EXPERTS = "params in keras-hub's presets, at commits d11ecb3 (Mixtral) and 79c5664 (Qwen3)"
HEADERS = "half of the 281,241,268,224 bytes of tensors in the headers of mistralai/Mixtral-8x22B-v0.1, in bf16"
KERAS_NLP = "params in the presets of keras-nlp, the name of keras-hub in 2023"
GGUF = "general.parameter_count of its GGUF file"
COUNTED = "transformers 5.24 counts it so; no published count was found"


class Published(NamedTuple):
    count: int
    source: str
    besides: int = 0  # numbers in the checkpoint that are no parameters of the language model, or are there twice
    what: str = ""


ROTARY = "frequencies of rotary positions, which are computed"
IMAGES = "encoder of images and projector: 416,866,032 + 1,152 + 1,152 × hidden"
TWICE = "the output matrix, which is the token table"
GPT_OSS = "sinks of attention, biases of router and experts"
QUOTED = "the checkpoint's count on Hugging Face, as several public repositories quote it"
# 34 layers of 1,408 with an inner width of 5,632; patches of 14 × 14 in three colours, 577 places; 5,632 → 4,096 → 4,096 → 5,120.
_LLAMA4_IMAGES = (588 + 1 + 577 + 4) * 1408 + 34 * (4 * 1409 * 1408 + 2 * 5632 * 1408 + 5632 + 1408 + 4 * 1408)
_LLAMA4_IMAGES += (5632 + 4096 + 5120) * 4096

PUBLISHED: dict[str, Published] = {
    "gpt2-124m": Published(124_439_808, KERAS),
    "gpt2-355m": Published(354_823_168, KERAS),
    "gpt2-774m": Published(774_030_080, KERAS),
    "gpt2-1.5b": Published(1_557_611_200, KERAS),
    "llama2-7b": Published(6_738_417_664, HUB, 32 * 64, ROTARY),
    "llama2-13b": Published(13_015_866_880, HUB, 40 * 64, ROTARY),
    "llama2-70b": Published(68_976_653_312, HUB, 80 * 64, ROTARY),
    "llama3-8b": Published(8_030_261_248, HUB),
    "llama3-70b": Published(70_553_706_496, HUB),
    "llama3-405b": Published(405_853_388_800, HUB),
    "llama3.2-1b": Published(1_235_814_400, HUB),
    "llama3.2-3b": Published(3_212_749_824, HUB),
    "qwen2.5-0.5b": Published(494_032_768, KERAS),
    "qwen2.5-1.5b": Published(1_543_714_304, KERAS),
    "qwen2.5-3b": Published(3_085_938_688, KERAS),
    "qwen2.5-7b": Published(7_615_616_512, KERAS),
    "qwen2.5-14b": Published(14_770_033_664, GGUF),
    "qwen2.5-32b": Published(32_763_876_352, KERAS),
    "qwen2.5-72b": Published(72_706_203_648, KERAS),
    "qwen3-0.6b": Published(596_049_920, KERAS),
    "qwen3-1.7b": Published(1_720_574_976, KERAS),
    "qwen3-4b": Published(4_022_468_096, KERAS),
    "qwen3-8b": Published(8_190_735_360, KERAS),
    "qwen3-14b": Published(14_768_307_200, KERAS),
    "qwen3-32b": Published(32_762_123_264, KERAS),
    "gemma2-2b": Published(2_614_341_888, KERAS),
    "gemma2-9b": Published(9_241_705_984, HUB),
    "gemma2-27b": Published(27_227_128_320, KERAS),
    "gemma3-1b": Published(999_885_952, KERAS),
    "gemma3-4b": Published(4_300_079_472, HUB, 416_866_032 + 1152 + 1152 * 2560, IMAGES),
    "gemma3-12b": Published(12_187_325_040, HUB, 416_866_032 + 1152 + 1152 * 3840, IMAGES),
    "gemma3-27b": Published(27_432_406_640, HUB, 416_866_032 + 1152 + 1152 * 5376, IMAGES),
    "t5-small": Published(60_506_624, KERAS_NLP),
    "t5-base": Published(222_903_552, KERAS_NLP),
    "t5-large": Published(737_668_096, KERAS_NLP),
    "t5-3b": Published(2_851_598_336, KERAS_NLP),
    "t5-11b": Published(11_307_321_344, COUNTED),
    # transformers 5.24 ties the output of version 1.1, and checkpoints have it apart. It counts so if it does not tie it.
    "t5-v1.1-small": Published(76_961_152, COUNTED),
    "t5-v1.1-base": Published(247_577_856, KERAS),
    "t5-v1.1-large": Published(783_150_080, COUNTED),
    "t5-v1.1-xl": Published(2_849_757_184, KERAS),
    "t5-v1.1-xxl": Published(11_135_332_352, KERAS),
    "mistral-7b": Published(7_241_732_096, KERAS),
    "mistral-7b-v0.3": Published(7_248_023_552, KERAS),
    "phi2": Published(2_779_683_840, HUB),
    "phi3-mini": Published(3_821_079_552, KERAS),
    "phi3-medium": Published(13_960_238_080, HUB),
    "phi4": Published(14_659_507_200, GGUF),
    "olmo2-1b": Published(1_484_916_736, HUB),
    "olmo2-7b": Published(7_298_617_344, HUB),
    "olmo2-13b": Published(13_716_198_400, HUB),
    "olmo2-32b": Published(32_234_279_936, COUNTED),
    "smollm2-135m": Published(134_515_008, HUB),
    "smollm2-360m": Published(361_821_120, HUB),
    "smollm2-1.7b": Published(1_711_376_384, HUB),
    "gpt-neox-20b": Published(20_554_567_680, "its model card on Hugging Face"),
    "falcon-7b": Published(7_217_189_760, HUB, 65024 * 4544, TWICE),
    "falcon-40b": Published(41_835_970_560, HUB, 65024 * 8192, TWICE),
    "falcon-180b": Published(179_522_565_120, HUB, 65024 * 14848, TWICE),
    "mixtral-8x7b": Published(46_702_792_704, KERAS_EXPERTS),
    "mixtral-8x22b": Published(140_620_634_112, HEADERS),
    "qwen3-30b-a3b": Published(30_532_122_624, KERAS_EXPERTS),
    "qwen3-235b-a22b": Published(235_093_634_560, KERAS_EXPERTS),
    "deepseek-v2": Published(235_741_434_880, QUOTED),
    "deepseek-v2-lite": Published(15_706_484_224, QUOTED),
    # Of the 684 billion of the checkpoint, without the layer of its multi-token prediction (MTP).
    "deepseek-v3": Published(671_026_419_200, QUOTED, 58 * 256, "biases of the router, which no gradient changes"),
    "gpt-oss-20b": Published(20_914_757_184, GGUF, 24 * (64 + 32 + 32 * 3 * 2880), GPT_OSS),
    "gpt-oss-120b": Published(116_829_156_672, GGUF, 36 * (64 + 128 + 128 * 3 * 2880), GPT_OSS),
    "llama4-scout": Published(108_641_793_536, QUOTED, _LLAMA4_IMAGES, "encoder of images and projector"),
    "opt-125m": Published(125_239_296, "Intel Neural Compressor's example of pruning it prints so"),
    "opt-1.3b": Published(1_315_758_080, COUNTED),
    "opt-2.7b": Published(2_651_596_800, COUNTED),
    "opt-6.7b": Published(6_658_473_984, COUNTED),
    "opt-13b": Published(12_853_473_280, COUNTED),
    "opt-30b": Published(29_974_540_288, COUNTED),
    "opt-66b": Published(65_719_701_504, COUNTED),
    "opt-175b": Published(174_604_468_224, COUNTED),
    "bloom-560m": Published(559_214_592, HUB),
    "bloom-7b": Published(7_069_016_064, COUNTED),
    "bloom-176b": Published(176_247_271_424, HUB),
    # With the head of masked prediction, and without the pooler of the next-sentence task.
    "bert-base": Published(109_514_298, COUNTED),
    "bert-large": Published(335_174_458, COUNTED),
    # 1,024 numbers for the one type of tokens and 2 × 1,024 for positions of padding, which models here do not have.
    "roberta-large": Published(355_412_057, COUNTED, 3 * 1024, "token type and positions of padding"),
    # Each layer has biases and an embedding of segments: 24 × (16 + 2 × 16) × 64, and a token for masks.
    "xlnet-large": Published(360_300_800, COUNTED, 24 * 3 * 1024 + 1024, "segments, and the token for masks"),
}
# What one token goes through, in billions, as the reports say.
ACTIVE = {"mixtral-8x7b": 12.9, "mixtral-8x22b": 39.1, "qwen3-30b-a3b": 3.3, "qwen3-235b-a22b": 22.2}
# The reports say 21, 2.4 (without both tables, 0.21 each), 37 and 17.
ACTIVE |= {"deepseek-v2": 21.4, "deepseek-v2-lite": 2.66, "deepseek-v3": 37.55, "llama4-scout": 17.2}
# Without the embedding's table, as OpenAI counts (model card, table 1).
ACTIVE |= {"gpt-oss-20b": 3.61 + 0.58, "gpt-oss-120b": 5.13 + 0.58}
# Models of papers without a released checkpoint.
WITHOUT = {"gpt3-6.7b", "gpt3-13b", "gpt3-175b", "transformer-base", "transformer-big"}

"""A recording writes every size as a product of dimensions, independently of the probe's numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest

from engine.families import FAMILIES
from engine.launch.recording.probe import RecordingError, probe
from engine.launch.recording.record import record
from engine.ledger.form import ALLOCATES, CALLS, FREES, RUNS, Ledger, Part, Product, Structure, pack, unpack
from engine.ledger.keep import Ledgers
from engine.spec import AttentionName

MIDDLE, WHOLE = Part(False, False, 2), Part(True, True, 2)
PLAIN = Structure("gpt", "none", "fp32", "features", ("A/G",))
OTHERS = (7, 5, 13, 11, 19, 43, 29, 73)  # other primes for the same dimensions


@pytest.mark.parametrize(
    ("structure", "part"),
    [
        (PLAIN, WHOLE),
        (PLAIN._replace(recompute="full", precision="bf16", slicing="sequence"), WHOLE),
        (PLAIN._replace(family="llama", slicing="sequence"), WHOLE),
        (PLAIN._replace(family="bert", slicing="sequence"), WHOLE),
        (PLAIN._replace(sized_parts=("spare_positions", "window")), WHOLE),
        (PLAIN._replace(family="llama", slicing="sequence", sized_parts=("rotary_width",)), WHOLE),
        (PLAIN._replace(chosen_parts=(("position", "alibi"),)), WHOLE),
    ],
    ids=lambda one: one.name,
)
def test_a_recording_does_not_depend_on_the_probes_numbers(ledgers: Ledgers, structure: Structure, part: Part) -> None:
    assert record(structure, part, OTHERS) == ledgers(structure, part)


_DENSE = Structure("llama", "none", "bf16", "none", ())
_EXPERTS = _DENSE._replace(sized_parts=("experts",))
_LATENT = _EXPERTS._replace(ones=("A/G",), sized_parts=("experts", "kv_lora_rank"))
_ENCODER_DECODER = _DENSE._replace(family="transformer", slicing="features", ones=("A/G",))
_GENERATES = _DENSE._replace(slicing="features", generates=True)


@pytest.mark.parametrize(
    ("structure", "one"),
    [
        (_DENSE._replace(recompute="layernorm+mlp_act", slicing="features"), "B"),
        (_DENSE._replace(family="gpt", recompute="full", chunked_loss=True, ones=("A/G",)), "B"),
        (_DENSE._replace(family="bert", slicing="sequence", ones=("A/G",)), "G/tp"),
        (_DENSE._replace(family="gpt", ones=("A/G",), chosen_parts=(("position", "alibi"),)), "B"),
        (_DENSE._replace(slicing="sequence", sized_parts=("window",)), "G/tp"),
        (_ENCODER_DECODER, "B"), (_ENCODER_DECODER, "G/tp"), (_GENERATES, "G/tp"), (_GENERATES, "P"),
        (_EXPERTS, "B"), (_LATENT, "B"), (_EXPERTS._replace(slicing="sequence"), "G/tp"),
    ],
    ids=lambda one: one if isinstance(one, str) else f"{one.archive}_{one.group}",
)  # fmt: skip
def test_with_fused_attention_a_dimension_is_left_out_that_changes_only_sizes(structure: Structure, one: str) -> None:
    """`engine.ledger.dimensions.structure` asks for the same ledger where it is 1."""
    layers, decoders = (0, 1) if "experts" in structure.sized_parts else (1, int(structure.family == "transformer"))
    part = Part(False, True, layers, ends=structure.family == "transformer", decoders=decoders)
    there, alone = record(structure, part), record(structure._replace(ones=tuple(sorted((*structure.ones, one)))), part)
    assert _events(there, one) == _events(alone, one)


def _events(ledger: Ledger, one: str) -> list[Any]:
    """All events in order, with sizes in which dimension `one` is left out."""

    def without(size: Product) -> Product:
        return Product(size.times, tuple(name for name in size.dimensions if name != one))

    blocks = [block._replace(bytes=without(block.bytes)) for block in ledger.blocks]
    calls = [call._replace(payload=without(call.payload)) for call in ledger.calls]
    operations = [
        operation._replace(**{name: tuple(map(without, getattr(operation, name))) for name in ("flops", "read", "written")})
        for operation in ledger.operations
    ]
    tables: dict[int, Any] = {ALLOCATES: blocks, FREES: blocks, CALLS: calls, RUNS: operations}
    return [
        (name, action, segment.layer, kind, tables[kind][number] if kind in tables else number)
        for name, trace in ledger.traces.items()
        for action, segments in trace.actions.items()
        for segment in segments
        for kind, number in segment.events()
    ]


def test_a_size_that_is_not_a_product_of_dimensions_is_refused() -> None:
    made = probe(PLAIN, MIDDLE)
    assert made.name(4 * made.sizes["B"] * made.sizes["H"]) == Product(4, ("B", "H"))
    with pytest.raises(RecordingError, match="is not a product of"):
        made.name(4 * made.sizes["B"] * 41)
    with pytest.raises(RecordingError):
        made.name(0)


@pytest.mark.parametrize("recompute", ["none", "core_attn", "full"])
def test_a_microbatch_and_the_repeated_layer_leave_no_blocks(ledgers: Ledgers, recompute: str) -> None:
    """So the repeated layer can occur any number of times."""
    ledger = ledgers(PLAIN._replace(recompute=recompute), MIDDLE)  # type: ignore[arg-type]
    assert len(ledger.traces) == 4
    for trace in ledger.traces.values():
        left: Counter[str] = Counter()
        left_by_layer: Counter[Product] = Counter()
        for segments in trace.actions.values():
            for segment in segments:
                for kind, number in segment.events():
                    if kind in (ALLOCATES, FREES):
                        block = ledger.blocks[number]
                        left[block.name] += 1 if kind == ALLOCATES else -1
                        left_by_layer[block.bytes] += (segment.layer == 1) * (1 if kind == ALLOCATES else -1)
        assert not any(left.values())
        assert not any(left_by_layer.values())


def test_blocks_are_named_by_module_and_operation(ledgers: Ledgers) -> None:
    written, fused = (
        {b.name: str(b.bytes) for b in ledgers(PLAIN._replace(attention=name), MIDDLE).blocks if b.category == "activations"}
        for name in get_args(AttentionName)[::-1]
    )
    assert written["layers.attention: _softmax"] == "4·B·G/tp·S·S"
    assert written["layers.mlp: gelu"] == fused["layers.mlp: gelu"] == "4·B·F/tp·S"
    assert fused["layers.attention: attention"] == "4·B·D·G/tp·S"
    assert fused["layers.attention: logsumexp"] == "4·B·G/tp·S"
    assert not any("S·S" in size for size in fused.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ledger_survives_packing(ledgers: Ledgers, family: str) -> None:
    encoder = FAMILIES[family].encoder  # type: ignore[index]
    ledger: Ledger = ledgers(PLAIN._replace(family=family), WHOLE._replace(ends=encoder, decoders=2 * encoder))  # type: ignore[arg-type]
    assert unpack(pack(ledger)) == ledger

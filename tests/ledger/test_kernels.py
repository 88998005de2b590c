"""Kernels are read from ledgers by one rule, and their FLOPs are those of the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest

from engine.families import FamilyName
from engine.ledger.dimensions import dimensions, structure, value
from engine.ledger.form import Call, Part, Slicing
from engine.ledger.keep import Ledgers
from engine.ledger.kernels import Kernel, kernels
from engine.ledger.split import part_of
from engine.papers.closed_forms import model_flops
from engine.spec import AttentionName, ModelSpec, WorkloadSpec

MODEL = {"layers": 6, "hidden": 48, "heads": 4, "vocab": 260, "seq": 32}
WRITTEN = WorkloadSpec(precision="bf16", attention="written")
WHOLE = Part(True, True, 2)


def of_layer(
    ledgers: Ledgers, family: FamilyName, action: str, slicing: Slicing = "none", workload: WorkloadSpec = WRITTEN
) -> list[Kernel | Call]:
    """The kernels and calls of the second recorded layer."""
    model = ModelSpec(family=family, **MODEL)
    sizes = dimensions(model, slicing, 1 if slicing == "none" else 2, 3)
    ledger = ledgers(structure(model, workload, "none", slicing, sizes), WHOLE)
    return list(kernels(ledger, [s for s in ledger.trace(False, True).segments(action) if s.layer == 1]))


def large(kernel: Kernel | Call) -> list[str]:
    """What a kernel moves of every token, without statistics of rows."""
    assert isinstance(kernel, Kernel)
    return [str(size) for size in kernel.moved if {"B", "S"} < set(size.dimensions)]


def test_a_gpt_layer_has_the_kernels_of_megatron(ledgers: Ledgers) -> None:
    """Narayanan et al. 2021, section 4.2: one kernel each for a norm, bias and residual, GELU. Scores are written, so scale, mask
    and softmax are kernels of their own. Copies are none.
    """
    found = of_layer(ledgers, "gpt", "F")
    stream, inner, scores = "2·B·H·S", "2·B·F/tp·S", "2·B·G/tp·S·S"
    norm, residual = [stream] * 2, [stream] * 3
    others = [large(kernel) for kernel in found if isinstance(kernel, Kernel) and not kernel.flops]
    assert [some for some in others if some] == [
        norm, [scores] * 2, [scores] * 2, [scores] * 2, residual, norm, [inner] * 2, residual,
    ]  # fmt: skip
    products = [kernel for kernel in found if isinstance(kernel, Kernel) and kernel.flops]
    assert [kernel.attention for kernel in products] == ["", "written", "written", "", "", ""]


def test_rotary_positions_are_one_kernel_which_writes_joined_halves(ledgers: Ledgers) -> None:
    rotation = of_layer(ledgers, "llama", "F")[2]
    halves, whole = "2·B·D/2·G/tp·S", "4·B·D/2·G/tp·S"
    moved = large(rotation)
    assert sorted(moved) == [halves] * 8 + [whole] * 2, "each half is read for both halves of the result"


def test_a_norms_backward_reads_its_inputs_twice(ledgers: Ledgers) -> None:
    """For the gradients of input and of weights. The same kernel adds the residual's gradient."""
    norms = [k for k in of_layer(ledgers, "gpt", "I") if isinstance(k, Kernel) and not k.flops and len(large(k)) > 3]
    assert [large(kernel) for kernel in norms if "2·B·H·S" in large(kernel)] == [["2·B·H·S"] * 6] * 2


def test_a_call_stands_between_kernels(ledgers: Ledgers) -> None:
    found = of_layer(ledgers, "gpt", "F", "features")
    calls = [i for i, step in enumerate(found) if isinstance(step, Call)]
    assert len(calls) == 2
    for i in calls:
        before, behind = found[i - 1], found[i + 1]
        assert isinstance(before, Kernel)
        assert before.flops
        assert large(behind) == ["2·B·H·S"] * 3


def test_fused_attention_is_one_kernel_without_scores(ledgers: Ledgers) -> None:
    fused = WorkloadSpec(precision="bf16", attention="fused")
    for action, products in (("F", 2), ("I", 5)):
        steps = [step for step in of_layer(ledgers, "gpt", action, workload=fused) if isinstance(step, Kernel)]
        attention = [kernel for kernel in steps if kernel.attention]
        assert [(kernel.attention, len(kernel.flops)) for kernel in attention] == [("fused", products)]
        assert not any("S·S" in str(size) for kernel in steps for size in kernel.moved)


@pytest.mark.parametrize(
    ("family", "attention"), [*((family, "written") for family in get_args(FamilyName)), ("gpt", "fused"), ("llama", "fused")]
)
def test_flops_of_a_ledger_equal_the_models_formula(ledgers: Ledgers, family: FamilyName, attention: AttentionName) -> None:
    """Backward has two products for each of forward's, in B as in I and W.

    The papers' formula leaves out the dense layer in BERT's head, and the projection of relative positions in XLNet. Positions
    need no gradient. The backward of fused attention computes the scores again.
    """
    model, batch = ModelSpec(family=family, **MODEL), 3
    sizes = dimensions(model, "none", 1, batch)
    part, layers = part_of(model, range(model.layers), True, True)
    ledger = ledgers(structure(model, WorkloadSpec(attention=attention), "none", "none", sizes), part)
    repeats = part.repeats(*layers)

    def flops(split: bool, action: str) -> Iterator[int]:
        for segment in ledger.trace(False, split).segments(action):
            for step in kernels(ledger, [segment]):
                if isinstance(step, Kernel):
                    times = repeats[segment.layer] if segment.layer >= 0 else 1
                    yield times * sum(value(size, sizes) for size in step.flops)

    forward = sum(flops(True, "F"))
    formula = model_flops(model) * batch / 3
    if family in ("bert", "roberta"):
        formula += 2 * batch * model.seq * model.hidden**2
    backward = sum(flops(False, "B"))
    assert backward == sum(flops(True, "I")) + sum(flops(True, "W"))
    if family == "xlnet":
        assert formula < forward < 1.05 * formula
        assert 1.95 * forward < backward < 2 * forward
    else:
        assert forward == formula
        again = 2 * model.layers * batch * model.seq**2 * model.hidden if attention == "fused" else 0
        assert backward == 2 * forward + again

"""The sizes that the formulas are made of, as factors: of one layout, or with arrays in them of many layouts at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from engine.families import predicted
from engine.predict.terms import Factor
from engine.spec import ModelSpec, Recompute, WorkloadSpec, sentence

WIDTHS = {"fp32": 4, "bf16": 2}

SYMBOLS: dict[str, str] = {
    "L": sentence("layers of the stage, or of those a term is about"),
    "m": sentence("microbatches of a step"),
    "mᶠ": sentence("microbatches in flight; of a stage with several chunks, their passes"),
    "B": sentence("sequences in a microbatch"),
    "S": sentence("tokens of a sequence"),
    "R": sentence("rows of a sequence that go through a layer: tokens and queries"),
    "T": sentence("tokens of a sequence that are predicted"),
    "H": sentence("width of the residual stream"),
    "A": sentence("attention heads"),
    "G": sentence("heads of keys and values"),
    "D": sentence("width of one head"),
    "F": sentence("inner width of the MLP"),
    "V": sentence("vocabulary, rounded up to a multiple of tp"),
    "P": sentence("tokens of the prompt"),
    "N": sentence("tokens of the prompt and new ones"),
    "Ψ": sentence("parameters of a bucket on a rank, rounded up to a multiple of dp where ZeRO shards them"),
    "tp": sentence("tensor-parallel ranks"),
    "dp": sentence("data-parallel replicas"),
    "e": sentence("bytes of a number of parameters and activations"),
    "g": sentence("bytes of a number of the gradients that are added up"),
    "eᵍ": sentence("bytes of a number of the gradients that are added up"),
    "Ψ₁": sentence("of these, the parameters that tp does not cut"),
    "r": sentence("reductions of a step"),
    "n": sentence("how many of them there are"),
}


def whole(value: Any) -> Factor:
    """A number that is its own symbol."""
    return Factor(str(value), value)


@dataclass(frozen=True)
class Sizes:
    """Factors of one layout's blocks, and in which of the ways that change what is allocated it is."""

    model: ModelSpec
    recompute: Recompute
    B: Factor
    S: Factor
    R: Factor  # rows of a sequence in a layer
    s: Factor  # of these, on this rank between the tensor-parallel parts
    T: Factor  # rows that are predicted from
    H: Factor
    A: Factor  # heads on this rank
    G: Factor
    D: Factor
    half: Factor  # D/2
    F: Factor
    V: Factor  # rows of the token table on this rank
    tp: Factor
    e: Factor
    many: bool  # more than one sequence in a microbatch: heads of several sequences cannot be one stride apart
    cut: bool  # tp > 1
    sequence: bool  # sequence parallelism, and tp > 1
    heads: bool  # more than one head on this rank
    groups: bool  # more than one head of keys on this rank

    @property
    def wide(self) -> bool:
        """Whether fp32 numbers are wider than those of parameters and activations."""
        return self.e.value == 2

    def _replace_rows(self, count: int, keys: int) -> Sizes:
        """When generating: `count` tokens behind others, `keys` in all."""
        rows = Factor("P", count) if count > 1 else Factor("1", count)
        return replace(self, R=rows, s=rows, S=Factor("N", keys), T=Factor("1", 1))

    @property
    def parts(self) -> Any:
        return self.model.parts

    @property
    def rows(self) -> tuple[Factor, ...]:
        return (self.B, self.s)

    @property
    def residual(self) -> tuple[Factor, ...]:
        """(B, s, H) numbers."""
        return (self.B, self.s, self.H, self.e)

    @property
    def full(self) -> tuple[Factor, ...]:
        """(B, R, H) numbers."""
        return (self.B, self.R, self.H, self.e)

    @classmethod
    def of(
        cls,
        model: ModelSpec,
        workload: WorkloadSpec,
        tp: Any,
        microbatch_size: Any,
        sequence: bool,
        recompute: Recompute,
        flags: tuple[bool, bool, bool, bool] | None = None,
        seq: int = 0,
    ) -> Sizes:
        """`tp` and `microbatch_size` are numbers, or arrays of layouts that share `flags`: many, cut, heads, groups."""
        heads, groups = model.heads // tp, model.key_heads // tp
        if flags is None:
            flags = (microbatch_size > 1, tp > 1, heads > 1, groups > 1)
        many, cut, several, grouped = flags
        seq = seq or model.seq
        rows = seq + model.rows - model.seq
        over = "/tp" if cut else ""
        sequence = sequence and cut
        kind = model.parts.objective
        row = "R" if rows > seq else "S"
        return cls(
            model=model, recompute=recompute, B=Factor("B", microbatch_size), S=Factor("S", seq), R=Factor(row, rows),
            s=Factor(f"{row}/tp", rows // tp) if sequence else Factor(row, rows),
            T=Factor("T", predicted(kind, seq)) if kind == "permuted" else Factor("S", seq),
            H=Factor("H", model.hidden), A=Factor(f"A{over}", heads), G=Factor(f"G{over}", groups),
            D=Factor("D", model.head_width), half=Factor("D/2", model.head_width // 2),
            F=Factor(f"F{over}", model.ffn_width // tp), V=Factor(f"V{over}", -(-model.vocab // tp)), tp=Factor("tp", tp),
            e=Factor("e", WIDTHS[workload.precision]), many=bool(many), cut=bool(cut), sequence=sequence,
            heads=bool(several), groups=bool(grouped),
        )  # fmt: skip


ONE, TWO, FOUR, EIGHT = (whole(n) for n in (1, 2, 4, 8))

"""The dimensions whose products are sizes, and the value of each for a layout.

    B        sequences in a microbatch          S        tokens of a sequence; S/tp under sequence parallelism
    H        width of the residual stream       H/2      half of it, rounded up, for sinusoidal and relative positions
    D        width of a head                    D/2      half of it, for rotary positions
    D′/2     half of what rotary positions turn, if that is not all of a head
    S + spare  rows of the table of learned positions, if there are more than tokens
    G/tp     key heads on a rank, at least 1    A/G      query heads on a rank that share a key head there; A/G + 2, for q, k and
                                                         v, is another
    F/tp     inner width of the MLP on a rank   V/tp     rows of the token table on a rank, with padding
    tp       tensor-parallel ranks              C        tokens of a chunk of the loss, if it is computed in chunks

With context parallelism cp is a dimension, and a rank has S/cp tokens of a sequence: S/2cp is half of them, a part of the head or
of the tail. These are S/cp/tp and S/2cp/tp under sequence parallelism. With ulysses there are G/cp/tp in place of G/tp.

With experts there are also: E/ep experts of a rank, and ep ranks that share them; k experts of a token; X/tp inner width of an
expert on a rank, Z/tp that of the shared ones; M rows of tokens that the experts of a rank get in a pass, if ep is more than 1.

With latent attention D is the width of a query or a key, of which D′ are turned and Dn are not. There are also: Dv, the width of
a value, if that is less than D; Lkv and Lq, the latents; Lq + Lkv + D′, all that is projected down to; Dn + Dv, of a key and a
value.

With two-stream attention there are also: R rows of a sequence, or R/tp; T of these rows that are query rows, one for each
predicted token; 2 S − 1 distances. When generating there are also: P tokens of the prompt; N tokens in the KV cache when the last
token goes through the model; V, the vocabulary without rounding.

`tp` and the size of a microbatch are numbers, or arrays for very many layouts at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from engine.families import predicted
from engine.ledger.form import Product, Slicing, Structure
from engine.spec import ModelSpec, Recompute, WorkloadSpec
from engine.spec.context import Context
from engine.terms import Factor

QKV, PLACES = "A/G + 2", "S + spare"


def dimensions(
    model: ModelSpec,
    slicing: Slicing,
    tp: Any,
    microbatch_size: Any,
    tokens: tuple[int, int] | None = None,
    loss_chunk: Any = None,
    cp: Any = 1,
    context: Context = "",
    ep: Any = 1,
) -> dict[str, Any]:
    """The value of each dimension, by name. `tokens`: P and N, when generating. `loss_chunk`: C; None: the loss is whole.

    `context`: see `engine.spec.context`. With ep > 1, M is that of equal loads; arrays of ep must all be so.
    """
    (keys, shared), position = _heads(model, tp), model.parts.position
    found: dict[str, Any] = {
        "B": microbatch_size, "H": model.hidden, "G/tp": keys, "A/G": shared, QKV: shared + 2,
        "F/tp": model.ffn_width // tp, "V/tp": model.vocab_rows(tp),
    }  # fmt: skip
    partly = "rotary_width" in model.sized_parts or model.latent
    found |= {"D/2": model.head_width // 2} if position == "rotary" and not partly else {"D": model.head_width}
    found |= {"D′/2": model.rotated // 2} if partly else {}
    found |= _latents(model) if model.latent else {}
    found |= {"H/2": -(-model.hidden // 2)} if position in ("sinusoidal", "relative") else {}
    if model.experts:
        found |= {"k": model.expert_choices, "E/ep": model.experts // ep, "X/tp": model.expert_width // tp, "ep": ep}
        found |= {"Z/tp": model.shared_ffn // tp} if model.shared_ffn else {}
        if not isinstance(ep, int) or ep > 1:
            found["M"] = (microbatch_size * model.rows if tokens is None else tokens[0]) * model.expert_choices
    rows = "S"
    if model.parts.objective == "permuted":
        rows = "R"
        found |= {"S": model.seq, "T": predicted("permuted", model.seq), "2 S − 1": 2 * model.seq - 1}
    found |= {PLACES: model.places} if model.spare_positions else {}
    if context:
        found |= _context_dimensions(model, slicing, tp, cp, context)
        if context == "ulysses":
            found["G/cp/tp"] = found.pop("G/tp") // cp
    else:
        found |= {f"{rows}/tp": model.rows // tp} if slicing == "sequence" else {rows: model.rows}
    if tokens is not None:
        del found["B"]
        found |= {"P": tokens[0], "N": tokens[1]} | ({} if slicing == "none" else {"V": model.vocab})
    found |= {} if loss_chunk is None else {"C": loss_chunk}
    return found | ({} if slicing == "none" else {"tp": tp})


def _latents(model: ModelSpec) -> dict[str, int]:
    """What latent attention has: its latents, all that is projected down to, and the parts of a head."""
    queries, latent, unturned, values = model.q_lora_rank, model.kv_lora_rank, model.unturned, model.value_width
    found = {"Lkv": latent, "Dn": unturned, "Lkv + D′": latent + model.rotated, "Dn + Dv": unturned + values}
    if queries:
        found |= {"Lq": queries, "Lq + Lkv + D′": queries + found.pop("Lkv + D′")}
    return found | ({"Dv": values} if values < model.head_width else {})


def _context_dimensions(model: ModelSpec, slicing: Slicing, tp: Any, cp: Any, context: Context) -> dict[str, Any]:
    """cp, and the tokens of a sequence that a rank has, or half of them."""
    name, parts = ("S/cp", cp) if context == "ulysses" else ("S/2cp", 2 * cp)
    found = {f"{name}/tp": model.seq // (parts * tp)} if slicing == "sequence" else {name: model.seq // parts}
    return found if context.endswith("of 2") else found | {"cp": cp}


def middle_steps(sizes: Mapping[str, Any]) -> Any:
    """How many steps of attention over cp ranks a recorded middle step stands for. `sizes`: the values of dimensions."""
    return sizes["cp"] - 2


def _heads(model: ModelSpec, tp: Any) -> tuple[Any, Any]:
    """Key heads on a rank, and query heads that share one there. Of fewer key heads than ranks, each rank has a copy of one."""
    keys, queries = model.key_heads, model.heads
    if keys == queries:
        return keys // tp, 1
    return _at_least_one(keys, tp), _shared(queries, keys, tp)


def _at_least_one(heads: int, tp: Any) -> Any:
    return heads // tp + (tp > heads) * 1


def _shared(queries: int, keys: int, tp: Any) -> Any:
    return queries // tp // _at_least_one(keys, tp)


_ROWS = ("T", 1), ("S", 1), ("S/tp", 1), ("S/cp", 1), ("S/cp/tp", 1), ("S/2cp", 2), ("S/2cp/tp", 2)  # how often a rank has them


def loss_chunks(sizes: Mapping[str, Any]) -> tuple[Any, Any]:
    """How many chunks of the loss have C tokens, and how many tokens are left for one more. `sizes`: the values of dimensions."""
    name, times = next((name, times) for name, times in _ROWS if name in sizes)
    rows = times * sizes[name] * (sizes["tp"] if name.endswith("/tp") else 1)
    return divmod(sizes["B"] * rows, sizes["C"])


def slicing(tp: int, sequence_parallel: bool) -> Slicing:
    """What `tp` ranks cut in a layer."""
    if tp == 1:
        return "none"
    return "sequence" if sequence_parallel else "features"


def structure(
    model: ModelSpec,
    workload: WorkloadSpec,
    recompute: Recompute,
    cut: Slicing,
    sizes: Mapping[str, Any],
    generates: bool = False,
    context: Context = "",
) -> Structure:
    """The structure of a model's chunks. `sizes`: the values of the dimensions.

    Each dimension that is 1 is part of the structure. Some are not: tp, since `cut` says whether it is 1; cp, which is 3 or more
    as a dimension; and N and M, which are never 1 where that matters. With fused attention they are fewer: see `_no_matter`. An
    array, or a number of numpy, counts as more than 1.
    """
    passed_over = {"tp", "cp", "N", "M"}
    if workload.attention_of(model) == "fused" and not context:
        passed_over |= _no_matter(model, cut)
    others = {name: size for name, size in sizes.items() if name not in passed_over}
    ones = tuple(sorted(name for name, size in others.items() if isinstance(size, int) and size == 1))
    return Structure(
        model.family, recompute, workload.precision, cut, ones, generates, workload.attention_of(model), "C" in sizes,
        model.chosen_parts, model.sized_parts, context,
    )  # fmt: skip


def _no_matter(model: ModelSpec, cut: Slicing) -> set[str]:
    """Dimensions that change only sizes where they are 1, with fused attention. A test records both and finds the same.

    A microbatch of one sequence matters where tp cuts the sequence: it is gathered in place. One key head on a rank matters to
    latent attention, whose keys and values are then views.
    """
    found = {"P"} if model.latent else {"P", "G/tp"}
    return found if cut == "sequence" else {"B", *found}


def value(product: Product, sizes: Mapping[str, Any]) -> Any:
    """The value of a product: a number, or an array."""
    out: Any = product.times
    for dimension in product.dimensions:
        out = out * sizes[dimension]
    return out


_OF_CONTEXT = (  # with context parallelism, one after the other: the symbol, how often its parts are in it, and these
    ("S/2cp", 1, ("S/2cp/tp", "tp")), ("S/cp", 1, ("S/cp/tp", "tp")), ("S/cp", 2, ("S/2cp",)), ("S", 1, ("S/cp", "cp")),
    ("G/tp", 1, ("G/cp/tp", "cp")),
)  # fmt: skip
_JOINED = (
    ("E", ("E/ep", "ep")), ("S", ("S/tp", "tp")), ("R", ("R/tp", "tp")), ("A/tp", ("G/tp", "A/G")),
    ("(A + 2 G)/tp", ("G/tp", QKV)), ("A/cp/tp", ("G/cp/tp", "A/G")),
)  # fmt: skip
_TWICE = (("D", "D/2"), ("D′", "D′/2"), ("H", "H/2"))
_ORDER = [  # of the factors of a formula, by the first letters of their symbols
    "tp",
    "cp",
    "B",
    "ep",
    "E",
    "k",
    "M",
    "X",
    "Z",
    "R",
    "S",
    "P",
    "N",
    "A",
    "G",
    "D",
    "F",
    "H",
    "L",
    "V",
    "T",
    "C",
    "2",
]


def factors(product: Product, sizes: Mapping[str, Any]) -> tuple[Factor, ...]:
    """A product as named factors, as few as possible, in the order in which formulas write them."""
    times, left, found = product.times, list(product.dimensions), list[Factor]()
    sizes = dict(sizes)
    for name, often, parts in _OF_CONTEXT:
        while all(part in left for part in parts) and times % often == 0:
            times //= often
            sizes[name] = often * prod(sizes[part] for part in parts)
            for part in parts:
                left.remove(part)
            left.append(name)
    for name, parts in _JOINED:
        while all(part in left for part in parts):
            number: Any = 1
            for part in parts:
                left.remove(part)
                number = number * sizes[part]
            found.append(Factor(name, number))
    for name, half in _TWICE:
        while half in left and times % 2 == 0 and np.all(sizes.get(name, 2 * sizes[half]) == 2 * sizes[half]):
            left.remove(half)
            times //= 2
            found.append(Factor(name, 2 * sizes[half]))
    if isinstance(sizes["A/G"], int) and sizes["A/G"] == 1:  # every query head has its own key head
        renamed = {keys: heads for keys, heads in (("G/tp", "A/tp"), ("G/cp/tp", "A/cp/tp")) if keys in sizes}
        left = [renamed.get(name, name) for name in left]
        sizes |= {heads: sizes[keys] for keys, heads in renamed.items()}
    if "tp" not in sizes:  # tp is 1: nothing is cut
        found = [Factor(factor.symbol.removesuffix("/tp"), factor.value) for factor in found]
        named = [Factor(name.removesuffix("/tp"), sizes[name]) for name in left]
    else:
        named = [Factor(name, sizes[name]) for name in left]
    several = sorted((f for f in [*found, *named] if not _is_one(f.value)), key=_place)
    return (*several, *([Factor(str(times), times)] if times != 1 or not several else []))


def _is_one(size: Any) -> bool:
    """False for arrays."""
    return isinstance(size, int) and size == 1


def _place(factor: Factor) -> int:
    symbol = factor.symbol.lstrip("(")
    return next(place for place, begins in enumerate(_ORDER) if symbol.startswith(begins))

"""A small model, of which a chunk runs in milliseconds. Each dimension is a distinct prime, so that sizes have names."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import NamedTuple

from engine.ledger.dimensions import QKV, dimensions
from engine.ledger.form import Part, Product, Structure
from engine.spec import BYTE_VOCABULARY, ModelSpec

# Primes for tp, S, B, G/tp, D, H, F/tp and V/tp; half of H, rounded up, is 19. If heads share keys, A/G and A/G + 2 must be two
# more primes, and small, so that attention over all heads is small. With two streams only S can be chosen. T, R and 2 S − 1 must
# each have a prime that no other dimension has: T and R are 7 and 22, or 40 and 273.
_PRIMES = (5, 7, 11, 13, 17, 37, 23, 59)
_SHARING = (3, 11, 13, 17, 23, 37, 29, 101)
_STREAMS = {"none": (5, 15, 13, 17, 23, 37, 31, 59), "sequence": (7, 233, 11, 17, 23, 37, 29, 59)}
# With context parallelism, and where ulysses cuts the heads over cp too. cp is 5, or 11 if heads share keys.
_CONTEXT, _CONTEXT_SHARING = (7, 11, 13, 17, 29, 37, 23, 59), (3, 13, 17, 19, 23, 61, 29, 101)
_ULYSSES, _ULYSSES_SHARING = (7, 13, 47, 11, 17, 37, 23, 59), (3, 47, 17, 13, 23, 37, 29, 101)
_GROUP = (5, 7)
_WIDE, _TURNED = 67, 31  # width of a head, and half of what is turned, where rotary positions turn a part of it
# Of latent attention: D′/2, Dn, Dv, Lkv and Lq. These, and their sums D, Dn + Dv, Lkv + D′ and Lq + Lkv + D′, have primes of
# their own: 67, 17, 113, 89 and 109; 101, 181, 223 and 83.
_LATENT = {"turned": 67, "unturned": 68, "values": 113, "latent": 89, "queries": 109}
_MANY = 110  # more than any of these primes
# When generating: tokens of the prompt, tokens in all, tokens that fit, and the vocabulary, which is not V/tp times tp.
_PROMPT, _TOKENS, _FIT = 43, 47, 53
_VOCABULARY = {5: 293, 3: 302}  # by tp
_ROWS = (263, 269)  # of the token table if tp does not shard it: one for every byte
# For a loss in chunks a microbatch of one sequence needs more tokens, and more tp ranks if each has one of them.
_CHUNKED = {"S": 43, "tp": 41}
# Of a model with experts. A probe with many experts takes longer, so there are fewer where no other dimension has their primes.
_EXPERTS = {"E/ep": 31, "k": 29, "ep": 19, "F/tp": 73, "X/tp": 71, "Z/tp": 103}
_MORE_EXPERTS = _EXPERTS | {"E/ep": 79, "k": 53, "ep": 61}
_RECEIVED = 997  # M
_NAMES = ("tp", "S", "B", "G/tp", "D", "H", "F/tp", "V/tp")


class RecordingError(Exception):
    """A size is no product of the probe's dimensions. Always a defect of the probe, never of a request."""


class Probe(NamedTuple):
    """`start`: the chunk's first layer. `sizes`: the dimensions larger than 1, the largest first.

    `prompt`, `new_tokens`: what it generates, if it does. `loss_chunk`: tokens of a chunk of the loss, if it is not whole.
    """

    model: ModelSpec
    tp: int
    start: int
    batch: int
    sizes: dict[str, int]
    prompt: int = 0
    new_tokens: int = 0
    loss_chunk: int | None = None
    cp: int = 1
    ep: int = 1

    @property
    def received(self) -> int | None:
        """Rows that this rank's experts get, if other ranks share them."""
        return _RECEIVED if self.ep > 1 else None

    def name(self, size: int) -> Product:
        """A size as a product of dimensions, 2s and 3s. Raises `RecordingError` if it is none."""
        left, found = size, list[str]()
        for dimension, number in self.sizes.items():
            while left % number == 0 and left:
                found.append(dimension)
                left //= number
        if not left or _without(left, 2, 3) != 1:
            raise RecordingError(f"{size} is not a product of {self.sizes}")
        return Product(left, tuple(sorted(found)))


def _without(number: int, *primes: int) -> int:
    """The number divided by these primes as often as possible."""
    for prime in primes:
        while number % prime == 0:
            number //= prime
    return number


def _chosen(structure: Structure, primes: Sequence[int]) -> tuple[dict[str, int], str]:
    """A prime for each of `_NAMES`, and what the tokens of a sequence that a rank has are called where tp does not cut them."""
    streams, shares = structure.parts.objective == "permuted", "A/G" not in structure.ones
    one_sequence, rows = structure.chunked_loss and "B" in structure.ones, "S"
    if streams:
        usual = _STREAMS["sequence" if structure.slicing == "sequence" or one_sequence else "none"]
    elif structure.context == "ulysses":
        usual, rows = _ULYSSES_SHARING if shares else _ULYSSES, "S/cp"
    elif structure.context:
        usual, rows = _CONTEXT_SHARING if shares else _CONTEXT, "S/2cp"
    else:
        usual = _SHARING if shares else _PRIMES
    chosen = dict(zip(_NAMES, primes or usual, strict=True))
    if one_sequence and not streams:
        chosen |= {"S": _CHUNKED["S"]} | ({"tp": _CHUNKED["tp"]} if f"{rows}/tp" in structure.ones else {})
    if "kv_lora_rank" in structure.sized_parts:
        chosen["D"] = _LATENT["unturned"] + 2 * _LATENT["turned"]
    return chosen | ({"D": _WIDE} if "rotary_width" in structure.sized_parts else {}), rows


def probe(structure: Structure, part: Part, primes: Sequence[int] = ()) -> Probe:
    """The probe of a part of a structure. `primes`: in place of the usual ones; the ledger must not depend on them."""
    parts, sequence = structure.parts, structure.slicing == "sequence"
    streams, shares, partly = parts.objective == "permuted", "A/G" not in structure.ones, "rotary_width" in structure.sized_parts
    latent, ulysses = "kv_lora_rank" in structure.sized_parts, structure.context == "ulysses"
    rotary = parts.position == "rotary" and not partly and not latent
    chosen, rows = _chosen(structure, primes)
    keys = "G/cp/tp" if ulysses else "G/tp"
    cuts = sequence and not streams  # with two streams the rows are sharded, which are more than the tokens
    called = {"S": f"{rows}/tp" if cuts else rows, "D": "D/2" if rotary else "D", "G/tp": keys}
    cp = _cp(structure, chosen)
    sizes = {called.get(name, name): prime for name, prime in chosen.items()}
    if structure.slicing == "none":
        del sizes["tp"]
        sizes["V/tp"] = next(rows for rows in _ROWS if rows not in chosen.values())
    if "experts" in structure.sized_parts:
        more = partly or parts.position == "sinusoidal" or "E/ep" in structure.ones
        sizes |= _MORE_EXPERTS if more else _EXPERTS
    tokens = (1 if "P" in structure.ones else _PROMPT, _TOKENS) if structure.generates else None
    if tokens is not None:
        sizes |= {"S": _FIT, "B": 1}
    sizes |= dict.fromkeys((one for one in structure.ones if one in sizes), 1)
    tp, group = sizes.get("tp", 1), _GROUP[0] if shares else 1
    start, layers, decoders = _stacks(part, parts.encoder)
    experts = _experts(structure, part, sizes, tp)
    if experts:
        start, layers = experts.pop("start"), experts.pop("layers")
    seq = sizes[called["S"]] * (tp if cuts else 1) * (cp if ulysses or cp == 1 else 2 * cp)
    key_heads = tp * sizes[keys] * (cp if ulysses else 1)
    model = ModelSpec(
        family=structure.family, layers=layers, decoder_layers=decoders, hidden=sizes["H"],
        heads=group, kv_heads=0 if latent else 1, head_dim=0 if latent else 2 * sizes["D/2"] if rotary else sizes["D"],
        ffn=tp * sizes["F/tp"], vocab=_vocabulary(structure, tp, sizes["V/tp"]), seq=seq,
        **dict(structure.chosen_parts), **_numbers(structure, seq), **experts,
    ).model_copy(update={"heads": key_heads * group, "kv_heads": key_heads * (not latent)})  # fmt: skip  # more than may be
    ep = sizes.get("ep", 1)
    assert model.vocab >= BYTE_VOCABULARY, "every token of the text has a row"
    every = dimensions(model, structure.slicing, tp, sizes["B"], tokens, None, cp, structure.context, ep)
    every |= {"M": _RECEIVED} if ep > 1 else {}
    loss_chunk = None
    if structure.chunked_loss:
        loss_chunk = 1 if "C" in structure.ones else _loss_chunk(sizes["B"] * (model.output_rows // cp), every)
        every["C"] = loss_chunk
    named = {name: size for name, size in every.items() if size > 1 and (name != QKV or shares)}
    largest = dict(sorted(named.items(), key=lambda item: -item[1]))
    prompt, every_token = tokens or (0, -1)
    return Probe(model, tp, start, sizes["B"], largest, prompt, every_token - prompt + 1, loss_chunk, cp, ep)


def _cp(structure: Structure, chosen: Mapping[str, int]) -> int:
    """Context-parallel ranks: a prime that no dimension has, but if the structure is of two ranks."""
    if not structure.context:
        return 1
    if structure.context.endswith("of 2"):
        return 2
    shared = () if "A/G" in structure.ones else _GROUP
    taken = {*chosen.values(), *shared, _WIDE, _TURNED, -(-chosen["H"] // 2)}
    return next(number for number in itertools.count(5) if _is_prime(number) and number not in taken)


def _numbers(structure: Structure, seq: int) -> dict[str, int]:
    """The fields of the model that `structure.sized_parts` names."""
    every = {
        "window": 1 if "window" in structure.sized_parts else seq,
        "rotary_local_base": 2,
        "rotary_width": 2 if "D′/2" in structure.ones else 2 * _TURNED,
        "spare_positions": next(n for n in itertools.count(max(seq, _MANY)) if _is_prime(n)) - seq,
    }
    names = {*structure.sized_parts} | ({"window"} if "rotary_local_base" in structure.sized_parts else set())
    found = {name: number for name, number in every.items() if name in names}
    if "kv_lora_rank" not in names:
        return found
    turned, unturned, latent = 2 * _LATENT["turned"], _LATENT["unturned"], _LATENT["latent"]
    values = _LATENT["values"] if "v_head_dim" in names else unturned + turned
    found |= {"kv_lora_rank": latent, "qk_nope_head_dim": unturned, "qk_rope_head_dim": turned, "v_head_dim": values}
    return found | ({"q_lora_rank": _LATENT["queries"]} if "q_lora_rank" in names else {})


def _experts(structure: Structure, part: Part, sizes: Mapping[str, int], tp: int) -> dict[str, int]:
    """The fields of a model with experts, and the chunk's first layer and the number of layers; empty for other models."""
    if "experts" not in structure.sized_parts:
        return {}
    dense, experts = part.recorded
    wanted = part.kinds or "d" * dense + "e" * experts
    first, every = int(not part.first), 1
    begins = first + dense
    if part.kinds:
        begins, every, first = next(
            (begins, every, start)
            for every, begins, start in itertools.product(
                range(1, len(wanted) + 2), range(len(wanted) + 2), range(len(wanted) + 2)
            )
            if wanted
            == "".join("e" if at >= begins and (at + 1) % every == 0 else "d" for at in range(start, start + len(wanted)))
        )
    behind = max(1, every)
    if structure.generates and part.last:  # these are the model's last layers
        behind = 0
        if "e" not in wanted:  # a layer with experts is before them
            first, every, begins = len(wanted) + 1, len(wanted) + 1, 0
    found = {
        "start": first, "layers": first + len(wanted) + behind, "dense_layers": begins, "expert_every": every,
        "experts": sizes["E/ep"] * sizes["ep"], "experts_per_token": sizes["k"], "expert_ffn": tp * sizes["X/tp"],
    }  # fmt: skip
    having = {"shared_ffn": tp * sizes["Z/tp"], "router_scale": 2, "capacity_factor": 1}
    return found | {name: value for name, value in having.items() if name in structure.sized_parts}


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, isqrt(number) + 1))


def _vocabulary(structure: Structure, tp: int, rows: int) -> int:
    return _VOCABULARY[tp] if structure.generates and tp > 1 else tp * rows


def _loss_chunk(tokens: int, sizes: Mapping[str, int]) -> int:
    """A prime that is in no other dimension, and less than `tokens`; more than half of them if there is such a one.

    Raises `RecordingError` if there is none.
    """
    for number in (*range(tokens // 2 + 1, tokens), *range(tokens // 2, 4, -1)):
        if _is_prime(number) and all(size % number for size in sizes.values()):
            return number
    raise RecordingError(f"{tokens} tokens cannot be chunks")


def _stacks(part: Part, encodes: bool) -> tuple[int, int, int]:
    """The chunk's first layer, the model's layers, and the decoder's layers among them, so that the part exists."""
    layers, decoders = part.recorded
    before, behind = int(not part.first), int(not part.last)
    if not encodes:
        return before, max(1, before + layers + behind), 0
    encoders = before + layers + int(not part.ends) if layers else 1
    all_decoders = decoders + (behind and not part.closes) or 1
    start = before if layers else encoders if decoders or not part.last else encoders + all_decoders
    return 0 if part.first else start, encoders + all_decoders, all_decoders

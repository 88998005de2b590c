"""Where gradients and ZeRO's buffers come and go while a chunk is passed: `engine.parallel.data`, in sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

from engine.predict.tape.sizes import Sizes
from engine.predict.tape.tape import Block, Gradients, Tape, Value
from engine.predict.terms import Factor
from engine.spec import sentence

Shape = tuple[Factor, ...]
Run = Callable[[tuple[Any, ...]], tuple[Any, ...]]
Owed = dict["Parameter", tuple[Callable[..., Block], Sequence[Any], int]]  # how its gradient is made, of what; in which layer
REDUCING = (sentence("gradients of a layer, this rank's share"), sentence("gradients of a layer under way"))
LAYERS = sentence("the layers")  # the name of every layer's bucket
EXPECTS, TAKES = "expects gradients", "takes a gradient"  # what is noted of a bucket


def numbers(shapes: Sequence[Shape]) -> Any:
    total: Any = 0
    for shape in shapes:
        count: Any = 1
        for factor in shape:
            count = count * factor.value
        total = total + count
    return total


class Parameter:
    """`whole`: every rank of the tp group has all of it."""

    def __init__(self, shape: Shape, whole: bool, tape: Tape, bucket: Bucket) -> None:
        self.shape, self.whole, self.bucket = shape, whole, bucket
        self.leaf = tape.leaf(lambda gradients, saved: bucket.owner.accumulate(self, gradients))


class Bucket:
    """The parameters of one layer. Its blocks' sizes are Ψ, or Ψ/dp where they are sharded."""

    def __init__(self, owner: Buckets, name: str) -> None:
        self.owner, self.name = owner, name
        self.parameters: list[Parameter] = []
        self.values: Block | None = None
        self.counted = True  # in the norm of the gradients; the table's copy at the pipeline's end is not

    def parameter(self, *shape: Factor, whole: bool = False) -> Parameter:
        p = Parameter(shape, whole, self.owner.tape, self)
        self.parameters.append(p)
        return p

    @cached_property
    def size(self) -> Factor:
        used = numbers([p.shape for p in self.parameters])
        parts = self.owner.dp.value if self.owner.zero else 1
        return Factor("Ψ", -(-used // parts) * parts)

    @cached_property
    def share(self) -> Factor:
        size = self.size
        return Factor("Ψ/dp", size.value // self.owner.dp.value) if self.owner.zero else size

    def counted_on(self, replica: int, later: bool) -> tuple[int, int]:
        """What a rank has of what counts in the norm of the gradients: of how many parameters, and how many numbers in all.

        `replica`: whose share it is. `later`: whether the rank is not the first of its tp group: these leave out what tp does not
        cut.
        """
        share = self.share.value
        begin, offset = replica * share if self.owner.zero else 0, 0
        pieces = found = 0
        for p in sorted(self.parameters, key=lambda p: not p.whole) if self.counted else ():
            size = numbers([p.shape])
            here = min(offset + size, begin + share) - max(offset, begin)
            if here > 0 and not (later and p.whole):
                pieces, found = pieces + 1, found + here
            offset += size
        return pieces, found

    # ------------------------------------------------------------------------------------------------------- gradients

    def expect(self) -> None:
        """A backward pass comes by."""
        if self.owner.zero >= 2:
            self.owner.tape.note(EXPECTS, self)

    def take(self) -> None:
        """One of its gradients has come. What follows from that depends on what came before: `engine.predict.tape.reducing`."""
        if self.owner.zero:
            self.owner.tape.note(TAKES, self)


class Buckets:
    """The buckets of one chunk."""

    def __init__(self, tape: Tape, sizes: Sizes, dp: Factor, zero: int, reduces: bool, g: Factor) -> None:
        """`reduces`: dp > 1. `g`: the width of the numbers that gradients are added up in."""
        self.tape, self.sizes, self.dp, self.zero, self.reduces, self.g = tape, sizes, dp, zero, reduces, g
        self.all: list[Bucket] = []
        self.owed: Owed | None = None

    def bucket(self, name: str) -> Bucket:
        self.all.append(Bucket(self, name))
        return self.all[-1]

    def owes(self, p: Parameter) -> bool:
        """Whether its gradient comes in W."""
        return self.owed is not None and p in self.owed

    def accumulate(self, p: Parameter, gradients: Gradients) -> Gradients:
        """A gradient that autograd brings. It is gone when this returns."""
        if not self.owes(p):
            self.add(p, gradients)
        return []

    def add(self, p: Parameter, gradients: Gradients) -> None:
        gradients.clear()
        p.bucket.take()

    def now_or_later(self, p: Parameter, compute: Callable[..., Block], *blocks: Block) -> Block | None:
        """The gradient that is made of these blocks, unless it is owed."""
        if self.owed is None:
            return compute(*blocks)
        self.owed[p] = compute, blocks, self.tape.layer
        return None

    # ---------------------------------------------------------------------------------------------------------- values

    def fetch(self, buckets: Sequence[Bucket]) -> None:
        for bucket in buckets:
            if bucket.values is None:
                bucket.values = self.tape.new("gathered weights of a layer", bucket.size, self.sizes.e, door=True)

    def enter(self, use: Use, following: Use | None) -> None:
        if self.zero < 3:
            return
        self.fetch((*use.buckets, *use.borrowed))
        if following is not None:
            self.fetch((*following.buckets, *following.borrowed))

    def leave(self, use: Use) -> None:
        self.release((*use.buckets, *use.borrowed))

    def release(self, buckets: Sequence[Bucket]) -> None:
        for bucket in buckets:
            bucket.values = None

    def tell(self, values: tuple[Any, ...], then: Callable[[], None]) -> tuple[Any, ...]:
        """`engine.parallel.data._Tell`: something to do when backward comes by."""
        node = self.tape.node(*values)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            then()
            return gradients

        node.run = run
        return tuple(Value(x.block, node, i) for i, x in enumerate(values))

    def hold(self, blocks: Iterable[Block]) -> list[Any]:
        """What hooks keep of what the chunk was fed with, for as long as they are there themselves."""
        return list(blocks)

    def through(self, uses: list[tuple[Use, Run]], streams: tuple[Any, ...]) -> tuple[Any, ...]:
        tape = self.tape
        for i, (use, run) in enumerate(uses):
            tape.at(tape.action, use.layer)
            if self.zero < 2 or not tape.grad:
                streams = run(streams)
                continue
            before = uses[i - 1][0] if i and not uses[i - 1][0].lookup else None
            after = uses[i + 1][0] if i + 1 < len(uses) else None
            if streams:
                streams = self.tell(streams, lambda use=use: self.leave(use))  # type: ignore[misc]
            self.enter(use, after)
            streams = run(streams)
            self.leave(use)
            streams = self.tell(streams, lambda use=use, before=before: self._begin_backward(use, before))  # type: ignore[misc]
        return streams

    def _begin_backward(self, use: Use, before: Use | None) -> None:
        for bucket in use.buckets:
            bucket.expect()
        if not use.lookup:
            self.enter(use, before)


class Use:
    """One use of some buckets on the way through a chunk, as its hooks know it: see `engine.parallel.data.Use`."""

    def __init__(
        self, buckets: Sequence[Bucket], layer: int = -1, borrowed: Sequence[Bucket] = (), lookup: bool = False, fed: Any = ()
    ) -> None:
        self.buckets, self.layer, self.borrowed, self.lookup, self.fed = tuple(buckets), layer, tuple(borrowed), lookup, fed

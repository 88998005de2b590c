"""The embedding and the head, in sizes: `engine.model.ends`, and the cross-entropy of `engine.parallel.tensor`."""

from __future__ import annotations

from typing import NamedTuple

from engine.predict.tape.buckets import Bucket, Parameter
from engine.predict.tape.layers import norm_parameters
from engine.predict.tape.parts import Kit
from engine.predict.tape.sizes import EIGHT, FOUR, ONE, TWO
from engine.predict.tape.tape import Block, Gradients, Value
from engine.predict.terms import Factor

TOKENS = "tokens and targets"


class Feed(NamedTuple):
    """One microbatch as it is fed: `engine.objective.Feed`."""

    tokens: Block
    targets: Block
    following: Block | None = None
    segments: Block | None = None
    positions: Block | None = None
    hidden: Block | None = None

    @property
    def blocks(self) -> list[Block]:
        return [block for block in self if block is not None]

    @classmethod
    def of(cls, kit: Kit) -> Feed:
        t, z = kit.tape, kit.sizes
        kind = z.parts.objective
        tokens, targets = t.new(TOKENS, z.B, z.R, EIGHT), t.new(TOKENS, z.B, z.T, EIGHT)
        following = t.new(TOKENS, z.B, z.S, EIGHT) if kind == "seq2seq" else None
        segments = t.new(TOKENS, z.B, z.S, EIGHT) if z.parts.segments else None
        if kind != "permuted":
            return cls(tokens, targets, following, segments)
        return cls(tokens, targets, None, None, t.new(TOKENS, z.B, z.R, EIGHT), t.new("who sees whom", z.B, z.R, z.S, ONE))


class Token:
    """The token table; it is the output matrix as well where the two are tied."""

    def __init__(self, kit: Kit, bucket: Bucket) -> None:
        self.kit, self.bucket = kit, bucket
        self.weight = bucket.parameter(kit.sizes.V, kit.sizes.H)

    def look_up(self, tokens: Block, several: tuple[Factor, ...] = ()) -> Value:
        """(B, R) → (B, s, H). `several`: a factor for more sequences than a microbatch has."""
        t, z, weight = self.kit.tape, self.kit.sizes, self.weight
        shape = (*several, z.B, z.R)
        elsewhere = None
        if z.cut:
            local = t.new("tokens of this rank's rows", *shape, EIGHT)
            bounds = [t.new("tokens of other ranks' rows", *shape, ONE) for _ in range(2)]
            elsewhere = t.new("tokens of other ranks' rows", *shape, ONE)
            bounds.clear()
            tokens = local
            del local
        node = t.node(weight.leaf) if t.grad else None
        if node is not None:
            t.save(node, tokens)
            node.run = lambda gradients, saved: [t.new("gradient of the token table", *weight.shape, z.e)]
        x = Value(t.new("embeddings", *shape, z.H, z.e), node)
        if elsewhere is None:
            return x
        return self._sum(self._hide(x, elsewhere, shape), shape, several)

    def _hide(self, x: Value, elsewhere: Block, shape: tuple[Factor, ...]) -> Value:
        t, z = self.kit.tape, self.kit.sizes
        node = t.node(x) if t.grad else None
        if node is not None:
            t.save(node, elsewhere)
            node.run = lambda gradients, saved: [t.new("gradients of the embeddings", *shape, z.H, z.e)]
        return Value(t.new("embeddings", *shape, z.H, z.e), node)

    def _sum(self, x: Value, shape: tuple[Factor, ...], several: tuple[Factor, ...]) -> Value:
        """Over tp, and cut along the sequence under sequence parallelism."""
        t, z = self.kit.tape, self.kit.sizes
        node = t.node(x) if t.grad else None
        block = x.block
        if z.sequence:
            copied = z.many or bool(several)
            parts = t.new("cut along the sequence", *shape, z.H, z.e) if copied else block
            out = t.new("embeddings", *several, z.B, z.s, z.H, z.e)
            t.touch("sum over tp under way", *shape, z.H, z.e, door=True)
            del parts
            block = out
            del out

            def run(gradients: Gradients, saved: list[Block]) -> Gradients:
                gathered = t.new("gathered along the sequence", *shape, z.H, z.e)
                return [t.new("gathered along the sequence", *shape, z.H, z.e) if copied else gathered]

            if node is not None:
                node.run = run
        return Value(block, node)


class Places:
    """Positions and segments."""

    def __init__(self, kit: Kit, bucket: Bucket) -> None:
        z = kit.sizes
        self.kit, self.bucket, self.kind = kit, bucket, z.parts.position
        self.position = bucket.parameter(Factor("S", z.model.seq), z.H, whole=True) if self.kind == "learned" else None
        self.segment = bucket.parameter(TWO, z.H, whole=True) if z.parts.segments else None

    def forward(self, x: Value, segments: Block | None, several: tuple[Factor, ...] = ()) -> Value:
        given = x  # torch's call of a module holds its arguments
        if self.position is not None:
            x = self._learned(x, self.position)
        if self.kind == "sinusoidal":
            x = self._waves(x, several)
        if self.segment is not None and segments is not None:
            x = self._segments(x, segments, self.segment)
        del given
        return x

    def _learned(self, x: Value, weight: Parameter) -> Value:
        t, z = self.kit.tape, self.kit.sizes
        out = t.new("embeddings", *z.residual)
        if not t.grad:
            return Value(out)
        rows = t.node(weight.leaf)
        rows.run = lambda gradients, saved: [t.new("gradient of the positions", *weight.shape, z.e)]
        node = t.node(x, Value(out, rows))
        node.run = lambda gradients, saved: [gradients[0], t.new("gradient of the positions", z.s, z.H, z.e)]
        return Value(out, node)

    def _segments(self, x: Value, segments: Block, weight: Parameter) -> Value:
        t, z = self.kit.tape, self.kit.sizes
        looked = t.new("embeddings", *z.residual)
        out = t.new("embeddings", *z.residual)
        if not t.grad:
            return Value(out)
        found = t.node(weight.leaf)
        t.save(found, segments)
        found.run = lambda gradients, saved: [t.new("gradient of the segments", *weight.shape, z.e)]
        node = t.node(x, Value(looked, found))
        node.run = lambda gradients, saved: [gradients[0], gradients[0]]
        return Value(out, node)

    def _waves(self, x: Value, several: tuple[Factor, ...]) -> Value:
        t, z = self.kit.tape, self.kit.sizes
        places = t.new("positions", z.s, EIGHT)
        waves = sinusoid(self.kit, z.s)
        if z.wide:
            waves = t.new("waves", z.s, z.H, z.e)
        out = t.new("embeddings", *several, *z.residual)
        del waves, places
        if not t.grad:
            return Value(out)
        node = t.node(x)
        node.run = lambda gradients, saved: [t.new("gradients of the embeddings", *several, *z.residual)]
        return Value(out, node)


def sinusoid(kit: Kit, rows: Factor) -> Block:
    """`engine.model.position.sinusoid`: (rows, H) in fp32."""
    t, z = kit.tape, kit.sizes
    half = Factor("⌈H/2⌉", -(-z.H.value // 2))
    exponents = t.new("waves", half, FOUR)
    angles = t.new("waves", rows, half, FOUR)
    both = [t.new("waves", rows, half, FOUR) for _ in range(2)]
    out = t.new("waves", rows, TWO, half, FOUR)
    both.clear()
    del exponents, angles
    return out


class Head:
    def __init__(self, kit: Kit, bucket: Bucket) -> None:
        z = kit.sizes
        self.kit, kind = kit, z.parts.head
        self.transform = (
            (bucket.parameter(z.H, z.H, whole=True), bucket.parameter(z.H, whole=True)) if kind == "transform" else None
        )
        self.norm = [] if kind == "bare" else norm_parameters(kit, bucket)
        self.output = None if z.parts.tied else bucket.parameter(z.V, z.H)
        self.bias = bucket.parameter(z.V) if z.parts.output_bias else None

    def loss(self, x: Value, table: Token | None, targets: Block, looked_up: bool) -> Value:
        t, z = self.kit.tape, self.kit.sizes
        logits = self.logits(x, table, looked_up)
        if z.wide:
            node = t.node(logits)
            node.run = lambda gradients, saved: [t.new("gradients of the logits", z.B, z.T, z.V, z.e)]
            logits = Value(t.new("softmax of the logits", z.B, z.T, z.V, FOUR), node)
            del node
        return self.cross_entropy(logits, targets)

    def logits(self, x: Value, table: Token | None, looked_up: bool = False) -> Value:
        z, kit = self.kit.sizes, self.kit
        if self.transform is not None:
            x = self._transform(x, *self.transform)
        if self.norm:
            x = kit.norm(x, self.norm)
        weight = self.output
        if weight is None:
            assert table is not None
            weight = table.weight
        first = z.parts.objective == "permuted"
        name = "logits" if z.wide else "softmax of the logits"
        return kit.column(x, weight, self.bias, (z.B, z.T), name, first=first, later=not looked_up)

    def _transform(self, x: Value, weight: Parameter, bias: Parameter) -> Value:
        """Linear and GELU, whole on every rank, by torch's own functions."""
        t, z = self.kit.tape, self.kit.sizes
        node = t.node(x, weight.leaf, bias.leaf)
        t.save(node, x.block)
        y = Value(t.new("inside the head", *z.residual), node)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            for_bias = t.new("gradients of biases and norms", z.H, z.e)
            for_input = t.new("gradients on their way", *z.residual)
            for_weight = t.new("gradient of a weight", *weight.shape, z.e)
            return [for_input, for_weight, for_bias]

        node.run = run
        curve = t.node(y)
        t.save(curve, y.block)
        curve.run = lambda gradients, saved: [t.new("gradients on their way", *z.residual)]
        return Value(t.new("inside the head", *z.residual), curve)

    def cross_entropy(self, logits: Value, targets: Block) -> Value:
        t, z = self.kit.tape, self.kit.sizes
        kind = z.parts.objective
        row = (z.B, z.T)
        softmax = logits.block
        node = t.node(logits)
        del logits
        t.touch("numbers of one element", FOUR)
        largest = t.new("the loss of each token", *row, FOUR)
        local = t.new("targets of this rank's columns", *row, EIGHT)
        bounds = [t.new("targets of other ranks' columns", *row, ONE) for _ in range(2)]
        elsewhere = t.new("targets of other ranks' columns", *row, ONE)
        bounds.clear()
        at_target = t.new("the loss of each token", *row, FOUR)
        total = t.new("the loss of each token", *row, FOUR)
        sums = t.new("the loss of each token", TWO, *row, FOUR)
        del total
        log = t.new("the loss of each token", *row, FOUR)
        losses = t.new("the loss of each token", *row, FOUR)
        del log
        nothing = t.new("tokens without a target", *row, ONE) if kind == "masked" else None
        loss = t.new("numbers of one element", FOUR)
        if nothing is None:
            scalars = [t.new("numbers of one element", EIGHT), t.new("numbers of one element", FOUR)]
            scalars.clear()
        node.kept = nothing
        del largest, at_target, sums, losses
        t.save(node, softmax, local, elsewhere)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            softmax, _local, _elsewhere = saved
            inverse = t.new("targets of other ranks' columns", *row, ONE)
            hit = t.new("targets of this rank's columns", *row, FOUR)
            del inverse
            t.touch("targets of this rank's columns", *row, FOUR)
            scalars = [t.new("numbers of one element", n) for n in (EIGHT, FOUR, FOUR)]
            del scalars, hit
            return [softmax]

        node.run = run
        return Value(loss, node)


def scaled(kit: Kit, loss: Value) -> Value:
    """The loss, divided by the number of microbatches and replicas."""
    t = kit.tape
    node = t.node(loss)
    t.save(node, t.new("numbers of one element", EIGHT))
    scalar = t.new("numbers of one element", FOUR)
    out = t.new("numbers of one element", FOUR)
    del scalar

    def run(gradients: Gradients, saved: list[Block]) -> Gradients:
        scalar = t.new("numbers of one element", FOUR)
        out = t.new("numbers of one element", FOUR)
        del scalar
        return [out]

    node.run = run
    return Value(out, node)

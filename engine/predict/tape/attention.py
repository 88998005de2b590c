"""Attention of every kind, in sizes: `engine.model.attention`."""

from __future__ import annotations

from collections.abc import Callable

from engine.predict.tape.buckets import Bucket, Parameter
from engine.predict.tape.parts import Around, Kit
from engine.predict.tape.sizes import EIGHT, FOUR, ONE
from engine.predict.tape.tape import Block, Gradients, Value
from engine.predict.terms import Factor


class Attention:
    def __init__(self, kit: Kit, bucket: Bucket, causal: bool, cross: bool = False) -> None:
        self.kit, self.causal, self.cross = kit, causal, cross
        z = kit.sizes
        queries = Factor("A/tp · D" if z.cut else "A · D", z.A.value * z.D.value)
        keys = Factor("2 G/tp · D" if z.cut else "2 G · D", 2 * z.G.value * z.D.value)
        both = Factor("(A + 2 G)/tp · D" if z.cut else "(A + 2 G) · D", queries.value + keys.value)
        bias = z.parts.attention_bias
        inputs = (queries, keys) if cross else (both,)
        self.projections = [(bucket.parameter(n, z.H), bucket.parameter(n) if bias else None) for n in inputs]
        if z.parts.position == "relative":
            self.distance = bucket.parameter(queries, z.H)
            self.biases = [bucket.parameter(z.A, z.D) for _ in range(2)]
            self.waves = Factor("2 S − 1", 2 * z.S.value - 1)
        self.out = bucket.parameter(z.H, queries)
        self.out_bias = bucket.parameter(z.H, whole=True) if bias else None

    def project(self, x: Value, which: int = 0) -> Value:
        z = self.kit.sizes
        weight, bias = self.projections[which]
        return self.kit.column(x, weight, bias, (z.B, z.R), "queries, keys and values")

    def split(self, x: Value, parts: list[tuple[bool, str]]) -> list[Value]:
        """Heads of one tensor, as views. Each part: whether its gradient must be copied, and "q" or "k"."""
        t, z = self.kit.tape, self.kit.sizes
        if not t.grad:
            return [x for _ in parts]
        node = t.node(x)
        shape = x.block.record.factors

        def join(gradients: Gradients, saved: list[Block]) -> Gradients:
            return [t.new("gradients of queries, keys and values", *shape)]

        node.run = join
        values = []
        for slot, (copied, kind) in enumerate(parts):
            view = t.node(Value(x.block, node, slot))
            if copied:
                heads = z.A if kind == "q" else z.G

                def copy(gradients: Gradients, saved: list[Block], heads: Factor = heads) -> Gradients:
                    return [t.new("gradients of queries, keys and values", z.B, z.R, heads, z.D, z.e)]

                view.run = copy
            values.append(Value(x.block, view))
        return values

    def leave(self, mix: Callable[..., Value], *inputs: Value) -> Value:
        t, z = self.kit.tape, self.kit.sizes
        mixed = t.checkpoint(mix, *inputs) if z.recompute == "selective" else mix(*inputs)
        return self._out(self._join(mixed))

    def _join(self, mixed: Value) -> Value:
        """(B, A, R, D) → (B, R, A · D): a copy, and its gradient as well where it cannot be a view."""
        t, z = self.kit.tape, self.kit.sizes
        if not z.heads:
            return t.view(mixed)
        block = t.new("mixed values", z.B, z.R, z.A, z.D, z.e)
        return Value(block, t.node(mixed)) if t.grad else Value(block)

    def _out(self, x: Value) -> Value:
        return self.kit.bias(self.kit.row(x, self.out, "outputs of attention"), self.out_bias, "outputs of attention")

    def forward(self, x: Value, around: Around) -> Value:
        z = self.kit.sizes
        if z.parts.position == "relative":
            return self.forward_relative(x, around)
        turned = around.rotation is not None
        qkv = self.project(x)
        q, k, v = self.split(qkv, [(z.heads, "q"), (z.groups and turned, "k"), (z.groups, "k")])
        del qkv
        if turned:
            q, k = self.rotate(q, z.A, around), self.rotate(k, z.G, around)
        if around.cache is not None:
            k, v = Value(around.cache), Value(around.cache)
        return self.leave(lambda q, k, v: self.attend(q, k, v, turned), q, k, v)

    def forward_cross(self, x: Value, memory: Value) -> Value:
        z = self.kit.sizes
        (q,) = self.split(self.project(x), [(z.heads, "q")])
        k, v = self.split(self.project(memory, 1), [(False, "k"), (z.groups, "k")])
        return self.leave(lambda q, k, v: self.attend(q, k, v, False), q, k, v)

    def rotate(self, x: Value, heads: Factor, around: Around) -> Value:
        t, z = self.kit.tape, self.kit.sizes
        assert around.rotation is not None
        half = (z.B, heads, z.R, z.half, FOUR)

        def turn() -> Block:
            halves = []
            for _ in range(2):
                products = [t.new("queries or keys, being turned", *half) for _ in range(2)]
                halves.append(t.new("queries or keys, being turned", *half))
                products.clear()
            out = t.new("turned queries and keys", z.B, heads, z.R, z.D, FOUR)
            del halves
            return t.new("turned queries and keys", z.B, heads, z.R, z.D, z.e) if z.wide else out

        node = t.node(x) if t.grad else None
        out = turn()
        if node is None:
            return Value(out)
        t.save(node, *around.rotation)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            negative = t.new("angles", z.S, z.half, FOUR)
            turned = turn()
            del negative
            return [turned]

        node.run = run
        return Value(out, node)

    def forward_relative(self, x: Value, around: Around) -> Value:
        _t, z = self.kit.tape, self.kit.sizes
        q, k, v = self.split(self.project(x), [(z.heads, "q")] * 3)
        (r,) = self.split(self.projected(around), [(False, "k")])
        return self.leave(lambda *inputs: self.attend_relative(around, *inputs), q, self.tokens(k), self.tokens(v), r)

    def projected(self, around: Around) -> Value:
        """The waves on this rank's heads, by torch's own linear layer."""
        t, z = self.kit.tape, self.kit.sizes
        assert around.waves is not None
        node = t.node(self.distance.leaf)
        t.save(node, around.waves)
        columns, inputs = self.distance.shape
        node.run = lambda gradients, saved: [t.new("gradient of a weight", columns, inputs, z.e)]
        return Value(t.new("projected waves", self.waves, z.A, z.D, z.e), node)

    def tokens(self, x: Value) -> Value:
        """The rows that are tokens and no queries: a view."""
        t, z = self.kit.tape, self.kit.sizes
        node = t.node(x)
        node.run = lambda gradients, saved: [t.new("gradients of queries, keys and values", z.B, z.R, z.A, z.D, z.e)]
        return Value(x.block, node)

    # ------------------------------------------------------------------------------------------------ attention proper

    def attend_relative(self, around: Around, q: Value, k: Value, v: Value, r: Value) -> Value:
        _t, z = self.kit.tape, self.kit.sizes
        folds = z.many and z.heads
        by_content = self.product(q, self.biases[0], self.folded(k, z.S, (z.B,)) if folds else k, z.S)
        by_distance = self.product(q, self.biases[1], self.folded(r, self.waves, (z.B,)) if folds else r, self.waves, shared=True)
        scores = self.masked_relative(self.scaled(self.added(by_content, by_distance, around)), around)
        values = self.folded(v, z.S, (z.B,)) if folds else v
        return self.unfold(self.mixed(self.softmax(scores), values), False)

    def folded(self, x: Value, rows: Factor, several: tuple[Factor, ...]) -> Value:
        t, z = self.kit.tape, self.kit.sizes
        return Value(t.new("queries, keys and values, head by head", *several, rows, z.A, z.D, z.e), t.node(x))

    def product(self, q: Value, bias: Parameter, k: Value, columns: Factor, shared: bool = False) -> Value:
        """(q + bias) kᵀ. `shared`: k is the same for every sequence."""
        t, z = self.kit.tape, self.kit.sizes
        rows = (z.B, z.R, z.A, z.D, z.e)
        add = t.node(q, bias.leaf)
        add.run = lambda gradients, saved: [gradients[0], t.new("gradients of biases and norms", *bias.shape, z.e)]
        shifted = Value(t.new("queries with a bias", *rows), add)
        left = self.copied(shifted, z.A) if z.many and z.heads else shifted
        node = t.node(left, k)
        t.save(node, left.block, k.block)
        del left
        out = t.new("scores", z.B, z.A, z.R, columns, z.e)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            for_key = t.new("gradients of queries, keys and values", z.B, columns, z.A, z.D, z.e)
            for_query = t.new("gradients of queries, keys and values", *rows)
            if shared and z.many:
                for_key = t.new("gradients of queries, keys and values", columns, z.A, z.D, z.e)
            return [for_query, for_key]

        node.run = run
        return Value(out, node)

    def added(self, by_content: Value, by_distance: Value, around: Around) -> Value:
        """Each row's scores by distance, looked up and added in place."""
        t = self.kit.tape
        assert around.distance is not None
        shape = by_distance.block.record.factors
        gather = t.node(by_distance)
        t.save(gather, by_distance.block, around.distance)
        gather.run = lambda gradients, saved: [t.new("gradients of the scores", *shape)]
        gathered = Value(t.new("scores", *self.square()), gather)
        node = t.node(by_content, gathered)
        node.run = lambda gradients, saved: [gradients[0], gradients[0]]
        return Value(by_content.block, node)

    def masked_relative(self, scores: Value, around: Around) -> Value:
        t = self.kit.tape
        assert around.hidden is not None
        node = t.node(scores)
        t.save(node, around.hidden)
        node.run = lambda gradients, saved: [t.new("gradients of the scores", *self.square())]
        return Value(scores.block, node)

    def attend(self, q: Value, k: Value, v: Value, turned: bool) -> Value:
        """`turned`: q and k lie in memory head by head."""
        t, z = self.kit.tape, self.kit.sizes
        shared = z.model.heads != z.model.key_heads
        folds = z.many and z.groups
        if shared and z.heads and not turned:
            q = self.copied(q, z.A)
        left = self.copied(q, z.A) if folds and not turned and not shared else q
        scores = self.scores(left, self.copied(k, z.G) if folds and not turned else k)
        del left
        scores = self.scaled(scores)
        future = None
        if self.causal:
            future = t.new("mask of the future", z.R, z.S, ONE)
            scores = self.masked(scores, future)
        values = self.copied(v, z.G) if folds else v
        mixed = self.unfold(self.mixed(self.softmax(scores), values), shared)
        del future
        return mixed

    def copied(self, x: Value, heads: Factor) -> Value:
        t, z = self.kit.tape, self.kit.sizes
        block = t.new("queries, keys and values, head by head", z.B, z.R, heads, z.D, z.e)
        return Value(block, t.node(x)) if t.grad else Value(block)

    def square(self) -> tuple[Factor, ...]:
        z = self.kit.sizes
        return (z.B, z.A, z.R, z.S, z.e)

    def scores(self, q: Value, k: Value) -> Value:
        t, z = self.kit.tape, self.kit.sizes
        node = t.node(q, k) if t.grad else None
        if node is not None:
            t.save(node, q.block, k.block)
        out = t.new("scores", *self.square())
        if node is None:
            return Value(out)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            for_key = t.new("gradients of queries, keys and values", z.B, z.S, z.G, z.D, z.e)
            for_query = t.new("gradients of queries, keys and values", z.B, z.R, z.A, z.D, z.e)
            return [for_query, for_key]

        node.run = run
        return Value(out, node)

    def scaled(self, scores: Value) -> Value:
        """In place. Autograd keeps the factor, as a double."""
        t, z = self.kit.tape, self.kit.sizes
        scale = t.new("the factor 1/√D", EIGHT)
        t.touch("the factor 1/√D", z.e)
        if not t.grad:
            return scores
        node = t.node(scores)
        t.save_number(node, scale)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            scale = t.new("the factor 1/√D", z.e)
            out = t.new("gradients of the scores", *self.square())
            del scale
            return [out]

        node.run = run
        return Value(scores.block, node)

    def masked(self, scores: Value, future: Block) -> Value:
        """In place, on a view of the scores, which autograd goes back through in copies of all of them."""
        t = self.kit.tape
        if not t.grad:
            return scores
        node = t.node(scores)
        t.save(node, future)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            out = t.new("gradients of the scores", *self.square())
            copies = [t.new("gradients of the scores", *self.square()) for _ in range(2)]
            copies.clear()
            return [out]

        node.run = run
        view = t.node(Value(scores.block, node))
        view.run = lambda gradients, saved: [t.new("gradients of the scores", *self.square())]
        return Value(scores.block, view)

    def softmax(self, scores: Value) -> Value:
        t = self.kit.tape
        node = t.node(scores) if t.grad else None
        out = t.new("softmax of the scores", *self.square())
        if node is None:
            return Value(out)
        t.save(node, out)
        node.run = lambda gradients, saved: [t.new("gradients of the scores", *self.square())]
        return Value(out, node)

    def mixed(self, softmax: Value, v: Value) -> Value:
        t, z = self.kit.tape, self.kit.sizes
        node = t.node(softmax, v) if t.grad else None
        if node is not None:
            t.save(node, softmax.block, v.block)
        out = t.new("mixed values", z.B, z.R, z.A, z.D, z.e)
        if node is None:
            return Value(out)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            for_value = t.new("gradients of queries, keys and values", z.B, z.S, z.G, z.D, z.e)
            for_softmax = t.new("gradients of the scores", *self.square())
            return [for_softmax, for_value]

        node.run = run
        return Value(out, node)

    def unfold(self, mixed: Value, shared: bool) -> Value:
        """Back to one head after the other: a view, whose gradient is copied where heads lie apart."""
        t, z = self.kit.tape, self.kit.sizes
        if not t.grad:
            return mixed
        node = t.node(mixed)
        if (z.many or shared) and z.heads:
            node.run = lambda gradients, saved: [t.new("gradients of queries, keys and values", z.B, z.R, z.A, z.D, z.e)]
        return Value(mixed.block, node)

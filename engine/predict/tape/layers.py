"""A layer, put together from the parts that its family names, in sizes: `engine.model.layers`."""

from __future__ import annotations

from collections.abc import Callable

from engine.predict.tape.attention import Attention
from engine.predict.tape.buckets import Bucket, Parameter
from engine.predict.tape.parts import Around, Kit
from engine.predict.tape.sizes import TWO
from engine.predict.tape.tape import Block, Gradients, Value
from engine.predict.terms import Factor


def norm_parameters(kit: Kit, bucket: Bucket) -> list[Parameter]:
    return [bucket.parameter(kit.sizes.H, whole=True) for _ in range(kit.sizes.parts.norm_vectors)]


class MLP:
    def __init__(self, kit: Kit, bucket: Bucket) -> None:
        z = kit.sizes
        self.kit, self.kind = kit, z.parts.inner
        bias = z.parts.mlp_bias
        gated = self.kind == "swiglu"
        inner = Factor(f"2 {z.F.symbol}", 2 * z.F.value) if gated else z.F
        self.inner, self.inner_bias = bucket.parameter(inner, z.H), bucket.parameter(inner) if bias else None
        self.out, self.out_bias = bucket.parameter(z.H, z.F), bucket.parameter(z.H, whole=True) if bias else None

    def forward(self, x: Value) -> Value:
        z, kit = self.kit.sizes, self.kit
        between = self._gated if self.kind == "swiglu" else self._curved
        out = kit.row(
            between(kit.column(x, self.inner, self.inner_bias, (z.B, z.R), "inside the MLP")), self.out, "outputs of the MLP"
        )
        return kit.bias(out, self.out_bias, "outputs of the MLP")

    def _curved(self, x: Value) -> Value:
        """GELU keeps what it reads, ReLU what it gives."""
        t, z = self.kit.tape, self.kit.sizes
        node = t.node(x) if t.grad else None
        if node is not None and self.kind != "relu":
            t.save(node, x.block)
        shape = (z.B, z.R, z.F, z.e)
        out = t.new("inside the MLP", *shape)
        if node is None:
            return Value(out)
        if self.kind == "relu":
            t.save(node, out)
        node.run = lambda gradients, saved: [t.new("gradients inside the MLP", *shape)]
        return Value(out, node)

    def _gated(self, x: Value) -> Value:
        t, z = self.kit.tape, self.kit.sizes
        shape = (z.B, z.R, z.F, z.e)

        def gradient() -> Block:
            return t.new("gradients inside the MLP", *shape)

        if not t.grad:
            silu = Value(t.new("inside the MLP", *shape))
            return Value(t.new("inside the MLP", *shape))
        halves = t.node(x)
        halves.run = lambda gradients, saved: [t.new("gradients inside the MLP", z.B, z.R, TWO, z.F, z.e)]
        gate, up = (Value(x.block, halves, i) for i in range(2))
        node = t.node(gate)
        t.save(node, x.block)
        silu = Value(t.new("inside the MLP", *shape), node)
        node.run = lambda gradients, saved: [gradient()]
        product = t.node(silu, up)
        t.save(product, silu.block, up.block)
        out = t.new("inside the MLP", *shape)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            for_up = gradient()
            return [gradient(), for_up]

        product.run = run
        return Value(out, product)


class Layer:
    def __init__(self, kit: Kit, bucket: Bucket, decodes: bool) -> None:
        parts = kit.sizes.parts
        self.kit, self.pre = kit, parts.placement == "pre"
        self.attention_norm = norm_parameters(kit, bucket)
        self.attention = Attention(kit, bucket, causal=decodes or parts.objective == "causal")
        self.cross_norm = norm_parameters(kit, bucket) if decodes else []
        self.cross = Attention(kit, bucket, False, cross=True) if decodes else None
        self.mlp_norm = norm_parameters(kit, bucket)
        self.mlp = MLP(kit, bucket)

    def forward(self, x: Value, around: Around, memory: Value | None = None) -> Value:
        x = self._residual(x, self.attention_norm, lambda y: self.attention.forward(y, around))
        if self.cross is not None:
            cross = self.cross
            assert memory is not None
            x = self._residual(x, self.cross_norm, lambda y: cross.forward_cross(y, memory))
        return self._residual(x, self.mlp_norm, self.mlp.forward)

    def _residual(self, x: Value, norm: list[Parameter], block: Callable[[Value], Value]) -> Value:
        kit = self.kit
        if self.pre:
            return kit.add(x, block(kit.norm(x, norm)), "residual stream")
        return kit.norm(kit.add(x, block(x), "residual stream"), norm)

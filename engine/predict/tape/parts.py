"""Linear layers cut over tp, norms and sums, in sizes: `engine.parallel.tensor` and `engine.model.norm`."""

from __future__ import annotations

from typing import NamedTuple

from engine.predict.tape.buckets import Buckets, Parameter, Shape
from engine.predict.tape.sizes import FOUR, Sizes
from engine.predict.tape.tape import Block, Gradients, Tape, Value


class Around(NamedTuple):
    """What the layers of a chunk share in one pass."""

    rotation: tuple[Block, Block] | None = None
    hidden: Block | None = None
    waves: Block | None = None
    distance: Block | None = None
    cache: Block | None = None  # when generating

    @property
    def blocks(self) -> list[Block]:
        return [x for x in (*(self.rotation or ()), self.hidden, self.waves, self.distance) if x is not None]


class Kit:
    """What every part needs: the tape, the sizes, the buckets."""

    def __init__(self, tape: Tape, sizes: Sizes, buckets: Buckets) -> None:
        self.tape, self.sizes, self.buckets = tape, sizes, buckets

    # ------------------------------------------------------------------------------------------ tensor parallel

    def gather_sequence(self, x: Block) -> Block:
        z, t = self.sizes, self.tape
        parts = t.new("gathered along the sequence", *z.full)
        return t.new("gathered along the sequence", *z.full) if z.many else parts

    def scatter_sequence(self, x: Block) -> Block:
        z, t = self.sizes, self.tape
        parts = t.new("cut along the sequence", *z.full) if z.many else x
        out = t.new("sum over tp, cut along the sequence", *z.residual)
        t.touch("sum over tp under way", *z.full, door=True)
        del parts
        return out

    def enter(self, x: Block) -> Block:
        return self.gather_sequence(x) if self.sizes.sequence else x

    def leave(self, x: Block) -> Block:
        return self.scatter_sequence(x) if self.sizes.sequence else x

    # ---------------------------------------------------------------------------------------------------- sums

    def add(self, x: Value, y: Value, name: str) -> Value:
        out = self.tape.new(name, *self.sizes.residual)
        return Value(out, self._twice(x, y))

    def _twice(self, x: Value, y: Value):  # type: ignore[no-untyped-def]
        if not self.tape.grad:
            return None
        node = self.tape.node(x, y)
        node.run = lambda gradients, saved: [gradients[0], gradients[0]]
        return node

    def bias(self, y: Value, bias: Parameter | None, name: str) -> Value:
        if bias is None:
            return y
        t = self.tape
        out = t.new(name, *self.sizes.residual)
        if not t.grad:
            return Value(out)
        node = t.node(y, bias.leaf)
        e = self.sizes.e

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            return [gradients[0], t.new("gradients of biases and norms", *bias.shape, e)]

        node.run = run
        return Value(out, node)

    # -------------------------------------------------------------------------------------------------- linear

    def column(
        self, x: Value, weight: Parameter, bias: Parameter | None, rows: Shape, name: str, first: bool = False, later: bool = True
    ) -> Value:
        """y = x Wᵀ + b, the outputs cut over tp. `rows`: those of y. `first`: they are the last. `later`: W may compute."""
        t, z = self.tape, self.sizes
        outputs, inputs = weight.shape
        node = t.node(x, weight.leaf, None if bias is None else bias.leaf) if t.grad else None
        entered = self.enter(x.block)
        if first and z.many and bias is not None:
            entered = t.new("rows that are predicted from", *rows, inputs, z.e)
        y = t.new(name, *rows, outputs, z.e)
        del entered
        if node is None:
            return Value(y)
        t.save(node, x.block)

        def for_weight(gradient: Block, kept: Block) -> Block:
            entered = self.enter(kept)
            copied = t.new("rows that are predicted from", *rows, inputs, z.e) if first and z.many else None
            out = t.new("gradient of a weight", *weight.shape, z.e)
            del entered, copied
            return out

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            (gradient,), (kept,) = gradients, saved
            assert gradient is not None
            partial = t.new("gradients on their way", *rows, inputs, z.e)
            padded = t.new("gradients on their way", *z.full) if first else partial
            for_input = self.leave(padded)
            del padded
            grad_weight = self.buckets.now_or_later(weight, for_weight, gradient, kept) if later else for_weight(gradient, kept)
            if bias is None:
                return [for_input, grad_weight, None]
            return [for_input, grad_weight, t.new("gradients of biases and norms", *bias.shape, z.e)]

        node.run = run
        return Value(y, node)

    def row(self, x: Value, weight: Parameter, name: str) -> Value:
        """y = Σ over tp of x Wᵀ."""
        t, z = self.tape, self.sizes
        _, inputs = weight.shape
        node = t.node(x, weight.leaf) if t.grad else None
        y = t.new(name, *z.full)
        y = self.leave(y)
        if node is None:
            return Value(y)
        t.save(node, x.block)

        def for_weight(whole: Block, kept: Block) -> Block:
            return t.new("gradient of a weight", *weight.shape, z.e)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            (gradient,), (kept,) = gradients, saved
            assert gradient is not None
            whole = self.enter(gradient)
            for_input = t.new("gradients on their way", z.B, z.R, inputs, z.e)
            return [for_input, self.buckets.now_or_later(weight, for_weight, whole, kept)]

        node.run = run
        return Value(y, node)

    # --------------------------------------------------------------------------------------------------- norms

    def norm(self, x: Value, parameters: list[Parameter]) -> Value:
        if len(parameters) == 1:
            return self._rms(x, *parameters)
        return self._wide_layer(x, *parameters) if self.sizes.wide else self._layer(x, *parameters)

    def _layer(self, x: Value, weight: Parameter, bias: Parameter) -> Value:
        t, z = self.tape, self.sizes
        node = t.node(x, weight.leaf, bias.leaf) if t.grad else None
        if node is not None:
            t.save(node, x.block)
        y = t.new("outputs of norms", *z.residual)
        mean, spread = (t.new("mean and spread of each row", *z.rows, FOUR) for _ in range(2))
        if node is None:
            return Value(y)
        t.save(node, mean, spread)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            out = [t.new("gradients on their way", *z.residual)]
            out += [t.new("gradients of biases and norms", z.H, FOUR) for _ in range(2)]
            return list(out)

        node.run = run
        return Value(y, node)

    def _wide_layer(self, x: Value, weight: Parameter, bias: Parameter) -> Value:
        t, z = self.tape, self.sizes
        fp32 = (*z.rows, z.H, FOUR)
        node = t.node(x, weight.leaf, bias.leaf) if t.grad else None
        arguments = [t.new("inputs of a norm as fp32", *fp32), *(t.new("weights of a norm as fp32", z.H, FOUR) for _ in range(2))]
        wide = t.new("outputs of a norm as fp32", *fp32)
        mean, spread = (t.new("mean and spread of each row", *z.rows, FOUR) for _ in range(2))
        arguments.clear()
        y = t.new("outputs of norms", *z.residual)
        del wide
        if node is None:
            return Value(y)
        t.save(node, x.block, mean, spread)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            wide = t.new("weights of a norm as fp32", z.H, FOUR)
            arguments = [t.new("inputs of a norm as fp32", *fp32) for _ in range(2)]
            first = [t.new("gradients on their way, as fp32", *fp32)]
            first += [t.new("gradients of biases and norms, as fp32", z.H, FOUR) for _ in range(2)]
            arguments.clear()
            out = [t.new("gradients on their way", *z.residual)]
            out += [t.new("gradients of biases and norms", z.H, z.e) for _ in range(2)]
            del wide, first
            return list(out)

        node.run = run
        return Value(y, node)

    def _rms(self, x: Value, weight: Parameter) -> Value:
        t, z = self.tape, self.sizes
        fp32 = (*z.rows, z.H, FOUR)

        def as_fp32(block: Block) -> Block:
            return t.new("inputs of a norm as fp32", *fp32) if z.wide else block

        node = t.node(x, weight.leaf) if t.grad else None
        wide = as_fp32(x.block)
        square = t.new("inputs of a norm, squared", *fp32)
        scale = t.new("mean and spread of each row", *z.rows, FOUR)
        del square
        y = t.new("outputs of norms", *fp32)
        y = t.new("outputs of norms", *z.residual) if z.wide else y
        del wide
        if node is None:
            return Value(y)
        t.save(node, x.block, scale)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            (gradient,), (kept, _scale) = gradients, saved
            assert gradient is not None
            again = as_fp32(kept)
            normal = t.new("inputs of a norm, scaled", *fp32)
            del again
            wide = as_fp32(gradient)
            product = t.new("gradients on their way, as fp32", *fp32)
            for_weight = t.new("gradients of biases and norms", z.H, FOUR)
            del product
            if z.wide:
                for_weight = t.new("gradients of biases and norms", z.H, z.e)
            wide = t.new("gradients on their way, as fp32", *fp32)
            product = t.new("gradients on their way, as fp32", *fp32)
            mean = t.new("mean and spread of each row", *z.rows, FOUR)
            del product
            product = t.new("gradients on their way, as fp32", *fp32)
            del mean
            for_input = t.new("gradients on their way", *fp32)
            del product
            if z.wide:
                for_input = t.new("gradients on their way", *z.residual)
            del normal, wide
            return [for_input, for_weight]

        node.run = run
        return Value(y, node)

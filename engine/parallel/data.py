"""Data parallelism: what happens to a chunk's gradients between backward and the optimizer's step.

The parameters of one layer form a bucket: one flat tensor of values and one of gradients, of which the parameters and
their gradients are views. A bucket is averaged over dp in one collective, started the moment its last gradient of the
step is there, so that it runs beside the rest of the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from engine.parallel.comm import Comm, Pending


class Bucket:
    """The parameters of one layer, flat. `values` and `gradients` have one entry a parameter element."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        size = sum(p.numel() for p in parameters)
        self.values = torch.empty(size, dtype=parameters[0].dtype, device=parameters[0].device)
        self.gradients = torch.zeros_like(self.values)
        self.missing = 0  # gradients that are still to come in the last backward of this step
        offset = 0
        for p in parameters:
            here = slice(offset, offset + p.numel())
            self.values[here].copy_(p.detach().flatten())
            p.data = self.values[here].view(p.shape)
            # Autograd adds into a gradient that is already there, so this view stays what backward writes to.
            p.grad = self.gradients[here].view(p.shape)
            offset += p.numel()

    def clear(self) -> None:
        self.gradients.zero_()


class GradientAverager:
    """Averages the gradients of one rank's chunks over dp, bucket by bucket.

    The loss of each replica is divided by dp before backward, so that the average is a plain sum.
    """

    def __init__(self, chunks: dict[int, list[list[nn.Parameter]]], comm: Comm) -> None:
        """`chunks[c]` lists the parameters of each layer of chunk c."""
        self.comm = comm
        self.buckets = {chunk: [Bucket(layer) for layer in layers] for chunk, layers in chunks.items()}
        self._started: dict[int, list[Pending]] = {}
        if comm.mesh.dp > 1:
            for chunk, buckets in self.buckets.items():
                for bucket in buckets:
                    for p in bucket.parameters:
                        p.register_post_accumulate_grad_hook(self._arrival(chunk, bucket))

    def all_buckets(self) -> Iterable[Bucket]:
        return (bucket for buckets in self.buckets.values() for bucket in buckets)

    def clear(self) -> None:
        """Set all gradients to zero; the start of a step."""
        for bucket in self.all_buckets():
            bucket.clear()

    def expect_last_backward(self, chunk: int) -> None:
        """From now on, gradients of `chunk` are final as they arrive."""
        self._started[chunk] = []
        for bucket in self.buckets[chunk]:
            bucket.missing = len(bucket.parameters)

    def finish(self, chunk: int) -> None:
        """Wait until every bucket of `chunk` is averaged."""
        for pending in self._started.pop(chunk):
            pending.wait()

    def _arrival(self, chunk: int, bucket: Bucket) -> Callable[[Tensor], None]:
        def arrived(_: Tensor) -> None:
            if chunk in self._started:
                bucket.missing -= 1
                if bucket.missing == 0:
                    self._started[chunk].append(self.comm.start_all_reduce(bucket.gradients, "dp"))

        return arrived

"""The sizes of a bucket: the parameters of one layer, of an embedding or of the head, in one flat buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from engine.ledger.dimensions import value
from engine.ledger.form import Part, RecordedBucket
from engine.ledger.words import bucket_in_words
from engine.terms import Factor


class BucketSizes:
    """Numbers of a bucket on a rank: Ψ, and Ψ/dp or Ψ/z where ZeRO shards it; sizes may be arrays of layouts."""

    def __init__(
        self,
        bucket: RecordedBucket,
        part: Part,
        sizes: Mapping[str, Any],
        parts: Any,
        of_experts: Any = None,
        hybrid: bool = False,
    ) -> None:
        """`sizes`: of the dimensions. `parts`: in how many ZeRO cuts it, 1 or dp, or with `hybrid` sharding z. `of_experts`: the
        same of experts that ranks share, of which there are dp ÷ ep replicas; None: no ranks share them.
        """
        self._share = "Ψ/z" if hybrid else "Ψ/dp"
        shared = bucket.experts and of_experts is not None
        parts = of_experts if shared else parts
        self.alone = shared and isinstance(parts, int) and parts == 1  # ZeRO does not cut it
        self.layered = bucket.layer >= 0
        self.name = bucket_in_words(bucket)
        self.counted = counted(bucket, part)
        self._parts = parts
        # What tp does not cut comes first, as in `engine.parallel.data`.
        ordered = sorted(bucket.parameters, key=lambda parameter: not parameter.whole)
        self.parameters: Sequence[tuple[bool, Any]] = [(one.whole, _numbers(one.shape, sizes)) for one in ordered]
        # Of each, the numbers at its end that make keys and values.
        self.keys: Sequence[Any] = [_numbers(one.keys, sizes) if one.keys else 0 for one in ordered]

    @cached_property
    def size(self) -> Factor:
        """All of it, with what makes it divisible."""
        used: Any = 0
        for _, numbers in self.parameters:
            used = used + numbers
        return Factor("Ψ", -(-used // self._parts) * self._parts)

    @cached_property
    def share(self) -> Factor:
        """Of one replica."""
        size = self.size
        cut = not isinstance(self._parts, int) or self._parts > 1
        return Factor(self._share, size.value // self._parts) if cut else size


def counted(bucket: RecordedBucket, part: Part) -> bool:
    """Whether it counts in the norm of the gradients: the token table in the first chunk, and not the last one's copy of it."""
    return part.first or not bucket.name.endswith("token")


def _numbers(shape: Sequence[Any], sizes: Mapping[str, Any]) -> Any:
    count: Any = 1
    for product in shape:
        count = count * value(product, sizes)
    return count

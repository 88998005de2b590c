"""The whole request."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from engine.spec.base import Spec
from engine.spec.errors import RequestError
from engine.spec.fit import generation_misfits, misfits
from engine.spec.model import ModelSpec
from engine.spec.parts import AttentionName, FaultSpec, GenerateSpec, LayoutSpec, WorkloadSpec
from engine.spec.sentence import joined, sentence
from engine.topology import Subgroups


class RunSpec(Spec):
    """The whole request. If its parts do not fit together, the constructor raises `RequestError`."""

    model: ModelSpec = ModelSpec()
    layout: LayoutSpec = LayoutSpec()
    workload: WorkloadSpec = WorkloadSpec()
    generate: GenerateSpec = GenerateSpec()
    parity: bool = Field(False, description="also run the model unsharded and compare gradients and losses")
    fault: FaultSpec | None = Field(None, description="fault injection: kind:rank@step, where kind is raise, exit, kill or hang")

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        found = misfits(self.model, self.layout, self.workload) + generation_misfits(
            self.generate, self.model, self.layout, self.parity
        )
        if found:
            raise RequestError(joined(*(m.sentence for m in found)))
        ranks, steps = self.layout.ranks, self.workload.steps
        if self.fault and self.fault.rank >= ranks:
            raise RequestError(
                sentence(
                    "fault.rank={rank} is not one of the {ranks} ranks, 0 to {last}",
                    rank=self.fault.rank,
                    ranks=ranks,
                    last=ranks - 1,
                )
            )
        if self.fault and self.fault.step > steps:
            raise RequestError(
                sentence("fault.step={step} is beyond the {steps} steps of the run", step=self.fault.step, steps=steps)
            )
        return self

    @property
    def subgroups(self) -> Subgroups:
        """The groups that ranks along an axis form."""
        return Subgroups(self.model.key_copies(self.layout.tp), self.layout.ep, self.layout.zero_replicas)

    @property
    def attention(self) -> AttentionName:
        """The attention that the model really has, see `WorkloadSpec.attention_of`."""
        return self.workload.attention_of(self.model)

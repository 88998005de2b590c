"""The request: the model, the layout, the workload. It is validated and immutable, and is read from and written as JSON.

Every mistake in a spec raises `RequestError` with one sentence that shows the arithmetic. `misfits` has the rules that need more
than one part of a spec, so that the form can show all broken ones at once.
"""

from engine.spec.base import Spec, names_in
from engine.spec.errors import RequestError, too_large
from engine.spec.experts import refuse_experts
from engine.spec.fit import BYTE_VOCABULARY, generation_misfits, misfits
from engine.spec.misfit import Misfit
from engine.spec.model import MODEL_PARTS, ModelSpec
from engine.spec.parsing import LARGEST as LARGEST_JSON
from engine.spec.parsing import parsed
from engine.spec.parts import (
    BYTES_OF,
    WHOLE_LOSS,
    AttentionName,
    ContextParallelName,
    FaultSpec,
    GenerateSpec,
    LayoutSpec,
    OptimizerName,
    Precision,
    Recompute,
    RecomputePart,
    WeightsName,
    WorkloadSpec,
    recomputes,
)
from engine.spec.run import RunSpec
from engine.spec.schedules import SCHEDULE_FACTS, ScheduleFacts, ScheduleName
from engine.spec.sentence import Sentence, joined, sentence
from engine.spec.trained import TRAINED, TRAINED_NAME

__all__ = [
    "BYTES_OF",
    "BYTE_VOCABULARY",
    "LARGEST_JSON",
    "MODEL_PARTS",
    "SCHEDULE_FACTS",
    "TRAINED",
    "TRAINED_NAME",
    "WHOLE_LOSS",
    "AttentionName",
    "ContextParallelName",
    "FaultSpec",
    "GenerateSpec",
    "LayoutSpec",
    "Misfit",
    "ModelSpec",
    "OptimizerName",
    "Precision",
    "Recompute",
    "RecomputePart",
    "RequestError",
    "RunSpec",
    "ScheduleFacts",
    "ScheduleName",
    "Sentence",
    "Spec",
    "WeightsName",
    "WorkloadSpec",
    "generation_misfits",
    "joined",
    "misfits",
    "names_in",
    "parsed",
    "recomputes",
    "refuse_experts",
    "sentence",
    "too_large",
]

"""What the formulas say of a spec, made once for all pages and sessions."""

from __future__ import annotations

from engine.predict.run import predict
from engine.spec import RunSpec
from engine.tables import RunResult
from pages.shared.kept import kept


@kept(64)
def predicted(spec: RunSpec) -> RunResult:
    return predict(spec)

"""Full recompute of as few layers as fit, in a search."""

from __future__ import annotations

from engine import catalog
from engine.devices import DEVICES
from engine.planner.search import search
from engine.predict.memory import memory


def test_where_only_full_recompute_fits_a_search_offers_as_few_recomputed_layers_as_fit() -> None:
    device = DEVICES["a100-40gb"].model_copy(update={"memory_bytes": 42 << 30})
    plan = search(catalog.model("llama3-8b").model_copy(update={"seq": 8192}), 4, device, 4)
    layouts = plan.layouts[plan.layouts["fits"]]
    best = layouts.iloc[0]
    assert best["recompute"] == "full"
    assert best["recompute_layers"] > 0
    assert best["step_s"] < layouts["step_s"][layouts["recompute_layers"] == 0].min()
    spec = plan.spec(0)
    assert memory(spec).fullest.total == best["memory_bytes"]
    less = spec.model_copy(update={"layout": spec.layout.model_copy(update={"recompute_layers": best["recompute_layers"] - 1})})
    assert memory(less).fullest.total + best["reserve_bytes"] > device.memory_bytes

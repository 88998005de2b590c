"""Seconds from a device's figures: work, links, and the pipeline they are put into."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine import catalog
from engine.devices import DEVICES, DeviceSpec
from engine.grid import Grid
from engine.launch.recording.client import with_ledgers
from engine.papers.closed_forms import model_flops
from engine.papers.throughput import flops_with_recompute
from engine.planner.candidates import candidates
from engine.planner.search import MIXED
from engine.predict.speed.cost import Cost
from engine.predict.speed.passes import COMPUTE, FORWARD, INPUTS, MODEL_PARTS, TP, WEIGHTS
from engine.predict.speed.rates import Assumptions, link
from engine.predict.speed.step_time import StepTime, durations, estimate, layers_of_stages, simulated
from engine.schedule import SCHEDULES, plan
from engine.schedule.timeline import simulate
from engine.spec import SCHEDULE_FACTS, WHOLE_LOSS, LayoutSpec, ModelSpec, RunSpec, WorkloadSpec

A100, H100 = DEVICES["a100-80gb"], DEVICES["h100-80gb"]
# Nothing but products: everything else takes no time.
IDEAL = DeviceSpec(
    name="ideal", memory_bytes=10**15, bf16_flops=1e12, fp32_flops=1e12, memory_bandwidth=1e30, intra_bandwidth=1e30,
    inter_bandwidth=1e30, reachable=1, intra_latency=0, inter_latency=0,
)  # fmt: skip
WHOLE = Assumptions(matmul_efficiency=1, attention_efficiency=1, memory_efficiency=1, launch_us=0)
QUICK = Assumptions(launch_us=0)  # a host that is never late
GPT = ModelSpec(layers=8, hidden=512, heads=8, seq=256, vocab=1024)


def run(model: ModelSpec = GPT, workload: dict[str, Any] | None = None, **layout: Any) -> RunSpec:
    return RunSpec(model=model, layout=LayoutSpec(**layout), workload=WorkloadSpec(precision="bf16", **workload or {}))


def cost(spec: RunSpec, device: DeviceSpec = H100, assumed: Assumptions | None = None) -> Cost:
    made = Cost(spec.model, spec.workload, Grid.of([spec]), device, assumed or QUICK)
    with_ledgers(lambda: made.passes)
    return made


def layer(spec: RunSpec, device: DeviceSpec = H100, assumed: Assumptions | None = None) -> Any:
    """Seconds of one layer. (3, 3)"""
    return cost(spec, device, assumed).passes.of("layer")[:, :, 0]


# ------------------------------------------------------------------------------------------------------------------ work


WRITTEN = ("gpt3-175b", "transformer-base", "xlnet-large")


def passes_of(name: str) -> Any:
    """On a device that only multiplies."""
    return cost(run(catalog.model(name), {"attention": "written", "loss_chunk": WHOLE_LOSS}), IDEAL, WHOLE).passes


@pytest.mark.parametrize("name", WRITTEN)
def test_on_a_device_that_only_multiplies_time_is_flops(name: str) -> None:
    """To what the papers' formula leaves out. `tests/ledger/test_kernels.py` has the FLOPs of every family."""
    model, passes = catalog.model(name), passes_of(name)
    decoder = model.layers - model.encoder_layers if model.parts.encoder else 0
    counts = (1, model.layers - decoder, decoder, 1)
    total: Any = sum(count * passes.of(part)[:, :, 0] for part, count in zip(MODEL_PARTS, counts, strict=True))
    sequences = 2  # of a microbatch
    exact = name != "xlnet-large"
    assert total.sum() * 1e12 == pytest.approx(model_flops(model) * sequences, rel=1e-9 if exact else 0.1)
    halves = total.sum(1)
    assert halves[FORWARD] == pytest.approx(total.sum() / 3, rel=1e-9 if exact else 0.03)
    assert halves[INPUTS] > halves[WEIGHTS], "attention's scores have no weights"


def test_flops_of_a_gpt_are_those_of_the_paper() -> None:
    """Narayanan et al. 2021, appendix: 96·B·l·s·h²·(1 + s/6h + V/16lh) where all layers are computed again."""
    model = catalog.model("gpt3-175b")
    layers, s, h, vocab = model.layers, model.seq, model.hidden, model.vocab
    paper = 96 * layers * s * h**2 * (1 + s / (6 * h) + vocab / (16 * layers * h))
    assert flops_with_recompute(model) == pytest.approx(paper)
    assert model_flops(model) == pytest.approx(72 * layers * s * h**2 * (1 + s / (6 * h) + vocab / (12 * layers * h)))


def test_recompute_costs_time_only_in_backward() -> None:
    written = {"attention": "written"}
    none, selective, full = (layer(run(GPT, written, recompute=name)) for name in ("none", "core_attn", "full"))
    for other in (selective, full):
        assert other[[FORWARD, WEIGHTS]] == pytest.approx(none[[FORWARD, WEIGHTS]])
    again = {"core_attn": selective - none, "full": full - none}
    assert 0 < again["core_attn"][INPUTS].sum() < again["full"][INPUTS].sum()
    assert 0.9 * none[FORWARD].sum() < again["full"][INPUTS].sum() < none[FORWARD].sum(), "all but the last residual"


def test_tp_divides_the_work_and_adds_collectives() -> None:
    one, four = (layer(run(tp=tp), IDEAL, WHOLE)[:, COMPUTE].sum() for tp in (1, 4))
    assert four == pytest.approx(one / 4)
    waiting = QUICK.model_copy(update={"backward_overlap": False})
    whole, cut = (
        layer(run(GPT, {"microbatch_size": 64}, tp=4, sequence_parallel=cuts), assumed=waiting) for cuts in (False, True)
    )
    assert layer(run())[:, TP].sum() == 0
    # As many bytes forward; one more all-gather for each block backward. And norms and residuals are divided as well.
    assert cut[FORWARD, TP] == pytest.approx(whole[FORWARD, TP])
    assert cut[1:, TP].sum() == pytest.approx(1.5 * whole[1:, TP].sum())
    assert cut[:, COMPUTE].sum() < whole[:, COMPUTE].sum()


def test_small_messages_use_a_ring_with_sequence_parallelism() -> None:
    """256 tokens × 512 numbers of 2 bytes over 4 ranks: an all-reduce climbs a tree in 2 + 2 steps; an all-gather and a
    reduce-scatter, which have none, take 3 + 3 steps of a quarter.
    """
    size, quarter = 256 * 512 * 2, 256 * 512 * 2 / 4
    bare = Assumptions(intra_efficiency=1, backward_overlap=False)
    whole, cut = (
        layer(run(GPT, {"microbatch_size": 1}, tp=4, sequence_parallel=on), assumed=bare)[:, TP] for on in (False, True)
    )
    step, tree = H100.intra_latency + quarter / 450e9, 4 * H100.intra_latency + 2 * size / 450e9
    assert whole[FORWARD] == pytest.approx(2 * tree)
    assert cut[FORWARD] == cut[INPUTS] == pytest.approx(2 * 6 * step)
    assert cut[WEIGHTS] == pytest.approx(2 * 3 * step)
    assert 6 * step > tree, "so small is the message"


def test_small_products_are_bound_by_memory() -> None:
    """One row by a large matrix moves the matrix, whatever the peak."""
    few = layer(run(ModelSpec(layers=1, hidden=4096, heads=32, seq=2, vocab=256), {"microbatch_size": 1}))
    weights = 12 * 4096**2 * 2 / (H100.memory_bandwidth * 0.8)
    assert few[FORWARD, COMPUTE] == pytest.approx(weights, rel=0.05)


def test_fp32_has_the_rate_of_fp32_matrices() -> None:
    wide = ModelSpec(layers=1, hidden=8192, heads=64, seq=2048, vocab=1024)
    seconds = layer(RunSpec(model=wide, workload=WorkloadSpec(microbatch_size=1)), A100, Assumptions(matmul_efficiency=1))
    products = 2 * 2048 * 12 * 8192**2 / (19.5e12 * 0.96)
    assert seconds[WEIGHTS, COMPUTE] == pytest.approx(products)


def test_fused_attention_reads_and_writes_no_scores() -> None:
    long = ModelSpec(layers=2, hidden=1024, heads=16, seq=8192, vocab=1024)
    written, fused = (layer(run(long, {"attention": name})).sum() for name in ("written", "fused"))
    assert fused < written / 3


def test_a_loss_in_chunks_has_its_products_in_backward() -> None:
    """As many FLOPs as the whole loss. 512 tokens in chunks of 100, and 12 that are left."""
    whole, chunked = (
        cost(run(GPT, {"microbatch_size": 2, "loss_chunk": size}), IDEAL, WHOLE).passes.of("head")[:, COMPUTE, 0]
        for size in ("whole", 100)
    )
    assert chunked[INPUTS] == pytest.approx(whole.sum())
    assert chunked[FORWARD] == chunked[WEIGHTS] == pytest.approx(0)


def test_a_pass_takes_at_least_the_hosts_time_for_its_kernels() -> None:
    small, large = GPT, catalog.model("gpt3-175b")
    slow = Assumptions(launch_us=50)
    for model, waits in ((small, True), (large, False)):
        spec = run(model, {"microbatch_size": 2}, tp=2)
        quick, late = (layer(spec, assumed=assumed) for assumed in (QUICK, slow))
        assert (late.sum() > 2 * quick.sum()) == waits
        assert waits or late == pytest.approx(quick)
    bare = IDEAL.model_copy(update={"bf16_flops": 1e30})
    launches = layer(run(tp=2), bare, slow).sum(1) / 50e-6
    assert launches == pytest.approx(launches.round())
    assert launches[WEIGHTS] == pytest.approx(4), "a product for each weight"


# ----------------------------------------------------------------------------------------------------------------- links


def test_the_rank_order_determines_which_groups_are_inside_a_node() -> None:
    """tp fastest, then dp, then pp: of eight in a node, tp=4 leaves two for dp."""
    specs = [run(dp=2, tp=4), run(dp=4, tp=4), run(dp=16, tp=1), run(pp=4, tp=2), run(pp=4, tp=4)]
    grid, bare = Grid.of(specs), Assumptions(intra_efficiency=1, inter_efficiency=1)
    tp, dp, pp = (link(grid, axis, H100, bare) for axis in ("tp", "dp", "pp"))
    inside, port = H100.intra_bandwidth, H100.inter_bandwidth
    assert tp.bandwidth.tolist() == [inside] * 5
    # Two of four replicas stand in a node, which has two ports for their ring; of sixteen, eight do.
    assert dp.bandwidth[:3].tolist() == [inside, 2 * port, 8 * port]
    assert pp.bandwidth[3:].tolist() == [inside, 2 * port]
    assert dp.latency[0] == H100.intra_latency < dp.latency[1] < H100.inter_latency == pp.latency[4]


def test_collectives_take_latency_and_bytes_over_bandwidth() -> None:
    dp = link(Grid.of([run(dp=4)]), "dp", H100, Assumptions(intra_efficiency=1))
    size = 9e9
    assert dp.all_gather(size)[0] == pytest.approx(3 * (H100.intra_latency + size / 4 / 450e9))
    assert dp.all_reduce(size, calls=10)[0] == pytest.approx(2 * 3 * (10 * H100.intra_latency + size / 4 / 450e9))
    alone = link(Grid.of([run()]), "dp", H100, Assumptions())
    assert alone.all_reduce(size)[0] == alone.message(size)[0] == 0


# -------------------------------------------------------------------------------------------------------------- pipeline


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_layers_of_stages_in_bulk_equal_each_layouts(schedule: Any) -> None:
    facts = SCHEDULE_FACTS[schedule]
    for layers in (24, 26, 31):
        model = GPT.model_copy(update={"layers": layers})
        specs = [
            run(model, {"microbatches": 16}, pp=pp, chunks=chunks, schedule=schedule)
            for pp in (1, 2, 3, 4, 6, 8)
            for chunks in ((facts.chunks,) if facts.chunks else (2, 3))
            if pp * chunks <= layers and facts.fits_microbatches(pp, 16)
        ]
        first, last, between = layers_of_stages(Grid.of(specs), layers)
        for i, spec in enumerate(specs):
            own = spec.layout.stage_layers(layers)
            assert (first[i], last[i]) == (own[0], own[-1])
            assert len(own) < 3 or between[i] == max(own[1:-1])


def test_closed_forms_of_papers_equal_the_simulator() -> None:
    """The vectors at the two ends are counted on both: to 0.1% for naive, GPipe and 1F1B, to some percent for the others."""
    device = H100.model_copy(update={"inter_latency": 0.0, "inter_bandwidth": 1e18, "intra_bandwidth": 1e18})
    for schedule, facts in SCHEDULE_FACTS.items():
        chunks, error = facts.least_chunks, 1e-3 if facts.plain else 0.04 if facts.splits else 0.015
        specs = [
            run(
                catalog.model("gpt3-13b"),
                {"microbatches": m, "microbatch_size": 1},
                pp=pp,
                chunks=chunks,
                schedule=schedule,
                tp=4,
            )
            for pp, m in ((2, 8), (4, 16), (10, 40))
        ]
        times = estimate(Cost(specs[0].model, specs[0].workload, Grid.of(specs), device, Assumptions()))
        for i, spec in enumerate(specs):
            step, _ = simulated(spec, device, Assumptions())
            assert times.step[i] == pytest.approx(step, rel=error), (schedule, spec.layout.code)


@pytest.mark.parametrize(("sequence_parallel", "hidden"), [(True, 4 / 10), (False, 2 / 4)])
def test_a_whole_backward_hides_collectives_beside_its_products(sequence_parallel: bool, hidden: float) -> None:
    """The gather of a column-parallel layer's input and the reduction of its gradient, as far as the products take that long."""

    def waits(assumed: Assumptions, schedule: Any = "1f1b") -> float:
        spec = run(GPT, tp=4, sequence_parallel=sequence_parallel, schedule=schedule)
        return float(layer(spec, assumed=assumed)[:, TP].sum())

    slow, fast = (Assumptions(launch_us=0, matmul_efficiency=efficiency) for efficiency in (1e-4, 1.0))
    assert waits(slow) == pytest.approx((1 - hidden) * waits(slow, "zb-h1"))
    assert waits(slow) < waits(fast) <= waits(fast, "zb-h1")
    assert waits(slow.model_copy(update={"backward_overlap": False})) == waits(slow, "zb-h1")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rounds_that_are_not_simulated_take_as_long_as_the_last(schedule: Any) -> None:
    chunks = SCHEDULE_FACTS[schedule].chunks or 3
    spec = run(catalog.model("gpt3-13b"), {"microbatches": 48}, pp=4, tp=2, dp=4, chunks=chunks, schedule=schedule, zero=1)
    whole = simulate(plan(spec.layout, 48), durations(spec, H100, Assumptions()))
    assert simulated(spec, H100, Assumptions()) == pytest.approx((whole.makespan, whole.bubble))


def test_the_parts_of_a_steps_time_add_up() -> None:
    grid = candidates(catalog.model("gpt3-13b"), 32, 64)
    times = estimate(Cost(catalog.model("gpt3-13b"), MIXED, grid, A100, Assumptions()))
    parts = times.compute + times.tp + times.pp + times.dp + times.update + times.idle
    np.testing.assert_allclose(parts, times.step, rtol=1e-9)
    assert (times.idle > -1e-9 * times.step).all()
    assert (times.bubble[grid.pp == 1] < 1e-9).all()
    assert ((times.bubble > 0) & (times.bubble < 1))[grid.pp > 1].all()


def one(times: StepTime) -> dict[str, float]:
    return {name: float(getattr(times, name)[0]) for name in ("step", "tp", "dp", "pp", "idle")}


def test_levers_cost_time_as_the_lessons_say() -> None:
    """ZeRO 3 sends more than 1; more microbatches shrink the bubble; tp over a node's edge is slow."""
    model = catalog.model("gpt3-13b")

    def of(workload: dict[str, Any] | None = None, **layout: Any) -> dict[str, float]:
        spec = run(model, workload, **layout)
        return one(estimate(Cost(model, spec.workload, Grid.of([spec]), H100, Assumptions())))

    assert of(dp=16, zero=3, tp=8)["dp"] > of(dp=16, zero=1, tp=8)["dp"] > 0
    few, many = (of({"microbatches": m}, pp=8, tp=8) for m in (8, 64))
    assert few["idle"] / few["step"] > 3 * many["idle"] / many["step"]
    assert of(tp=20)["tp"] > of(tp=4)["tp"]


# ------------------------------------------------------------------------------------------------------------- published


def test_megatrons_throughput_is_predicted_with_one_setting() -> None:
    """The whole tables are in benchmarks/published.py. Narayanan et al. 2021, table 1: 18.4 and 145.6 billion parameters."""
    assumed = Assumptions(split_messages=True, backward_overlap=False)
    for layers, hidden, heads, pp, dp, chunks, batch, size, measured in (
        (40, 6144, 48, 1, 32, 1, 1024, 8, 135), (80, 12288, 96, 8, 24, 2, 2304, 2, 148),
    ):  # fmt: skip
        model = ModelSpec(layers=layers, hidden=hidden, heads=heads, seq=2048, vocab=51200)
        workload = {"microbatches": batch // dp // size, "microbatch_size": size, "attention": "written"}
        schedule = "interleaved" if chunks > 1 else "1f1b"
        spec = run(model, workload, dp=dp, tp=8, pp=pp, chunks=chunks, schedule=schedule, recompute="full")
        step, _ = simulated(spec, A100, assumed)
        ours = flops_with_recompute(model) * batch / spec.layout.ranks / step / 1e12
        assert ours == pytest.approx(measured, rel=0.1)

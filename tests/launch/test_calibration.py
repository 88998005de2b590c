"""Calibrating: what is measured here, the shape of what is measured on a GPU, and how plans take it."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from engine import catalog, devices
from engine.__main__ import main
from engine.devices import DEVICES, DeviceSpec, device, device_names
from engine.launch.calibration import client, program
from engine.launch.calibration.program import figures, link
from engine.launch.failure import RunError
from engine.launch.recording.client import with_ledgers
from engine.predict.speed.rates import Assumptions, on_device, rates
from engine.predict.speed.step_time import simulated
from engine.spec import RequestError, RunSpec
from pages.plan.request import of_link
from tests.runs import Runs, small

MEASURED = {
    "fp32_flops": 1e11, "bf16_flops": 4e11, "reachable": 1.0, "fp32_reachable": 1.0, "memory_bandwidth": 5e10,
    "matmul_efficiency": 0.9, "attention_efficiency": 0.4, "memory_efficiency": 0.3, "memory_bytes": 8 * 10**9,
}  # fmt: skip


def test_one_core_is_measured() -> None:
    found = figures(torch.device("cpu"), least_s=0.0)
    made = client.device_of("cpu", "mine", found)
    assert set(found) == set(MEASURED)
    assert made.fp32_flops > 1e9
    assert made.memory_bytes > 10**8
    assert not made.launches_ahead, "a processor works off its kernels itself"
    assert made.context_bytes == made.communicator_bytes == 0


def test_on_a_gpu_the_same_figures_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On fake tensors: every call is one that torch has for a GPU. Times mean nothing."""
    monkeypatch.setattr(program, "wait_for", lambda device: None)
    monkeypatch.setattr(program, "memory_of", lambda device: 80 * 10**9)
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = figures(torch.device("cuda"), least_s=0.0)
    assert set(found) == set(MEASURED)
    made = client.device_of("cuda", "mine", found)
    assert made.launches_ahead
    assert made.context_bytes == DEVICES["h100-80gb"].context_bytes


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_processes_that_measure_a_processor_see_no_gpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started: each is refused when its environment is known."""
    seen: list[str | None] = []

    def refused(*_: object, env: dict[str, str], **__: object) -> None:
        seen.append(env.get("CUDA_VISIBLE_DEVICES"))
        raise OSError(11, "refused")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(subprocess, "Popen", refused)
    with pytest.raises(OSError, match="refused"):
        client.measured(kind, 0.0)
    with pytest.raises(OSError, match="refused"):
        link(kind, 0.0)
    with pytest.raises(RunError, match="would not start a process"):
        client._launch_us(client.device_of(kind, "mine", MEASURED), gpus=kind == "cuda")
    assert len(seen) >= 3
    assert set(seen) == {"" if kind == "cpu" else "0,1"}


def test_a_sum_reads_two_tensors_and_products_of_a_gpu_are_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is read twice comes from the cache the second time."""
    read: list[tuple[int, int]] = []
    add = torch.add

    def noted(one: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        read.append((one.data_ptr(), other.data_ptr()))
        return add(one, other, out=out)

    monkeypatch.setattr(torch, "add", noted)
    program._copy(torch.device("cpu"), 0.0)
    assert all(one != other for one, other in read)
    assert read
    monkeypatch.setattr(program, "memory_of", lambda device: 1)
    for name, value in (("_copy", 1.0), ("_elementwise", 1.0), ("_attention", 1.0)):
        monkeypatch.setattr(program, name, lambda device, least_s, value=value: value)
    reached = {torch.float32: [1.0, 2.0, 4.0], torch.bfloat16: [1.0, 6.0, 8.0]}
    monkeypatch.setattr(program, "_products", lambda device, dtype, least_s: reached[dtype])
    assert figures(torch.device("cuda"), 0.0)["matmul_efficiency"] == 0.75
    assert figures(torch.device("cpu"), 0.0)["matmul_efficiency"] == 0.5


def test_products_are_the_three_of_a_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """x·Wᵀ, dy·W and dyᵀ·x: where a processor has no bf16 products, they differ several times in speed."""
    read: set[tuple[bool, bool]] = set()
    monkeypatch.setattr(program, "_WIDTHS", {"cpu": (8,)})
    monkeypatch.setattr(torch, "mm", lambda one, other, out: read.add((one.is_contiguous(), other.is_contiguous())))
    assert len(program._products(torch.device("cpu"), torch.bfloat16, 0.0)) == 1
    assert read == {(True, False), (True, True), (False, True)}


def test_the_link_between_two_ranks_is_measured() -> None:
    found = link("cpu", least_s=0.01)
    assert 0 < found["intra_latency"] < 10
    assert found["intra_bandwidth"] > 1e5
    assert found["intra_efficiency"] == 1


def test_what_was_measured_replaces_assumptions_but_not_those_that_a_user_has_changed() -> None:
    mine = client.device_of("cpu", "mine", MEASURED).model_copy(update={"launch_us": 20.0})
    assert rates(mine, "fp32", Assumptions()).products == pytest.approx(0.9e11)
    assert rates(mine, "fp32", Assumptions(matmul_efficiency=0.5)).products == pytest.approx(0.5e11)
    assert on_device(mine, Assumptions()).launch_us == 20
    assert on_device(mine, Assumptions(launch_us=5.0)).launch_us == 5
    assert on_device(DEVICES["h100-80gb"], Assumptions()) == Assumptions()


def test_a_processor_takes_launches_and_work_one_after_the_other() -> None:
    mine = client.device_of("cpu", "mine", MEASURED)
    spec = RunSpec(model=catalog.model("gpt-tiny"))
    none, some, more = (
        with_ledgers(partial(simulated, spec, mine.model_copy(update={"launch_us": us}), Assumptions()))[0]
        for us in (0.0, 10.0, 20.0)
    )
    assert more - some == pytest.approx(some - none)
    assert some > none > 0
    ahead = mine.model_copy(update={"launch_us": 1e4, "launches_ahead": True})
    fused, _ = with_ledgers(partial(simulated, spec, ahead, Assumptions()))
    assert more - none > 1.5 * 20e-6 / 1e-2 * fused, "it fuses no operations, so it launches more than a GPU"


def test_a_calibrated_device_is_offered_by_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "own_folder", lambda: tmp_path / "devices")
    monkeypatch.setattr("engine.command.calibrate.own_folder", devices.own_folder)
    mine = client.device_of("cpu", "my-laptop", MEASURED).model_copy(update={"launch_us": 20.0})
    monkeypatch.setattr("engine.command.calibrate.calibrate", lambda kind, name, progress: mine)
    assert main(["calibrate", "--name", "my-laptop"]) == 0
    assert "20.0 µs a kernel" in capsys.readouterr().out
    assert device_names() == [*DEVICES, "my-laptop"]
    assert device("my-laptop") == mine
    assert of_link({"device": "my-laptop"}).hardware == mine
    asked = ["search", "--model", "gpt-tiny", "--ranks", "2", "--device", "my-laptop", "--json", "--precision", "fp32"]
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["device"]["name"] == "my-laptop"
    assert main(["calibrate", "--out", str(tmp_path / "here.json"), "--json"]) == 0
    assert DeviceSpec.read_json((tmp_path / "here.json").read_text()) == mine


@pytest.mark.parametrize("name", ["H100", "h100-80gb", "../x", "a" * 41])
def test_a_name_that_cannot_be_offered_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--name", name]) == 2
    assert f"a device cannot be named {name!r}" in capsys.readouterr().err


def test_a_device_that_cannot_be_measured_is_refused() -> None:
    if torch.cuda.is_available():
        assert client.measured("cuda", 0.0)["bf16_flops"] > 0
        return
    with pytest.raises(RequestError, match="cuda could not be measured"):
        client.measured("cuda", 0.0)


def test_a_step_of_one_rank_takes_its_cpu_time_and_of_two_that_of_the_fastest(runs: Runs) -> None:
    """Other programs make the clock's time longer, and not the CPU's."""
    alone, pair = (runs.result(small(code)) for code in ("dp1.tp1.pp1", "dp2.tp1.pp1"))
    spans = alone.tables["spans"]
    assert client.step_seconds(alone) == spans[spans["lane"] == "compute"]["cpu_ns"].sum() / 1e9 > 0
    assert client.step_seconds(pair) == pair.tables["steps"]["step_ns"].min() / 1e9

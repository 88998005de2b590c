"""Devices: rates for dense matrices, one direction, decimal gigabytes; and a user's device from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.devices import DEVICES, DeviceSpec, device
from engine.spec import RequestError


def test_the_named_devices() -> None:
    names = ["a100-40gb", "a100-80gb", "h100-80gb", "h200-141gb", "b200", "mi300x", "l40s", "rtx-4090", "laptop-cpu"]
    assert list(DEVICES) == names
    for name, spec in DEVICES.items():
        assert spec.name == name
        assert len(spec.source) > 40, "where the figures are from"
        assert spec.intra_bandwidth >= spec.inter_bandwidth
        assert spec.intra_latency <= spec.inter_latency
        assert spec.memory_bandwidth > spec.intra_bandwidth


def test_figures_are_for_dense_matrices_and_one_direction() -> None:
    """The H100's data sheet shows 1,979 TFLOPS with sparsity and 900 GB/s of NVLink both ways."""
    h100 = device("h100-80gb")
    assert 2 * h100.bf16_flops == pytest.approx(1979e12, rel=1e-3)
    assert 2 * h100.intra_bandwidth == 900e9
    assert 8 * h100.inter_bandwidth == 400e9
    assert h100.memory_bytes == 80 * 10**9
    assert h100.peak("bf16") > h100.peak("fp32")


def test_fp32_has_its_own_peak_and_reachable_share() -> None:
    """10,240³ in fp32 takes an A100 0.11 s (PyTorch's documentation): between 0.105 and 0.115."""
    a100, mi300x = device("a100-80gb"), device("mi300x")
    assert 0.105 <= 2 * 10_240**3 / a100.reached("fp32") < 0.1151
    assert a100.reached("bf16") == pytest.approx(271.2e12, rel=1e-3)
    assert mi300x.reached("bf16") == pytest.approx(668.4e12, rel=1e-3)
    assert mi300x.reached("fp32") > 0.6 * mi300x.fp32_flops, "what holds it back in bf16 is not known to do so in fp32"


def test_a_users_device_is_read_from_a_file(tmp_path: Path) -> None:
    mine = DEVICES["a100-80gb"].model_copy(update={"name": "a100-nvl", "inter_bandwidth": 12.5e9, "node_size": 4})
    file = tmp_path / "mine.json"
    file.write_text(mine.model_dump_json())
    assert device(str(file)) == mine
    least = '{"name": "x", "memory_bytes": 1000000000, "bf16_flops": 1e12, "fp32_flops": 1e12, "memory_bandwidth": 1e11, '
    file.write_text(least + '"intra_bandwidth": 1e10, "inter_bandwidth": 1e9}')
    assert device(str(file)).node_size == 8


def test_an_invalid_device_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(DEVICES["b200"].model_dump_json().replace('"node_size":8', '"node_size":0'))
    with pytest.raises(RequestError, match="node_size=0 must be greater than or equal to 1"):
        device(str(file))
    file.write_text('{"name": "x", "memory": 80}')
    with pytest.raises(RequestError, match=r"^device needs memory_bytes, bf16_flops, .*, inter_bandwidth \(and 1 more\)$"):
        device(str(file))
    with pytest.raises(RequestError, match=r"cannot read the device .*no\.json: No such file or directory"):
        device(str(tmp_path / "no.json"))
    with pytest.raises(RequestError, match=r"no device 'h100'; there are a100-40gb, .*laptop-cpu, or the name of a \.json file"):
        device("h100")
    assert DeviceSpec.model_fields["node_size"].description


def test_no_device_has_more_memory_than_a_table_can_hold() -> None:
    figures = DEVICES["l40s"].model_dump() | {"memory_bytes": 10**30}
    with pytest.raises(RequestError, match=f"^memory_bytes={10**30} must be less than or equal to"):
        DeviceSpec.model_validate(figures)

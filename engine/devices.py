"""Named devices and their figures, each with its source; and the reader of a user's own device.

Figures are those of data sheets. Three of them need care:

- A rate "with sparsity" is twice the rate of dense matrices. Rates here are for dense matrices.
- Data sheets give the bandwidth of a link for both directions together. Here it is for one direction.
- "80 GB" is taken as 80 · 10⁹ bytes. The chips hold 80 GiB, 7% more, and a driver shows 79 to 79.3 GiB of it to a program. The
  difference is left as a margin: `engine.planner.reserve` counts what formulas for tensors do not.

What takes memory beside tensors are assumptions, the same for all GPUs, since each depends on versions of libraries too:

- A CUDA context is 512 MiB. PyTorch's maintainers give some 300 MB where kernels are loaded when they are needed, as since CUDA
  11.7, and more than 1,000 MB with all (pytorch#107667). A training loads many.
- An NCCL communicator is 544 MiB with two members and 688 MiB with more, on A100 with NVLink (NVIDIA/nccl#964). Each has buffers
  of its own, and beyond two nodes they grow no more (Jeaugey in NVIDIA/nccl#864).
- cuBLAS recommends a workspace of 32 MiB from Hopper on and 4 MiB before (cuBLAS documentation, cublasSetWorkspace).
- The caching allocator reserves 4% more than tensors take: the mean over 344 ranks of Megatron-LM on B200, of which the median is
  3.8% and the largest 9.3% (max_reserved ÷ max_allocated in SimuMax 1.2, docs/b200/b200_release_v1.2_summary.json).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from engine import files
from engine.spec import LARGEST_JSON, Precision, RequestError, Spec, sentence

_MIB = 2**20


class DeviceSpec(Spec):
    """One device, with its node and network. Bandwidths are bytes a second in one direction."""

    name: str = Field(min_length=1, max_length=60, description="name")
    memory_bytes: int = Field(ge=1, le=10**18, description="memory for tensors")
    bf16_flops: float = Field(gt=0, allow_inf_nan=False, description="peak FLOP/s of dense bf16 matrices, accumulated in fp32")
    fp32_flops: float = Field(gt=0, allow_inf_nan=False, description="peak FLOP/s in fp32")
    memory_bandwidth: float = Field(gt=0, allow_inf_nan=False, description="memory bandwidth, bytes/s")
    intra_bandwidth: float = Field(gt=0, allow_inf_nan=False, description="bandwidth inside its node, bytes/s in one direction")
    inter_bandwidth: float = Field(
        gt=0, allow_inf_nan=False, description="its share of its node's bandwidth to other nodes, bytes/s in one direction"
    )
    reachable: float = Field(
        0.8, gt=0, le=1, description="share of peak bf16 FLOP/s that its best matrix product reaches, measured"
    )
    fp32_reachable: float = Field(0.8, gt=0, le=1, description="share of peak fp32 FLOP/s that its best matrix product reaches")
    intra_latency: float = Field(4e-6, ge=0, allow_inf_nan=False, description="latency of a message inside the node, in seconds")
    inter_latency: float = Field(14e-6, ge=0, allow_inf_nan=False, description="latency of a message to another node, in seconds")
    node_size: int = Field(8, ge=1, le=65536, description="devices in a node")
    context_bytes: int = Field(512 * _MIB, ge=0, le=10**18, description="CUDA context, in bytes")
    pair_communicator_bytes: int = Field(544 * _MIB, ge=0, le=10**18, description="an NCCL communicator of two ranks, in bytes")
    communicator_bytes: int = Field(688 * _MIB, ge=0, le=10**18, description="an NCCL communicator of more ranks, in bytes")
    workspace_bytes: int = Field(32 * _MIB, ge=0, le=10**18, description="workspace of cuBLAS, in bytes")
    fragmentation: float = Field(
        0.04, ge=0, le=1, description="what the allocator reserves beyond the tensors' peak, as a share of it"
    )
    # What `engine calibrate` measures, in place of assumptions (`engine.predict.speed.rates`). None: as assumed.
    matmul_efficiency: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the FLOP/s of its best matrix product that the products of a Transformer reach, measured on it",
    )
    attention_efficiency: float | None = Field(
        None, gt=0, le=1, description="share of peak FLOP/s that the matrix products inside attention reach, measured on it"
    )
    memory_efficiency: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of memory bandwidth that norms, softmax and other elementwise kernels reach, measured on it",
    )
    intra_efficiency: float | None = Field(
        None, gt=0, le=1, description="share of the link's bandwidth inside its node that a collective reaches, measured on it"
    )
    launch_us: float | None = Field(
        None, ge=0, le=100_000, description="microseconds of the host for a kernel, measured on it, in place of the assumption"
    )
    launches_ahead: bool = Field(True, description="its host launches kernels while it works on others; a processor does not")
    source: str = Field("", max_length=1000, description="source of the figures")

    def peak(self, precision: Precision) -> float:
        """Peak FLOP/s of matrix products in that precision."""
        return self.bf16_flops if precision == "bf16" else self.fp32_flops

    def reached(self, precision: Precision) -> float:
        """FLOP/s that the best matrix product reaches in that precision."""
        return self.peak(precision) * (self.reachable if precision == "bf16" else self.fp32_reachable)


_GB, _T = 10**9, 1e12
# Seconds before the first byte of a message arrives: NCCL's estimates for a ring with its protocol for large messages (hwLat in
# src/graph/tuning.cc): 3.4 µs over NVLink, 5.7 µs over PCI, 14 µs over a network.
_NVLINK, _PCI, _NETWORK = 3.4e-6, 5.7e-6, 14e-6


def _made(
    name: str, gb: int, bf16: float, fp32: float, memory: float, intra: float, inter: float, reach: tuple[float, float],
    source: str, latency: float = _NVLINK, workspace: int = 32,
) -> DeviceSpec:  # fmt: skip
    """A device in nodes of eight. `gb`: 10⁹ bytes. `bf16`, `fp32`: peak TFLOP/s. `reach`: their reached parts. Rest: GB/s.

    `workspace`: MiB.
    """
    return DeviceSpec(
        name=name, memory_bytes=gb * _GB, bf16_flops=bf16 * _T, fp32_flops=fp32 * _T, memory_bandwidth=memory * _GB,
        intra_bandwidth=intra * _GB, inter_bandwidth=inter * _GB, intra_latency=latency, inter_latency=_NETWORK, node_size=8,
        reachable=reach[0], fp32_reachable=reach[1], source=source, workspace_bytes=workspace * _MIB,
    )  # fmt: skip


# The part of the peak that the fastest of many products reached. In dense bf16: A100 271.2 TFLOP/s, H100 and H200 794.5, B200
# 1,745, MI300X 668.4 (Bekman, Machine Learning Engineering, compute/accelerator, table of maximum achievable matmul FLOPS, 2026).
# A device that is not in that table has a value near the table's middle.
#
# fp32 products run on other units, since torch uses TF32 only if that is enabled. They reach another part of their peak: A100 at
# least 0.96 (PyTorch, CUDA semantics, "TensorFloat-32": 10,240³ in 0.11 s); H200 NVL 47.3 of 60 TFLOP/s, used for Hopper; RTX
# 4090 57.6 of 82.6, used for Ada (xzwgit/gpu-flops-bench, cuBLASLt, 2026). For the others there is no figure.
_UNKNOWN = 0.8
_AMPERE_REACHES, _HOPPER_REACHES, _ADA_REACHES = (0.869, 0.96), (0.803, 0.79), (_UNKNOWN, 0.70)

_A100 = "NVIDIA A100 data sheet, SXM (312 TFLOPS bf16, 19.5 fp32, NVLink 600 GB/s both ways); DGX A100: 8 ports of 200 Gb/s"
_HOPPER = "(989 TFLOPS dense bf16, 67 fp32, NVLink 900 GB/s both ways); DGX: 8 ports of 400 Gb/s"

DEVICES: dict[str, DeviceSpec] = {
    device.name: device
    for device in (
        _made("a100-40gb", 40, 312, 19.5, 1555, 300, 25, _AMPERE_REACHES, f"{_A100}; 40 GB, 1,555 GB/s", workspace=4),
        _made("a100-80gb", 80, 312, 19.5, 2039, 300, 25, _AMPERE_REACHES, f"{_A100}; 80 GB, 2,039 GB/s", workspace=4),
        _made(
            "h100-80gb", 80, 989.4, 66.9, 3350, 450, 50, _HOPPER_REACHES,
            f"NVIDIA H100 data sheet, SXM {_HOPPER}; 80 GB, 3.35 TB/s",
        ),
        _made(
            "h200-141gb", 141, 989.4, 66.9, 4800, 450, 50, _HOPPER_REACHES,
            f"NVIDIA H200 data sheet, SXM {_HOPPER}; 141 GB, 4.8 TB/s",
        ),
        _made(
            "b200", 180, 2250, 75, 8000, 900, 50, (0.776, _UNKNOWN),
            "NVIDIA DGX B200 data sheet, an eighth of it (1,440 GB, 64 TB/s, NVLink 14.4 TB/s both ways, 8 ports of 400 Gb/s); "
            "HGX B200: 2.25 PFLOPS dense bf16, 75 TFLOPS fp32",
        ),
        _made(
            "mi300x", 192, 1307.4, 163.4, 5300, 448, 50, (0.511, _UNKNOWN),
            "AMD Instinct MI300X data sheet (1,307.4 TFLOPS dense bf16, 163.4 fp32, 192 GB, 5.3 TB/s, seven Infinity Fabric "
            "links of 128 GB/s both ways); platform of eight with a port of 400 Gb/s each",
        ),
        _made(
            "l40s", 48, 362.05, 91.6, 864, 32, 12.5, _ADA_REACHES,
            "NVIDIA L40S data sheet (362.05 TFLOPS dense bf16, 91.6 fp32, 48 GB, 864 GB/s, PCIe 4.0 × 16 at 64 GB/s both ways); "
            "for the network, a port of 200 Gb/s for two devices is assumed",
            _PCI, 4,
        ),
        _made(
            "rtx-4090", 24, 165.2, 82.6, 1008, 32, 1.5625, _ADA_REACHES,
            "NVIDIA Ada GPU architecture white paper, appendix A (165.2 TFLOPS dense bf16 added up in fp32, 82.6 fp32, 24 GB, "
            "1,008 GB/s, PCIe 4.0 × 16); for the network, one port of 100 Gb/s for eight devices is assumed",
            _PCI, 4,
        ),
        # A typical laptop, not one product. Eight cores at 3 GHz with two AVX2 units, each with 8 fused multiply-adds in fp32,
        # have 8 · 3e9 · 32 FLOP/s. bf16 is not faster on them. Two channels of DDR5-5600 have 2 · 8 B · 5.6e9/s. A message
        # between processes is copied into shared memory and out of it. One device is the whole laptop; other laptops are on a
        # gigabit network.
        DeviceSpec(
            name="laptop-cpu", memory_bytes=16 * _GB, bf16_flops=0.768e12, fp32_flops=0.768e12, memory_bandwidth=89.6e9,
            intra_bandwidth=20e9, inter_bandwidth=0.125e9, intra_latency=20e-6, inter_latency=100e-6, node_size=1,
            context_bytes=0, pair_communicator_bytes=0, communicator_bytes=0, workspace_bytes=0, fragmentation=0.0,
            source="a typical laptop, not one product: 8 cores of 3 GHz with AVX2, 16 GB of DDR5-5600 on two channels, gigabit "
            "Ethernet",
        ),
    )
}  # fmt: skip


def own_folder() -> Path:
    """Where this user's device files are: `engine calibrate` writes them there. Each is offered by its name."""
    return Path.home() / ".local" / "share" / "shardscope" / "devices"


def device_names() -> list[str]:
    """The named devices, and this user's own."""
    own = sorted(file.stem for file in own_folder().glob("*.json") if file.stem not in DEVICES)
    return [*DEVICES, *own]


def device(name: str) -> DeviceSpec:
    """The device of that name, or the one in the JSON file of that name. Raises `RequestError` with a list of the names."""
    if name in DEVICES:
        return DEVICES[name]
    if name.endswith(".json"):
        return read_device(Path(name))
    if name in (names := device_names()):
        return read_device(own_folder() / f"{name}.json")
    raise RequestError(
        sentence(
            "there is no device {name!r}; there are {names}, or the name of a .json file with one of yours",
            name=name,
            names=", ".join(names),
        )
    )


def read_device(file: Path) -> DeviceSpec:
    """The device in a JSON file: an object with the fields of `DeviceSpec`. Raises `RequestError`."""
    try:
        text = files.read(file, LARGEST_JSON)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        why = getattr(error, "strerror", None) or str(error)
        raise RequestError(sentence("cannot read the device {file}: {why}", file=str(file), why=why)) from error
    return DeviceSpec.read_json(text)

"""Before a run on several machines: check that all ranks have the same configuration, and find how they reach each other.

Each machine has a spec, a text and a checkout of its own, which may differ. So every rank sends its configuration to rank 0, over
torchrun's store. Rank 0 answers all: with the first difference, or with the address at which it can be reached.
"""

from __future__ import annotations

import hashlib
import ipaddress
import platform
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from engine import weights
from engine.spec import RequestError, RunSpec, Sentence, sentence
from engine.text import load
from engine.wire import WireError, pack, unpack, whole

_ANSWER = "agreement/answer"
_DEEPEST = 8  # fields inside fields of a spec that are looked at one by one


@dataclass(frozen=True)
class RankConfig:
    """What must be the same on all ranks. `refused`: why this rank has no spec, if so."""

    spec: dict[str, Any]
    text: str = ""  # a digest of the text to train on
    engine: str = ""  # a digest of the engine's code
    torch: str = ""
    refused: str = ""

    @classmethod
    def of(cls, spec: RunSpec) -> RankConfig:
        """Raises `RequestError` if there is no text to train on."""
        text = b"" if spec.generate.skip_training else load(spec.workload.text)
        return cls(spec.model_dump(mode="json"), hashlib.sha256(text).hexdigest(), _code(), torch.__version__)


@dataclass(frozen=True)
class Route:
    """How a rank reaches the machine of rank 0: its own address on that route, and the other machine's."""

    host: str  # the name of its machine
    own: str
    other: str

    @classmethod
    def to(cls, host: str, port: int) -> Route:
        """From the system's routing table. Nothing is sent."""
        with socket.socket(socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0][0], socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return cls(platform.node(), str(probe.getsockname()[0]), str(probe.getpeername()[0]))


@dataclass(frozen=True)
class Rendezvous:
    """The answer of rank 0: an address that all ranks reach, and the port and the secret of the liveness connections."""

    address: str
    port: int
    secret: str
    hosts: tuple[str, ...]  # the name of each rank's machine


def check_reached(host: str, port: int, seconds: float) -> None:
    """Raise `RequestError` if torchrun's store cannot be reached. It is started before any rank.

    torch would try until its time-out. If a machine's name resolves to 127.0.0.1, torchrun there gives "localhost" to all ranks.
    """
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except OSError as error:
        message = sentence(
            "{host} does not reach torchrun's store at {store}: {reason}; give torchrun on each machine that machine's own "
            "address with --local-addr",
            host=platform.node(), store=f"{host}:{port}", reason=error.strerror or str(error),
        )  # fmt: skip
        raise RequestError(message) from error


def _code() -> str:
    """A digest of the engine's modules, by name, and of the weights that come with it."""
    home = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in (*sorted(home.rglob("*.py")), weights.FILE):
        digest.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------ rendezvous


def agree(
    store: dist.Store,
    rank: int,
    world: int,
    config: RankConfig,
    route: Route,
    listen: Callable[[str], int],
    set_status: Callable[[str], None],
) -> Rendezvous:
    """Send this rank's configuration, and wait for the answer. Raises `RequestError` with the difference, on every rank.

    Any other error on rank 0, for example that it cannot listen, is a `RequestError` on the others.

    `listen` opens a port at an address, on rank 0 alone, and returns its number. `set_status` is called with what this rank waits
    for.
    """
    store.set(f"agreement/{rank}", pack({"config": asdict(config), "route": asdict(route)}))  # type: ignore[arg-type]
    if rank == 0:
        _send_answer(store, world, listen, set_status)
    set_status("waiting for rank 0")
    return _parse_answer(store.get(_ANSWER), world)


def _send_answer(store: dist.Store, world: int, listen: Callable[[str], int], set_status: Callable[[str], None]) -> None:
    """On rank 0: send the answer to all. If that fails, the error is sent before it is raised here, since they wait for it."""
    said = []
    for other in range(world):
        set_status(f"waiting for rank {other}")
        said.append(store.get(f"agreement/{other}"))
    try:
        answer = _answer([_read(other, message) for other, message in enumerate(said)], listen)
    except RequestError as error:
        answer = {"wrong": str(error)}
    except Exception as error:
        message = sentence("rank {rank} on {host}: {reason}", rank=0, host=platform.node(), reason=str(error))
        store.set(_ANSWER, pack({"wrong": str(message)}))  # type: ignore[arg-type]  # its stub forgets bytes
        raise
    store.set(_ANSWER, pack(answer))  # type: ignore[arg-type]


def _answer(said: list[tuple[RankConfig, Route]], listen: Callable[[str], int]) -> dict[str, Any]:
    if wrong := difference([config for config, _ in said], [route.host for _, route in said]):
        return {"wrong": str(wrong)}  # as plain text: what comes over a network must not be used as a format
    address = common_address([route for _, route in said])
    rendezvous = Rendezvous(address, listen(address), secrets.token_hex(16), tuple(route.host for _, route in said))
    return {"rendezvous": asdict(rendezvous)}


def _parse_answer(message: bytes, world: int) -> Rendezvous:
    head, _ = unpack(message, finite=True)
    if isinstance(head, dict) and "wrong" in head:
        raise RequestError(str(head["wrong"]))
    try:
        sent = head["rendezvous"]
        rendezvous = Rendezvous(str(sent["address"]), whole(sent["port"]), str(sent["secret"]), tuple(map(str, sent["hosts"])))
    except (TypeError, KeyError) as error:
        raise WireError(f"what rank 0 answered cannot be read: {error}") from error
    if len(rendezvous.hosts) != world:
        raise WireError(f"rank 0 named {len(rendezvous.hosts)} ranks, and there are {world}")
    return rendezvous


def _read(rank: int, message: bytes) -> tuple[RankConfig, Route]:
    """Raises `RequestError` if the rank's configuration has other fields, which means another version, and `WireError`."""
    try:
        head, _ = unpack(message, finite=True)
        sent, route = head["config"], Route(**head["route"])
        if not all(isinstance(text, str) for text in astuple(route)):
            raise WireError("its route is not of texts")
        _ip(route.own), _ip(route.other)
        if sent.keys() != {field.name for field in fields(RankConfig)}:
            raise RequestError(_other_version(_who([rank], route.host)))
        config = RankConfig(**sent)
        if type(config.spec) is not dict or not all(isinstance(text, str) for text in astuple(config)[1:]):
            raise WireError("fields of its configuration have wrong types")
    except (WireError, AttributeError, TypeError, KeyError, ValueError) as error:
        raise WireError(f"what rank {rank} sent cannot be read: {error}") from error
    return config, route


# ------------------------------------------------------------------------------------------------------------ the answer


def difference(configs: list[RankConfig], hosts: list[str]) -> Sentence | None:
    """The first difference between ranks, in a sentence that names the ranks that have it. None if there is none."""
    for rank, own in enumerate(configs):
        if own.refused:
            return sentence("rank {rank} on {host}: {reason}", rank=rank, host=hosts[rank], reason=own.refused)
    first = configs[0]
    other = next((own for own in configs if own != first), None)
    if other is None:
        return None
    alike = [rank for rank, own in enumerate(configs) if own == other]
    who = _who(alike, hosts[alike[0]])
    if differing := list(_differing(other.spec, first.spec)):
        name, there, here = differing[0]
        message = sentence(
            "{who}: another spec than that of rank 0; {field} is {there} there and {here} on rank 0",
            who=who, field=name, there=_brief(there), here=_brief(here),
        )  # fmt: skip
        more = len(differing) - 1
        return sentence("{sentence} (and {count} more)", sentence=message, count=more) if more else message
    if other.text != first.text:
        return sentence("{who}: another text to train on than that of rank 0, under the same name", who=who)
    if other.torch != first.torch:
        return sentence("{who}: torch {there}, where rank 0 has torch {here}", who=who, there=other.torch, here=first.torch)
    return _other_version(who)


def _other_version(who: Sentence) -> Sentence:
    return sentence("{who}: another version of this program's engine than that of rank 0", who=who)


def _who(ranks: list[int], host: str) -> Sentence:
    if len(ranks) == 1:
        return sentence("rank {rank} on {host}", rank=ranks[0], host=host)
    named = ", ".join(map(str, ranks[:8])) + (", …" if len(ranks) > 8 else "")
    return sentence("ranks {ranks} on {host}", ranks=named, host=host)


def _differing(there: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name of a field, its value there, its value here), where these differ."""
    if isinstance(there, dict) and isinstance(here, dict) and name.count(".") < _DEEPEST:
        for key in dict.fromkeys((*here, *there)):
            yield from _differing(there.get(key), here.get(key), f"{name}.{key}" if name else str(key))
    elif there != here:
        yield name, there, here


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def common_address(routes: list[Route]) -> str:
    """An address of rank 0's machine that all ranks reach. A loopback address if all ranks are on that machine.

    A machine whose name resolves to 127.0.0.1 does not know its own address on the network. The other ranks know it.
    """
    known = [routes[0].own, *(route.other for route in routes)]
    return next((address for address in known if not _is_loopback(address)), routes[0].own)


def _is_loopback(address: str) -> bool:
    return _ip(address).is_loopback


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Raises `ValueError` if it is no address. The interface after a % is removed."""
    return ipaddress.ip_address(address.partition("%")[0])


def check_interfaces(setting: str) -> None:
    """Raise `RequestError` if this machine lacks one of the network interfaces in GLOO_SOCKET_IFNAME, comma-separated."""
    there = sorted(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(entry.family in (socket.AF_INET, socket.AF_INET6) for entry in addresses)
    )
    missing = [name for name in setting.split(",") if name not in there]
    if setting and missing:
        message = sentence(
            "{variable} is {name}, and {host} has {there}",
            variable="GLOO_SOCKET_IFNAME", name=missing[0][:60], host=platform.node(), there=", ".join(there),
        )  # fmt: skip
        raise RequestError(message)


def interface(route: Route, rendezvous: Rendezvous) -> str | None:
    """The name of the network interface between this rank's machine and rank 0's."""
    own = rendezvous.address if _is_loopback(route.own) else route.own
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == own.partition("%")[0] for entry in addresses):
            return name
    return None

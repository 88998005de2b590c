"""All collectives, sends and receives of torch.distributed. Nothing else calls them. Each call is counted by axis and purpose.

Payload bytes are those of the tensor handed in on this rank. Wire bytes are what this rank would send under the ring
algorithm for that collective, whatever the backend does inside:

    all_reduce       2 (n − 1) / n × payload
    reduce_scatter     (n − 1) / n × payload       (the payload is the whole input)
    all_gather         (n − 1)     × payload       (the payload is this rank's shard)
    all_to_all       what goes to other ranks        (the payload is all that is handed in)
    send_recv                        payload       (to the next rank of a ring, and from the one before)
    send                             payload
    recv                           0

On the CPU, reduce_scatter, all_gather and all_to_all are sends and receives between the ranks, which send exactly these bytes.
gloo's own reduce_scatter copies the whole input and all-reduces the copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from engine.measure.recorder import Recorder, Span, TrafficKey
from engine.parallel.backend import Backend
from engine.parallel.clocks import Clock, clock_id, largest_error, measured
from engine.parallel.pending import CommError, Pending, of_others, wait_for
from engine.parallel.transport import Group, NoPeers, Parts, Reduction, Transport, Works
from engine.parallel.unowned import unowned_view
from engine.schedule import Flow
from engine.topology import EP, NO_SUBGROUPS, CallAxis, Mesh, Subgroups

# What is sent, and in which direction.
_PIPELINE_GROUPS = "activation downstream", "activation upstream", "gradient downstream", "gradient upstream"
KEY_COPIES = "key copies"  # the name of the group of the tp ranks that hold the same key head
EXPERT_REPLICAS = "expert replicas"  # the name of the group of the dp ranks that hold the same experts
# The names of the groups over which ZeRO shards, and of the ranks that hold the same shard: `Mesh.shard_group`, `shard_replicas`.
ZERO_SHARDS, ZERO_REPLICAS = "zero shards", "zero replicas"
_LIKE_DP = EXPERT_REPLICAS, ZERO_SHARDS  # groups that are often the whole of dp's
_REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class ProcessGroups:
    """Transport by gloo or NCCL."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def all_reduce(self, tensor: torch.Tensor, reduction: Reduction, to: Group) -> Works:
        return [dist.all_reduce(unowned_view(tensor), _REDUCTIONS[reduction], group=to.handle, async_op=True)]

    def all_gather(self, out: torch.Tensor, tensor: torch.Tensor, to: Group, tag: int) -> Works:
        if tensor.device.type == "cpu":
            return self._gather_by_transfers(unowned_view(out), unowned_view(tensor), to, tag)
        return [dist.all_gather_single(unowned_view(out), unowned_view(tensor), group=to.handle, async_op=True)]

    def _gather_by_transfers(self, out: torch.Tensor, tensor: torch.Tensor, to: Group, tag: int) -> Works:
        """An all-gather by sends and receives. gloo's own makes a copy of the whole, which another thread frees at a random
        instant. So memory would not be reproducible.
        """
        parts = out.view(len(to.ranks), -1)
        works: Works = []
        for rank, part in zip(to.ranks, parts, strict=True):
            if rank == self._rank:
                part.copy_(tensor)
            else:
                works += [dist.irecv(part, rank, group=to.handle, tag=tag), dist.isend(tensor, rank, group=to.handle, tag=tag)]
        return works

    def send_recv(self, out: torch.Tensor, tensor: torch.Tensor, to: Group, tag: int) -> Works:
        own = to.ranks.index(self._rank)
        before, after = to.ranks[own - 1], to.ranks[own + 1 - len(to.ranks)]
        incoming, outgoing = unowned_view(out), unowned_view(tensor)
        if tensor.device.type == "cpu":
            return [dist.irecv(incoming, before, to.handle, tag), dist.isend(outgoing, after, to.handle, tag)]
        # In one call: on NCCL a send ends only when it is received, and all ranks of the ring send first.
        both = [dist.P2POp(dist.irecv, incoming, before, to.handle), dist.P2POp(dist.isend, outgoing, after, to.handle)]
        return list(dist.batch_isend_irecv(both))

    def reduce_scatter(self, out: torch.Tensor, tensor: torch.Tensor, to: Group) -> Works:
        return [dist.reduce_scatter_single(unowned_view(out), unowned_view(tensor), group=to.handle, async_op=True)]

    def exchange(self, out: Parts, parts: Parts, to: Group, tag: int) -> Works:
        if out[0].device.type != "cpu":
            return [dist.all_to_all(list(out), list(parts), group=to.handle, async_op=True)]
        works: Works = []
        for rank, into, part in zip(to.ranks, out, parts, strict=True):
            if rank == self._rank:
                into.copy_(part)
                continue
            works += [dist.irecv(unowned_view(into), rank, group=to.handle, tag=tag)] if into.numel() else []
            works += [dist.isend(unowned_view(part), rank, group=to.handle, tag=tag)] if part.numel() else []
        return works

    def send(self, tensor: torch.Tensor, peer: int, to: Group, tag: int) -> Works:
        return [dist.isend(unowned_view(tensor), peer, group=to.handle, tag=tag)]

    def receive(self, tensor: torch.Tensor, peer: int, to: Group, tag: int) -> Works:
        return [dist.irecv(unowned_view(tensor), peer, group=to.handle, tag=tag)]

    def latest(self, instant: int, device: torch.device) -> int:
        clock = torch.tensor([instant], dtype=torch.int64, device=device)
        dist.all_reduce(unowned_view(clock), dist.ReduceOp.MAX)
        return int(clock.item())

    def gathered(self, numbers: list[int]) -> list[list[int]]:
        # A sum on the CPU, by gloo. Its all-gather makes copies, which its threads free later, while a step's memory is measured.
        table = torch.zeros(dist.get_world_size(), len(numbers), dtype=torch.int64)
        table[self._rank] = torch.tensor(numbers)
        dist.all_reduce(unowned_view(table))
        return [part.tolist() for part in table]

    def tell(self, number: int, peer: int) -> None:
        dist.send(torch.tensor([number]), peer)

    def told_by(self, peer: int) -> int:
        told = torch.empty(1, dtype=torch.int64)
        dist.recv(told, peer)
        return int(told.item())


class Comm:
    """One rank's communication. `connect` makes a real one, `alone` is for a model that is not sharded, `without_others` for one
    rank of a layout without its peers.
    """

    def __init__(
        self,
        mesh: Mesh,
        rank: int,
        recorder: Recorder,
        device: torch.device,
        transport: Transport,
        subgroups: Subgroups = NO_SUBGROUPS,
    ) -> None:
        self.mesh, self.rank, self.recorder, self.device, self._transport = mesh, rank, recorder, device, transport
        self.at = mesh.coordinate(rank)
        self.clock = Clock()
        self.clock_error_ns = 0  # the largest error between instants of two machines
        self.groups: dict[str, Group] = {axis: Group(axis, mesh.members(axis, rank)) for axis in mesh}
        self.groups[KEY_COPIES] = Group("tp", mesh.neighbours("tp", rank, subgroups.key_copies))
        ep, copies = subgroups.ep, subgroups.zero_replicas
        self.groups[EP] = Group(EP, mesh.neighbours("dp", rank, ep))
        self.groups[EXPERT_REPLICAS] = Group("dp", mesh.members("dp", rank)[self.at.dp % ep :: ep])
        self.groups[ZERO_SHARDS] = Group("dp", mesh.shard_group(rank, copies))
        self.groups[ZERO_REPLICAS] = Group("dp", mesh.shard_replicas(rank, copies))
        self._tags: dict[tuple[int, ...], int] = {}  # of the latest collective that was made of transfers, by ranks

    @classmethod
    def alone(cls, device: torch.device) -> Comm:
        return cls.without_others(Mesh({}), 0, Recorder(), device)

    @classmethod
    def without_others(
        cls, mesh: Mesh, rank: int, recorder: Recorder, device: torch.device, subgroups: Subgroups = NO_SUBGROUPS
    ) -> Comm:
        """Calls are counted as if the peers were there."""
        comm = cls(mesh, rank, recorder, device, NoPeers(rank), subgroups)
        stages = comm.groups["pp"].ranks
        comm.groups |= dict.fromkeys(_PIPELINE_GROUPS, comm.groups["pp"])
        comm.groups["tie"] = Group("pp", (stages[0], stages[-1]) if mesh.pp > 1 else stages)
        return comm

    @classmethod
    def connect(
        cls,
        store: dist.Store,
        mesh: Mesh,
        rank: int,
        backend: Backend,
        seconds: float,
        recorder: Recorder,
        subgroups: Subgroups = NO_SUBGROUPS,
    ) -> Comm:
        """Connect with the other ranks over `store`. `seconds` is the time-out of every later call."""
        limit = timedelta(seconds=seconds)
        try:
            dist.init_process_group(backend.name, store=store, rank=rank, world_size=mesh.size, timeout=limit)
            comm = cls(mesh, rank, recorder, backend.device, ProcessGroups(rank), subgroups)
            for name, group in list(comm.groups.items()):
                same = name in _LIKE_DP and group.ranks == comm.groups["dp"].ranks
                comm.groups[name] = comm.groups["dp"] if same else comm._open(group.axis, group.ranks, limit)
            stages = comm.groups["pp"].ranks
            # On NCCL each flow has a process group of its own in each direction. Calls in one group run one after the other, and
            # a send ends only when it is received. So two neighbours that both send first would wait for each other.
            for name in _PIPELINE_GROUPS:
                comm.groups[name] = comm._open("pp", stages, limit) if "nccl" in backend.name else comm.groups["pp"]
            if comm.at.pp in (0, mesh.pp - 1):
                comm.groups["tie"] = comm._open("pp", (stages[0], stages[-1]), limit) if mesh.pp > 1 else comm.groups["pp"]
            comm.clock = measured(comm._transport, rank, clock_id()) if mesh.size > 1 else Clock()
        except RuntimeError as error:
            raise CommError(str(error)) from error
        return comm

    @staticmethod
    def _open(axis: CallAxis, ranks: tuple[int, ...], limit: timedelta) -> Group:
        if len(ranks) == 1:
            return Group(axis, ranks)
        return Group(axis, ranks, dist.new_group(ranks, timeout=limit, use_local_synchronization=True))

    @staticmethod
    def disconnect() -> None:
        dist.destroy_process_group()

    # ------------------------------------------------------------------------------------------------- what is counted

    def all_reduce(self, tensor: torch.Tensor, group: str, reduction: Reduction = "sum") -> torch.Tensor:
        """Reduce `tensor` in place over the group; nothing happens in a group of one. Returns `tensor`."""
        if len(self.groups[group].ranks) > 1:
            self.start_all_reduce(tensor, group, reduction).wait()
        return tensor

    def start_all_reduce(
        self, tensor: torch.Tensor, group: str, reduction: Reduction = "sum", phase: str | None = None
    ) -> Pending:
        """The same, asynchronous: `tensor` must not be used until the returned call was waited for. `phase`: under which it is
        counted, if not under that of the action.
        """
        to = self.groups[group]
        payload, n = tensor.nbytes, len(to.ranks)
        span = self._count(to.axis, "all_reduce", to.ranks, payload, 2 * (n - 1) * payload // n, phase)
        return self._start(lambda: self._transport.all_reduce(tensor, reduction, to), span, tensor)

    def all_gather(self, tensor: torch.Tensor, group: str) -> torch.Tensor:
        """The tensors of all ranks of the group, along a new first dimension: (n, *shape)."""
        to = self.groups[group]
        out = tensor.new_empty((len(to.ranks), *tensor.shape))
        self.start_all_gather(out, tensor, group).wait()
        return out

    def start_all_gather(self, out: torch.Tensor, tensor: torch.Tensor, group: str) -> Pending:
        """The same into `out`, asynchronous. `tensor` may be this rank's part of `out`."""
        to = self.groups[group]
        span = self._count(to.axis, "all_gather", to.ranks, tensor.nbytes, (len(to.ranks) - 1) * tensor.nbytes)
        return self._start(lambda: self._transport.all_gather(out, tensor, to, self._next_tag(to)), span, tensor, out)

    def all_to_all(self, tensor: torch.Tensor, group: str) -> torch.Tensor:
        """Part i of `tensor` (n, …) goes to rank i of the group. Returns what the ranks sent to this one, (n, …)."""
        out = torch.empty_like(tensor)
        self.start_exchange(tuple(out), tuple(tensor), tensor, group).wait()
        return out

    def start_send_recv(self, out: torch.Tensor, tensor: torch.Tensor, group: str) -> Pending:
        """Send `tensor` to the next rank of the group, and receive into `out` what the rank before this one sends.

        The ranks are a ring: the first follows the last. Neither must be used until the call was waited for.
        """
        to = self.groups[group]
        span = self._count(to.axis, "send_recv", to.ranks, tensor.nbytes, tensor.nbytes)
        return self._start(lambda: self._transport.send_recv(out, tensor, to, self._next_tag(to)), span, tensor, out)

    def reduce_scatter(self, tensor: torch.Tensor, group: str) -> torch.Tensor:
        """Sum over the group of this rank's part of `tensor` (n, *shape); returns (*shape)."""
        out = torch.empty_like(tensor[0])
        self.start_reduce_scatter(tensor, group, out).wait()
        return out

    def start_reduce_scatter(
        self, tensor: torch.Tensor, group: str, out: torch.Tensor | None = None, accumulate: bool = False
    ) -> Pending:
        """The same, asynchronous. The sum is written to `out`, or added to it if `accumulate`, in the type of `out`.

        Without `out` it takes the place of this rank's part of `tensor`. Neither must be used until the call was waited for.
        """
        to = self.groups[group]
        n, part = len(to.ranks), tensor[to.ranks.index(self.rank)]
        span = self._count(to.axis, "reduce_scatter", to.ranks, tensor.nbytes, (n - 1) * tensor.nbytes // n)
        if tensor.device.type == "cpu":
            return self._reduce_by_transfers(part if out is None else out, tensor, part, to, span, accumulate)
        target = part if out is None or accumulate else out
        pending = self._start(lambda: self._transport.reduce_scatter(target, tensor, to), span, tensor, target)
        if out is not None and accumulate:
            pending.afterwards = lambda: out.add_(part)
        return pending

    def _reduce_by_transfers(
        self, out: torch.Tensor, tensor: torch.Tensor, part: torch.Tensor, to: Group, span: Span, accumulate: bool
    ) -> Pending:
        """A reduce-scatter by sends and receives, with one buffer as large as `part` and no other copy.

        All is sent at once. It is received from one rank after the other, the one before this rank first, and added up in that
        order, so that a sum is the same in every run. A send is complete when it was received: so sends are waited for last. Only
        what the first rank sends is received while the caller goes on; the rest is received in `wait`. A receive of gloo does not
        say that it is complete before it is waited for, so nobody can tell when the next one may take the buffer.
        """
        ranks, tag = to.ranks, self._next_tag(to)
        own, n = ranks.index(self.rank), len(ranks)
        sources, sends = [ranks[own - step] for step in range(1, n)], Works()
        with self.recorder.communication_region(span.kind):
            received = torch.empty_like(part)

        def receive(source: int) -> Works:
            with of_others():
                return self._transport.receive(received, source, to, tag)

        def start() -> Works:
            for step in range(1, n):
                where = (own + step) % n
                sends.extend(self._transport.send(tensor[where], ranks[where], to, tag))
            return receive(sources[0]) if sources else []

        def finish() -> None:
            for source in sources:
                if source != sources[0]:
                    wait_for(receive(source))
                out.add_(received)
            wait_for(sends)

        pending = self._start(start, span, tensor)
        with self.recorder.communication_region(span.kind):
            if accumulate:
                out.add_(part)
            elif out is not part:
                out.copy_(part)
        pending.afterwards = finish
        return pending

    def start_exchange(self, out: Parts, parts: Parts, tensor: torch.Tensor, group: str) -> Pending:
        """An all-to-all with parts of any size: part i of `parts`, of `tensor`, goes to rank i of the group, and part i of `out`
        takes what it sends here.
        """
        to = self.groups[group]
        wire = tensor.nbytes - parts[to.ranks.index(self.rank)].nbytes
        span = self._count(to.axis, "all_to_all", to.ranks, tensor.nbytes, wire)
        return self._start(lambda: self._transport.exchange(out, parts, to, self._next_tag(to)), span, tensor, *out)

    def _next_tag(self, to: Group) -> int:
        """A number for a collective: the same on all ranks of the group, which make their calls in the same order."""
        tag = self._tags[to.ranks] = self._tags.get(to.ranks, 0) + 1
        return tag

    def send(self, tensor: torch.Tensor, flow: Flow, stage: int, tag: int) -> Pending:
        """Start sending to the rank at pp coordinate `stage`. `tensor` must not be used until the call was waited for."""
        return self._transfer("send", tensor, flow, stage, tag)

    def receive(self, tensor: torch.Tensor, flow: Flow, stage: int, tag: int) -> torch.Tensor:
        """Receive into `tensor` what the rank at pp coordinate `stage` sent with `tag`. Waits for it."""
        self._transfer("recv", tensor, flow, stage, tag).wait()
        return tensor

    def _transfer(self, kind: str, tensor: torch.Tensor, flow: Flow, stage: int, tag: int) -> Pending:
        peer = self.mesh.peer("pp", self.rank, stage)
        pair = (min(self.rank, peer), max(self.rank, peer))
        span = self._count("pp", kind, pair, tensor.nbytes, tensor.nbytes if kind == "send" else 0)
        transfer = self._transport.send if kind == "send" else self._transport.receive
        downstream = (self.at.pp < stage) == (kind == "send")
        group = self.groups[f"{flow} {'downstream' if downstream else 'upstream'}"]
        return self._start(lambda: transfer(tensor, peer, group, tag), span, tensor)

    def _count(
        self, axis: CallAxis, collective: str, ranks: tuple[int, ...], payload: int, wire: int, phase: str | None = None
    ) -> Span:
        return self.recorder.start_call(TrafficKey(axis, collective, phase or self.recorder.phase, ranks), payload, wire)

    def _start(self, call: Callable[[], Works], span: Span, *kept: torch.Tensor) -> Pending:
        with of_others(), self.recorder.communication_region(span.kind):
            pending = Pending(call(), kept, span, self.recorder)
        span.exposed_ns = time.perf_counter_ns() - span.start_ns
        return pending

    # -------------------------------------------------------------------------------- what measuring needs, not counted

    def common_instant(self) -> int:
        """Wait for all ranks. Returns the time of this rank's monotonic clock at which the last one arrived, in nanoseconds."""
        if self.mesh.size == 1:
            return time.perf_counter_ns()
        ahead = self.clock.ahead_ns
        with of_others():
            return self._transport.latest(time.perf_counter_ns() - ahead, self.device) + ahead

    def gathered(self, numbers: list[int]) -> list[list[int]]:
        """The numbers of every rank, (ranks, len(numbers)). Waits for all ranks."""
        if self.mesh.size == 1:
            return [numbers]
        with of_others():
            return self._transport.gathered(numbers)

    def measure_clocks(self) -> int:
        """Measure again how far the machines' clocks are ahead of rank 0's. All ranks call it.

        Returns by how many nanoseconds this rank's is further ahead than it was at the start.
        """
        if self.mesh.size == 1:
            return 0
        before = self.clock.ahead_ns
        with of_others():
            self.clock = measured(self._transport, self.rank, clock_id())
        moved = self.clock.ahead_ns - before
        self.clock_error_ns = largest_error(self.gathered([clock_id(), self.clock.error_ns + abs(moved)]))
        return moved

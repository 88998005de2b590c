"""The launcher of one rank under torchrun: connects it with the others, runs it, and prints errors on its terminal."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

from engine.launch import root_cause
from engine.launch.cluster.agreement import RankConfig, Rendezvous, Route, agree, check_interfaces, check_reached, interface
from engine.launch.cluster.liveness import Liveness, LivenessError, PeerFailure, accept_ranks, connect, listener
from engine.launch.cluster.torchrun import DONE, FAILED, GRACE_S, TorchrunRank, check_world_size, print_line, refuse
from engine.launch.draft import Draft
from engine.launch.ranks import raised_error
from engine.launch.request import read_spec
from engine.phases import PHASES
from engine.spec import RequestError, RunSpec, sentence
from engine.store import head
from engine.tables import RunResult
from engine.worker import work

_SAVED = "cluster/saved"  # key in the store: the run's folder
_READ = "cluster/read"  # and a rank: keys that say that it has read the folder
_NAMES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def _master() -> tuple[str, int]:
    """Where torchrun says that the store is."""
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def _of_nodes(result: RunResult) -> str:
    """What a run on several nodes sent between them, and how well their clocks agree."""
    sent = result.summary["wire_bytes_per_rank"] * result.spec.layout.ranks
    between, error = result.summary["wire_bytes_between_nodes"], result.environment["clock_error_ns"]
    return sentence(
        "a step sent {sent:,} bytes, {between:,} of them between nodes; their clocks are aligned within {error:.3f} ms",
        sent=round(sent), between=between, error=error / 1e6,
    )  # fmt: skip


class ClusterRank:
    """One rank, and its link to the terminal of its machine."""

    def __init__(self, place: TorchrunRank, file: str, home: Path) -> None:
        """`file`: the spec, or "-"."""
        self._place, self._file = place, file
        self._spec = RunSpec()  # until it is read
        self._draft = Draft.new(home)
        self._status, self._since = "", time.monotonic()
        self._liveness: Liveness | None = None
        self._ending = threading.Lock()  # the thread that acquires it prints why this rank ends, and ends it

    def run(self) -> int:
        """Run the rank. Returns the exit status."""
        config = self._config()
        limit = self._alarm(self._spec.workload.time_limit, last=False)
        try:
            store = self._connect()
            rendezvous = self._rendezvous(store, config)
            self._liveness = self._watch_peers(rendezvous)
            spec, place = check_world_size(self._spec, self._place.world), self._place
            out = self._draft.folder if place.rank == 0 else None
            work(spec, place.rank, store, self, out, (place.local_rank, place.local_world))
            if place.rank == 0:
                self._keep(spec, store)
            else:
                folder = Path(store.get(_SAVED).decode())
                store.set(f"{_READ}/{place.rank}", "1")
                self._tell_where(folder)
            self._liveness.announce_end("done")
            return DONE
        except Exception as error:  # noqa: BLE001  this rank's failure, whatever it is
            return self._explain(error)
        finally:
            limit.cancel()
            if self._place.rank == 0:
                self._draft.discard()

    def _keep(self, spec: RunSpec, store: dist.Store) -> None:
        """On rank 0: give the run its final name, say where it is, and wait until the others know, as the store may be here."""
        result = head(self._draft.folder)  # before the new name, after which nothing that is said must fail
        folder = self._draft.keep(spec).absolute()
        store.set(_SAVED, str(folder))
        print_line(f"saved {folder}")
        if result.environment.get("nodes"):
            print_line(_of_nodes(result))
        store.wait([f"{_READ}/{rank}" for rank in range(1, self._place.world)])

    def _tell_where(self, folder: Path) -> None:
        """On other nodes: say so if the folder of the run is not seen here."""
        if self._place.local_rank == 0 and not folder.exists():
            print_line(
                sentence(
                    "the run is saved on {host} alone: {host} and {here} do not share {folder}",
                    host=self._hosts[0],
                    here=self._hosts[self._place.rank],
                    folder=str(folder.parent),
                )
            )

    # -------------------------------------------------------------------------------------------------- before the work

    def _config(self) -> RankConfig:
        """This rank's configuration. If it cannot be read, `refused` says so, because the other ranks wait for this one."""
        try:
            self._spec = read_spec(self._file)
            check_interfaces(os.environ.get(_NAMES[0], ""))
            return RankConfig.of(self._spec)
        except RequestError as error:
            return RankConfig({}, refused=error.sentence)

    def _connect(self) -> dist.Store:
        self.set_status("connecting")
        patience = timedelta(seconds=self._spec.workload.time_limit)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            check_reached(*_master(), patience.total_seconds())
        store, _, _ = next(dist.rendezvous("env://", timeout=patience))
        return store

    def _rendezvous(self, store: dist.Store, config: RankConfig) -> Rendezvous:
        """Compare configurations with the other ranks, and choose the network interface."""
        place = self._place
        route = Route.to(*_master())
        rendezvous = agree(store, place.rank, place.world, config, route, self._listen, self.set_status)
        # Otherwise gloo takes the interface that the machine's name resolves to, which often is the loopback device.
        if name := interface(route, rendezvous):
            for variable in _NAMES:
                os.environ.setdefault(variable, name)
        return rendezvous

    def _listen(self, address: str) -> int:
        self._listening = listener(address)
        return int(self._listening.getsockname()[1])

    def _watch_peers(self, rendezvous: Rendezvous) -> Liveness:
        self.set_status("connecting")
        place, patience = self._place, self._spec.workload.time_limit
        if place.rank:
            connections = {0: connect(rendezvous.address, rendezvous.port, rendezvous.secret, place.rank, patience)}
        else:
            with self._listening:
                connections = accept_ranks(self._listening, rendezvous.secret, place.world, patience)
        self._hosts = rendezvous.hosts
        return Liveness(connections, place.world, self._lost)

    # ------------------------------------------------------------------------------------------------ when it goes wrong

    def _explain(self, error: Exception) -> int:
        """Print why this rank failed. Returns the exit status."""
        if isinstance(error, RequestError):
            self._leave_failed()
            return refuse(error, self._place)
        raised = raised_error(error)
        secondary = raised.secondary or isinstance(error, LivenessError)
        if not secondary:
            self._leave_failed()
        failure = self._liveness.failure(GRACE_S) if secondary and self._liveness else None
        self._ending.acquire()  # never released: this rank ends, here or in the thread that has it
        if failure is not None and failure.how == "gone":
            print_line(self._message(failure))
            return FAILED
        why = root_cause.cause_of_exits(self._spec.layout, [root_cause.RankExit(self._place.rank, self._status, FAILED, raised)])
        message = why.sentence
        if failure is not None:
            message = sentence("{sentence}; {who} had failed before", sentence=message, who=self._named(failure.rank))
        elif secondary and self._status == "connecting":
            message = sentence("{sentence}; {hint}", sentence=message, hint=self._hint())
        print_line(message if secondary else f"{message}\n{why.traceback}")
        self._leave_failed()
        return FAILED

    def _leave_failed(self) -> None:
        if self._liveness:
            self._liveness.announce_end("failed")

    def _lost(self, failure: PeerFailure) -> None:
        """In the thread of `Liveness`: another rank is gone, and this one may wait for it forever."""
        self._ending.acquire()
        if self._place.local_rank:
            time.sleep(GRACE_S)  # local rank 0 prints the same message, and must be the first to end
        self._end(self._message(failure))

    def _message(self, failure: PeerFailure) -> str:
        host = self._hosts[failure.rank]
        return sentence(
            "lost the connection to {who} on {host}: {reason}", who=self._named(failure.rank), host=host, reason=failure.why
        )

    def _named(self, rank: int) -> str:
        return root_cause.named(self._spec.layout, rank)

    def _hint(self) -> str:
        """What to try if ranks do not reach each other."""
        return sentence(
            "ranks talk over the network interface {name}; if their machines reach each other over another, set "
            "GLOO_SOCKET_IFNAME to its name on each",
            name=os.environ.get(_NAMES[0], "that the machine's name leads to"),
        )

    def _end(self, message: str) -> None:
        """Print the message and end this process, from any thread."""
        print_line(message)
        if self._place.rank == 0:
            self._draft.discard()
        os._exit(FAILED)

    # ---------------------------------------------------------------------------------------------- the worker's link

    def set_status(self, status: str) -> None:
        self._status, self._since = status, time.monotonic()

    def report(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "ready":
            print_line(f"ready: {event['why']}")
        elif kind == "step":
            print_line(f"step {event['step']} of {self._spec.workload.steps}, loss {event['loss']:.4f}")
        elif kind == "phase":
            print_line(PHASES[event["phase"]])
            if event["phase"] == "saving":
                signal.signal(signal.SIGTERM, self._leave)

    @staticmethod
    def _leave(number: int, frame: FrameType | None) -> None:
        """torchrun ends this rank while it saves: run the clean-up of `run`, so that no half-written folder remains.

        Before that, the default handler is better: it also works during a collective.
        """
        sys.exit(128 + number)

    # ------------------------------------------------------------------------------------------------- the time limit

    def _alarm(self, seconds: float, last: bool) -> threading.Timer:
        alarm = threading.Timer(seconds, self._time_is_up, (last,))
        alarm.daemon = True
        alarm.start()
        return alarm

    def _time_is_up(self, last: bool) -> None:
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        stack = "".join(traceback.format_stack(frame))
        layout, rank, limit = self._spec.layout, self._place.rank, self._spec.workload.time_limit
        if root_cause.is_waiting(stack) and not last:
            self._alarm(GRACE_S, last=True)
            return
        self._ending.acquire()
        self._leave_failed()
        if root_cause.is_waiting(stack):
            self._end(
                f"the run reached its time limit of {limit:g} s: {root_cause.named(layout, rank)} was waiting for other ranks"
            )
        why = root_cause.cause_of_time_limit(
            layout, limit, [root_cause.RankAtLimit(rank, self._status, time.monotonic() - self._since, stack)]
        )
        self._end(f"{why.sentence}\n{why.traceback}")

"""The order of the runs that wait: sessions take turns. Imports no torch."""

from __future__ import annotations

from itertools import count

_REMEMBERED = 1_000  # sessions whose last turn is known


class Turns:
    """Runs that wait. Each session's own runs keep their order; the session whose last turn is the longest ago is next.

    A session that had no turn comes before all others; of several, the one whose run has waited longest. So one session with
    many runs holds another up by one run at most. A run that is removed before its turn costs its session nothing.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, dict[str, int]] = {}  # session → its runs, with when they came
        self._session_of: dict[str, str] = {}
        self._last_turn: dict[str, int] = {}  # of sessions, the longest ago first
        self._clock = count(1)

    def __contains__(self, id: str) -> bool:
        return id in self._session_of

    def add(self, id: str, session: str) -> None:
        self._session_of[id] = session
        self._waiting.setdefault(session, {})[id] = next(self._clock)

    def remove(self, id: str) -> None:
        """Take a run out, without a turn for its session."""
        session = self._session_of.pop(id)
        del self._waiting[session][id]
        if not self._waiting[session]:
            del self._waiting[session]

    def take(self, id: str) -> None:
        """Take a run out: its session has had its turn."""
        session = self._session_of[id]
        self.remove(id)
        self._last_turn.pop(session, None)  # it moves to the end
        self._last_turn[session] = next(self._clock)
        if len(self._last_turn) > _REMEMBERED:
            del self._last_turn[next(iter(self._last_turn))]

    def order(self) -> list[str]:
        """All runs that wait, as they will be started if no other comes."""
        sessions = sorted(
            self._waiting, key=lambda session: (self._last_turn.get(session, 0), min(self._waiting[session].values()))
        )
        place = {session: number for number, session in enumerate(sessions)}
        rounds = [(number, place[session], id) for session in sessions for number, id in enumerate(self._waiting[session])]
        return [id for *_, id in sorted(rounds)]

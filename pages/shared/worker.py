"""The program of a warm worker: `python -m pages.shared.worker`, started by `pages.shared.workers`.

Its standard input is a socket on which questions come, one at a time, and answers go. It ends when that is closed, even in the
middle of its work, and when it was asked nothing for a while.
"""

from __future__ import annotations

import os
import pickle
import traceback
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from threading import Thread

from engine.measure.process import resident_bytes
from engine.spec import RequestError
from pages.shared.workers import Answer

_IDLE_S = 600.0


def answered(question: bytes) -> bytes:
    """`question`: a pickled function with its positional and named arguments. A pickled `Answer`."""
    try:
        function, arguments, named = pickle.loads(question)
        return pickle.dumps(Answer("done", function(*arguments, **named), resident_bytes()))
    except RequestError as error:
        return pickle.dumps(Answer("refused", error, resident_bytes()))
    except Exception:  # noqa: BLE001  whoever asked hears of it, whatever it is
        return pickle.dumps(Answer("failed", traceback.format_exc(), resident_bytes()))


def _listen(pipe: Connection, questions: SimpleQueue[bytes]) -> None:
    """A thread of its own, so that the end of whoever asks is noticed at once."""
    while True:
        try:
            questions.put(pipe.recv_bytes())
        except (EOFError, ConnectionError):
            os._exit(0)


def main() -> None:
    pipe: Connection = Connection(0)
    questions: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(pipe, questions), daemon=True).start()
    while True:
        try:
            question = questions.get(timeout=_IDLE_S)
        except Empty:
            return
        try:
            pipe.send_bytes(answered(question))
        except ConnectionError:
            return


if __name__ == "__main__":
    main()

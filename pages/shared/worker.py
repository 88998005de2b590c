"""The program of a warm worker: `python -m pages.shared.worker JOBS`, started by `pages.shared.workers`.

Its standard input is a socket. It reads calls from it, one at a time, and writes answers. It calls only functions in the tuple
JOBS of the module JOBS. It ends when the socket is closed, even during a call, and when there was no call for a while.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from queue import Empty, SimpleQueue
from threading import Thread

from engine.measure.process import resident_bytes
from engine.spec import RequestError
from engine.wire import receive, send
from pages.shared.codec import packed_answer, read_call

_IDLE_S = 600.0
_SOCKET = 0


def answered(question: bytes, jobs: tuple[str, ...]) -> bytes:
    """The answer to a call, both encoded by `pages.shared.codec`."""
    try:
        function, given = read_call(question, jobs)
        return packed_answer("done", function(**given), resident_bytes())
    except RequestError as error:
        return packed_answer("refused", error.sentence, resident_bytes())
    except Exception:  # noqa: BLE001  every error is sent to the caller
        return packed_answer("failed", traceback.format_exc(), resident_bytes())


def _listen(questions: SimpleQueue[bytes]) -> None:
    """Read calls in a thread, so that a closed socket is noticed at once."""
    try:
        while True:
            questions.put(receive(_SOCKET))
    except (EOFError, ConnectionError):
        os._exit(0)
    except Exception:  # noqa: BLE001  after an error nothing more can be read, and the end of the socket would not be noticed
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def main(jobs: tuple[str, ...]) -> None:
    questions: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(questions,), daemon=True).start()
    while True:
        try:
            question = questions.get(timeout=_IDLE_S)
        except Empty:
            return
        try:
            send(_SOCKET, answered(question, jobs))
        except ConnectionError:
            return


if __name__ == "__main__":
    main(import_module(sys.argv[1]).JOBS)

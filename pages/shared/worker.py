"""The program of a warm worker: `python -m pages.shared.worker JOBS`, started by `pages.shared.workers`.

Its standard input is a socket on which questions come, one at a time, and answers go. It does what the tuple JOBS of the module
JOBS names, and nothing else. It ends when the socket is closed, even in the middle of its work, and when it was asked nothing for
a while.
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
    """The answer to a question, as `pages.shared.codec` packs them."""
    try:
        function, given = read_call(question, jobs)
        return packed_answer("done", function(**given), resident_bytes())
    except RequestError as error:
        return packed_answer("refused", error.sentence, resident_bytes())
    except Exception:  # noqa: BLE001  whoever asked hears of it, whatever it is
        return packed_answer("failed", traceback.format_exc(), resident_bytes())


def _listen(questions: SimpleQueue[bytes]) -> None:
    """A thread of its own, so that the end of whoever asks is noticed at once."""
    try:
        while True:
            questions.put(receive(_SOCKET))
    except (EOFError, ConnectionError):
        os._exit(0)
    except Exception:  # noqa: BLE001  nothing that comes after it can be read, and no end would be noticed
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

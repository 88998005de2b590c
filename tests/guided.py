"""A fuzzer that is guided by coverage: an input that runs code which no earlier one ran is kept, and changed further.

    python -m tests.guided WAY INPUTS FOLDER

Atheris (libFuzzer for Python) keeps and chooses inputs, by the branches that each one takes in this program. `tests.fuzz` changes
them, and says what is wrong: an input that takes too long or too much memory too, or for which something is written outside of
FOLDER. The first wrong one ends the process with another status than 0. Otherwise the last line of standard output is
{"tried": …, "taken": …, "kept": …, …}: inputs, valid ones, and those that reached new code.
"""

from __future__ import annotations

import json
import os
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["engine", "pages"]):
    from tests.fuzz import Tally, varied, ways

_LONGEST = 1 << 16  # bytes of an input; the largest sample has 13,000
_FRESH = 0.3  # the share of inputs that are made from a good one: the kept ones are mostly refused, for one reason or another
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REMOVALS = {"os.remove", "os.rmdir"}  # a name, and the directory that it is in, or −1
_CHANGES = {"os.mkdir", "os.rename", "os.symlink", "os.link", "os.truncate", "os.chmod", "os.chown"}


def refuse_writes_outside(folder: Path) -> None:
    """From now on, whatever changes a file elsewhere raises `AssertionError`. It cannot be taken back. Linux."""
    home = f"{folder.resolve()}{os.sep}"

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        base = Path()
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            paths = arguments[:1]
        elif event in _REMOVALS:
            *paths, directory = arguments
            base = base if directory == -1 else Path(os.readlink(f"/proc/self/fd/{directory}"))
        elif event in _CHANGES:
            paths = arguments
        else:
            return
        for path in paths:
            if isinstance(path, (str, bytes)) and not f"{(base / os.fsdecode(path)).resolve()}{os.sep}".startswith(home):
                raise AssertionError(f"{event} of {path!r}, which is outside of {home}")

    sys.addaudithook(audit)


def main(name: str, inputs: int, folder: Path) -> None:
    """Never returns: libFuzzer ends the process."""
    corpus, home = folder / "corpus", folder / "home"
    corpus.mkdir()
    home.mkdir()
    (way,) = (way for way in ways(home) if way.name == name)
    for number, sample in enumerate(way.samples):
        (corpus / f"sample-{number}").write_bytes(sample)
    tally = Tally(measured=True)

    def mutate(given: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        return varied(way, draw.choice(way.samples) if draw.random() < _FRESH else given, draw)[:most]

    def one(given: bytes) -> None:
        tally.try_one(way, given)
        if tally.wrong:
            print(tally.wrong[0], file=sys.stderr, flush=True)
            raise AssertionError(tally.wrong[0])
        if tally.tried == inputs:
            found: dict[str, Any] = {"tried": tally.tried, "taken": tally.taken, "kept": len(list(corpus.iterdir()))}
            found |= {"slowest_s": tally.slowest_s, "largest": tally.largest}
            print(json.dumps(found), flush=True)

    flags = [f"-runs={inputs}", f"-max_len={_LONGEST}", "-mutate_depth=2", "-rss_limit_mb=2048", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=mutate)
    warnings.simplefilter("ignore")  # zipfile warns of a name that is twice in a zip
    sys.dont_write_bytecode = True  # of modules that are imported late
    refuse_writes_outside(home)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))

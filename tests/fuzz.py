"""Every way in, and inputs for it: good ones, changed at random. A way in gives a valid value or a sentence, and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import imports, run_archive, store
from engine.command import flags
from engine.devices import DEVICES, read_device
from engine.export import ENDINGS, settings
from engine.head import read_head, written_head
from engine.spec import FaultSpec, LayoutSpec, RequestError, RunSpec
from engine.text import checked
from engine.wire import WireError, pack, pack_rows, unpack, unpack_rows
from pages.plan.request import of_link
from pages.shared.links import LinkError, decode
from tests.engine.huggingface_configs import CONFIGS
from tests.pages.stand_in import PAIR, result_of

MOST_S, MOST_BYTES = 0.1, 50_000_000  # that one input may take: CPU time, and memory of Python and numpy
_MOST_SAMPLES = 30  # and in `make test`, which is for any machine: CPU time of so many samples, of the way in with the slowest
_LONGEST_SENTENCE = 2_000  # letters, with what it quotes of the input
REFUSED = (RequestError, LinkError, WireError)
_TOKENS = (
    *("", "0", "-1", "1e999", "NaN", "Infinity", "9" * 400, "0x10", "1_000", "１", "٣", "½", "true", "null", "[]", "{}", '"'),
    *("\x00", "\ud800", "\U0010ffff", "\u202e", "é", "e\u0301", "\n", "\t", " ", "~", ".", ",", "=", "@", ":", "--", "%s"),
    *("../", "/etc/passwd", "C:\\", "CON", "<script>alert(1)</script>", "![x](http://a)", "{0}", "A" * 5_000, "[" * 200),
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, [], {}, [[]], [1] * 300),
    *({"a": {"b": {"c": {}}}}, "fp32", "bf16", "1f1b", "adamw", "full", *_TOKENS),
)


@dataclass(frozen=True)
class WayIn:
    """`read` takes what `samples` are, changed. It may raise one of `REFUSED`."""

    name: str
    samples: tuple[bytes, ...]
    read: Callable[[bytes], object]
    weight: int = 100  # inputs of one example; fewer where one takes long
    elsewhere: bool = False  # whether it is opened by a process of its own, which has limits of its own
    quotes: bool = False  # whether a refusal may quote it whole: to those who typed it


@dataclass
class Tally:
    """What was tried. `measured`: an input that takes more than `most_s` or `MOST_BYTES` is wrong."""

    measured: bool = False
    most_s: float = MOST_S
    tried: int = 0
    taken: int = 0  # as valid values
    slowest_s: float = 0.0  # CPU time of one input
    largest: int = 0  # bytes that one input took at most
    wrong: list[str] = field(default_factory=list)

    def try_one(self, way: WayIn, given: bytes) -> None:
        if self.measured and not tracemalloc.is_tracing():
            tracemalloc.start()
        taken, wrong, took, bytes_taken = self._tried(way, given)
        for _ in range(2):  # another process, or a collection of garbage, may have taken the time
            if took > self.most_s:
                took = min(took, self._tried(way, given)[2])
        self.tried += 1
        self.taken += taken
        self.slowest_s, self.largest = max(self.slowest_s, took), max(self.largest, bytes_taken)
        if self.measured and took > self.most_s and not way.elsewhere:
            wrong = f"takes {1000 * took:.0f} ms of CPU time"
        if self.measured and bytes_taken > MOST_BYTES and not way.elsewhere:
            wrong = f"takes {bytes_taken:,} bytes"
        if wrong:
            self.wrong.append(f"{way.name}: {given[:200]!r} {wrong}")

    @staticmethod
    def _tried(way: WayIn, given: bytes) -> tuple[bool, str, float, int]:
        """Whether the input is taken, what is wrong, the CPU time, and the bytes that it took at most, if they are traced."""
        taken, wrong, held = False, "", 0
        if tracemalloc.is_tracing():
            tracemalloc.reset_peak()
            held, _ = tracemalloc.get_traced_memory()
        before = time.thread_time()
        try:
            way.read(given)
            taken = True
        except REFUSED as error:
            if not 0 < len(str(error)) <= _LONGEST_SENTENCE + way.quotes * len(given):
                wrong = f"is refused with {len(str(error)):,} letters: {str(error)[:200]}"
        except Exception as error:  # noqa: BLE001  it is what the test looks for
            wrong = f"raises {type(error).__name__}: {str(error)[:200]}"
        took = time.thread_time() - before
        return taken, wrong, took, tracemalloc.get_traced_memory()[1] - held if tracemalloc.is_tracing() else 0


def most_s(entries: Sequence[WayIn]) -> float:
    """CPU time that one input may take in this process, as it is now: with memory traced or not."""
    samples = [(way, sample) for way in entries if not way.elsewhere for sample in way.samples]
    return _MOST_SAMPLES * max(min(Tally._tried(way, sample)[2] for _ in range(3)) for way, sample in samples)


# ---------------------------------------------------------------------------------------------------------------- changes


def changed(sample: bytes, draw: random.Random) -> bytes:
    """A sample with a few changes: of its JSON, if it is JSON, of its characters, or of its bytes."""
    if sample[:1] in b"{[" and draw.random() < 0.6:
        sample = _changed_json(sample, draw)
    for _ in range(draw.choice((0, 1, 1, 2, 5))):
        sample = _changed_text(sample, draw) if draw.random() < 0.7 else _changed_bytes(sample, draw)
    return sample


def _changed_json(sample: bytes, draw: random.Random) -> bytes:
    try:
        tree = json.loads(sample)
    except ValueError:
        return sample
    for _ in range(draw.choice((1, 1, 2, 3))):
        nodes = list(_containers(tree))
        node = draw.choice(nodes)
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            continue
        key = draw.choice(keys)
        match draw.randrange(4):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[str(draw.choice(_TOKENS))] = deepcopy(node[key])
            case 2:
                other = draw.choice(nodes)
                node[key] = json.loads(json.dumps(other))
            case _:
                node[key] = deepcopy(draw.choice(_VALUES))
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def _containers(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (dict, list)):
        yield tree
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from _containers(inner)


def _changed_text(sample: bytes, draw: random.Random) -> bytes:
    text = sample.decode("utf-8", "surrogateescape")
    at, to = sorted((draw.randint(0, len(text)), draw.randint(0, len(text))))
    to = min(to, at + draw.choice((0, 1, 1, 3, 20)))
    new = draw.choice((draw.choice(_TOKENS), text[at:to] * 2, chr(draw.randrange(32, 0x250)), str(draw.randrange(-9, 10**6)), ""))
    return (text[:at] + new + text[to:]).encode("utf-8", "surrogatepass" if "\ud800" in new else "surrogateescape")


def _changed_bytes(sample: bytes, draw: random.Random) -> bytes:
    given = bytearray(sample)
    match draw.randrange(3):
        case 0 if given:
            given[draw.randrange(len(given))] = draw.randrange(256)
        case 1:
            del given[draw.randint(0, len(given)) :]
        case _:
            at = draw.randint(0, len(given))
            given[at:at] = draw.randbytes(draw.choice((1, 2, 8)))
    return bytes(given)


# ---------------------------------------------------------------------------------------------------------------- ways in


def ways(folder: Path) -> list[WayIn]:
    """All ways in. Files go to `folder`."""
    spec = json.dumps(json.loads(PAIR.model_dump_json())).encode()
    faulty = spec.replace(b'"fault": null', b'"fault": {"kind": "raise", "rank": 0, "step": 1}')
    device = DEVICES["h100-80gb"].model_dump_json().encode()
    head = written_head(result_of(PAIR)).encode()
    rows = {"steps": [{"step": 1, "loss": 1.0, "grad_norm": 1.0, "step_ns": 5, "tokens": 8}]}
    codes = (b"gpt-tiny~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e0", b"gpt.l6.h96.a6.v300.s48.f0~dp1.tp3.pp2~gpipe~m8~k4.2~p")
    plan = (b"model=gpt3-175b&ranks=1024&device=h100-80gb&batch=1536", b"device=own&own=80.2.3.4.5.6.7&called=mine&ranks=8")
    commands = (
        b"--model gpt-tiny --layout dp2.tp2.pp2 --schedule 1f1b --microbatches 4 --steps 3 --zero 1 --parity",
        b"--layers 4 --hidden 64 --heads 4 --split 2,2 --pp 2 --precision bf16 --fault kill:1@2 --prompt On --new-tokens 4",
    )
    return [
        WayIn("link", codes, lambda given: decode(_text(given))),
        WayIn("link of Plan", plan, lambda given: of_link(_query(_text(given)))),
        WayIn("spec file", (spec, faulty), RunSpec.read_json),
        WayIn("device file", (device,), lambda given: read_device(_file(folder / "device.json", given))),
        WayIn("run.json", (head,), read_head, 30),
        *imported_files(),
        WayIn("short layout", (b"dp2.tp2.pp2", b"dp64.tp8"), lambda given: LayoutSpec.degrees(_text(given))),
        WayIn("fault", (b"raise:3@2", b"hang:0@1"), lambda given: FaultSpec.read(_text(given))),
        WayIn("text", (b"It was a dark and stormy night.", "über Zeichen 字".encode()), lambda given: checked(given, "the text")),
        WayIn("name", (b"20261124-101500-dp2.tp2.pp2-1f1b", b"my run"), lambda given: _named(folder, _text(given))),
        WayIn("command line", commands, _command, 20, quotes=True),
        WayIn("message", (pack({"a": [1, 2]}, {"part": b"12345"}),), unpack),
        WayIn("rows of a rank", (pack_rows(rows),), unpack_rows, 50),
        WayIn("zip of a run", (zipped(folder),), lambda given: _unzipped(folder, given), 2, elsewhere=True),
    ]


def imported_files() -> Iterator[WayIn]:
    """Configurations of other programs: those of Hugging Face, and what this program writes for the others."""
    configs = tuple(json.dumps(entries).encode() for entries in CONFIGS.values())
    yield WayIn("config.json", configs, lambda given: imports.read(given, "config.json"), 50)
    for framework, ending in ENDINGS.items():
        if ending not in imports.ENDINGS:
            continue  # it is written, and not read
        sample = settings(PAIR, framework).encode()
        name = f"file.{ending}"
        yield WayIn(f"file of {framework}", (sample,), lambda given, name=name: imports.read(given, name), 50)


def zipped(folder: Path) -> bytes:
    run = folder / "run"
    store.save(result_of(PAIR), run)
    return run_archive.pack(run)


def _text(given: bytes) -> str:
    return given.decode("utf-8", "replace")


def _query(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split("&") if "=" in part)


def _file(path: Path, given: bytes) -> Path:
    path.write_bytes(given)
    return path


def _named(folder: Path, name: str) -> None:
    if not store.good_name(name):
        raise RequestError("no good name")
    inside = (folder / name).resolve()
    assert inside.parent == folder.resolve(), "the name leads elsewhere"
    inside.exists()  # a name that no system takes raises here


def _command(given: bytes) -> RunSpec:
    parser = flags.Parser(prog="fuzz")
    flags.add(parser)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return flags.read(parser.parse_args(_text(given).split()))
        except SystemExit:  # after --help
            return PAIR


def _unzipped(folder: Path, given: bytes) -> None:
    home = folder / "unzipped"
    home.mkdir(exist_ok=True)
    run = run_archive.unpack(given, home, "fuzz")
    assert run.parent == home, "it was saved elsewhere"
    store.load(run)
    store.remove_deleted(store.delete(run))


def varied(way: WayIn, sample: bytes, draw: random.Random) -> bytes:
    """A sample of this way in, or an earlier input, changed."""
    if way.elsewhere and draw.random() < 0.7:
        with contextlib.suppress(
            zipfile.BadZipFile, NotImplementedError, zlib.error, ValueError, OSError, EOFError, RuntimeError
        ):
            return rewritten(sample, draw)  # which needs a whole zip
    return changed(sample, draw)


def rewritten(content: bytes, draw: random.Random) -> bytes:
    """A zip whose entries were changed, and which is a whole zip again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as after:
        for entry in before.infolist():
            inner = before.read(entry)
            name = entry.filename if draw.random() < 0.97 else draw.choice(("../x", "/x", "run/run.json", entry.filename * 2))
            after.writestr(name, changed(inner, draw) if draw.random() < 0.15 else inner)
    return buffer.getvalue()

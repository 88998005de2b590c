"""The ledgers that tests need and that are not shipped. They come with the tests, so that these need not record them first.

`tests/conftest.py` unpacks them into a folder, and names that to all processes of the tests. A ledger that is not among them is
recorded there when a test asks for it. `tests/recordings.py` makes the file.
"""

from __future__ import annotations

import fcntl
import io
import lzma
import shutil
import tarfile
import tempfile
from pathlib import Path

from engine.ledger.store import code_key

FILE = Path(__file__).parent / "recorded.tar.xz"
_ENDING = ".json.xz"


def unpack(home: Path) -> None:
    """Put them where the store looks for this version of the code, and remove those of other versions."""
    with (home / "lock").open("w") as lock:  # closing it lets the next process go on, which may be of other tests
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = home / code_key()
        if folder.exists() or not FILE.exists():
            return
        for older in home.iterdir():
            if older.is_dir():
                shutil.rmtree(older)
        unpacked = Path(tempfile.mkdtemp(dir=home))
        with tarfile.open(FILE) as archive:
            for member in archive:
                read = archive.extractfile(member)
                assert read is not None
                path = unpacked / f"{member.name}{_ENDING}"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(lzma.compress(read.read(), preset=0))
        unpacked.rename(folder)


def pack(folder: Path) -> bytes:
    """An archive of all ledgers in a folder. Similar ones are next to each other, and compressed together."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=9) as archive:
        for path in sorted(folder.glob(f"*/*{_ENDING}")):
            ledger = lzma.decompress(path.read_bytes())
            member = tarfile.TarInfo(str(path.relative_to(folder)).removesuffix(_ENDING))
            member.size = len(ledger)
            archive.addfile(member, io.BytesIO(ledger))
    return buffer.getvalue()

"""The tables as text that every program reads."""

from __future__ import annotations

import zipfile
from io import BytesIO

from engine.head import written_head
from engine.tables import RunResult


def csv_zip(result: RunResult) -> bytes:
    """A zip of one CSV file a table, columns named as the tables' are (bytes, ns), beside run.json, which says of what run."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("run.json", written_head(result))
        for name, table in result.tables.items():
            archive.writestr(f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    return buffer.getvalue()

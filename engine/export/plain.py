"""The tables as CSV files."""

from __future__ import annotations

import zipfile
from io import BytesIO

from engine.head import written_head
from engine.tables import RunResult


def csv_zip(result: RunResult) -> bytes:
    """A zip with one CSV file for each table, with the tables' columns (bytes, ns), and with run.json."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("run.json", written_head(result))
        for name, table in result.tables.items():
            archive.writestr(f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    return buffer.getvalue()

"""A run for other programs: as a trace, as plain tables, as the settings that would launch the same layout elsewhere."""

from engine.export.plain import csv_zip
from engine.export.settings import ENDINGS, FRAMEWORKS, NAMES, Framework, settings
from engine.export.trace import perfetto

__all__ = ["ENDINGS", "FRAMEWORKS", "NAMES", "Framework", "csv_zip", "perfetto", "settings"]

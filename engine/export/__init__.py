"""A run for other programs: as a trace, as CSV tables, or as settings that launch the same layout in another framework."""

from engine.export.plain import csv_zip
from engine.export.settings import ENDINGS, FRAMEWORKS, NAMES, Framework, settings
from engine.export.trace import perfetto

__all__ = ["ENDINGS", "FRAMEWORKS", "NAMES", "Framework", "csv_zip", "perfetto", "settings"]

"""The installed Chromium that tests use."""

from __future__ import annotations

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")  # as in the Makefile, which installs the first if it can
HOW_TO_HAVE_IT = "Chromium or Chrome must be on the PATH; on Debian: sudo apt-get install chromium"


def chromium() -> str | None:
    """Its path; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)

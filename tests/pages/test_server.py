from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROBE = """
import sys
import psutil
from streamlit.testing.v1 import AppTest

app = AppTest.from_string(f'''
from pathlib import Path
from pages.lab.page import show
from tests.pages.stand_in import service
show(service(Path({sys.argv[1]!r}))[0])
''', default_timeout=60)
app.query_params["run"] = "saved"
app.run()
assert not app.exception, app.exception
assert any("Measured" in str(m.value) for m in app.markdown)
print({m.split(".")[0] for m in sys.modules} & {"torch"} or "no torch", psutil.Process().memory_info().rss >> 20)
"""


def test_a_server_that_shows_a_run_has_not_loaded_torch(tmp_path: Path):
    from tests.pages.stand_in import saved
    from tests.pages.test_lab import PAIR

    saved(tmp_path, PAIR, "saved")
    done = subprocess.run([sys.executable, "-c", PROBE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded, resident = done.stdout.rsplit(maxsplit=1)
    assert loaded == "no torch"
    assert int(resident) <= 250, "MiB"

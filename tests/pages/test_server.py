from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROBE = """
import json
import sys
from importlib import import_module
from pathlib import Path
import psutil
from pages.charts.look import View
from pages.lab.result import curve
from pages.shared.drawing import as_png, as_svg
from streamlit.testing.v1 import AppTest
from tests.patience import PATIENCE_S

app = AppTest.from_string(f'''
from pathlib import Path
from pages.lab.page import show
from tests.pages.stand_in import know_pages, service
know_pages()
show(service(Path({sys.argv[1]!r}))[0])
''', default_timeout=PATIENCE_S)
app.query_params["run"] = "saved"
app.run()
assert not app.exception, app.exception
assert any("Measured" in str(m.value) for m in app.markdown)
drawn = curve(Path(sys.argv[1]) / "saved", 0, View("light", "en"))
assert as_png(drawn).startswith(b"\\x89PNG")
assert b"</svg>" in as_svg(drawn)
import pages.compare.page, pages.learn.page, pages.plan.page, pages.runs.page
drawer, resident = "vl_convert" in sys.modules, psutil.Process().memory_info().rss >> 20
from pages.plan.request import Request

def search(ranks):
    found = pages.plan.page.searched(Request(ranks=ranks, batch=6 * ranks, accounting="korthikanti2022"))
    return found.count

search(128)  # which brings what any of them leaves behind
before = psutil.Process().memory_info().rss
weighed = sum(search(ranks) for ranks in (256, 512, 1024))
searched = (psutil.Process().memory_info().rss - before) >> 20
for name in sys.argv[2:]:
    import_module(name)
print(json.dumps({"torch": "torch" in sys.modules, "drawer": drawer, "MiB": resident, "weighed": weighed, "searched": searched}))
"""


def test_a_server_stays_small_and_loads_neither_torch_nor_drawing_libraries(
    tmp_path: Path,
):
    from tests.pages.stand_in import PAIR, saved

    saved(tmp_path, PAIR, "saved")
    # Files directly in pages/ are scripts that run app.py, not modules.
    every = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "pages").glob("*/**/*.py")]
    command = [sys.executable, "-c", PROBE, str(tmp_path), *every]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["torch"]
    assert not found["drawer"]
    assert found["MiB"] <= 250
    assert found["weighed"] > 100_000
    assert found["searched"] <= 12

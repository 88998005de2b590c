"""`make classroom`: prints the codes of a class, and serves the app to the network.

python -m pages.shared.start_classroom [--port N] [--address A] [--runs DIR] [--ranks N] …
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from engine.launch.draft import make_home
from engine.spec import RequestError
from pages.shared.arguments import parser, rules
from pages.shared.classroom import Classroom, readable


def main() -> None:
    network = argparse.ArgumentParser(add_help=False)
    network.add_argument("--port", type=int, default=8501, metavar="N", help="where the app listens (default 8501)")
    network.add_argument("--address", default="0.0.0.0", metavar="A", help="of which network (default: of every one)")
    listens, passed = network.parse_known_args()
    chosen = parser("make classroom", [network]).parse_args()
    home = chosen.runs.absolute()
    try:
        make_home(home)
        classroom = Classroom(home, rules(chosen))
    except (RequestError, OSError) as error:
        print(f"the class cannot be opened: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"The code of this class: {readable(classroom.code)}")
    print(f"The teacher enters with {readable(classroom.teacher_code)} and has a page more. Keep this one to yourself.")
    print("There is no encryption. On a network that you do not trust, put a server with TLS in front of it: see SECURITY.md.")
    sys.stdout.flush()
    os.chdir(Path(__file__).parents[2])
    server = ["--server.address", listens.address, "--server.port", str(listens.port), "--server.headless", "true"]
    app = ["-m", "streamlit", "run", "app.py", *server, "--", "--classroom", *passed, "--runs", str(home)]
    os.execv(sys.executable, [sys.executable, *app])


if __name__ == "__main__":
    main()

"""A new server's first request for /teacher: Streamlit looks for pages here before it has run app.py, which is what this does."""

from pathlib import Path
from runpy import run_path

run_path(str(Path(__file__).parents[1] / "app.py"), run_name="__main__")

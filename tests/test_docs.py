"""Documents agree with the code: paths, links, and columns of tables exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.tables import SCHEMAS

HOUSE = Path(__file__).parent.parent
DOCUMENTS = sorted(path.relative_to(HOUSE) for path in (*HOUSE.glob("*.md"), *(HOUSE / "docs").glob("*.md")))
# A path in code marks from the root, such as `engine/store.py`; names in capitals are placeholders.
_ROOT = {"app.py", "pyproject.toml", "Makefile", "README.md"}
_CODE = re.compile(r"`([\w./-]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def paths_named(text: str) -> set[str]:
    folders = {path.name for path in HOUSE.iterdir() if path.is_dir()} - {"runs"}
    named = {found for found in _CODE.findall(text) if found in _ROOT or (found.partition("/")[0] in folders and "/" in found)}
    return {path for path in named if "NAME" not in path}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    named = paths_named((HOUSE / document).read_text(encoding="utf-8"))
    assert {path for path in named if not (HOUSE / path).exists()} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_link_of_a_document_leads_to_a_file_and_a_heading(document: Path) -> None:
    text = (HOUSE / document).read_text(encoding="utf-8")
    broken = []
    for link in _LINK.findall(text):
        if re.match(r"https?://", link):
            continue
        file, _, heading = link.partition("#")
        target = (HOUSE / document).parent / file if file else HOUSE / document
        if not target.exists() or (heading and heading not in headings(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


def headings(text: str) -> set[str]:
    """Headings as anchors in links: in lower case, with dashes for spaces."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_tables_are_described_with_their_columns() -> None:
    text = (HOUSE / "docs" / "python.md").read_text(encoding="utf-8")
    described = dict(re.findall(r"^\| `(\w+)` \| (source, [^|]+) \|", text, re.MULTILINE))
    assert described == {name: ", ".join(columns) for name, columns in SCHEMAS.items()}


def test_the_checks_find_a_missing_path_and_a_dead_link() -> None:
    assert paths_named("`engine/gone.py`, `engine/predict`, `other/thing.py`, `pages/NAME/page.py`, `app.py`") == {
        "engine/gone.py",
        "engine/predict",
        "app.py",
    }
    assert headings("# One\n\n## A memory lever (as ZeRO)\n") == {"one", "a-memory-lever-as-zero"}

"""A page opened without a browser, and its content."""

from __future__ import annotations

import json

from streamlit.testing.v1 import AppTest

from pages.shared.service import Service
from tests.patience import PATIENCE_S


def _script(name, service):  # only its source is executed, so it has only the names that it imports
    from importlib import import_module

    from tests.pages.stand_in import know_pages

    know_pages()
    import_module(f"pages.{name}.page").show(service)


def opened(name: str, service: Service, /, **link: str) -> AppTest:
    """The page of that name ("lab", …), with these parameters in the link. The test checks `exception` itself."""
    app = AppTest.from_function(_script, args=(name, service), default_timeout=PATIENCE_S)
    for parameter, value in link.items():
        app.query_params[parameter] = value
    app.run()
    return app


def link(app: AppTest, name: str) -> str:
    """The current value of a parameter of the link; "" if there is none."""
    found = app.query_params.get(name, [""])
    return found if isinstance(found, str) else found[0]


def text(app: AppTest) -> str:
    """All text on the page."""
    kinds = (app.markdown, app.caption, app.info, app.success, app.warning, app.error, app.get("html"))
    grids = [json.loads(component.proto.json or "{}").get("html", "") for component in app.get("bidi_component")]
    return "\n".join([*(str(getattr(element, "value", "")) for kind in kinds for element in kind), *grids])


def button(app: AppTest, label: str):
    return next(b for b in app.button if b.label == label)


def click(app: AppTest, label: str) -> None:
    button(app, label).click().run()
    assert not app.exception

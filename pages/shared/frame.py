"""What all pages share: title, icon, language, and style that Streamlit's settings cannot express."""

from __future__ import annotations

import re
from pathlib import Path

import streamlit as st
from streamlit.components.v2.types import ComponentRenderer

from pages.charts.look import Theme, View
from pages.charts.words import LANGUAGES, Language, Words, words

_HERE = Path(__file__).parent
_SIDEBAR_WIDTH = 432  # pixels: the least for three number fields with buttons in a row
# Characters with a meaning in Markdown; a backslash before them removes it. A colon before a space and an underscore in a word
# have none. www. and @ make addresses.
_MARKUP = re.compile(r"[\\`*~$<&\[@#]|:(?=\S)|(?<!\w)_|_(?!\w)|(?<=www)\.", re.IGNORECASE)
LANG = "lang"  # the link's parameter: the language, if the reader chose it
_CHOSEN, _CONTROL, _NOW, _SPOKEN = "frame/language", "language", "frame/language-now", "frame/spoken"
_OWN_NAMES: dict[Language, str] = {"en": "English", "zh": "中文"}  # the name of each language in itself


def frame() -> None:
    st.set_page_config(
        page_title="Shardscope", page_icon=str(_HERE / "icon.svg"), layout="wide", initial_sidebar_state=_SIDEBAR_WIDTH
    )
    _follow_link()
    st.session_state[_NOW] = _language()  # every text needs it, and it does not change during a rerun
    st.html(_HERE / "style.css")
    logo = str(_HERE / f"logo-{theme()}.svg")
    st.logo(logo, size="large", icon_image=logo)
    _choose_language()


def follow_theme() -> None:
    """Rerun the page when the reader changes the theme, so that charts take its colours. Streamlit does not.

    The same element tells the browser the language of the page, for screen readers.
    """
    tag = {"en": "en", "zh": "zh-Hans"}[language()]
    _theme_watch()(key="theme", data={"language": tag}, on_changed_change=lambda: None)


def theme() -> Theme:
    """The theme of this browser."""
    return "dark" if st.context.theme.type == "dark" else "light"


def language() -> Language:
    """The language of this page."""
    found: Language | None = st.session_state.get(_NOW)
    return found or _language()


def _language() -> Language:
    """The language that the reader chose in this session or that the link has; otherwise the browser's."""
    if chosen := _linked() or st.session_state.get(_CHOSEN):
        return chosen
    return "zh" if (st.context.locale or "").lower().startswith("zh") else "en"


def view() -> View:
    """Theme and language of this session."""
    return View(theme(), language())


def say() -> Words:
    """The words of this session's language."""
    return words(language())


def inert(text: str) -> str:
    r"""`text` with Markdown escaped. A text from a link must not become an image, which a browser would fetch.

    "![](https://…)" becomes r"!\[](https\://…)". The tildes of "gpt-tiny~dp2~1f1b" strike nothing through.
    """
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.splitlines()))


def labelled(key: str) -> str:
    """The key of a widget whose options have translated names: `st.selectbox(…, key=labelled(key))`.

    A browser stores the chosen option by its name. If the language has changed since, this sends the choice again.
    """
    if _SPOKEN not in st.session_state:
        st.session_state[_SPOKEN] = {}
    spoken, now = st.session_state[_SPOKEN], language()  # key of each such widget → the language in which it was drawn last
    if spoken.get(key, now) != now and key in st.session_state:
        st.session_state[key] = st.session_state[key]
    spoken[key] = now
    return key


# -------------------------------------------------------------------------------------------------------- the language


def _linked() -> Language | None:
    return next((known for known in LANGUAGES if known == st.query_params.get(LANG)), None)


def _follow_link() -> None:
    """Take the language of the link. A page that was opened without it gets it in its link again."""
    if linked := _linked():
        st.session_state[_CHOSEN] = linked
    elif chosen := st.session_state.get(_CHOSEN):
        st.query_params[LANG] = chosen


def _choose_language() -> None:
    """The control for the language. style.css puts it into the header."""
    st.session_state[_CONTROL] = language()
    st.segmented_control(
        say()("Language"),
        LANGUAGES,
        format_func=_OWN_NAMES.__getitem__,
        key=_CONTROL,
        on_change=_language_chosen,
        required=True,
        label_visibility="collapsed",
    )


def _language_chosen() -> None:
    st.session_state[_CHOSEN] = st.query_params[LANG] = st.session_state[_CONTROL]


@st.cache_resource(show_spinner=False)
def _theme_watch() -> ComponentRenderer:
    """An element without size whose background has a CSS transition. Its end is the event that the theme has changed."""
    return st.components.v2.component(
        "shardscope.theme",
        html="<i></i>",
        css="i { position: absolute; background: var(--st-background-color); transition: background 10ms; }",
        js="""
            export default function ({ parentElement, setTriggerValue, data }) {
                document.documentElement.lang = data.language;
                const probe = parentElement.querySelector("i");
                probe.ontransitionend = () => setTriggerValue("changed", getComputedStyle(probe).backgroundColor);
            }
        """,
    )


def whole_sentence(text: str) -> str:
    """A message of the program in the reader's language, with a capital letter and a full stop."""
    said = inert(say().sentence(text))
    return say()("{sentence}.", sentence=said[:1].upper() + said[1:].removesuffix("."))

"""A model from another program's file: the control that takes it, and what it says on what it left out."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from engine import imports
from engine.imports import Imported
from engine.spec import RequestError, Sentence
from pages.charts.words import Words
from pages.shared.choice import Bounds
from pages.shared.frame import inert
from pages.shared.unfolding import unfolding

_LARGEST_VOCABULARY = int(Bounds.of("model.vocab").most)


def draw(page: str, take: Callable[[Imported], None], words: Words) -> None:
    """`page`: a name for its keys. `take(found)` is called with what a file says, before the page is redrawn."""
    refused, remarks = st.session_state.get(_refused(page)), st.session_state.get(_remarks(page))
    with unfolding(words("From a file: config.json, …"), f"{page}-model-file") as part:
        if part.open:
            st.file_uploader(
                words("config.json of Hugging Face, or a script of Megatron-LM"),
                type=imports.ENDINGS,
                key=_upload(page),
                max_upload_size=1,
                on_change=_uploaded,
                args=(page, take),
                help=words(
                    "Job files of torchtitan and configurations of DeepSpeed are read too. What is not understood is listed "
                    "here. At most 1 MB."
                ),
            )
            if st.session_state.get(_asks(page)):
                st.number_input(
                    words("Tokens of the vocabulary"),
                    min_value=1,
                    max_value=_LARGEST_VOCABULARY,
                    value=None,
                    key=_vocabulary(page),
                    on_change=_read,
                    args=(page, take),
                    help=words("The script leaves it to its tokenizer, whose files are not read here."),
                )
            if refused:
                st.error(words("{sentence}.", sentence=inert(words.sentence(refused))), icon=":material/error:")
            if remarks:
                file, sentences = remarks
                st.caption("\n".join([words("{file}:", file=inert(file)), *(f"- {_shown(one, words)}" for one in sentences)]))


def _shown(one: Sentence, words: Words) -> str:
    return words("{sentence}.", sentence=inert(words.sentence(one)))


def _uploaded(page: str, take: Callable[[Imported], None]) -> None:
    """A callback."""
    st.session_state.pop(_vocabulary(page), None)
    _read(page, take)


def _read(page: str, take: Callable[[Imported], None]) -> None:
    """A callback: read the file, with the vocabulary if that was asked and is given."""
    for key in (_refused(page), _remarks(page), _asks(page)):
        st.session_state.pop(key, None)
    if (file := st.session_state[_upload(page)]) is None:
        return
    try:
        found = imports.read(file.getvalue(), file.name, st.session_state.get(_vocabulary(page)))
        take(found)
    except RequestError as error:
        st.session_state[_refused(page)] = error.sentence
        st.session_state[_asks(page)] = isinstance(error, imports.VocabularyError)
        return
    if found.remarks:
        st.session_state[_remarks(page)] = (file.name, found.remarks)


def _upload(page: str) -> str:
    return f"{page}/model-file"


def _asks(page: str) -> str:
    return f"{page}/model-file-asks"


def _vocabulary(page: str) -> str:
    return f"{page}/model-file-vocabulary"


def _refused(page: str) -> str:
    return f"{page}/model-file-refused"


def _remarks(page: str) -> str:
    return f"{page}/model-file-remarks"

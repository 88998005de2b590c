"""Terms and what they mean. A term unfolds where it occurs in a lesson's text: on hover, on focus, or when it is tapped."""

from __future__ import annotations

import re
from functools import cache
from html import escape

import streamlit as st
from streamlit.components.v2.types import ComponentRenderer

from pages.charts.words import Language, Words, words

# Words that contain a term and mean something else. They are not marked.
_COMPOUNDS: dict[Language, tuple[str, ...]] = {
    "en": ("activation functions?",),
    "zh": ("全分片数据并行", "激活函数"),
}
READABLE_PX = 760  # the width of a paragraph that is easy to read


def terms(say: Words) -> dict[str, str]:
    """Term → its meaning in a sentence or two. docs/architecture.md has those that only this program's code needs."""
    return {
        say("activation"): say("What a layer computes on the way forward. Backward needs most of it again, so it is kept."),
        say("all-gather"): say("A collective after which every rank has the shards of all."),
        say("all-reduce"): say("A collective after which every rank has the sum, or the mean, of all ranks’ tensors."),
        say("bubble"): say("The time in which pipeline stages idle, because the pipeline fills or drains."),
        say("bucket"): say("Parameters of a layer in one flat tensor, which is reduced or gathered in one call."),
        say("collective"): say("An operation in which all ranks of a group take part, such as an all-reduce."),
        say("data parallelism"): say("Every replica has the whole model and a part of the batch. Gradients are averaged."),
        say("exposed"): say(
            "Communication that does not overlap with computation, so that ranks wait for it. What overlaps is hidden."
        ),
        say("FSDP"): say("Fully sharded data parallel, PyTorch’s name for ZeRO 3."),
        say("fused attention"): say(
            "One kernel for scores, softmax and the sum of values. It never holds the S² scores (FlashAttention)."
        ),
        say("gradient"): say("How the loss changes with a parameter or an activation. It has the same shape."),
        say("KV cache"): say("Keys and values of all tokens so far, kept while text is generated."),
        say("logit"): say("The score of a word of the vocabulary before the softmax."),
        say("microbatch"): say("The sequences that go through the model in one forward pass. A step has several of them."),
        say("mixed precision"): say("Matrix products in bf16, with an fp32 copy of the parameters in the optimizer."),
        say("node"): say("A machine with several devices, whose links are much faster than those to other machines."),
        say("1F1B"): say("A schedule that runs one backward after each forward, as soon as it can. It keeps few activations."),
        say("pipeline parallelism"): say("Each rank has some of the layers. Microbatches go from stage to stage."),
        say("rank"): say("One process with one device. Its number says where it is in the mesh of dp, tp and pp."),
        say("recomputation"): say(
            "Activations are dropped after forward and computed again in backward: more time, less memory."
        ),
        say("reduce-scatter"): say("A collective that adds up all ranks’ tensors and leaves each rank its shard of the sum."),
        say("replica"): say("One copy of the model, on one rank or on several. There are dp of them."),
        say("residual stream"): say("The vector of each token that all layers read from and add to."),
        say("sequence parallelism"): say("Norms and the residual stream are cut along the sequence over the tp ranks."),
        say("shard"): say("The part of a tensor that one rank holds. To shard is to cut into such parts."),
        say("softmax"): say("Turns scores into positive weights that add up to 1."),
        say("pipeline stage"): say("The layers that one rank of a pipeline holds."),
        say("tensor parallelism"): say("The matrices of each layer are cut over ranks, which add up their results."),
        say("token"): say("A piece of text, such as a word or a part of one. A model reads and writes tokens."),
        say("ZeRO"): say("Replicas shard the optimizer’s state (1), gradients too (2), parameters too (3)."),
    }


def unfolding(markdown: str, say: Words, seen: set[str]) -> str:
    """The text with each term, where it occurs first, as HTML that unfolds. Code, formulas and links are left alone.

    `seen`: terms in lower case that occurred before. Those of this text are added.
    """
    pattern, meanings = _pattern(say.language)

    def marked(found: re.Match[str]) -> str:
        term = found["term"]
        if term is None or term.lower() in seen:
            return found[0]
        seen.add(term.lower())
        meaning, name = escape(meanings[term.lower()]), f"meaning-{len(seen)}"
        return (
            f'<span class="ss-term" tabindex="0" aria-describedby="{name}">{found[0]}'
            f'<span class="ss-meaning" id="{name}" role="tooltip">{meaning}</span></span>'
        )

    if say.language == "zh":  # without blanks around it, ** next to a tag is no bold text in Markdown
        markdown = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", markdown)
    return pattern.sub(marked, markdown)


@cache
def _pattern(language: Language) -> tuple[re.Pattern[str], dict[str, str]]:
    """What matches a term, or text in which there is none, and the meanings by term in lower case."""
    meanings = {term.lower(): meaning for term, meaning in terms(words(language)).items()}
    longest = sorted(meanings, key=len, reverse=True)
    either = "|".join(map(re.escape, longest))
    plain = "|".join((r"`[^`]*`", r"\$[^$]*\$", r"\[[^\]]*\]\([^)]*\)", *_COMPOUNDS[language]))
    whole = rf"(?<![A-Za-z])(?P<term>{either})s?(?![A-Za-z])" if language == "zh" else rf"\b(?P<term>{either})(?:es|s)?\b(?!-)"
    return re.compile(f"{plain}|{whole}", re.IGNORECASE), meanings


def draw(say: Words) -> None:
    """All terms, folded; and what closes an open meaning with Escape."""
    _dismissal()(key="learn/glossary/dismissal")
    with st.expander(say("Glossary"), icon=":material/menu_book:", key="learn/glossary", on_change="rerun") as all_terms:
        if all_terms.open:
            entries = sorted(terms(say).items(), key=lambda entry: entry[0].lower())
            st.markdown("\n".join(f"- **{term}**: {meaning}" for term, meaning in entries), width=READABLE_PX)


@st.cache_resource(show_spinner=False)
def _dismissal() -> ComponentRenderer:
    """Escape closes the meaning under the pointer or the focus until both have left its term."""
    return st.components.v2.component(
        "shardscope.meanings",
        html="<span></span>",
        isolate_styles=False,
        js="""
            export default function ({ parentElement }) {
                const page = parentElement.ownerDocument;
                const dismiss = (event) => {
                    if (event.key !== "Escape") return;
                    for (const term of page.querySelectorAll(".ss-term:is(:hover, :focus)")) term.classList.add("ss-dismissed");
                };
                const allow = ({ target }) => {
                    const term = target.closest?.(".ss-term");
                    if (term && !term.matches(":is(:hover, :focus)")) term.classList.remove("ss-dismissed");
                };
                page.addEventListener("keydown", dismiss);
                for (const left of ["focusout", "mouseout"]) page.addEventListener(left, allow);
                return () => {
                    page.removeEventListener("keydown", dismiss);
                    for (const left of ["focusout", "mouseout"]) page.removeEventListener(left, allow);
                };
            }
        """,
    )

"""Shows a scene: it plays once when it comes into view, and has buttons to pause and to step.

A reader whose system asks for reduced motion sees the telling step at once, and nothing moves: a step replaces the one before.
"""

from __future__ import annotations

import streamlit as st
from streamlit.components.v2.types import ComponentRenderer

from pages.charts.words import Words
from pages.learn.scene import WIDTH, Scene


def show(scene: Scene, key: str, say: Words, seconds: float = 1.1) -> None:
    """`seconds`: of one step while it plays."""
    _component()(
        key=f"motion-{key}",
        data={
            "label": scene.label,
            "width": WIDTH,
            "height": scene.height,
            "fixed": scene.fixed,
            "things": [(thing.svg, thing.at) for thing in scene.things],
            "said": scene.said,
            "still": scene.still,
            "milliseconds": round(1000 * seconds),
            "words": {
                "back": say("Step back"),
                "play": say("Play"),
                "pause": say("Pause"),
                "on": say("Step forward"),
                "step": say("Step"),
            },
        },
    )


@st.cache_resource(show_spinner=False)
def _component() -> ComponentRenderer:
    return st.components.v2.component(
        "shardscope.motion",
        html="""
            <div class="ss-motion">
                <svg role="img"></svg>
                <p></p>
                <div class="ss-motion-controls">
                    <button type="button" data-does="play"></button>
                    <button type="button" data-does="back">◀</button>
                    <button type="button" data-does="on">▶</button>
                    <input type="range" min="0" value="0">
                    <output></output>
                </div>
            </div>
        """,
        isolate_styles=False,
        js="""
            export default function ({ parentElement, data }) {
                const root = parentElement.querySelector(".ss-motion");
                const drawn = JSON.stringify(data);
                if (root.drawn === drawn) return root.end;
                root.end?.();
                root.drawn = drawn;
                const svg = root.querySelector("svg"), said = root.querySelector("p");
                const range = root.querySelector("input"), count = root.querySelector("output");
                const button = (does) => root.querySelector(`[data-does=${does}]`);
                const calm = matchMedia("(prefers-reduced-motion: reduce)");
                const last = data.said.length - 1;
                let step = 0, timer = 0;

                svg.setAttribute("viewBox", `0 0 ${data.width} ${data.height}`);
                svg.setAttribute("aria-label", data.label);
                svg.innerHTML = data.fixed + data.things.map(([shape]) => `<g>${shape}</g>`).join("");
                const moving = [...svg.children].slice(-data.things.length || svg.children.length);
                range.max = last;
                range.setAttribute("aria-label", data.words.step);
                for (const does of ["back", "on"]) button(does).setAttribute("aria-label", data.words[does]);

                const show = (next) => {
                    step = Math.min(last, Math.max(0, next));
                    data.things.forEach(([, at], index) => {
                        const [, x, y, opacity] = at.findLast(([from]) => from <= step) ?? at[0];
                        const seen = at[0][0] <= step;
                        moving[index].style.transform = `translate(${x}px, ${y}px)`;
                        moving[index].style.opacity = seen ? opacity : 0;
                    });
                    said.textContent = data.said[step];
                    range.value = step;
                    count.textContent = `${step + 1} / ${last + 1}`;
                    root.dataset.step = step;
                };
                const pause = () => {
                    clearInterval(timer);
                    timer = 0;
                    tell();
                };
                const play = () => {
                    if (step >= last) show(0);
                    timer = setInterval(() => (step >= last ? pause() : show(step + 1)), data.milliseconds);
                    tell();
                };
                const tell = () => {
                    root.dataset.playing = timer ? "yes" : "no";
                    said.setAttribute("aria-live", timer ? "off" : "polite");
                    button("play").textContent = timer ? data.words.pause : data.words.play;
                };
                button("back").onclick = () => { pause(); show(step - 1); };
                button("on").onclick = () => { pause(); show(step + 1); };
                button("play").onclick = () => (timer ? pause() : play());
                range.oninput = () => { pause(); show(Number(range.value)); };

                show(calm.matches ? data.still : 0);
                tell();
                const inView = new IntersectionObserver(([seen]) => {
                    if (!seen.isIntersecting) return;
                    inView.disconnect();
                    if (!calm.matches) play();
                }, { threshold: 0.6 });
                inView.observe(svg);
                const calmed = () => { if (calm.matches) pause(); };
                calm.addEventListener("change", calmed);
                root.end = () => {
                    pause();
                    inView.disconnect();
                    calm.removeEventListener("change", calmed);
                };
                return root.end;
            }
        """,
    )

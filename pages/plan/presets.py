"""Well-known runs, each as the request that its link on the Plan page and in the README has."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from engine.devices import DeviceSpec
from pages.charts.words import Words
from pages.plan.request import OWN, Request, figures_of, to_link
from pages.shared import navigation
from pages.shared.frame import say

# NVIDIA V100 data sheet, SXM3 (125 TFLOP/s in fp16, which stands in the place of bf16, 15.7 in fp32, 900 GB/s, NVLink 300 GB/s
# both ways) in nodes of 16 with 800 Gbit/s, as in section 10.1 of the ZeRO paper. Other figures are the defaults.
_V100 = DeviceSpec(
    name="V100-32GB",
    memory_bytes=32_000_000_000,
    bf16_flops=125e12,
    fp32_flops=15.7e12,
    memory_bandwidth=900e9,
    intra_bandwidth=150e9,
    inter_bandwidth=6.25e9,
    node_size=16,
)


def presets(say: Words) -> Mapping[str, Request]:
    """Name → request. The sources: Narayanan et al. 2021, section 5.1; Llama team 2024; Le Scao et al. 2022, section 3.2;
    Rajbhandari et al. 2020, figure 1, whose model of 7.5B on 64 devices is close to GPT-3's 6.7B.
    """
    return {
        say("GPT-3 175B on 1,024 A100"): Request("gpt3-175b", "a100-80gb", 1024, 1536),
        say("Llama 3 8B on 8 H100"): Request("llama3-8b", "h100-80gb", 8, 64),
        say("Llama 3 70B on 64 H100"): Request("llama3-70b", "h100-80gb", 64, 128),
        say("BLOOM 176B on 384 A100"): Request("bloom-176b", "a100-80gb", 384, 2048),
        say("ZeRO's paper: 6.7B on 64 V100"): Request(
            "gpt3-6.7b", OWN, 64, 512, accounting="zero2020", own=figures_of(_V100), called=_V100.name
        ),
    }


def draw(request: Request) -> None:
    """A line of links. That of the request which is shown is left out."""
    words = say()
    with st.container(horizontal=True, gap="small", vertical_alignment="center", key="plan-presets"):
        st.caption(words("Well-known runs"), width="content")
        for name, preset in presets(words).items():
            if preset != request:
                navigation.link("plan", name, "bookmark", to_link(preset))

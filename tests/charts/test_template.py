"""Templates of charts and their blanks."""

from __future__ import annotations

import altair as alt

from pages.charts.template import filled, template

BARS = template(
    alt.Chart(alt.NamedData("rows")).mark_bar().encode(
        x=alt.X("amount:Q", title="$amount", scale=alt.Scale(domain=[0, "$end"])), y=alt.Y("name:N", sort=["$names"])
    )
)  # fmt: skip


def test_a_blank_is_replaced_by_its_value_and_in_a_list_by_the_entries_of_a_list():
    encoding = filled(BARS, amount="bytes", end=1.5, names=["b", "a"])["encoding"]
    assert encoding["x"] == {"field": "amount", "type": "quantitative", "title": "bytes", "scale": {"domain": [0, 1.5]}}
    assert encoding["y"]["sort"] == ["b", "a"]


def test_filling_a_template_does_not_change_it():
    first = filled(BARS, amount="bytes", end=1.5, names=["a"])
    first["encoding"]["y"]["sort"].append("spoiled")
    assert filled(BARS, amount="calls", end=2, names=[])["encoding"]["y"]["sort"] == []

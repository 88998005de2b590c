"""Predicted beside measured: titles and texts on the difference, and the formula of a bar."""

from __future__ import annotations

import re
from dataclasses import replace
from gettext import NullTranslations
from html import unescape

import pandas as pd
import pytest

from engine.predict.memory import SYMBOLS, memory
from engine.predict.traffic import terms
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec
from engine.tables import CATEGORIES
from engine.topology import Mesh
from pages.charts import beside, formula
from pages.charts.look import DARK, LIGHT, Look
from pages.charts.words import Words
from tests.charts import made_up
from tests.charts.reading import colour_of, marks

KIB = 1024
MESH = Mesh({"dp": 2, "tp": 2, "pp": 2})
SPEC = RunSpec(layout=LayoutSpec(dp=2, tp=2, pp=2, zero=1, sequence_parallel=True), workload=WorkloadSpec(precision="bf16"))


def memory_of(off: int = 0, mesh: Mesh = MESH, measured: bool = True, capacity: int | None = None, style: Look = LIGHT):
    table = made_up.memory_peak(mesh) if measured else None
    return beside.memory(table, made_up.predicted_memory(mesh, off), capacity, "toy-1gb", style)


def predicted_traffic(change: int = 0) -> pd.DataFrame:
    found = made_up.traffic().assign(source="formula")
    found.loc[0, ["payload_bytes", "wire_bytes"]] += change
    return found


# ----------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("style", [LIGHT, DARK], ids=["light", "dark"])
def test_every_rank_and_category_has_a_measured_and_a_predicted_bar_in_its_colour(style: Look):
    view, rows = marks(memory_of(512, style=style).spec, "bar")[0]
    expected = pd.concat([made_up.memory_peak(MESH), made_up.predicted_memory(MESH, 512)])
    assert sorted((r["source"], r["rank"], r["category"], r["bytes"]) for r in rows) == sorted(
        expected[["source", "rank", "category", "bytes"]].itertuples(index=False, name=None)
    )
    assert colour_of(view) == {category: style.category[category] for category in CATEGORIES}
    opaque = {r["source"]: r["opaque"] for r in rows}
    assert opaque["formula"] < opaque["measured"] == 1


@pytest.mark.parametrize(
    ("off", "above"),
    [(420, "+0.98%"), (-420, "−0.98%"), (0, "±0"), (1, "+<0.01%")],
)
def test_the_signed_error_stands_above_each_predicted_bar(off: int, above: str):
    """Rank 0 holds 42 KiB; 420 bytes are 0.98% of that. One byte off is not exact."""
    [(_, texts)] = marks(memory_of(off).spec, "text")
    assert next(t["text"] for t in texts if t["rank"] == 0 and t["source"] == "formula") == above
    assert next(t["text"] for t in texts if t["rank"] == 0 and t["source"] == "measured") == "42"


def test_the_title_says_how_far_off_the_worst_rank_is():
    # 210 bytes are a larger share on stage 1, whose ranks hold half as much: 21 KiB.
    assert memory_of(210).title == "Ranks 0–3 are fullest: 42 KiB; the prediction is 0.98% off at the worst, on rank 4"


def test_the_title_says_equal_to_the_byte_only_if_no_byte_differs():
    assert memory_of(0).title == "Ranks 0–3 are fullest: 42 KiB; every rank as predicted, to the byte"
    assert "to the byte" not in memory_of(1).title
    assert memory_of(mesh=Mesh({"pp": 2})).title == "Rank 0 is fullest: 42 KiB; every rank as predicted, to the byte"


def test_before_a_run_the_prediction_stands_alone():
    drawing = memory_of(measured=False)
    assert drawing.title == "Ranks 0–3 will be fullest: 42 KiB, against 21 KiB on ranks 4–7"
    assert drawing.spec["description"] == drawing.title
    view, rows = marks(drawing.spec, "bar")[0]
    assert "xOffset" not in view["encoding"]
    assert {r["source"] for r in rows} == {"formula"}
    assert drawing.table["total"].tolist() == [42 * KIB] * 4 + [21 * KIB] * 4
    assert memory_of(measured=False, mesh=Mesh({})).title == "Every rank needs 42 KiB"


def test_the_capacity_is_a_line_near_the_bars_and_otherwise_a_sentence():
    small = memory_of(measured=False, capacity=40 * KIB)
    assert small.title == "Ranks 0–3 need 42 KiB each and the toy-1gb has 40 KiB: they run out of memory"
    [(_, lines)] = marks(small.spec, "rule")
    assert [line["amount"] for line in lines] == [40]
    large = memory_of(measured=False, capacity=1 << 30)
    assert marks(large.spec, "rule") == []
    assert "The toy-1gb has 1 GiB, far above these bars." in large.reading


def test_an_amount_of_zero_has_no_bar():
    table = made_up.predicted_memory(Mesh({}))
    table.loc[table["category"] == "temporary", "bytes"] = 0
    _, rows = marks(beside.memory(None, table, None, "", LIGHT).spec, "bar")[0]
    assert "temporary" not in {r["category"] for r in rows}


def test_with_many_ranks_each_stage_has_a_bar():
    drawing = memory_of(measured=False, mesh=Mesh({"dp": 8, "tp": 4, "pp": 2}))
    _, rows = marks(drawing.spec, "bar")[0]
    assert {r["rank"] for r in rows} == {0, 32}
    assert "one rank of a stage at its peak" in drawing.reading


# ---------------------------------------------------------------------------------------------------------------- traffic


def test_a_bar_is_the_mean_of_the_ranks_by_axis_collective_and_phase():
    drawing = beside.traffic(None, predicted_traffic(), 2, "wire", None, LIGHT)
    [(view, rows)] = marks(drawing.spec, "bar")
    assert {(r["name"], r["wire_bytes_predicted"], r["calls_predicted"]) for r in rows} == {
        ("tp all_reduce, forward", 4096, 2),
        ("pp send, forward", 1536, 0.5),
    }
    assert colour_of(view) == {axis: LIGHT.axis[axis] for axis in ("tp", "pp")}
    assert {r["said"] for r in rows} == {"4 KiB in 2 calls", "1.50 KiB: 1 call on 1 of 2 ranks"}
    assert drawing.title == "tp carries 72.7% of the 5.50 KiB of a rank in a step"


def test_payload_counts_what_is_received_as_well():
    drawing = beside.traffic(None, predicted_traffic(), 2, "payload", None, LIGHT)
    [(view, rows)] = marks(drawing.spec, "bar")
    assert {r["name"] for r in rows} == {"tp all_reduce, forward", "pp send, forward", "pp recv, forward"}
    assert drawing.title == "tp carries 57.1% of the 7 KiB of a rank in a step"
    assert "size of the tensors that a rank communicates" in drawing.reading
    assert view["encoding"]["x"]["title"].startswith("payload bytes")


def test_one_rank_is_shown_alone():
    drawing = beside.traffic(None, predicted_traffic(), 2, "wire", 1, LIGHT)
    [(_, rows)] = marks(drawing.spec, "bar")
    assert [(r["name"], r["wire_bytes_predicted"]) for r in rows] == [("tp all_reduce, forward", 4096)]
    assert drawing.title == "tp carries 100.0% of the 4 KiB of rank 1 in a step"


def test_the_title_says_whether_traffic_is_equal_and_counts_differences():
    equal = beside.traffic(made_up.traffic(), predicted_traffic(), 2, "wire", None, LIGHT)
    assert equal.title == "5.50 KiB a rank in a step: measured as predicted, to the byte and to the call"
    [(_, ticks)] = marks(equal.spec, "tick")
    assert all(tick["predicted"] == tick["measured"] for tick in ticks)
    assert beside.traffic(made_up.traffic(), predicted_traffic(1), 2, "wire", None, LIGHT).title == (
        "1 row differs from its prediction"
    )


def test_a_row_that_only_one_side_has_is_a_difference():
    drawing = beside.traffic(made_up.traffic(), predicted_traffic().iloc[1:], 2, "wire", None, LIGHT)
    assert drawing.title == "1 row differs from its prediction"


def test_a_single_rank_has_no_traffic():
    nothing = predicted_traffic().iloc[:0]
    assert beside.traffic(None, nothing, 1, "wire", None, LIGHT).title == "No communication between ranks"


# --------------------------------------------------------------------------------------------------------------- formulas


def sums(html: str) -> dict[str, tuple[int, list[int]]]:
    """Part → its bytes in the heading, and the bytes of each of its rows."""
    found = {}
    for body in re.findall("<tbody>(.*?)</tbody>", html):
        name, said = re.search(r"colspan='3'>(.*?)</th><td>.*?, ([\d,]+) bytes", body).groups()
        rows = [int(number.replace(",", "")) for number in re.findall(r"<td>([\d,]+)</td></tr>", body)]
        found[name] = (int(said.replace(",", "")), rows)
    return found


def test_memory_unfolds_into_terms_that_add_up_to_the_predicted_bytes():
    peak = memory(SPEC).peaks[0]
    shown = sums(formula.unfolded(peak.terms, {}, None, LIGHT))
    assert {name: stated for name, (stated, _) in shown.items()} == {name: size for name, size in peak.bytes.items() if size}
    assert all(stated == sum(rows) for stated, rows in shown.values())


def test_each_row_is_the_product_of_its_numbers():
    peak = memory(SPEC).peaks[1]
    rows = re.findall(r"<td class='ss-math'>([\d, ·]+)</td><td>([\d,]+)</td>", formula.unfolded(peak.terms, {}, None, LIGHT))
    assert len(rows) > 20
    for numbers, value in rows:
        product = 1
        for number in numbers.split(" · "):
            product *= int(number.replace(",", ""))
        assert product == int(value.replace(",", ""))


def test_traffic_unfolds_into_terms_that_add_up_to_the_payload():
    found = terms(SPEC, 5)
    shown = sums(formula.unfolded({" ".join(key): parts for key, parts in found.items()}, {}, None, LIGHT))
    assert all(stated == sum(rows) for stated, rows in shown.values())
    assert sum(stated for stated, _ in shown.values()) == sum(term.value for parts in found.values() for term in parts)


def test_the_measured_number_is_beside_the_sum():
    peak = memory(SPEC).peaks[0]
    html = formula.unfolded(peak.terms, {}, {"parameters": 12_345}, LIGHT)
    assert "measured 12,345" in html


def test_every_symbol_in_a_formula_is_explained():
    every = [term for peak in memory(SPEC).peaks for parts in peak.terms.values() for term in parts]
    every += [term for rank in range(8) for parts in terms(SPEC, rank).values() for term in parts]
    letters = {word.partition("_")[0] for term in every for word in re.findall(r"[^\W\d][\w]*", term.symbols)}
    assert letters - set(SYMBOLS) == set()
    explained = set(re.findall("<b>(.*?)</b>", formula.glossary(every, SYMBOLS, LIGHT)))
    assert explained == letters


class Capitals(NullTranslations):
    """A catalog that translates every text into capitals."""

    def gettext(self, message: str) -> str:
        return message if "{" in message else message.upper()


def test_names_and_symbols_are_translated():
    style = replace(LIGHT, say=Words("zh", Capitals()))
    written = WorkloadSpec(precision="bf16", attention="written")
    peak = memory(SPEC.model_copy(update={"workload": written})).peaks[0]
    html = formula.unfolded(peak.terms, {}, None, style)
    names = [unescape(name) for name in re.findall("<tr><td>(.*?)</td>", html)]
    assert "weights of THE TOKEN TABLE" in names  # a name that contains another name, whose braces stay
    assert "ATTENTION: SOFTMAX" in names
    assert all(name.isupper() or " of " in name for name in names)
    assert "WIDTH OF THE RESIDUAL STREAM" in formula.glossary(peak.terms["activations"], SYMBOLS, style)


def test_with_very_many_stages_a_bar_is_the_fullest_of_a_few():
    mesh = Mesh({"pp": 300})
    table = made_up.predicted_memory(mesh)
    table.loc[table["rank"] == 7, "bytes"] *= 3
    drawing = beside.memory(None, table, None, "", LIGHT)
    _, rows = marks(drawing.spec, "bar")[0]
    ranks = {row["rank"] for row in rows}
    assert len(ranks) == 100
    assert 7 in ranks
    assert [row["text"] for row in drawing.spec["datasets"]["tops"] if row["text"]] == ["63"]
    assert "the fullest of 3 neighbouring stages" in drawing.reading
    assert drawing.title == "Rank 7 will be fullest: 63 KiB, against 21 KiB on ranks 1–6, 8–299"


def test_if_bars_are_stages_the_title_names_stages():
    table = made_up.predicted_memory(Mesh({"pp": 4}))  # stage 0 holds twice as much as the others
    told = beside.memory(None, table, None, "", LIGHT, ranks=4_000_000).title
    assert told == "The ranks of stage 0 will be fullest: 42 KiB, against 21 KiB of stages 1–3"
    told = beside.memory(None, table, 30 * KIB, "toy", LIGHT, ranks=4_000_000).title
    assert told == "The ranks of stage 0 need 42 KiB each and the toy has 30 KiB: they run out of memory"

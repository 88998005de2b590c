"""A run as one HTML file: its figures, its spec, and every chart with its texts and its table. It needs no network.

The charts are SVG, so the file needs no script, prints well, and can be read for many years. `python -m pages.runs.report
FOLDER THEME LANGUAGE` prints it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, cast

import pandas as pd
import vl_convert  # 200 MB: the server makes reports in another process

from engine import catalog, store
from engine.launch.recording.client import with_ledgers
from engine.predict.run import predict
from engine.tables import RunResult
from pages.charts import beside, generated, loss, matrix, memory, names, timeline, traffic
from pages.charts.drawing import Drawing
from pages.charts.look import Look, Theme, View, look
from pages.charts.units import in_bytes, in_time, percent, scientific, short
from pages.charts.words import Language, Words

_WIDTH = 960  # pixels of a chart
# Pixels between two entries of a legend. Another computer may not have the fonts for which positions were computed, and letters
# of a replacement such as DejaVu Sans are up to a fifth wider.
_LEGEND_GAP = 36
_MOST_ROWS = 500  # of a table; the CSV files hold all

# The browser loads nothing from elsewhere, whatever a name or a prompt in the file contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
body {{ max-width: 62rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: {text};
  background: {background}; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.2rem; margin: 2.5rem 0 0.2rem; }} small, figcaption {{ opacity: 0.8; }}
dl {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 0.6rem; }}
dl div {{ border: 1px solid {grey}; border-radius: 0.4rem; padding: 0.5rem 0.7rem; }}
dt {{ font-size: 0.82rem; }} dd {{ margin: 0; font-size: 1.35rem; font-weight: 600; }}
figure {{ margin: 0.8rem 0 0.8rem 1.5rem; break-inside: avoid; }} svg {{ max-width: 100%; height: auto; overflow: visible; }}
svg text {{ font-family: Arial, Helvetica, "Liberation Sans", sans-serif; }}
table {{ border-collapse: collapse; font-size: 0.82rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: 0.15rem 0.7rem; border-bottom: 1px solid {faint}; }}
.scroll {{ overflow-x: auto; max-height: 30rem; overflow-y: auto; }} summary {{ cursor: pointer; }}
@media print {{ .scroll {{ max-height: none; }} details:not([open]) {{ display: none; }} }}
"""


def report(name: str, result: RunResult, view: View) -> str:
    """The file's text, in the language and the colours of `view`."""
    style = look(view)
    say = style.say
    colours = {key: getattr(style, key) for key in ("text", "background", "grey", "faint")}
    title = say("{model} on {layout}", model=catalog.name_of(result.spec.model), layout=result.spec.layout.code)
    parts = [
        f"<h1>{escape(title)}</h1><p><small>{escape(name)}</small></p>",
        _figures(result, say),
        *_generated(result, say),
        *(_chart(drawing, say) for drawing in drawings(result, style)),
        f"<h2>{escape(say('What was run, and where'))}</h2>{_asked(result, say)}",
        f"<p><small>{escape(say('Made with Shardscope. Sizes are binary: 1 MiB is 1,048,576 bytes.'))}</small></p>",
    ]
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE.format(**colours)}{generated.STYLE}</style>"
    )
    tag = {"en": "en", "zh": "zh-Hans"}[view.language]
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="{tag}"><head>{head}</head><body><main>\n{body}\n</main></body></html>\n'


def drawings(result: RunResult, style: Look) -> Iterator[Drawing]:
    """Every chart of a run, in the order in which the Lab shows them."""
    tables, layout = result.tables, result.spec.layout
    predicted = with_ledgers(lambda: predict(result.spec)).tables
    yield beside.memory(tables["memory_peak"], predicted["memory_peak"], None, "", style)
    yield memory.curve(tables["memory_curve"], result.summary["peak_rank"], style)
    yield beside.traffic(tables["traffic"], predicted["traffic"], layout.ranks, "wire", None, style)
    yield traffic.by_rank(tables["traffic"], layout.ranks, "wire", style)
    yield matrix.matrix(tables["traffic"], layout.mesh, "wire", style)
    yield timeline.measured(tables["spans"], layout.mesh, style)
    if "loss_last" in result.summary:
        yield loss.loss(tables["steps"], style)


def _figures(result: RunResult, say: Words) -> str:
    s = result.summary
    shown = {
        say("Peak memory"): in_bytes(s["peak_bytes"]),
        say("Traffic"): in_bytes(s["wire_bytes_per_rank"]),
        say("Bubble"): percent(s["bubble"]),
        say("Step time"): in_time(s["step_ns"]),
    }
    if "tokens_per_second" in s:  # a dry run has none
        shown[say("Tokens a second")] = short(s["tokens_per_second"], say)
    if "loss_last" in s:
        shown = {say("Loss"): f"{s['loss_last']:.3f}"} | shown
    if "parity_max_rel" in s:
        shown[say("Parity")] = scientific(s["parity_max_rel"]) if math.isfinite(s["parity_max_rel"]) else "–"
    boxes = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in shown.items())
    return f"<dl>{boxes}</dl>"


def _generated(result: RunResult, say: Words) -> Iterator[str]:
    """The text that the run generated, if it did."""
    if found := result.summary.get("generated"):
        told = generated.as_html(found["prompt"], found["text"], say)
        yield f"<section><h2>{escape(say('Generated'))}</h2>{told}</section>"


def _chart(drawing: Drawing, say: Words) -> str:
    picture = vl_convert.vegalite_to_svg(_fixed(drawing.spec), allowed_base_urls=[])
    return (
        f"<section><h2>{escape(drawing.title)}</h2><small>{escape(drawing.subject)}</small>"
        f'<figure role="group">{picture}<figcaption>{escape(drawing.reading)}</figcaption></figure>'
        f"<details><summary>{escape(say('The numbers'))}</summary>{_table(drawing.table, say)}</details></section>"
    )


def _fixed(spec: dict[str, Any]) -> dict[str, Any]:
    """The chart with a fixed width and without interaction."""
    config = spec["config"]
    spec = spec | {"config": config | {"legend": config["legend"] | {"columnPadding": _LEGEND_GAP}}}
    if "vconcat" in spec:
        return spec | {"vconcat": [part | {"width": _WIDTH - 120} for part in spec["vconcat"]], "autosize": {"type": "pad"}}
    return spec | {"width": _WIDTH}


def _table(table: pd.DataFrame, say: Words) -> str:
    called = names.columns(say)
    first = names.readable(table.head(_MOST_ROWS), say)
    shown = first.rename(columns={name: called.get(str(name), name) for name in first}).to_html(index=False, border=0, na_rep="–")
    if len(table) > _MOST_ROWS:
        of = say("The first {shown} of {all} rows; the CSV files of this run hold all.", shown=_MOST_ROWS, all=f"{len(table):,}")
        shown = f"<p><small>{escape(of)}</small></p>{shown}"
    return f'<div class="scroll" tabindex="0">{shown}</div>'


def _asked(result: RunResult, say: Words) -> str:
    """Every field of the spec and of the environment."""
    spec = result.spec.model_dump(mode="json", exclude_none=True)
    rows = [
        (f"{part}.{name}", value) for part, fields in spec.items() if isinstance(fields, dict) for name, value in fields.items()
    ]
    rows += [(name, value) for name, value in spec.items() if not isinstance(value, dict)]
    rows.append(("schedule", names.schedule(result.spec.layout.schedule, say)))
    rows += list(result.environment.items())
    cells = "".join(
        f'<tr><th scope="row" style="text-align:left">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>'
        for name, value in rows
    )
    return f'<div class="scroll" tabindex="0"><table>{cells}</table></div>'


if __name__ == "__main__":
    run, theme, language = sys.argv[1:]
    seen_by = View(cast(Theme, theme), cast(Language, language))
    sys.stdout.buffer.write(report(Path(run).name, store.load(Path(run)), seen_by).encode())

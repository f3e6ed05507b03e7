"""Views as one self-contained HTML file: no network, no scripts of others, the numbers inside as JSON.

Draws plain data from `views`; computes nothing of the model.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from glassformer.inspect.vocabulary import shown

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .15rem .5rem; text-align: right; font-variant-numeric: tabular-nums; white-space: pre; }
th { font-weight: 600; } th.row, td.text { text-align: left; }
table.grid th { font-weight: 400; font-size: .85rem; }
table.grid thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; padding: .4rem 0; }
table.grid td { width: 1.7rem; height: 1.7rem; padding: 0; }
div.wide { overflow-x: auto; }
small, .quiet { opacity: .7; }
"""


def _page(title: str, body: str, data: dict[str, Any]) -> str:
    # "</" inside a script would end it; "<\/" is the same JSON.
    inside = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("</", "<\\/")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n"
        f"<script type='application/json' id='data'>{inside}</script>\n</body></html>\n"
    )


def _text(token: str) -> str:
    return escape(shown(token))


def _shade(share: float, *, signed: bool = False) -> str:
    colour = "214 39 40" if signed and share < 0 else "31 119 180"
    return f"background: rgb({colour} / {max(0.0, min(1.0, abs(share) if signed else share)):.3f})"


def attention_html(view: dict[str, Any], path: Path) -> None:
    """A head's attention as a shaded grid; each cell says its number."""
    head = "mean of its heads" if view["head"] is None else f"head {view['head']}"
    title = f"Attention, layer {view['layer']}, {head}"
    most = 1.0 if view["measure"] == "weight" else max(max(row) for row in view["rows"]) or 1.0
    header = "".join(f"<th scope='col'>{_text(key)}</th>" for key in view["keys"])
    rows = []
    for query, row in zip(view["queries"], view["rows"], strict=True):
        cells = "".join(
            f"<td style='{_shade(x / most)}' title='{_text(query)} → {_text(key)}: {x:.4f}'></td>"
            for key, x in zip(view["keys"], row, strict=True)
        )
        rows.append(f"<tr><th class='row' scope='row'>{_text(query)}</th>{cells}</tr>")
    receipt = "" if view["row_sum_error"] is None else f" Rows sum to 1 within {view['row_sum_error']:.1e}."
    body = (
        f"<h1>{escape(title)}</h1><p class='quiet'>{escape(view['model'])}, {view['precision']}, {view['measure']} by "
        f"{view['by']}; each row is who attends, each column what is attended to.{receipt}</p><div class='wide'>"
        f"<table class='grid'><thead><tr><td></td>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    path.write_text(_page(title, body, view), "utf-8")


def grid_html(view: dict[str, Any], path: Path) -> None:
    """A labelled table of numbers, shaded blue above nothing and red below; each cell says its number."""
    known = [abs(x) for row in view["values"] for x in row if x is not None]
    most = max(known, default=0.0) or 1.0
    header = "".join(f"<th scope='col'>{_text(name)}</th>" for name in view["columns"])
    rows = []
    for name, row in zip(view["rows"], view["values"], strict=True):
        cells = "".join(
            "<td title='not a number'></td>"
            if x is None
            else f"<td style='{_shade(x / most, signed=True)}' title='{_text(name)}, {_text(column)}: {x:.4f}'></td>"
            for column, x in zip(view["columns"], row, strict=True)
        )
        rows.append(f"<tr><th class='row' scope='row'>{_text(name)}</th>{cells}</tr>")
    body = (
        f"<h1>{_text(view['title'])}</h1><p class='quiet'>{_text(view['unit'])}; the darkest is {most:.4f}. "
        f"{_text(view['note'])}</p><div class='wide'><table class='grid'><thead><tr><td></td>{header}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    path.write_text(_page(view["title"], body, view), "utf-8")


def lens_html(view: dict[str, Any], path: Path) -> None:
    """The lens as a table: first choices, shaded by probability, the rest on hover."""
    tokens = view.get("tokens") or []
    names = [f"{p} {_text(tokens[p]) if p < len(tokens) else ''}" for p in view["positions"]]
    rows = []
    for row in reversed(view["rows"]):
        cells = []
        for cell in row["cells"]:
            hover = ", ".join(f"{_text(t['token'])} {t['probability']:.1%}" for t in cell["top"])
            best = cell["top"][0]
            cells.append(
                f"<td class='text' style='{_shade(best['probability'])}' title='{hover}'>{_text(best['token'])}</td>"
            )
        rows.append(f"<tr><th class='row' scope='row'>{escape(row['place'])}</th>{''.join(cells)}</tr>")
    header = "".join(f"<th scope='col'>{name}</th>" for name in names)
    body = (
        "<h1>The lens</h1><p class='quiet'>Each layer read out as if it were the last; the top row is the model's own "
        f"answer. {escape(str(view.get('model', '')))}, {view.get('precision', '')}.</p><div class='wide'><table>"
        f"<thead><tr><td></td>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    path.write_text(_page("The lens", body, view), "utf-8")


def why_html(view: dict[str, Any], path: Path) -> None:
    """The account: its sentence, its words, its largest parts, its receipts."""
    words = "".join(
        f"<tr><td class='text'>{_text(w['word'])}{' (sink)' if w['sink'] else ''}</td>"
        + "".join(f"<td>{_number((w['replaced'] or {}).get(key))}</td>" for key in ("median", "low", "high"))
        + f"<td>{_number(w['knocked_out'])}</td></tr>"
        for w in view["words"]
    )
    parts = "".join(
        f"<tr><td class='text'>{_text(p['name'])}</td><td>{_number(p['claimed'])}</td><td>{_number(p['direct'])}</td>"
        f"<td>{_number(p['total'])}</td><td>{p['percentile']:.1f}%</td></tr>"
        for p in view["top"]
    )
    body = (
        f"<h1>Why “{_text(view['token'])}”</h1><p>{escape(view['sentence'])}</p>"
        "<h2>Words</h2><table><thead><tr><th class='row'>word</th><th>replaced</th><th>low</th><th>high</th>"
        f"<th>hidden from later words</th></tr></thead><tbody>{words}</tbody></table>"
        "<h2>Largest parts</h2><table><thead><tr><th class='row'>part</th><th>claimed</th><th>measured directly</th>"
        f"<th>measured in total</th><th>percentile</th></tr></thead><tbody>{parts}</tbody></table>"
        f"<p class='quiet'>Unit: {escape(view['unit'])}. Value {view['value']:.6f}, sum {view['sum']:.6f}, residual "
        f"{view['residual']:.1e} of the sum of absolute parts, {view['precision']}.</p>"
    )
    path.write_text(_page(f"Why {view['token']}", body, view), "utf-8")


def _number(x: float | None) -> str:
    return "–" if x is None else f"{x:+.2f}"

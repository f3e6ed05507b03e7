"""Pictures of views, through matplotlib, which is imported when a picture is asked for.

Draws plain data from `tables`; computes nothing of the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glassformer.interp.vocabulary import shown


def _save(figure: Any, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # letters that the font lacks are drawn as boxes
        figure.savefig(path, format="png", dpi=150, bbox_inches="tight")


def _labels(texts: Sequence[str]) -> list[str]:
    # Dollar signs would start mathematics.
    return [shown(text).replace("$", r"\$") for text in texts]


def attention_png(view: dict[str, Any], path: Path) -> None:
    """A head's attention as a heat map."""
    from matplotlib.figure import Figure

    rows = view["rows"]
    wide, tall = len(rows[0]), len(rows)
    figure = Figure(figsize=(max(4.0, min(24.0, 0.32 * wide + 1.5)), max(2.0, min(24.0, 0.32 * tall + 1.5))))
    axes = figure.add_subplot()
    image = axes.imshow(rows, cmap="Blues", vmin=0, vmax=None if view["measure"] != "weight" else 1, aspect="auto")
    if wide <= 80:
        axes.set_xticks(range(wide), _labels(view["keys"]), rotation=90)
    if tall <= 80:
        axes.set_yticks(range(tall), _labels(view["queries"]))
    axes.set_xlabel("key: what is attended to")
    axes.set_ylabel("query: who attends")
    head = "mean of its heads" if view["head"] is None else f"head {view['head']}"
    axes.set_title(f"{view['model']}, layer {view['layer']}, {head} ({view['precision']})")
    figure.colorbar(image, label=view["measure"])
    _save(figure, path)


def grid_png(view: dict[str, Any], path: Path) -> None:
    """A labelled table of numbers as a heat map; blue above nothing, red below."""
    from matplotlib.figure import Figure

    rows = [[float("nan") if x is None else x for x in row] for row in view["values"]]
    wide, tall = len(rows[0]), len(rows)
    figure = Figure(figsize=(max(4.0, min(30.0, 0.36 * wide + 2.5)), max(2.0, min(40.0, 0.24 * tall + 1.8))))
    axes = figure.add_subplot()
    known = [x for row in rows for x in row if x == x]
    most = max(map(abs, known), default=0.0) or 1.0
    signed = min(known, default=0.0) < 0
    shades = {"cmap": "RdBu", "vmin": -most} if signed else {"cmap": "Blues", "vmin": 0}
    image = axes.imshow(rows, vmax=most, aspect="auto", **shades)
    if wide <= 100:
        axes.set_xticks(range(wide), _labels(view["columns"]), rotation=90, fontsize=8)
    if tall <= 140:
        axes.set_yticks(range(tall), _labels(view["rows"]), fontsize=8)
    axes.set_title(_labels([view["title"]])[0], fontsize=10)
    if view["note"]:
        axes.set_xlabel(_labels([view["note"]])[0], fontsize=8, wrap=True)
    figure.colorbar(image, label=_labels([view["unit"]])[0])
    _save(figure, path)


def lens_png(view: dict[str, Any], path: Path) -> None:
    """The lens as a table of tokens, shaded by probability."""
    from matplotlib.figure import Figure

    rows = view["rows"]
    columns = len(view["positions"])
    figure = Figure(figsize=(max(4.0, min(40.0, 1.1 * columns + 2)), max(3.0, min(60.0, 0.24 * len(rows) + 1))))
    axes = figure.add_subplot()
    grid = [[cell["top"][0]["probability"] for cell in row["cells"]] for row in rows]
    image = axes.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    if columns <= 40:
        for y, row in enumerate(rows):
            for x, cell in enumerate(row["cells"]):
                best = cell["top"][0]
                colour = "white" if best["probability"] > 0.6 else "black"
                label = _labels([best["token"]])[0]
                axes.text(x, y, label, ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(columns), [f"{p} {t}" for p, t in _columns(view)], rotation=90)
    axes.set_yticks(range(len(rows)), [row["place"] for row in rows], fontsize=7)
    figure.colorbar(image, label="probability of the first choice")
    _save(figure, path)


def _columns(view: dict[str, Any]) -> list[tuple[int, str]]:
    texts = view.get("tokens") or [""] * (max(view["positions"]) + 1)
    return [(p, _labels([texts[p]])[0]) for p in view["positions"]]


def why_png(view: dict[str, Any], path: Path) -> None:
    """Words and largest parts as bars."""
    from matplotlib.figure import Figure

    words = [w for w in view["words"] if w["replaced"]]
    top = view["top"]
    figure = Figure(layout="constrained", figsize=(9, 0.35 * (len(words) + 2 * len(top)) + 2.5))
    above, below = figure.subplots(2, 1, height_ratios=[max(1, len(words)), max(1, 2 * len(top))])
    medians = [w["replaced"]["median"] for w in words]
    low = [w["replaced"]["median"] - w["replaced"]["low"] for w in words]
    high = [w["replaced"]["high"] - w["replaced"]["median"] for w in words]
    above.barh(range(len(words)), medians, xerr=[low, high], color="tab:blue", ecolor="0.4")
    above.set_yticks(range(len(words)), _labels([w["word"] for w in words]))
    above.invert_yaxis()
    above.set_title(f"{_labels([view['token']])[0]}: {view['value']:.2f}, {view['unit']}", fontsize=10)
    above.set_xlabel("what replacing the word takes away (median and range)")
    for offset, key, colour in ((-0.27, "claimed", "0.75"), (0.0, "direct", "tab:blue"), (0.27, "total", "tab:orange")):
        values = [part[key] or 0.0 for part in top]
        below.barh([i + offset for i in range(len(top))], values, height=0.26, color=colour, label=key)
    below.set_yticks(range(len(top)), _labels([part["name"] for part in top]))
    below.invert_yaxis()
    below.axvline(0, color="0.5", linewidth=0.8)
    below.legend()
    _save(figure, path)

"""What is shown of an analysis, as plain data that goes into JSON: for the terminal, pictures and pages alike.

Only numbers and texts; how they are drawn is others' business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glassformer.interp.token_words import mean_by_word, sum_by_word

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.interp.why import Why


def attention_view(
    trace: Trace,
    layer: int,
    head: int | None = None,
    query: int | None = None,
    *,
    weighted: bool = False,
    by_word: bool = False,
) -> dict[str, Any]:
    """One head's attention (or the mean of a layer's heads): the whole grid, or the row of one query.

    Args:
        weighted: the size of what is handed over instead of the weight.
        by_word: words instead of tokens: summed over the tokens attended to, averaged over those that attend.

    Raises:
        MemoryLimitError: when the grid would not fit.
    """
    at = None if query is None else trace.position(query)
    of = trace.weighted if weighted else trace.pattern
    grid = of(layer, head, None if at is None else slice(at, at + 1)).double()
    if head is None:
        grid = grid.mean(0)
    error = None if weighted else float((grid.sum(-1) - 1).abs().max())
    queries = keys = trace.tokens
    if by_word:
        by = trace.words
        keys = [w.text for w in by]
        grid = sum_by_word(grid, by, -1)
        if at is None:
            grid, queries = mean_by_word(grid, by, -2), keys
    return {
        "model": trace.model,
        "precision": trace.precision,
        "layer": trace.layer(layer),
        "head": None if head is None else trace.head(head, layer),
        "query": at,
        "measure": "value-weighted" if weighted else "weight",
        "by": "word" if by_word else "token",
        "queries": [trace.tokens[at]] if at is not None else list(queries),
        "keys": list(keys),
        "rows": grid.tolist(),
        "row_sum_error": error,
    }


def overview(trace: Trace, query: int = -1, *, layer: int | None = None, k: int = 3) -> dict[str, Any]:
    """Where every head looks from one position: the k positions it weighs most."""
    at = trace.position(query)
    layers = range(trace.config.n_layers) if layer is None else [trace.layer(layer)]
    rows = []
    for i in layers:
        best = trace.pattern(i, None, at, slice(0, at + 1)).double().topk(min(k, at + 1), dim=-1)
        rows.append(
            {
                "layer": i,
                "heads": [
                    [{"key": p, "token": trace.tokens[p], "weight": w} for p, w in zip(ps, ws, strict=True)]
                    for ps, ws in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                ],
            }
        )
    return {
        "model": trace.model,
        "precision": trace.precision,
        "query": at,
        "tokens": trace.tokens,
        "layers": rows,
    }


def why_view(found: Why, top: int = 10) -> dict[str, Any]:
    """The account with only its largest parts, as people read it."""
    from glassformer.interp.explanation import part_name

    data = found.to_dict(parts=False)
    data["tokens"] = found.tokens
    data["top"] = [{**part, "name": part_name(part, found.tokens)} for part in found.ranked_parts(sink=False)[:top]]
    data["heads"] = [{**part, "name": part_name(part, found.tokens)} for part in found.ranked_parts("head")[:top]]
    return data


def grid_view(
    title: str, rows: list[str], columns: list[str], values: list[list[float]], unit: str, note: str = ""
) -> dict[str, Any]:
    """A table of numbers with labels, as one picture: heads, patching, similarity. Not-a-numbers become null."""
    return {
        "title": title,
        "rows": rows,
        "columns": columns,
        "values": [[None if x != x else x for x in row] for row in values],
        "unit": unit,
        "note": note,
    }

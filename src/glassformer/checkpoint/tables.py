"""One line per tensor: how another layout's tensors become ours, and ours theirs.

A `Row` says which tensor of theirs holds which of ours and how it is laid out; `take` and `join` move torch tensors
and numpy arrays in either direction. It knows no family and no file format, and it never touches a value it need not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glassformer.checkpoint.keys import Shape
from glassformer.model.config import Attention, Config, LatentAttention, Rotary

Array = Any  # a torch.Tensor or a numpy array: both have .T, .reshape and row indexing


KEY_HEADS = -1  # as many blocks as a recurrence has heads of keys


@dataclass(frozen=True)
class Row:
    """One tensor of theirs and the one or several of ours that it holds; ``{i}`` is the layer.

    With ``{e}`` in its name theirs is one of as many tensors as ours have entries along their first axis: experts
    in a tensor each, which here are stacked.

    Args:
        theirs: its name there.
        ours: native keys; several when theirs is their rows joined. "{h}" is the layer before, "{last}" the last.
        transposed: theirs is (in, out); of stacked matrices, each of them.
        axis: along which several of ours are joined: 1 for experts' matrices, which are stacked along the first.
        alternating: joined row by row (the first of each, the second of each, …) along that axis.
        flat: theirs has the first two axes of ours as one: experts' rows one after another.
        squeezed: theirs has an axis of length 1 at this place, or these, that ours lack.
        spread: ours is held by as many tensors as these names, which stand for ``{p}``: the rows of a recurrence's
            queries, keys and values, or equal shares where `evenly` (the last one smaller).
        per_head: joined key-value head by key-value head (its queries, its key, its value, then those of the next),
            not one whole after another.
        pairs: how rotary pairs stand there: the first "half" of a head pairs with the second, as here; "neighbours"
            pair; or the halves are "swapped". In latent attention rotated dimensions stand last there, and first here,
            with "neighbours" and with "halves".
        skip: rows there before the first that means anything; written as zeros.
        blocks: joined in so many equal pieces (`KEY_HEADS`: one for each), each holding its share of every part.
        shift: what theirs has added to every value.
        cut: theirs has an axis more: the first of ours is cut into as many pieces as there are "heads" of attention, or
            "groups" of a state space, or "parts" that it holds; where `transposed`, each piece is.
        crossed: query heads stand expert by expert there, in an axis of their own, and key head by key head here: rows
            of the "queries", or columns of the "outputs".
        exponent: theirs is −exp of ours: decays that are stored as such.
        tiled: value heads of a recurrence stand there the first of every key head's, then the second of every one's, …,
            where here those of one key head are together.
        setting: theirs is no tensor but an entry of this setting, which holds a number for each layer.
        when: designs that have this tensor, where the same of ours is called otherwise in others; None for all.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    per_head: bool = False
    axis: int = 0
    alternating: bool = False
    flat: bool = False
    squeezed: int | tuple[int, ...] | None = None
    spread: tuple[str, ...] = ()
    evenly: bool = False
    pairs: str = "half"
    shift: float = 0.0
    skip: int = 0
    blocks: int = 1
    cut: str = ""
    crossed: str = ""
    exponent: bool = False
    tiled: bool = False
    setting: str = ""
    when: Callable[[Config], bool] | None = None


def row(theirs: str, *ours: str, **how: Any) -> Row:
    """A `Row`, with our keys as plain arguments."""
    return Row(theirs, ours, **how)


@dataclass(frozen=True)
class Place:
    """One tensor of theirs in one design: its row, its shape there, our keys and the shapes of what it holds of them.

    `expert` is which entry of ours along the first axis it holds; None where it holds them whole. `rows` are those of
    ours that it holds, where others hold the rest.
    """

    row: Row
    theirs: str
    shape: Shape
    ours: tuple[str, ...]
    shapes: tuple[Shape, ...]
    expert: int | None = None
    rows: tuple[int, int] | None = None

    @property
    def plain(self) -> bool:
        """Whether rows of theirs are rows of ours, in whatever order."""
        line = self.row
        moved = line.transposed or line.cut or line.exponent or line.shift or line.flat or line.squeezed is not None
        moved = moved or line.tiled or line.crossed
        return not (moved or line.axis or line.spread or self.expert is not None)


def take(place: Place, part: int, x: Array, config: Config) -> Array:
    """Our tensor number ``part`` out of theirs; a view wherever the layouts allow one."""
    line = place.row
    if line.crossed:
        return _uncrossed(line, x, place.shapes[part], attention_at(place, config))
    if line.squeezed is not None:
        x = x.reshape([size for i, size in enumerate(x.shape) if i not in _axes(line)])
    if line.flat:
        x = x.reshape((place.shapes[part][0], -1, *x.shape[1:]))
    if line.transposed:
        x = x.swapaxes(-1, -2)
    if line.cut:
        x = x.reshape((-1, *x.shape[2:]))
    x = take_rows(place, part, x, config)
    if line.tiled:
        x = _tiled(x, place.ours[part], config, back=True)
    if line.exponent:
        return _library(x).log(-x)
    return x - line.shift if line.shift else x


def take_rows(place: Place, part: int, x: Array, config: Config) -> Array:
    """What `take` does to rows alone: rows may then be blocks of quantised bytes as well as numbers."""
    line, rest = place.row, tuple(x.shape[1:])
    if line.skip:
        x = x[line.skip :]
    if len(place.ours) > 1:
        if line.per_head or line.blocks != 1:
            d_head, pieces = _pieces(place, config)
            start = sum(pieces[:part])
            x = x.reshape((-1, sum(pieces), d_head, *rest))[:, start : start + pieces[part]].reshape((-1, *rest))
        else:
            at = (slice(None),) * line.axis
            start, size = sum(s[line.axis] for s in place.shapes[:part]), place.shapes[part][line.axis]
            own = slice(part, None, len(place.ours)) if line.alternating else slice(start, start + size)
            x = x[(*at, own)]
    if line.pairs != "half" and _turned(place.ours[part]):
        x = _reordered(x, _half_order, line.pairs, place.ours[part], attention_at(place, config))
    return x


def _reordered(x: Array, order: Callable[..., list[int]], how: str, key: str, attention: Attention) -> Array:
    """A tensor with the rows of each head in another order; a norm's weights are one head's, or a row for each."""
    if ".index_" in key and isinstance(attention, LatentAttention) and attention.index is not None:
        size = attention.index.d_head
        small = Attention(1, 1, size, rotary=Rotary(fraction=attention.rotary_dims / size))
        return x[order(how, x.shape[0], small)]
    if "_norm" not in key:
        return x[order(how, x.shape[0], attention)]
    flat = x.reshape(-1)
    return flat[order(how, flat.shape[0], attention)].reshape(x.shape)


def _pieces(place: Place, config: Config) -> tuple[int, list[int]]:
    """Rows that belong together, and how many of them each part has in one piece of a joined tensor."""
    rows = [shape[0] for shape in place.shapes]
    if not place.row.per_head:
        blocks = place.row.blocks
        if blocks == KEY_HEADS:
            blocks = config.mixer(int(place.ours[0].split(".")[1])).n_key_heads  # type: ignore[union-attr]
        return 1, [n // blocks for n in rows]
    d_head = head_size(place, config)
    if isinstance(attention := attention_at(place, config), LatentAttention):
        return 1, [n // attention.n_heads for n in rows]
    each = min(rows)
    return d_head, [n // each for n in rows]


def _turned(key: str) -> bool:
    """Whether a tensor of ours has rows that rotary positions turn in pairs."""
    return bool(re.search(r"\.attn\.([qk](_norm)?|q_up|k_shared(_norm)?|index_(q|k|norm))\.", key))


def join(place: Place, parts: list[Array], config: Config) -> Array:
    """Theirs out of ours: `take` the other way."""
    line = place.row
    if line.crossed:
        return crossed(line, parts[0], place.shape, attention_at(place, config))
    if line.shift:
        parts = [x + line.shift for x in parts]
    if line.exponent:
        parts = [-_library(x).exp(x) for x in parts]
    if line.tiled:
        parts = [_tiled(x, key, config, back=False) for x, key in zip(parts, place.ours, strict=True)]
    if line.pairs != "half":
        parts = [
            _reordered(x, _their_order, line.pairs, key, attention_at(place, config)) if _turned(key) else x
            for key, x in zip(place.ours, parts, strict=True)
        ]
    if len(parts) == 1:
        x = parts[0]
    elif line.per_head or line.blocks != 1:
        (d_head, pieces), rest = _pieces(place, config), tuple(parts[0].shape[1:])
        whole = [x.reshape((-1, n, d_head, *rest)) for x, n in zip(parts, pieces, strict=True)]
        x = concatenated(whole, 1).reshape((-1, *rest))
    elif line.alternating:
        axis, shape = line.axis, list(parts[0].shape)
        pairs = [x.reshape((*shape[: axis + 1], 1, *shape[axis + 1 :])) for x in parts]
        shape[axis] *= len(parts)
        x = concatenated(pairs, axis + 1).reshape(shape)
    else:
        x = concatenated(parts, line.axis)
    if line.skip:
        x = concatenated([0 * x[: line.skip], x], 0)
    if line.cut:
        x = x.reshape((place.shape[0], -1, *x.shape[1:]))
    if line.transposed:
        x = x.swapaxes(-1, -2)
    return x.reshape(place.shape) if line.flat or line.squeezed is not None else x


def crossed_shape(line: Row, ours: Shape, attention: Attention) -> Shape:
    """The shape of theirs where query heads stand expert by expert."""
    experts = attention.n_experts
    if line.crossed == "queries":
        return (experts, ours[0] // experts, ours[1])
    return (experts, ours[0], ours[1] // experts)


def _uncrossed(line: Row, x: Array, ours: Shape, attention: Attention) -> Array:
    """Heads of every expert sorted by key head."""
    experts, heads = attention.n_experts, attention.n_kv_heads
    if line.crossed == "queries":
        return x.reshape((experts, heads, -1, ours[1])).swapaxes(0, 1).reshape(ours)
    x = x.reshape((experts, ours[0], heads, -1)).swapaxes(0, 1)  # (d_model, expert, key head, d_head)
    return x.swapaxes(1, 2).reshape(ours)


def crossed(line: Row, x: Array, theirs: Shape, attention: Attention) -> Array:
    """`_uncrossed` the other way."""
    experts, heads = attention.n_experts, attention.n_kv_heads
    if line.crossed == "queries":
        return x.reshape((heads, experts, -1, theirs[2])).swapaxes(0, 1).reshape(theirs)
    return x.reshape((theirs[1], heads, experts, -1)).swapaxes(1, 2).swapaxes(0, 1).reshape(theirs)


def _tiled(x: Array, key: str, config: Config, *, back: bool) -> Array:
    """Value heads in the other order, along the axis of a recurrence's tensor that they stand on."""
    mixer: Any = config.mixer(int(key.split(".")[1]))
    part = key.split(".delta.")[1]
    if part.startswith(("q.", "k.")) or part == "norm":
        return x
    if part.startswith("conv."):
        first = sum(mixer.widths[:2])
        return concatenated([x[:first], _swapped(x[first:], mixer, 0, back)], 0)
    return _swapped(x, mixer, 1 if part.startswith("o.") else 0, back)


def _swapped(x: Array, mixer: Any, axis: int, back: bool) -> Array:
    times = mixer.n_heads // mixer.n_key_heads
    pieces = (times, mixer.n_key_heads) if back else (mixer.n_key_heads, times)
    shape = tuple(x.shape)
    return x.reshape((*shape[:axis], *pieces, -1, *shape[axis + 1 :])).swapaxes(axis, axis + 1).reshape(shape)


def their_shape(line: Row, parts: tuple[Shape, ...], cuts: int = 1) -> Shape:
    """The shape of theirs, from those of ours that it holds, of which the first axis is cut into so many pieces."""
    whole = list(parts[0])
    if not whole:
        return ()
    whole[line.axis] = sum(part[line.axis] for part in parts)
    whole[0] += line.skip
    if line.cut:
        whole[:1] = [cuts, whole[0] // cuts]
    if line.transposed:
        whole[-2:] = whole[:-3:-1]
    if line.flat:
        whole[:2] = [whole[0] * whole[1]]
    for axis in _axes(line):
        whole.insert(axis, 1)
    return tuple(whole)


def _axes(line: Row) -> tuple[int, ...]:
    """Axes of length 1 that theirs has and ours lacks, in order."""
    if line.squeezed is None:
        return ()
    return line.squeezed if isinstance(line.squeezed, tuple) else (line.squeezed,)


def _library(x: Array) -> Any:
    """numpy or torch: what an array is of."""
    if type(x).__module__.startswith("numpy"):
        import numpy

        return numpy
    import torch

    return torch


def stacked(parts: list[Array]) -> Array:
    """Arrays of one shape along a new first axis."""
    return _library(parts[0]).stack(parts)


def attention_at(place: Place, config: Config) -> Attention:
    """The attention of the layer that a place belongs to."""
    return config.attention(int(place.ours[0].split(".")[1]))


def head_size(place: Place, config: Config) -> int:
    """Dimensions of a head in the layer that a place belongs to."""
    return attention_at(place, config).d_head


def _half_order(how: str, rows: int, attention: Attention) -> list[int]:
    """For each of our rows, the row of theirs: a pair (j, j + pairs) here is (2j, 2j + 1) there where neighbours pair,
    and (j + pairs, j) where the halves are swapped."""
    d_head = attention.d_head
    rotated = attention.shared_size if isinstance(attention, LatentAttention) else attention.rotary_dims
    pairs = rotated // 2
    if how == "neighbours":
        one = [2 * j + side for side in (0, 1) for j in range(pairs)]
    elif how == "halves":
        one = list(range(rotated))
    else:
        one = [*range(pairs, rotated), *range(pairs)]
    if isinstance(attention, LatentAttention):
        if rows == rotated:  # the part of the keys that heads share
            return one
        own = d_head - rotated
        one = [*(own + j for j in one), *range(own)]
    else:
        one += range(rotated, d_head)
    return [start + offset for start in range(0, rows, d_head) for offset in one]


def _their_order(how: str, rows: int, attention: Attention) -> list[int]:
    order = _half_order(how, rows, attention)
    inverse = [0] * rows
    for ours, theirs in enumerate(order):
        inverse[theirs] = ours
    return inverse


def concatenated(parts: list[Array], axis: int) -> Array:
    """Arrays one after another along an axis."""
    return _library(parts[0]).concatenate(parts, axis)

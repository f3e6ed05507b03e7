"""`glassformer count`: a design's parameters, FLOPs and memory as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import JsonOption, bar, print_json
from glassformer.model.choices import Attention, Experts, FeedForward, members

if TYPE_CHECKING:
    from glassformer.count import Count
    from glassformer.model.config import Config

# Component -> the product behind it, in the glossary's words.
SHAPES = {
    "embedding": "vocab × d_model",
    "positions": "context × d_model",
    "query": "heads × d_head × d_model",
    "key": "kv_heads × d_head × d_model",
    "value": "kv_heads × d_head × d_model",
    "decay": "heads × d_model",
    "convolution": "channels × width",
    "output": "heads × d_head × d_model",
    "router": "experts × d_model",
    "gate": "d_ff × d_model",
    "up": "d_ff × d_model",
    "down": "d_model × d_ff",
    "unembedding": "vocab × d_model",
    "norms": "",
    "biases": "",
    "sinks": "",
}


def command(
    source: Annotated[
        str, typer.Argument(metavar="NAME|SOURCE", help="A known design such as gpt3 or llama-7b, or a model's source.")
    ],
    context: Annotated[
        int | None, typer.Option("--context", "-c", metavar="N", help="Tokens of context; by default the design's own.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count the parameters, FLOPs and memory of a design.

    From its config alone: nothing is allocated. FLOPs count matrix products, a multiply-add as 2.
    """
    from pathlib import Path

    from glassformer.count import count

    known = None if Path(source).exists() else source
    found = count(known or _Named(source, _read(source)), context, read=_read)
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found)


class _Named:
    """A config with the name it was asked for by."""

    def __init__(self, name: str, config: Config) -> None:
        self.name, self.config = name, config


def _read(source: str) -> Config:
    """The config of a model on this machine, in the catalogue or on the hub."""
    from pathlib import Path

    from glassformer.checkpoint import read_config
    from glassformer.count import DESIGNS
    from glassformer.errors import SourceError, near
    from glassformer.fetch.sources import resolve_config

    here = Path(source)
    if here.is_file() or (here / "config.json").is_file():
        return read_config(here)  # a design is enough, weights may be missing
    try:
        path = resolve_config(source)
    except SourceError as error:
        if not source.replace("-", "").replace(".", "").isalnum():
            raise
        designs = f"{source} is no known design ({', '.join(DESIGNS)}).{near(source.lower(), DESIGNS)}"
        raise SourceError(f"{designs} As a model: {error}") from None
    return read_config(path)


def _show(found: Count) -> None:
    from rich.padding import Padding
    from rich.table import Table

    from glassformer.cli.common import console
    from glassformer.count import ATTENTION, FEED_FORWARD

    out = console()
    c, built = found.config, found.built
    a = next((m for layer in c.layers if isinstance(m := layer.mixer, Attention)), None)
    out.print()
    out.print(f"[bold]{found.name}[/bold]  {built.total:,} parameters")
    out.print(
        f"{c.n_layers:,} layers · d_model {c.d_model:,} · {_parts(c)} · vocab {c.vocab_size:,} · context {c.context:,}",
        style="dim",
    )

    both = len(found.tallies) > 1
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    wide = out.width >= 112
    table.add_column("component", no_wrap=True)
    if wide:
        table.add_column("shape", style="dim", no_wrap=True)
    table.add_column("one layer", justify="right", no_wrap=True)
    for tally in found.tallies:
        label = tally.label.replace(", ", ",\n")
        table.add_column(label if both else "whole model", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    largest = max(built.whole.values())

    def row(name: str, layer: str, sizes: list[int], style: str = "", shape: str = "", barred: bool = True) -> None:
        cells = [f"{size:,}" if size else "–" for size in sizes]
        share = sizes[-1] / built.total
        length = bar(sizes[-1] / largest, 16 if wide else 6) if barred else ""
        table.add_row(name, *([shape] if wide else []), layer, *cells, f"{share:.1%}", length, style=style)

    def total(name: str, parts: tuple[str, ...]) -> None:
        layer = sum(built.layer.get(part, 0) for part in parts)
        row(name, f"{layer:,}", [t.of(parts) for t in found.tallies], "bold", barred=False)

    for name, shape in SHAPES.items():
        sizes = [tally.whole.get(name, 0) for tally in found.tallies]
        if any(sizes) or name == "unembedding":
            layer = built.layer.get(name)
            if name == "unembedding" and c.tied:
                shape = "the embedding, transposed" if not both else shape
            row(name, f"{layer:,}" if layer else "", sizes, shape=shape)
        if name == "output":
            total("  attention", ATTENTION)
        elif name == "down":
            total("  feed-forward", FEED_FORWARD)
    row("total", f"{sum(built.layer.values()):,}", [tally.total for tally in found.tallies], "bold", barred=False)
    out.print(Padding(table, (1, 0, 1, 0)))

    if a is not None and built.head:
        shared = a.n_heads // a.n_kv_heads
        out.print(
            f"One head: {built.head['query']:,} in its query matrix ({a.d_head:,} × {c.d_model:,}), "
            f"{sum(built.head.values()):,} in its query, key, value and output"
            + (f"; key and value are shared by {shared} heads." if shared > 1 else ".")
        )
    if found.active_parameters != built.total:
        out.print(f"One token meets {found.active_parameters:,} of them; the rest are experts chosen for others.")

    costs = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    costs.add_column(style="dim")
    costs.add_column(justify="right")
    costs.add_column(style="dim", overflow="fold")
    costs.add_row("inference", f"{_si(found.inference_flops)}FLOPs a token", found.formulas["inference"])
    costs.add_row("training", f"{_si(found.training_flops)}FLOPs a token", found.formulas["training"])
    costs.add_row("weights", _bytes(found.weight_bytes["float32"]), _also(found.weight_bytes))
    per_token = found.cache_bytes_per_token
    costs.add_row(
        "key-value cache",
        f"{_bytes(per_token['float32'])} a token",
        f"{_also(per_token)}; at {found.context:,} tokens {_bytes(per_token['float32'] * found.context)}",
    )
    if (states := found.state_bytes)["float32"]:
        costs.add_row("recurrent state", _bytes(states["float32"]), f"{_also(states)}; the same at every length")
    costs.add_row(
        "optimizer state",
        _bytes(found.optimizer_bytes["adamw"]),
        f"AdamW in float32; Muon with AdamW {_bytes(found.optimizer_bytes['muon'])}; "
        f"gradients {_bytes(4 * built.total)} more",
    )
    out.print(Padding(f"At a context of {found.context:,} tokens:", (1, 0, 0, 0)))
    out.print(costs)
    out.print()


def _parts(c: Config) -> str:
    """What the layers are made of, equal ones told once: "9 heads (3 key-value) × 64 · d_ff 1,536"."""
    kinds: dict[str, int] = {}
    for layer in c.layers:
        m, f = layer.mixer, layer.feed_forward
        told = []
        for own in () if m is None else members(m):
            if isinstance(own, Attention):
                shared = "" if own.n_kv_heads == own.n_heads else f" ({own.n_kv_heads:,} key-value)"
                told.append(f"{own.n_heads:,} heads{shared} × {own.d_head:,}")
            elif not isinstance(own, FeedForward | Experts):
                told.append(f"{own.kind.replace('_', ' ')} of {own.n_heads:,} heads × {own.d_head:,}")
        if f is not None:
            told.append(f"d_ff {f.d_ff:,}" if isinstance(f, FeedForward) else _experts(f))
        kinds[" · ".join(told)] = kinds.get(" · ".join(told), 0) + 1
    if len(kinds) == 1:
        return next(iter(kinds))
    return " and ".join(f"{number:,} layers of {what}" for what, number in kinds.items())


def _experts(f: Experts) -> str:
    """ "128 experts × d_ff 768, 8 for a token, and a shared d_ff 512"."""
    told = f"{f.n_experts:,} experts × d_ff {f.d_ff:,}, {f.n_active:,} for a token"
    return told if f.shared is None else f"{told}, and a shared d_ff {f.shared.d_ff:,}"


def _si(number: float) -> str:
    units = iter(("", "k", "M", "G", "T"))
    unit = next(units)
    while number >= 1000 and (larger := next(units, None)) is not None:
        number, unit = number / 1000, larger
    return f"{number:.4g} {unit}"


def _bytes(number: float) -> str:
    """Decimal units, as disks and model cards have them."""
    return _si(number) + "B"


def _also(sizes: dict[str, Any]) -> str:
    first, *rest = sizes
    return f"in {first}; " + ", ".join(f"{name} {_bytes(sizes[name])}" for name in rest)

"""`glassformer models`: what the catalogue offers, what lies in the cache, how to be rid of it, and what would open."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import JsonOption, console, note, print_json
from glassformer.errors import SourceError, UsageError, near
from glassformer.system.folders import cache_directory

if TYPE_CHECKING:
    from glassformer.fetch.store import Item

command = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@command.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    families: Annotated[
        bool, typer.Option("--families", help="Every type of model that opens instead, and those that do not.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List, fetch and delete the models kept on this machine.

    Without a subcommand: the models of the catalogue and everything in the cache.
    """
    if context.invoked_subcommand is not None:
        if as_json or families:
            said = "--json" if as_json else "--families"
            raise UsageError(f"{said} belongs to the list, `glassformer models {said}`, not to its subcommands.")
        return
    found = known() if families else listing()
    if as_json:
        print_json(found)
    elif families:
        _print_families(found)
    else:
        _print(found)


@command.command()
def fetch(
    source: Annotated[str, typer.Argument(metavar="NAME", help="A catalogue name, or org/name[@revision] on the hub.")],
) -> None:
    """Fetch a model, or bring one from the hub up to date, and print where it lies."""
    from glassformer.fetch import sources

    found = sources.resolve(source, refresh=True)
    print(found.path)


@command.command()
def delete(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A name from the list.")] = None,
    all_dequantised: Annotated[
        bool,
        typer.Option("--all-dequantised", help="Every copy of a quantised model; they are made again when needed."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model with its dequantised copies, or all such copies, from the cache."""
    if (name is None) != all_dequantised:
        raise UsageError("Give either the NAME of a model in the cache or --all-dequantised.")
    from glassformer.fetch import store

    doomed = chosen(name)
    if not doomed:
        note("There are no dequantised copies.")
        return
    _confirm(doomed, yes)
    kept = [item.name for item in doomed if not store.delete(item)]
    gone = [item for item in doomed if item.name not in kept]
    if gone:
        note(f"Deleted {_together(gone)}.")
    if kept:
        raise SourceError(f"{', '.join(kept)} is in use by a running program; end it and try again.")


def chosen(name: str | None) -> list[Item]:
    """The items of the cache called ``name`` with the dequantised copies of them, or every such copy for None.

    Raises:
        SourceError: when nothing in the cache is called so.
    """
    from glassformer.fetch import catalogue, gguf_parts, store

    items = store.items()
    if name is None:
        return [item for item in items if item.kind == "dequantised"]
    names = {name, name.lower()}
    if (entry := catalogue.find(name)) is not None and (repo := entry.repo) is not None:
        names.add(repo)
    found = [item for item in items if item.name in names]
    if not found:
        there = [item.name for item in items]
        known = f" It holds {', '.join(there)}." if there else " It is empty."
        raise SourceError(f"There is no {name} in the cache {cache_directory()}.{near(name, there)}{known}")
    stems = tuple(f"{gguf_parts.stem(item.path)}-" for item in found if item.path.suffix == ".gguf")
    return found + [item for item in items if item.kind == "dequantised" and stems and item.name.startswith(stems)]


def _confirm(doomed: list[Item], yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"Deleting {_together(doomed)} needs a yes, and nobody is at the terminal: add --yes.")
    shared = any(not item.path.is_relative_to(item.entry) for item in doomed)
    remark = " It lies in the hub's own cache, which other programs share." if shared else ""
    print(f"Delete {_together(doomed)}?{remark} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        note("Nothing was deleted.")
        raise typer.Exit(1)


def _together(items: list[Item]) -> str:
    from glassformer.system.progress import size_text

    names = ", ".join(item.name for item in items[:4]) + (f" and {len(items) - 4} more" if len(items) > 4 else "")
    return f"{names} ({size_text(sum(item.bytes for item in items))})"


def listing() -> dict[str, Any]:
    """What the catalogue offers and what the cache holds, as plain data."""
    from glassformer.fetch import catalogue, store

    items = store.items()
    there = {item.name for item in items if item.kind != "dequantised"}
    return {
        "cache": {
            "path": str(cache_directory()),
            "bytes": sum(item.bytes for item in items),
            "dequantised_bytes": sum(item.bytes for item in items if item.kind == "dequantised"),
            "dequantised_limit": store.cache_limit(),
        },
        "models": [_described(item) for item in items],
        "catalogue": [
            {
                "name": entry.name,
                "summary": entry.summary,
                "licence": entry.licence,
                "default": entry.name == catalogue.DEFAULT,
                "repository": entry.repo,
                "sha256": entry.artifact.sha256 if entry.artifact else None,
                "bytes": entry.artifact.bytes if entry.artifact else None,
                "fetched": entry.name in there or entry.repo in there,
            }
            for entry in catalogue.CATALOGUE.values()
        ],
    }


def known() -> dict[str, Any]:
    """The types of model that open, and what stands in the way of those that do not, as plain data."""
    from glassformer.checkpoint.families import NOT_READ
    from glassformer.checkpoint.families.listing import listing as families

    return {"families": families(), "not_read": dict(NOT_READ)}


def _print_families(data: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    shown = Table(title=f"{len(data['families'])} types of model that open", title_justify="left", box=None)
    for heading in ("type", "parts", "read from and written to", "answered by", "held to"):
        shown.add_column(heading, overflow="fold")
    for one in data["families"]:
        layouts = ", ".join(["safetensors", *(f"GGUF {name}" for name in one["gguf"])])
        shown.add_row(
            *map(Text, (one["type"], ", ".join(one["parts"]), layouts, one["answered_by"], ", ".join(one["held_to"])))
        )
    out.print(shown)
    out.print()
    refused = Table(title="Known and not read", title_justify="left", box=None)
    refused.add_column("type")
    refused.add_column("what stands in the way", overflow="fold")
    for name, reason in sorted(data["not_read"].items()):
        refused.add_row(Text(name), Text(reason))
    out.print(refused)


def _described(item: Item) -> dict[str, Any]:
    return {
        "name": item.name,
        "kind": item.kind,
        "bytes": item.bytes,
        "path": str(item.path),
        "last_use": datetime.fromtimestamp(item.last_use).astimezone().isoformat(timespec="seconds"),
        "origin": item.note.get("origin"),
        "sha256": item.note.get("sha256"),
        "revision": item.note.get("revision"),
    }


def _print(data: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from glassformer.system.progress import size_text

    out = console()
    offered = Table(title="Catalogue", title_justify="left", box=None, pad_edge=False)
    for heading in ("name", "model", "licence", "here"):
        offered.add_column(heading)
    for entry in data["catalogue"]:
        name = entry["name"] + (" (default)" if entry["default"] else "")
        offered.add_row(Text(name), Text(entry["summary"]), Text(entry["licence"]), "yes" if entry["fetched"] else "")
    out.print(offered)
    out.print()
    cache = data["cache"]
    if not data["models"]:
        out.print(Text(f"The cache {cache['path']} is empty."))
        return
    kept = Table(title="On this machine", title_justify="left", box=None, pad_edge=False)
    kept.add_column("name")
    kept.add_column("kind")
    kept.add_column("size", justify="right", no_wrap=True)
    kept.add_column("last use", no_wrap=True)
    kept.add_column("where", overflow="fold")
    for item in data["models"]:
        used = item["last_use"][:16].replace("T", " ")
        kept.add_row(Text(item["name"]), item["kind"], size_text(item["bytes"]), used, Text(item["path"]))
    out.print(kept)
    share = f"{size_text(cache['dequantised_bytes'])} of at most {size_text(cache['dequantised_limit'])}"
    out.print(Text(f"\n{size_text(cache['bytes'])} in all; dequantised copies take {share}."))

"""`glassformer export`: a model in a layout that other libraries load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from glassformer.cli.common import JsonOption, plain_warnings, print_json
from glassformer.errors import UsageError, near

DTYPES = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "float32": "float32", "float16": "float16",
    "bfloat16": "bfloat16",
}  # fmt: skip
BLOCKS = ("q8_0", "q4_0", "q4_k", "q6_k")  # of GGUF alone
TYPES = {"hf": ("float32", "float16", "bfloat16"), "gguf": ("float32", "float16", "bfloat16", *BLOCKS)}


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN|SOURCE", help="A training run, a path, a catalogue name, or a model on the hub."),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="hf|gguf",
            help="hf: a folder for transformers, vLLM and friends; gguf: a file for llama.cpp.",
        ),
    ],
    place: Annotated[str | None, typer.Argument(metavar="[OUT]", help="The same as --out.", hidden=True)] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="PATH", help="Where to; NAME-hf or NAME-f16.gguf here by default."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="f32|f16|bf16|q8_0|q6_k|q4_k|q4_0",
            help="Of the matrices; as stored for hf, f16 for gguf, which alone knows the q kinds.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model in the Hugging Face or GGUF layout.

    What is written appears whole or not at all, and never over something that is there. A design that the
    layout cannot express is refused, by what stands in the way.
    """
    plain_warnings()
    if place is not None and out is not None:
        raise UsageError(f"The place is given twice, as {place} and as --out {out}; leave one of them out.")
    written = export(source, to, out if place is None else place, dtype)
    if as_json:
        print_json(written)
    else:
        print(f"{written['path']}: {written['family']} in {written['dtype']}, {written['bytes']:,} bytes")


def export(source: str, to: str, out: str | None = None, dtype: str | None = None) -> dict[str, Any]:
    """Write `source` and say what was written: path, format, family, dtype, bytes.

    Raises:
        UsageError: an unknown layout or dtype, or a destination that exists.
        UnsupportedError: the layout cannot express the design.
    """
    from glassformer.checkpoint import open_checkpoint, tokenizer_of
    from glassformer.fetch.sources import resolve

    if to not in TYPES:
        raise UsageError(f"--to is hf or gguf; got {to!r}." + near(to, TYPES))
    known = {**DTYPES, **{name: name for name in BLOCKS}}
    if dtype is not None and dtype not in known:
        shown = ", ".join(("f32", "f16", "bf16", *BLOCKS))
        raise UsageError(f"--dtype is one of {shown}; got {dtype!r}." + near(dtype, known))
    kind = known[dtype] if dtype else ("float16" if to == "gguf" else None)
    if kind is not None and kind not in TYPES[to]:
        raise UsageError(f"A folder is written in f32, f16 or bf16; got {dtype}. Choose one of them, or --to gguf.")
    if out is not None:
        _free(Path(out))
    resolved = resolve(source)
    checkpoint = open_checkpoint(resolved.path, adapters=resolved.adapters)
    path = Path(out) if out is not None else Path(_default(resolved.name, to, kind))
    _free(path)
    tokenizer = tokenizer_of(checkpoint)
    family = None if checkpoint.family == "native" else checkpoint.family
    parts = (checkpoint.config, checkpoint.tensors, tokenizer)
    if to == "gguf":
        from glassformer.checkpoint import write_gguf

        write_gguf(path, *parts, family=family, dtype=kind or "float16", name=resolved.name)
        return _written(path, to, kind)
    _folder(path, parts, family, kind)
    return _written(path, to, kind)


def _default(name: str, to: str, kind: str | None) -> str:
    stem = Path(name.rstrip("/")).name.removesuffix(".gguf") or "model"
    short = next((short for short, full in DTYPES.items() if full == kind), kind)
    return f"{stem}-hf" if to == "hf" else f"{stem}-{short}.gguf"


def _free(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists and is not overwritten; name another place, or remove it first.")


def _folder(path: Path, parts: tuple[Any, ...], family: str | None, kind: str | None) -> None:
    """A folder that appears under its name when it is whole."""
    from glassformer.checkpoint import write_hf
    from glassformer.errors import CheckpointError
    from glassformer.system import files

    with files.atomic_folder(path, raises=CheckpointError) as draft:
        write_hf(draft, *parts, family=family, dtype=kind)


def _written(path: Path, to: str, kind: str | None) -> dict[str, Any]:
    import json

    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    if to == "hf":
        settings = json.loads((path / "config.json").read_text("utf-8"))
        family, kind = settings["model_type"], settings["torch_dtype"]
    else:
        from glassformer.checkpoint.gguf import read_gguf

        family = read_gguf(path).family.name
    return {
        "path": str(path),
        "format": to,
        "family": family,
        "dtype": kind,
        "bytes": sum(p.stat().st_size for p in files),
    }

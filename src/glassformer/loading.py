"""`load`: from what a user names to a `Model`, fetched, checked, and placed on a device.

It knows how a model is opened; what a model then does is `lm`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from glassformer.errors import UsageError
from glassformer.lm import Adaptation, Model
from glassformer.model import Transformer
from glassformer.model.deferred import Deferred
from glassformer.system.progress import Progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load(
    source: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | Path | Sequence[str | Path] = (),
    ignore_keys: Collection[str] = (),
    revision: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Model:
    """Open a model.

    Args:
        source: a path (directory, GGUF file, training run), a catalogue name, or org/name[@revision]
            on the hub; None for the environment's GLASSFORMER_MODEL or the catalogue's default.
        device: "cpu", "cuda", …; "auto" takes an accelerator where there is one.
        dtype: "float32", "bfloat16", "float16" or "float64"; "auto" is float32 on a CPU and the
            checkpoint's own on an accelerator.
        adapter: one or several adapters in PEFT's layout, each a folder or org/name[@revision]: as `SOURCE+ADAPTER`.
        ignore_keys: keys of config.json that are read as if they were not there; the model's name says so.
        revision: of a hub model.
        offline: True never asks the network; None asks only when needed.
        progress: called with (done, total, what) while something is fetched or converted; None shows a bar on
            standard error.

    Raises:
        SourceError, CheckpointError, TokenizerError, UsageError: one sentence each.
    """
    from glassformer.checkpoint import open_checkpoint, tokenizer_of
    from glassformer.fetch.sources import resolve
    from glassformer.system.progress import quiet, shown

    place = _device(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is unknown; choose auto, {', '.join(DTYPES)}.")
    named = None if source is None else str(source)
    dequantising: Progress = quiet
    with shown(progress) as report:
        more = [adapter] if isinstance(adapter, (str, Path)) else list(adapter)
        resolved = resolve(named, adapters=more, revision=revision, progress=report, offline=offline)
        base = open_checkpoint(
            resolved.path,
            ignore=ignore_keys,
            progress=lambda done, total: dequantising(done, total, f"dequantising {resolved.name}"),
        )
    checkpoint = base.adapted(resolved.adapters)
    # What was quantised or adapted is computed in float32; the embedding says what the others are stored in.
    stored = torch.float32 if place.type == "cpu" or base.format == "gguf" else base.tensors["embed.weight"].dtype
    kind = DTYPES.get(dtype, stored)

    def make() -> Transformer:
        nonlocal dequantising
        with shown(progress) as dequantising:
            made = Transformer.empty(checkpoint.config).load(checkpoint.tensors, dtype=kind)
        return made if place.type == "cpu" else made.to(place)

    later = not (base.at_hand or resolved.adapters) and place.type == "cpu" and kind == torch.float32
    model = Model(
        Deferred(checkpoint.config, make) if later else make(),
        tokenizer_of(checkpoint),
        name=resolved.name,
        source=str(resolved.path),
        metadata=checkpoint.metadata,
    )
    if resolved.adapters:
        model.adapters = resolved.adapter_names
        plain = resolved.name.removesuffix("".join(f"+{name}" for name in model.adapters))
        model._adaptation = Adaptation(base, checkpoint, plain, model.adapters)
    model.ignored = base.ignored
    if base.ignored:
        model.name += f" without {', '.join(base.ignored)}"
    return model


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")  # type: ignore[arg-type]
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"Device {device!r} cannot be used here ({str(error).splitlines()[0]}); try cpu.") from None
    return place

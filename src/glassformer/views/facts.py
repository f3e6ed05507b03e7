"""Facts: what a feed-forward neuron answers to, in passages, and what it then writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from glassformer.checkpoint.tensorfile import packed, unpacked
from glassformer.errors import CheckpointError, FileError, TokenizerError, UnsupportedError
from glassformer.system import files
from glassformer.system.folders import cache_directory
from glassformer.system.locks import locked
from glassformer.tokenizer.spelling import spelled_alone
from glassformer.views.asks import Strict, Text
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.interp.exciting import Exciting
    from glassformer.lm import Model
    from glassformer.views.report_data import ReportDraft
    from glassformer.views.session import Session

FORMAT = "glassformer.exciting/1"
AROUND = 10
"""Tokens shown on either side."""
FACTS = 12
"""Neurons of a report."""
PATIENCE = 60.0
"""Seconds that a report waits for passages that are still being read."""
SHIPPED = Path(__file__).with_name("exciting-smollm2.safetensors")
"""What excites SmolLM2 in the docstrings of the Python that it was computed with (scripts/make_exciting.py)."""
_LOCK = threading.Lock()


class ExcitingAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    layer: int = Field(ge=0, description="The neuron's layer.")
    neuron: int = Field(ge=0, description="The neuron's number.")
    texts: list[Text] = Field(
        default=[], max_length=64, description="Texts of your own instead of the standard library's docstrings."
    )
    top: int = Field(default=5, ge=1, le=5, description="Passages listed.")


def _facts(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    """What excites the neurons that pushed the prediction most; the docstrings that are read within a while."""
    patience = time.monotonic() + PATIENCE
    for neuron in draft.ask("neurons", **draft.plain, top=16)["neurons"][:FACTS]:
        at = {"layer": neuron["layer"], "neuron": neuron["index"]}
        try:
            while (found := draft.session.view("exciting", at | {"model": draft.model}, draft.check))["done"] < found[
                "of"
            ]:
                if time.monotonic() > patience:
                    break
                time.sleep(0.2)
        except UnsupportedError:  # no docstring that this model can read
            return
        yield at, found


@view("exciting", ExcitingAsk, room="facts", report=_facts)
def exciting(session: Session, ask: ExcitingAsk, check: Check) -> Json:
    """Where a feed-forward neuron's output is largest, in the docstrings of Python's standard library (read in the
    background the first time, `done` of `of`) or in texts of your own; and what it writes."""
    from glassformer.interp.exciting import Exciting, shortened
    from glassformer.interp.neurons import excited_by, writes
    from glassformer.interp.vocabulary import known_ids

    model = session.model(ask.model)
    known = known_ids(model.tokenizer, model.config.vocab_size)
    raised, lowered = writes(model.transformer, ask.layer, ask.neuron, 8, known)  # refuses what is not there
    excited = excited_by(model.transformer, ask.layer, ask.neuron, 8, known)
    if ask.texts:
        read = Exciting([ids for text in ask.texts if (ids := shortened(model.encode(text)))], keep=ask.top)
        read.read(model.transformer, check)
    else:
        read = _background(session, ask.model or session.current, model)
    name = model.tokenizer.token_text
    return {
        "model": model.name,
        "layer": ask.layer,
        "neuron": ask.neuron,
        "raises": spelled_alone(model.tokenizer, raised),
        "lowers": spelled_alone(model.tokenizer, lowered),
        "excited_by": spelled_alone(model.tokenizer, excited),
        "own": bool(ask.texts),
        "done": read.done,
        "of": len(read.ids),
        "passages": [
            {
                "output": value,
                "text": text,
                "position": at,
                "before": "".join(map(name, read.ids[text][max(0, at - AROUND) : at])),
                "token": name(read.ids[text][at]),
                "after": "".join(map(name, read.ids[text][at + 1 : at + 1 + AROUND])),
            }
            for value, text, at in read.of(ask.layer, ask.neuron)[: ask.top]
        ],
    }


def _background(session: Session, key: str, model: Model) -> Exciting:
    """What is known of the docstrings so far; begins to read them when nobody has."""
    from glassformer.data import docstrings
    from glassformer.interp.exciting import Exciting, shortened

    with _LOCK:
        if key in session.excited:
            return session.excited[key]
        passages = []
        for text in docstrings.passages():
            with contextlib.suppress(TokenizerError):  # characters that its tokenizer lacks
                passages += [ids for ids in [shortened(model.encode(text))] if ids]
        if not passages:
            raise UnsupportedError(
                "This machine's Python has no docstrings that the model's tokenizer can spell; give texts of your own."
            )
        read = session.excited[key] = Exciting(passages)
    place = cache_directory() / "exciting" / f"{_identity(model)}.safetensors"
    if _shipped(model) and _held(read, SHIPPED):
        return read
    if _held(read, place):
        return read

    def work() -> None:
        try:
            with locked(place):  # another server may be reading the same
                if not _held(read, place):
                    read.read(model.transformer)
                    _hold(read, place)
        except FileError:  # a cache that cannot be written: the next server reads them again
            read.read(model.transformer)

    threading.Thread(target=work, name="exciting", daemon=True).start()
    return read


def _shipped(model: Model) -> bool:
    """Whether the package holds what was found of this model in these passages.

    The design is compared as it reads today: settings that came to be since have the values they are given by default.
    """
    from safetensors import SafetensorError, safe_open

    from glassformer.model.config import Config

    try:
        with safe_open(SHIPPED, framework="pt") as opened:
            told = opened.metadata() or {}
    except (OSError, SafetensorError):
        return False
    found = _of(model)
    return all(told.get(name) == found[name] for name in ("weights", "texts")) and (
        Config.from_dict(json.loads(told["config"])) == model.config
    )


def _of(model: Model) -> dict[str, str]:
    """What tells a model and the passages from others: its design, a sample of its weights' hash, the passages'."""
    from glassformer.data import docstrings

    sampled = hashlib.sha256()
    for p in model.transformer.parameters():
        flat = p.detach().flatten()
        sampled.update(flat[:: max(1, len(flat) // 64)][:64].float().cpu().numpy().tobytes())
    config = json.dumps(model.config.to_dict())
    return {"config": config, "weights": sampled.hexdigest(), "texts": docstrings.digest()}


def _identity(model: Model) -> str:
    """One hash of them all, by which the cache names what was found."""
    return files.sha256_of(json.dumps(_of(model)))


def _hold(read: Exciting, place: Any) -> None:
    layers = read.values
    tensors = {f"values.{i}": layers[i].contiguous() for i in layers}
    tensors |= {f"texts.{i}": read.texts[i].to(torch.int16).contiguous() for i in layers}
    tensors |= {f"places.{i}": read.places[i].to(torch.int16).contiguous() for i in layers}
    files.write_bytes(place, packed(tensors, {"format": FORMAT}))


def ship(model: Model, read: Exciting, place: Path, keep: int = 3) -> None:
    """Write what was found as the package holds it: `keep` places of each neuron, the outputs in 16 bits."""
    from safetensors.torch import save

    tensors = {f"values.{i}": x[:, :keep].half().contiguous() for i, x in read.values.items()}
    tensors |= {f"texts.{i}": x[:, :keep].to(torch.uint8).contiguous() for i, x in read.texts.items()}
    tensors |= {f"places.{i}": x[:, :keep].to(torch.uint8).contiguous() for i, x in read.places.items()}
    files.write_bytes(place, save(tensors, metadata=_of(model)))


def _held(read: Exciting, place: Any) -> bool:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(SHIPPED) if place == SHIPPED else unpacked(place, FORMAT, "passages")[1]
    except (OSError, SafetensorError, CheckpointError):
        return False
    for name, tensor in tensors.items():
        kind, _, layer = name.partition(".")
        getattr(read, kind)[int(layer)] = tensor.float() if kind == "values" else tensor.long()
    read.done = len(read.ids)
    return True

"""What a family is: one table of settings and one of tensors, each read both ways.

A family expresses a design when writing its settings and reading them back gives the same design;
nothing else decides, so what cannot be expressed is found and named without a list of exceptions.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.design_table import Table
from glassformer.checkpoint.families.folding import Folded
from glassformer.checkpoint.keys import Shape
from glassformer.checkpoint.tables import Row
from glassformer.checkpoint.unread import UnreadSettingWarning, refuse_beside_text, refuse_unread
from glassformer.errors import CheckpointError, ConfigError, UnsupportedError
from glassformer.model.config import Attention, Config, Experts, Layer

# Settings every family shares that would change the computation: the values that do not.
_COMMON_ONLY: Mapping[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "use_bidirectional_attention": (False,),
    "is_causal": (True,),
    "pruned_heads": ({},),
    "rope_interleaved": (False,),
}
# Without these a model would certainly answer wrongly.
_BOTH_WAYS = ("use_bidirectional_attention", "is_causal")
_NO_NEXT_TOKEN = "so its tokens attend to those after them, and it predicts no next token."


@dataclass(frozen=True)
class GgufLayout:
    """How one ``general.architecture`` of GGUF stores a design.

    Args:
        architecture: the name, which also prefixes its settings.
        tensors: makes the rows of its tensors, as they are written.
        read: (settings without prefix, shapes of the tensors) -> Config, rope factors aside.
        write: Config -> settings without prefix.
        factors: whether a tensor of rotary divisors is part of it.
        chosen: whether a file of this architecture, by its settings, is of this family, where several share its name.
        by_layer: settings that may be a list, one value a layer.
        others: makes rows of the same tensors as other files have them; read, not written.
        ignored: patterns of tensors that may be there and are not needed.
        zeros: tensors that llama.cpp wants to see and does not compute with; written as zeros.
        sparse: the name that designs with experts have instead, where it is another.
        fold: the design -> the same with the multipliers that it has no place for as part of the weights.
    """

    architecture: str
    tensors: Callable[[], tuple[Row, ...]]
    read: Callable[[Attributes, Mapping[str, Shape]], Config]
    write: Callable[[Config], dict[str, Any]]
    factors: bool = False
    chosen: Callable[[Mapping[str, Any]], bool] | None = None
    by_layer: tuple[str, ...] = ()
    others: Callable[[], tuple[tuple[Row, ...], ...]] = tuple
    ignored: tuple[str, ...] = ()
    zeros: Callable[[Config], dict[str, Shape]] | None = None
    sparse: str = ""
    fold: Callable[[Config], Folded] = Folded

    @property
    def names(self) -> tuple[str, ...]:
        """Architectures that are read so."""
        return (self.architecture, self.sparse) if self.sparse else (self.architecture,)

    def name(self, config: Config) -> str:
        """The architecture that a design is written as."""
        experts = any(isinstance(layer.feed_forward, Experts) for layer in config.layers)
        return self.sparse if self.sparse and experts else self.architecture

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """Tensors as they are written."""
        return self.tensors()

    def table(self, config: Config, found: Mapping[str, Shape]) -> Table:
        """The tensor table of a file with these tensors."""
        table = Table(self.rows, config)
        if all(found.get(name) == place.shape for name, place in table.places.items()):
            return table
        return alikest([table, *(Table(rows, config) for rows in self.others())], found)


@dataclass(frozen=True)
class Family:
    """One family of checkpoints.

    Args:
        name: Hugging Face's ``model_type``.
        architecture: the class with a next-word head.
        base: the class without; its files lack the prefix of the names.
        rows: tensors of a safetensors file.
        read: settings of config.json -> Config.
        write: Config -> settings of config.json.
        prefixes: what tensor names may begin with where rows say the first of them.
        only: settings that must hold one of the given values, because the design has no place for others.
        reasons: what stands in the way of other values of those settings, where there is more to say.
        ignored: names of stored buffers that can be computed again.
        implied: (design, name of one of them, its shape) -> what it must then hold; None where that does not matter.
        inside: further ``model_type`` values that hold this family's settings under the given name.
        gguf: the same family in GGUF.
        layouts: tensors as other versions of the same files have them; read, not written.
        no_effect: settings of config.json that are not read and change no logit, besides those of `unread`.
    """

    name: str
    architecture: str
    base: str
    rows: tuple[Row, ...]
    read: Callable[[Attributes], Config]
    write: Callable[[Config], dict[str, Any]]
    prefixes: tuple[str, ...]
    only: Mapping[str, tuple[object, ...]] = dataclasses.field(default_factory=dict)
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    implied: Callable[[Config, str, Shape], Any] | None = None
    inside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gguf: GgufLayout | None = None
    layouts: tuple[tuple[Row, ...], ...] = ()
    no_effect: frozenset[str] = frozenset()

    def from_hf(self, settings: Mapping[str, Any], where: str) -> Config:
        """The design that a config.json describes.

        Raises:
            UnsupportedError: it asks for something a Config has no place for, named.
            CheckpointError: it lacks a setting, or contradicts itself.
        """
        outer = Attributes(settings, where)
        attributes = outer
        if (name := self.inside.get(settings.get("model_type", ""))) is not None:
            # What the whole model says of ties holds for its text part.
            shared = {key: settings[key] for key in ("tie_word_embeddings",) if key in settings}
            attributes = outer.inside({**outer.table(name), **shared}, name)
        for settings_of in (outer, attributes):
            if quantisation := settings_of.table("quantization_config"):
                method = quantisation.get("quant_method", "an unnamed method")
                raise UnsupportedError(
                    f"{where} describes weights quantised by {method}, which Glassformer does not read; "
                    "use the model's float release, or a .gguf of it."
                )
        for name, accepted in {**_COMMON_ONLY, **self.only}.items():
            wrong = name in _BOTH_WAYS
            attributes.only(name, *accepted, why=_NO_NEXT_TOKEN if wrong else self.reasons.get(name, ""), wrong=wrong)
        known = (self.architecture, self.base)
        for architecture in outer.sequence("architectures") or ():
            if architecture not in known and not str(architecture).endswith(
                ("ForCausalLM", "ForConditionalGeneration")
            ):
                raise UnsupportedError(
                    f"{where} names the architecture {architecture}, which has no next-word head that Glassformer "
                    f"could run; it runs {self.architecture}."
                )
        config = sound(lambda: self.read(attributes), where)
        refuse_unread(attributes, self.name, self.no_effect)
        if attributes is not outer:
            refuse_beside_text(outer)
        return config

    def to_hf(self, config: Config) -> dict[str, Any]:
        """The config.json that describes a design.

        Raises:
            UnsupportedError: naming the fields of the design this family has no place for.
        """
        settings = {"model_type": self.name, "architectures": [self.architecture], **self.write(config)}
        expressible(config, lambda: self.from_hf(settings, "config.json"), f"The Hugging Face layout of {self.name}")
        return settings

    def table(self, config: Config, found: Mapping[str, Any] | None = None) -> Table:
        """The tensor table for a design; ``found`` (the names in a file) decides between prefixes."""
        default, first = self.prefixes[0], self.rows[0].theirs
        prefix = default
        if found is not None:
            stem = first.removeprefix(default)
            prefix = next((p for p in self.prefixes if p + stem in found), default)

        def rename(name: str) -> str:
            return prefix + name[len(default) :] if prefix != default and name.startswith(default) else name

        tables = [Table(rows, config, rename) for rows in (self.rows, *self.layouts)]
        return tables[0] if found is None or len(tables) == 1 else alikest(tables, found)


def alikest(tables: list[Table], found: Mapping[str, Any]) -> Table:
    """The table that has most of a file's tensors as the file has them."""

    def unlike(table: Table) -> int:
        wrong = 0
        for name, place in table.places.items():
            stored = found.get(name)
            wrong += 2 if stored is None else isinstance(stored, tuple) and stored != place.shape
        return wrong - sum(name in found for name in table.places)

    return min(tables, key=unlike)


def sound(build: Callable[[], Config], where: str) -> Config:
    """Builds a Config, and says which file it came from when it contradicts itself."""
    try:
        return build()
    except ConfigError as error:
        raise CheckpointError(f"{where} describes a model that cannot be built: {error}") from None


def expressible(config: Config, read_back: Callable[[], Config], layout: str, tolerance: float = 0.0) -> None:
    """Checks that a layout says what the design says.

    Raises:
        UnsupportedError: naming the fields that come back different, and their values.
    """
    try:
        with warnings.catch_warnings():  # settings that this layout writes are not somebody's mistake
            warnings.simplefilter("ignore", UnreadSettingWarning)
            back = read_back()
    except (CheckpointError, ConfigError) as error:
        raise UnsupportedError(f"{layout} cannot express this design: {error}") from None
    lost = differences(canonical(config), canonical(back), tolerance)
    if lost:
        shown = ", ".join(f"{name} {ours!r} (it would become {theirs!r})" for name, ours, theirs in lost[:3])
        raise UnsupportedError(
            f"{layout} cannot express {shown}; export to the native layout, which holds every design."
        )


def canonical(config: Config) -> Config:
    """The same computation in its one plainest spelling, so that two configs can be compared."""
    return dataclasses.replace(config, layers=tuple(_canonical(layer) for layer in config.layers))


@functools.lru_cache(maxsize=1024)
def _canonical(layer: Layer) -> Layer:
    attention = layer.mixer
    if not isinstance(attention, Attention):
        return layer
    if attention.scale is not None and math.isclose(attention.scale, attention.d_head**-0.5, rel_tol=1e-6):
        attention = dataclasses.replace(attention, scale=None)
    if type(attention) is Attention and attention.rotary is not None:  # as many dimensions, whatever share gave them
        share = attention.rotary_dims / attention.d_head
        attention = dataclasses.replace(attention, rotary=dataclasses.replace(attention.rotary, fraction=share))
    scaling = None if attention.rotary is None else attention.rotary.scaling
    if scaling is not None and (
        (scaling.kind == "linear" and scaling.factor == 1)
        or (scaling.kind == "factors" and set(scaling.factors) == {1})
    ):
        assert attention.rotary is not None
        attention = dataclasses.replace(attention, rotary=dataclasses.replace(attention.rotary, scaling=None))
    return dataclasses.replace(layer, mixer=attention)


def differences(ours: Config, theirs: Config, tolerance: float = 0.0) -> list[tuple[str, object, object]]:
    """Fields in which two designs differ: (dotted name, ours, theirs). A field of layers is named once, with the
    first layer that differs."""
    found: dict[str, tuple[str, object, object]] = {}
    outer = [f.name for f in dataclasses.fields(Config) if f.name != "layers"]
    for name in outer:
        for at, a, b in _differences(_plain(getattr(ours, name)), _plain(getattr(theirs, name)), name, tolerance):
            found.setdefault(at, (at, a, b))
    if ours.n_layers != theirs.n_layers:
        found["n_layers"] = ("n_layers", ours.n_layers, theirs.n_layers)
    for i, (one, other) in enumerate(zip(ours.layers, theirs.layers, strict=False)):
        if one == other:
            continue
        for at, a, b in _differences(_plain(one), _plain(other), "", tolerance):
            found.setdefault(at, (f"layers[{i}].{at}", a, b))
    return list(found.values())


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            "is": type(value).__name__,
            **{f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)},
        }
    return value


def _differences(ours: object, theirs: object, name: str, tolerance: float) -> Any:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours["is"] != theirs["is"]:
            yield name, ours["is"], theirs["is"]
            return
        for field in ours:
            yield from _differences(ours[field], theirs[field], f"{name}.{field}".lstrip("."), tolerance)
    elif isinstance(ours, float) and isinstance(theirs, (int, float)) and tolerance:
        if not math.isclose(ours, theirs, rel_tol=tolerance):
            yield name, ours, theirs
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and tolerance and len(ours) == len(theirs):
        if any(
            isinstance(a, float) != isinstance(b, float) or list(_differences(a, b, name, tolerance))
            for a, b in zip(ours, theirs, strict=True)
        ):
            yield name, ours, theirs
    elif ours != theirs:
        yield name, ours, theirs

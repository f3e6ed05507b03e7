"""Adapters in PEFT's layout (adapter_config.json and adapter_model.safetensors) put into a checkpoint's weights.

LoRA (arXiv:2106.09685): W + s·B·A with s = alpha / r, or alpha / √r (rsLoRA, arXiv:2312.03732). DoRA
(arXiv:2402.09353): every row of that sum scaled to a length of its own. Tensors that were trained whole
(`modules_to_save`, biases) take the place of the model's. Nothing is added where the model computes: an adapted model
is the same design with other numbers, computed when they are asked for, so that one can go back to the model's own.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.adapter_experts import experts_parts, in_transformers
from glassformer.checkpoint.design_table import Table
from glassformer.checkpoint.native import LazyTensors, read_json
from glassformer.checkpoint.tensorfile import SIZES, TensorFile, read_header
from glassformer.errors import CheckpointError, UnsafeFileError, UnsupportedError, near

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.checkpoint import Checkpoint
    from glassformer.checkpoint.families import Family

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_ROOT = "base_model.model."
_PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
# Settings that say how an adapter was made or found, not what it computes.
_NO_EFFECT = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "inference_mode",
        "layers_pattern", "layers_to_transform", "lora_dropout", "lora_ga_config", "loftq_config", "megatron_core",
        "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
        "runtime_config", "target_modules", "target_parameters", "task_type",
    }
)  # fmt: skip
_READ = frozenset(
    {"alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "use_dora", "use_rslora"}
)
_NEUTRAL: tuple[object, ...] = (None, False, [], {}, "none")
# Ways to begin that also change the model's own weights, which are then not those of the model it is put into.
_CHANGES_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """An adapter read: its settings, and its tensors by the module of the model that they belong to.

    Args:
        path: its folder.
        settings: adapter_config.json.
        modules: module -> part ("lora_A", …, or "weight" and "bias" of what was trained whole) -> the tensor's name.
    """

    path: Path
    settings: Mapping[str, Any]
    modules: Mapping[str, Mapping[str, str]]

    @cached_property
    def file(self) -> TensorFile:
        """Its tensors, mapped when asked for."""
        return TensorFile(read_header(self.path / TENSORS))

    def scale(self, module: str, rank: int) -> float:
        """What B·A is multiplied by in a module."""
        alpha = self.settings.get("lora_alpha", 8)
        for pattern, value in (self.settings.get("alpha_pattern") or {}).items():
            if any(re.match(rf"(.*\.)?({pattern})$", name) for name in (module, f"{module}.weight")):
                alpha = value
                break
        return float(alpha) / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def values(self, module: str, theirs: Tensor) -> Tensor:
        """A module's weight with the adapter in it, in float32; `theirs` is the model's own, as PEFT's model has it."""
        import torch

        names = self.modules[module]

        def part(name: str) -> Tensor:
            return self.file[names[name]].float()

        with torch.no_grad():
            # An embedding is saved beside what is added to it; a module that was trained whole stands alone.
            weight = part("weight") if "weight" in names else theirs.float()
            if "lora_A" not in names and "lora_embedding_A" not in names:
                return weight
            if "lora_embedding_A" in names:
                a, b = part("lora_embedding_A"), part("lora_embedding_B")
                return weight + (b @ a).T * self.scale(module, len(a))
            a, b = part("lora_A"), part("lora_B")
            if theirs.ndim == 3:  # a stack of experts' matrices that is a module of its own
                a, rank = a.unflatten(0, (len(theirs), -1)), len(a) // len(theirs)
                return weight + torch.einsum("ore,eri->eoi", b.view(len(b), rank, -1), a) * self.scale(module, rank)
            transposed = bool(self.settings.get("fan_in_fan_out"))
            whole = (weight.T if transposed else weight) + (b @ a) * self.scale(module, len(a))
            if "lora_magnitude_vector" in names:
                length = whole.norm(dim=1, keepdim=True)
                whole = whole * (part("lora_magnitude_vector").reshape(-1, 1) / length)
            return whole.T if transposed else whole

    def bias(self, module: str) -> Tensor:
        """A module's bias that was trained whole, in float32."""
        return self.file[self.modules[module]["bias"]].float()


def read_adapter(folder: Path) -> Adapter:
    """An adapter from its configuration and the header of its tensors.

    Raises:
        CheckpointError: files are missing or broken.
        UnsupportedError: another kind of adapter, or a setting that would change what it computes; by name.
        UnsafeFileError: its tensors are there only as a pickled file.
    """
    settings = read_json(folder / CONFIG)
    where = str(folder / CONFIG)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(f"{where} is an adapter of type {kind!r}; Glassformer reads LORA, with DoRA and rsLoRA.")
    begun = settings.get("init_lora_weights")
    if isinstance(begun, str) and begun.startswith(_CHANGES_THE_MODEL):
        raise UnsupportedError(
            f"{where} sets init_lora_weights to {begun!r}, which changes the model's own weights too; save the adapter "
            "with path_initial_model_for_weight_conversion, which makes a plain one of it."
        )
    if settings.get("bias", "none") not in ("none", "all", "lora_only"):
        raise UnsupportedError(f"{where} sets bias to {settings['bias']!r}; it is none, all or lora_only.")
    for name, value in settings.items():
        if name not in _NO_EFFECT and name not in _READ and value not in _NEUTRAL:
            raise UnsupportedError(f"{where} sets {name} to {value!r}, which Glassformer does not apply.")
    if not (folder / TENSORS).exists():
        if (folder / "adapter_model.bin").exists():
            raise UnsafeFileError(
                f"{folder / 'adapter_model.bin'} is a pickled file, and reading one can run any code it carries, so "
                "Glassformer never does. If you trust it, load it with peft and save it again: it writes safetensors."
            )
        raise CheckpointError(f"{folder} has no {TENSORS}; there is no adapter to read.")
    header = read_header(folder / TENSORS)
    modules: dict[str, dict[str, str]] = {}
    for name, entry in header.tensors.items():
        if entry.dtype not in SIZES:
            raise UnsupportedError(f"{header.path} stores {name} as {entry.dtype}; floats are read.")
        module, part = _part(name, where)
        modules.setdefault(module, {})[part] = name
    for module, parts in modules.items():
        _check(module, parts, {name: header.tensors[name].shape for name in parts.values()}, str(header.path))
    return Adapter(folder, settings, modules)


def _part(name: str, where: str) -> tuple[str, str]:
    """The module that a tensor belongs to and what it is of it."""
    plain = name.removeprefix(_ROOT).removesuffix(".weight")
    module, _, part = plain.rpartition(".")
    if part in _PARTS:
        return module, part
    if name.endswith(".weight"):
        return plain.replace(".modules_to_save", "").replace(".base_layer", ""), "weight"
    if part == "bias":
        return module.replace(".base_layer", "").replace(".modules_to_save", ""), "bias"
    raise UnsupportedError(f"{where.removesuffix(CONFIG)}{TENSORS} holds {name}, which no part of LoRA is called.")


def _check(module: str, parts: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    for one, other in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
        if (one in parts) != (other in parts):
            missing = other if one in parts else one
            raise CheckpointError(f"{where} lacks {missing} of {module}; the adapter is incomplete.")
        if one in parts:
            a, b = shapes[parts[one]], shapes[parts[other]]
            if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
                raise CheckpointError(f"{where} holds {one} {a} and {other} {b} of {module}, which do not fit.")
    if "lora_magnitude_vector" in parts and "lora_embedding_A" in parts:
        raise UnsupportedError(f"{where} adapts {module} by DoRA; of embeddings LoRA alone is read.")
    if "lora_magnitude_vector" in parts and "lora_A" not in parts:
        raise CheckpointError(f"{where} holds a length of rows for {module} and no lora_A; the adapter is incomplete.")


def adapted(checkpoint: Checkpoint, folders: Sequence[Path]) -> Checkpoint:
    """A checkpoint with adapters in its weights, one after another.

    Raises:
        CheckpointError: an adapter is broken or belongs to another model.
        UnsupportedError: it is of a kind, or touches a part, that is not read; by name.
    """
    for folder in folders:
        checkpoint = _with(checkpoint, read_adapter(folder))
    return checkpoint


def _with(checkpoint: Checkpoint, adapter: Adapter) -> Checkpoint:
    from glassformer.checkpoint.families import for_config, named

    family = for_config(checkpoint.config) if checkpoint.family == "native" else named(checkpoint.family)
    tied = checkpoint.config.tied
    config, base = checkpoint.config, checkpoint.tensors
    table = family.table(config)
    if tied:
        # Embedding and output are one matrix only as long as both are what the model has.
        apart = family.table(dataclasses.replace(config, tied=False))
        ends = [apart.homes[key][0].theirs for key in ("embed.weight", "unembed.weight")]
        if any(f"{module}.weight" in ends for module in _named(adapter, apart, family)):
            config, table = apart.config, apart
            base = LazyTensors(
                table.homes, lambda key: checkpoint.tensors["embed.weight" if key == "unembed.weight" else key]
            )
    stacks = experts_parts(adapter, table)
    apart_from = {part.module for part in stacks.values()}
    modules = {name: module for name, module in _named(adapter, table, family).items() if module not in apart_from}
    changed = {f"{name}.weight": module for name, module in modules.items() if set(adapter.modules[module]) != {"bias"}}
    changed |= {f"{name}.bias": module for name, module in modules.items() if "bias" in adapter.modules[module]}
    _fit(adapter, table, changed)
    keys = {key for name in changed for key in table.places[name].ours}

    def theirs(name: str) -> Any:
        if name.endswith(".bias") and name in changed:
            return adapter.bias(changed[name])
        own = table.theirs(name, base.__getitem__).float()
        return adapter.values(changed[name], own) if name in changed else own

    def fetch(key: str) -> Any:
        whole = table.ours(key, theirs) if key in keys else base[key]
        return whole if key not in stacks else whole.float() + stacks[key].added(adapter)

    return dataclasses.replace(
        checkpoint,
        config=config,
        tensors=LazyTensors(table.homes, fetch),
        adapters=(*checkpoint.adapters, adapter.path),
        changed=checkpoint.changed | keys | set(stacks) | ({"unembed.weight"} if tied and not config.tied else set()),
    )


def _named(adapter: Adapter, table: Table, family: Family) -> dict[str, str]:
    """The modules of an adapter as the table calls them -> as the adapter does; unknown ones under their own name."""
    found, prefixes = {}, family.prefixes
    renamed = {in_transformers(name, family): name.removesuffix(".weight") for name in table.places}
    for module in adapter.modules:
        names = [module, *(prefixes[0] + module.removeprefix(p) for p in prefixes if p and module.startswith(p))]
        known = next((name for name in names if f"{name}.weight" in table.places), None)
        found[known or renamed.get(f"{module}.weight", module)] = module
    return found


def _fit(adapter: Adapter, table: Table, changed: Mapping[str, str]) -> None:
    """Raises CheckpointError where an adapter names a module, or has a shape, that the model does not."""
    header, where = adapter.file.header, str(adapter.path / TENSORS)
    for name, module in changed.items():
        if name not in table.places:
            raise CheckpointError(
                f"{where} is for {name}, which this model does not have; it was trained for another one, "
                f"{adapter.settings.get('base_model_name_or_path') or 'which it does not name'}."
                f"{near(name, table.places)}"
            )
        shape = table.places[name].shape
        parts = {part: header.tensors[stored].shape for part, stored in adapter.modules[module].items()}
        if name.endswith(".bias"):
            got = parts["bias"]
        elif "weight" in parts and parts["weight"] != shape:
            got = parts["weight"]
        elif "lora_embedding_A" in parts:
            got = (parts["lora_embedding_A"][1], parts["lora_embedding_B"][0])
        elif "lora_A" in parts:
            got = (parts["lora_B"][0], parts["lora_A"][1])
            got = got[::-1] if adapter.settings.get("fan_in_fan_out") else got
            if len(shape) == 3 and parts["lora_A"][0] % shape[0] == 0:
                got = (shape[0], *got)
        else:
            got = parts["weight"]
        if tuple(got) != shape:
            raise CheckpointError(
                f"{where} changes {name} of shape {tuple(got)}; this model's has {shape}. It was trained for another "
                "model, or for one with another vocabulary."
            )

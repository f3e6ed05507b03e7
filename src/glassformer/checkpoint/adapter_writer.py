"""Adapters written in PEFT's layout: `adapter.py` reads what stands here, and so does the peft package.

A matrix of ours may be rows of one of theirs (queries, keys and values in one); its low-rank part is then some rows of
theirs, and several of them together have the sum of their ranks. Experts and routers are parameters there
(`target_parameters`), everything else is modules.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.adapter import _ROOT, CONFIG, TENSORS
from glassformer.checkpoint.adapter_experts import experts_homes, in_transformers, routers
from glassformer.checkpoint.design_table import Table
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.tables import Place, join
from glassformer.checkpoint.tensorfile import write_tensors
from glassformer.errors import CheckpointError
from glassformer.model.config import Config
from glassformer.system import files

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LowRankPart:
    """What is added to one matrix: `scale` · b · a, rows then scaled to `lengths` where there are such.

    Args:
        a: (rank, d_in). b: (d_out, rank). lengths: (d_out,) or None. Of experts a and b begin with (expert,).
    """

    a: Tensor
    b: Tensor
    lengths: Tensor | None = None


def places(config: Config, family: Family) -> dict[str, Place]:
    """The matrices, by native key, that PEFT's layout has an adapter for: each with the tensor of theirs it is in."""
    found = {}
    for place in family.table(config).places.values():
        line = place.row
        plain = place.expert is None and place.rows is None and not line.flat and line.squeezed is None
        if plain and line.axis == 0 and len(place.shape) == 2 and place.theirs.endswith(".weight") and not line.shift:
            found.update(dict.fromkeys(place.ours, place))
    return found


def write_adapter(
    folder: Path,
    config: Config,
    family: Family,
    parts: Mapping[str, LowRankPart],
    fetch: Callable[[str], Tensor],
    *,
    base: str,
    alpha: float,
    stable: bool = False,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors into a folder.

    Args:
        parts: by native key.
        fetch: the model's own matrices by native key, asked for where an adapter scales rows of only some of those
            that are one of theirs.
        base: what the adapter says it is for.
        alpha: B·A is multiplied by alpha / rank, or alpha / √rank if `stable` (rsLoRA).

    Raises:
        CheckpointError: a matrix has no place in the layout, or the files cannot be written.
    """
    stacks, routed, where = experts_homes(config, family), routers(config, family), places(config, family)
    if strange := [key for key in parts if key not in where and key not in stacks and key not in routed]:
        raise CheckpointError(f"The layout of {family.name} has no adapter for {strange[0]}.")
    rank = next(iter(parts.values())).a.shape[-2]
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    modules, parameters = [], []
    transposed = False

    def put(module: str, name: str, a: Tensor, b: Tensor, own: int) -> None:
        """Two matrices of a module, which settings call `name`, and its rank where it has one of its own."""
        tensors[f"{_ROOT}{module}.lora_A.weight"], tensors[f"{_ROOT}{module}.lora_B.weight"] = a, b
        if own != rank:
            ranks[name] = own
            alphas[name] = alpha * (math.sqrt(own / rank) if stable else own / rank)

    for place in {where[key].theirs: where[key] for key in parts if key in where and key not in routed}.values():
        module = in_transformers(place.theirs, family).removesuffix(".weight")
        a, b, lengths = _joined(place, parts, fetch, config)
        put(module, module, a, b, len(a))
        modules.append(module)
        if lengths is not None:
            tensors[f"{_ROOT}{module}.lora_magnitude_vector"] = lengths
        transposed = transposed or place.row.transposed
    wrapped = {stacks[key].module for key in parts if key in stacks and stacks[key].parameter == "down_proj"}
    for home in {id(stacks[key]): stacks[key] for key in parts if key in stacks}.values():
        name = f"{home.module}.{home.parameter}"
        inner = home.parameter != "down_proj" and home.module in wrapped
        put(f"{home.module}.base_layer" if inner else home.module, name, *home.joined(parts))
        parameters.append(name)
    for key in sorted(routed.keys() & parts.keys()):
        a, b = (x.detach().float().cpu().contiguous() for x in (parts[key].a, parts[key].b))
        put(routed[key], f"{routed[key]}.weight", a, b, len(a))
        parameters.append(f"{routed[key]}.weight")
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _whole(alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "init_lora_weights": True,
        "use_dora": any(part.lengths is not None for part in parts.values()),
        "use_rslora": stable,
        "target_modules": _targets(modules, family, family.table(config)),
        **({"target_parameters": parameters} if parameters else {}),
        "modules_to_save": None,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
    files.folder(folder, raises=CheckpointError)
    write_tensors(folder / TENSORS, {name: tuple(t.shape) for name, t in tensors.items()}, tensors.__getitem__)
    files.write_json(folder / CONFIG, settings, indent=2, raises=CheckpointError)


def _joined(
    place: Place, parts: Mapping[str, LowRankPart], fetch: Callable[[str], Tensor], config: Config
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A, B and lengths of one tensor of theirs, rows in its order."""
    import torch

    inside = [key for key in place.ours if key in parts]
    total = sum(len(parts[key].a) for key in inside)
    rows, lengths, start = [], [], 0
    scaled = any(parts[key].lengths is not None for key in inside)
    for key, shape in zip(place.ours, place.shapes, strict=True):
        wide = torch.zeros(shape[0], total)
        part = parts.get(key)
        if part is not None:
            end = start + len(part.a)
            wide[:, start:end] = part.b.detach().float().cpu()
            start = end
        rows.append(wide)
        if scaled:
            own = fetch(key).float().norm(dim=1) if part is None or part.lengths is None else part.lengths.detach()
            lengths.append(own.float().cpu()[:, None])
    upright = dataclasses.replace(place, row=dataclasses.replace(place.row, transposed=False))
    a = torch.cat([parts[key].a.detach().float().cpu() for key in inside])
    b = join(upright, rows, config)
    return a.contiguous(), b.contiguous(), join(upright, lengths, config)[:, 0].contiguous() if scaled else None


def _targets(modules: list[str], family: Family, table: Table) -> list[str]:
    """Names that mean these modules and no others: last parts of names where that is so, else whole names."""
    last = sorted({module.rpartition(".")[2] for module in modules})
    names = (in_transformers(name, family) for name in table.places)
    there = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    meant = {module for module in there if module.rpartition(".")[2] in last}
    return last if meant == set(modules) else sorted(modules)


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number

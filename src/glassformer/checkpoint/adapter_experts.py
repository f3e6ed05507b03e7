"""Low-rank parts of experts and routers as PEFT saves them (`target_parameters`).

Experts stand in two parameters there whatever a file has: gate and up joined, and down. A has the ranks of one expert
after another, B all experts of one rank after another; what is added to expert e is s · B_e · A_e. Where both
parameters are adapted, the inner one's module is called `base_layer`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.tables import Table
from glassformer.errors import CheckpointError
from glassformer.model.choices import Experts

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.checkpoint.adapter import Adapter

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_ROUTERS = ("gate", "router")


@dataclass(frozen=True)
class ExpertsPart:
    """What an adapter adds to one of our stacks of experts' matrices.

    Args:
        module: as the adapter calls it. parameter: as PEFT calls what is adapted.
        n_experts: how many there are. rows: which of the outputs are this stack's.
        turned: A reads what the matrices give and B gives what they read, as PEFT has it where a model stores them so.
    """

    module: str
    parameter: str
    n_experts: int
    rows: slice
    turned: bool = False

    def added(self, adapter: Adapter) -> Tensor:
        """What is added to the stack, (expert, out, in), in float32."""
        import torch

        names = adapter.modules[self.module]
        a, b = (adapter.file[names[name]].float() for name in ("lora_A", "lora_B"))
        rank = len(a) // self.n_experts
        a, b = a.view(self.n_experts, rank, -1), b.view(len(b), rank, self.n_experts)
        times = adapter.scale(f"{outer(self.module)}.{self.parameter}", rank)
        return torch.einsum("ire,ero->eoi" if self.turned else "ore,eri->eoi", b, a)[:, self.rows] * times


def outer(module: str) -> str:
    """A module's name without what PEFT wraps it in."""
    return module.replace(".base_layer", "")


def experts_parts(adapter: Adapter, table: Table) -> dict[str, ExpertsPart]:
    """What an adapter adds to stacks of experts, by our keys.

    Raises:
        CheckpointError: its sizes are not those of this model's experts.
    """
    found: dict[str, ExpertsPart] = {}
    for module, names in adapter.modules.items():
        layer = _layer_with_experts(module, table)
        if layer is None or not outer(module).endswith("experts") or "lora_A" not in names:
            continue
        feed: Any = table.config.layers[layer].feed_forward
        a, b = (adapter.file.header.tensors[names[name]].shape for name in ("lora_A", "lora_B"))
        shapes = {
            name: table.config.components()[f"blocks.{layer}.mlp.experts.{name}.weight"].shape
            for name in (("gate", "up", "down") if feed.gated else ("up", "down"))
        }
        _, neurons, read = shapes["up"]
        ways = {
            "gate_up_proj" if feed.gated else "up_proj": (read, neurons * (1 + feed.gated)),
            "down_proj": (neurons, read),
        }
        plain = next((name for name, way in ways.items() if way == (a[1], b[0])), None)
        turned = next((name for name, way in ways.items() if way == (b[0], a[1])), None)
        parameter = plain or turned  # where matrices are square, as they are not known to be turned
        if parameter is None or a[0] % feed.n_experts:
            there = " and ".join(f"{read} to {given}" for read, given in ways.values())
            raise CheckpointError(
                f"{adapter.file.header.path} changes {outer(module)} from {a[1]} to {b[0]} numbers, {a[0]} ranks in "
                f"all; this model's {feed.n_experts} experts go from {there}. It was trained for another model."
            )
        prefix = f"blocks.{layer}.mlp.experts."
        if parameter == "gate_up_proj":
            for key, rows in _halves(table, prefix, neurons).items():
                found[key] = ExpertsPart(module, parameter, feed.n_experts, rows, plain is None)
        else:
            key = f"{prefix}{parameter.removesuffix('_proj')}.weight"
            found[key] = ExpertsPart(module, parameter, feed.n_experts, slice(None), plain is None)
    return found


def _halves(table: Table, prefix: str, neurons: int) -> Mapping[str, slice]:
    """Where gate and up stand in the parameter that joins them: as the file joins them, or one after the other."""
    gate, up = f"{prefix}gate.weight", f"{prefix}up.weight"
    place = table.homes[gate][0]
    order = place.ours if set(place.ours) == {gate, up} else (gate, up)
    if place.row.alternating:
        return {key: slice(i, None, 2) for i, key in enumerate(order)}
    return {key: slice(i * neurons, (i + 1) * neurons) for i, key in enumerate(order)}


def router_of(module: str, table: Table) -> str | None:
    """The tensor of theirs that holds the router which PEFT calls so, where its file calls it otherwise."""
    layer = _layer_with_experts(module, table)
    if layer is None or module.rpartition(".")[2] not in _ROUTERS:
        return None
    return table.homes[f"blocks.{layer}.mlp.router.weight"][0].theirs


def _layer_with_experts(module: str, table: Table) -> int | None:
    number = _LAYER.search(module)
    if number is None or int(number[1]) >= table.config.n_layers:
        return None
    return int(number[1]) if isinstance(table.config.layers[int(number[1])].feed_forward, Experts) else None

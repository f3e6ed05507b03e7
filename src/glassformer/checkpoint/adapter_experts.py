"""Low-rank parts of experts and routers as PEFT saves them (`target_parameters`).

Experts stand in two parameters there whatever a file has: gate and up joined, and down. A has the ranks of one expert
after another, B all experts of one rank after another; what is added to expert e is s · B_e · A_e. Where both
parameters are adapted, the inner one's module is called `base_layer`: it is the one that comes first, of gate and up.
JetMoE's stacks, attention's among them, are modules of their own each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.design_table import Table
from glassformer.checkpoint.tables import Place, attention_at, crossed
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.choices import Experts

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.checkpoint.adapter import Adapter
    from glassformer.checkpoint.adapter_writer import LowRankPart
    from glassformer.checkpoint.families.family import Family
    from glassformer.model.config import Config

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_EXPERTS = re.compile(r"(.+?\.experts)\.")
_MIXTRAL = ((".block_sparse_moe.", ".mlp."),)
_GRANITE = (
    (".block_sparse_moe.router.layer.", ".block_sparse_moe.router."),
    (".block_sparse_moe.input_linear.", ".block_sparse_moe.experts.gate_up_proj."),
    (".block_sparse_moe.output_linear.", ".block_sparse_moe.experts.down_proj."),
)
# Where transformers calls modules otherwise than a family's files do.
_RENAMED: Mapping[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2", "kimi_linear"), _MIXTRAL),
    **dict.fromkeys(("granitemoe", "granitemoeshared", "granitemoehybrid"), _GRANITE),
    "phimoe": ((".block_sparse_moe.gate.", ".mlp.router."), *_MIXTRAL),
    "hy_v3": ((".mlp.router.gate.", ".mlp.gate."), (".shared_mlp.", ".shared_experts.")),
    "laguna": ((".shared_expert.", ".shared_experts."),),
    "lfm3": ((".self_attn.gate_proj.", ".self_attn.g_proj."),),
    "bailing_hybrid": ((".attention.dense.", ".self_attn.o_proj."), (".attention.", ".self_attn.")),
    "nemotron_h": (("backbone.", "model."),),
}
# Why DBRX's experts have no adapter.
OUTSIDE = "whose matrices transformers' model reads from outside: wrapped by PEFT they are not found, and it fails"
# Of the families whose stacks stand with what they read first, those that tell PEFT so.
_TOLD = frozenset({"gpt_oss", "aria_text"})


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
        UnsupportedError: PEFT's own model would not add it.
    """
    found: dict[str, ExpertsPart] = {}
    flat = {name.rpartition(".")[0] for name, place in table.places.items() if place.row.flat}
    for module, names in adapter.modules.items():
        if outer(module) in flat:
            raise UnsupportedError(f"{adapter.file.header.path} adapts {outer(module)}, {OUTSIDE}.")
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


def _layer_with_experts(module: str, table: Table) -> int | None:
    number = _LAYER.search(module)
    if number is None or int(number[1]) >= table.config.n_layers:
        return None
    return int(number[1]) if isinstance(table.config.layers[int(number[1])].feed_forward, Experts) else None


@dataclass(frozen=True)
class ExpertsHome:
    """The parameter of PEFT's model that holds one or two of our stacks of experts' matrices.

    Args:
        module: as transformers calls it. parameter: of that module.
        rows: which of its outputs are each of our stacks.
        turned: as in `ExpertsPart`.
    """

    module: str
    parameter: str
    rows: Mapping[str, slice]
    turned: bool

    def joined(self, parts: Mapping[str, LowRankPart]) -> tuple[Tensor, Tensor, int]:
        """A (expert · rank, in), B (out, rank · expert) and the rank of the stacks here that have a part."""
        import torch

        inside = {key: parts[key] for key in self.rows if key in parts}
        a = torch.cat([part.a.detach().float().cpu() for part in inside.values()], 1)  # (expert, rank, in)
        experts, rank, _ = a.shape
        width = next(iter(inside.values())).b.shape[1] * len(self.rows)
        b, start = a.new_zeros(experts, width, rank), 0
        for key, part in inside.items():
            end = start + part.a.shape[1]
            b[:, self.rows[key], start:end] = part.b.detach().float().cpu()
            start = end
        if self.turned:
            a, b = b.swapaxes(1, 2), a.swapaxes(1, 2)
        return a.reshape(experts * rank, -1).contiguous(), b.permute(1, 2, 0).reshape(b.shape[1], -1).contiguous(), rank


@dataclass(frozen=True)
class HeadsHome(ExpertsHome):
    """The parameter of PEFT's model that holds a matrix whose heads a router chooses, those of one expert together.

    Args:
        place: the parameter's. config: the design.
    """

    place: Place
    config: Config

    def joined(self, parts: Mapping[str, LowRankPart]) -> tuple[Tensor, Tensor, int]:
        """As of experts: each has some rows of our B and the whole A, or some columns of our A and the whole B."""
        part, line, attention = parts[self.place.ours[0]], self.place.row, attention_at(self.place, self.config)
        a, b = (x.detach().float().cpu() for x in (part.a, part.b))
        experts, rank = attention.n_experts, len(a)
        if line.crossed == "queries":
            a, b = a.repeat(experts, 1), crossed(line, b, (experts, len(b) // experts, rank), attention)
        else:
            a = crossed(line, a, (experts, rank, a.shape[1] // experts), attention).flatten(0, 1)
            b = b.expand(experts, *b.shape)
        return a.contiguous(), b.permute(1, 2, 0).flatten(1).contiguous(), rank


def experts_homes(config: Config, family: Family) -> dict[str, ExpertsHome]:
    """Where PEFT's model holds stacks of experts' matrices, by our keys; without those that it holds otherwise."""
    table = family.table(config)
    found: dict[str, ExpertsHome] = {
        place.ours[0]: HeadsHome(name.removesuffix(".weight"), "weight", {}, False, place, config)
        for name, place in table.places.items()
        if place.row.crossed
    }
    for layer, design in enumerate(config.layers):
        feed, prefix = design.feed_forward, f"blocks.{layer}.mlp.experts."
        if not isinstance(feed, Experts):
            continue
        place = table.homes[f"{prefix}up.weight"][0]
        if place.row.flat:
            continue
        named, down = _EXPERTS.match(in_transformers(place.theirs, family)), f"{prefix}down.weight"
        turned = place.expert is None and place.row.transposed and family.name not in _TOLD
        up = _halves(table, prefix, feed.d_ff) if feed.gated else {f"{prefix}up.weight": slice(None)}
        if named is None:  # each is a module of its own
            for key, rows in ((place.ours[0], up), (down, {down: slice(None)})):
                module = table.homes[key][0].theirs.removesuffix(".weight")
                found |= dict.fromkeys(rows, ExpertsHome(module, "weight", rows, turned))
            continue
        module = named[1]
        both = ExpertsHome(module, "gate_up_proj" if feed.gated else "up_proj", up, turned)
        found |= dict.fromkeys(up, both) | {down: ExpertsHome(module, "down_proj", {down: slice(None)}, turned)}
    return found


def routers(config: Config, family: Family) -> dict[str, str]:
    """The modules of PEFT's model that are routers, by our keys of their matrices."""
    homes = family.table(config).homes
    keys = [f"blocks.{i}.mlp.router.weight" for i, x in enumerate(config.layers) if isinstance(x.feed_forward, Experts)]
    return {key: in_transformers(homes[key][0].theirs, family).removesuffix(".weight") for key in keys}


def in_transformers(theirs: str, family: Family) -> str:
    """What transformers calls a tensor of a file once it has opened it."""
    for file, model in _RENAMED.get(family.name, ()):
        theirs = theirs.replace(file, model)
    return theirs

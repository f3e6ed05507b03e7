"""How a family stands in GGUF: its architecture's name and what is its own there, beside what all of them share.

GGUF has one vocabulary for settings and one for tensors. Both are written out once (`gguf_settings.SETTINGS`, `TENSORS`
here; a test holds them to the tables of the `gguf` package); a `GgufTable` says what an architecture has otherwise.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.family import GgufLayout
from glassformer.checkpoint.families.folding import Folded
from glassformer.checkpoint.families.gguf_settings import Shapes, Translation
from glassformer.checkpoint.keys import Shape
from glassformer.checkpoint.tables import Row
from glassformer.model.config import Config

# Native part within a block -> its name within a layer.
TENSORS: Mapping[str, str] = {
    "ln1": "attn_norm",
    **{f"attn.{p}": f"attn_{p}" for p in "qkv"},
    "attn.o": "attn_output",
    **{f"attn.{p}_norm": f"attn_{p}_norm" for p in "qk"},
    "attn.gate": "attn_gate",
    "attn.out_norm": "attn_sub_norm",
    "ln1_post": "post_attention_norm",
    "ln2": "ffn_norm",
    **{f"mlp.{p}": f"ffn_{p}" for p in ("gate", "up", "down")},
    "mlp.out_norm": "ffn_sub_norm",
    "mlp.router": "ffn_gate_inp",
    **{f"mlp.experts.{p}": f"ffn_{p}_exps" for p in ("gate", "up", "down")},
    **{f"mlp.shared.{p}": f"ffn_{p}_shexp" for p in ("gate", "up", "down")},
    "mlp.shared_gate": "ffn_gate_inp_shexp",
    "ln2_post": "post_ffw_norm",
}
OUTSIDE: Mapping[str, str] = {
    "embed": "token_embd",
    "pos_embed": "position_embd",
    "embed_norm": "token_embd_norm",
    "final": "output_norm",
    "unembed": "output",
}
# What has no `.weight` or `.bias` of its own here.
BARE: Mapping[str, str] = {"attn.sink": "attn_sinks.weight", "mlp.correction": "exp_probs_b.bias"}
_SSM, _MAMBA, _CONV, _LATENT = (f"blocks.{{i}}.{part}." for part in ("ssm", "mamba", "conv", "attn"))


def _others(pairs: str) -> tuple[Row, ...]:
    """Tensors of recurrences, short convolutions and latent attention."""
    at = _LAYER
    rows = [
        Row(at + "ssm_dt.bias", (_SSM + "dt_bias",)),
        Row(at + "ssm_a", (_SSM + "a_log",), squeezed=1, exponent=True),
        Row(at + "ssm_d", (_SSM + "skip",), squeezed=1),
        Row(at + "ssm_norm.weight", (_SSM + "norm.weight",), cut="groups"),
        Row(at + "ssm_a", (_MAMBA + "a_log",), exponent=True),
        Row(at + "ssm_d", (_MAMBA + "skip",)),
        Row(at + "ssm_x.weight", tuple(f"{_MAMBA}{part}.weight" for part in ("dt_in", "b", "c"))),
        Row(at + "ssm_dt_norm.weight", (_MAMBA + "dt_in_norm.weight",)),
        *(Row(f"{at}ssm_{part}_norm.weight", (f"{_MAMBA}{part}_norm.weight",)) for part in "bc"),
        Row(at + "attn_k_b.weight", (_LATENT + "k_own.weight",), cut="heads", transposed=True),
        Row(at + "attn_v_b.weight", (_LATENT + "v_up.weight",), cut="heads"),
    ]
    for kind in ("weight", "bias"):
        ssm = tuple(f"{_SSM}{part}.{kind}" for part in ("gate", "x", "b", "c", "dt"))
        conv = tuple(f"{_CONV}{part}.{kind}" for part in ("gate_in", "gate", "v"))
        kv = tuple(f"{_LATENT}{part}.{kind}" for part in ("kv_down", "k_shared"))
        rows += [
            Row(f"{at}ssm_in.{kind}", ssm),
            Row(f"{at}ssm_in.{kind}", tuple(f"{_MAMBA}{part}.{kind}" for part in ("x", "gate"))),
            Row(f"{at}ssm_dt.{kind}", (f"{_MAMBA}dt.{kind}",)),
            *(Row(f"{at}ssm_conv1d.{kind}", (f"{part}conv.{kind}",)) for part in (_SSM, _MAMBA)),
            *(Row(f"{at}ssm_out.{kind}", (f"{part}o.{kind}",)) for part in (_SSM, _MAMBA)),
            Row(f"{at}shortconv.conv.{kind}", (f"{_CONV}conv.{kind}",)),
            Row(f"{at}shortconv.in_proj.{kind}", conv),
            Row(f"{at}shortconv.out_proj.{kind}", (f"{_CONV}o.{kind}",)),
            Row(f"{at}attn_q_a.{kind}", (f"{_LATENT}q_down.{kind}",)),
            Row(f"{at}attn_q_a_norm.{kind}", (f"{_LATENT}q_latent.{kind}",)),
            Row(f"{at}attn_q_b.{kind}", (f"{_LATENT}q_up.{kind}",), pairs=pairs),
            Row(f"{at}attn_kv_a_mqa.{kind}", kv, pairs=pairs),
            Row(f"{at}attn_kv_a_norm.{kind}", (f"{_LATENT}kv_latent.{kind}",)),
        ]
    return tuple(rows)


_NORMS = ("ln1", "ln2", "ln1_post", "ln2_post", "attn.q_norm", "attn.k_norm", "final")
_BLOCK, _LAYER = "blocks.{i}.", "blk.{i}."


@dataclass(frozen=True)
class GgufTable:
    """One architecture.

    Args:
        architecture: its name, which also prefixes its settings.
        pairs: how queries and keys stand there: llama.cpp turns halves ("half") or "neighbours".
        joined: what is written as one tensor: "qkv" (attn_qkv), "gate" (gates before the rest in ffn_up).
        names: tensors of a layer that are called otherwise than in `TENSORS`.
        rows: tensors that are laid out otherwise, instead of the usual rows of the same native keys.
        also: such rows as other files have them; read, not written.
        shift: norms are stored with 1 added.
        period: of so many layers the last has no window, where no list says so; 0 for windows in all layers, None
            where llama.cpp computes none.
        first: of so many layers the first has none instead.
        listed: a list may say which layers have windows; where not, rotary positions depend on it being the usual one.
        settings: further settings -> those of a config.json that hold the same.
        implied: settings of a config.json that llama.cpp takes for granted.
        says: settings that stand in every file with the same value.
        read, write: what these cannot say: (settings, shapes, those of a config.json so far) -> more of them, and
            (design) -> more settings.
        chosen: whether a file of this architecture is of this family, where several share its name.
        factors: rotary divisors may be a tensor.
        by_layer: settings that may be a list, one value a layer.
        ignored: patterns of tensors that may be there and are not needed.
        zeros: tensors that llama.cpp wants to see and does not compute with.
        dense: which layers may be without experts in a model that has them: "none", the "first" ones, or "any".
        sparse: the architecture's name for designs with experts, where it is another.
        fold: the design -> the same with the multipliers that the architecture has no place for in its weights.
    """

    architecture: str
    pairs: str = "half"
    joined: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    also: tuple[Row, ...] = ()
    shift: bool = False
    period: int | None = None
    first: bool = False
    listed: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=dict)
    says: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Attributes, Shapes, dict[str, Any]], Mapping[str, Any]] | None = None
    write: Callable[[Config], dict[str, Any]] | None = None
    chosen: Callable[[Mapping[str, Any]], bool] | None = None
    factors: bool = False
    by_layer: tuple[str, ...] = ()
    dense: str = "none"
    ignored: tuple[str, ...] = ()
    zeros: Callable[[Config], dict[str, Shape]] | None = None
    sparse: str = ""
    fold: Callable[[Config], Folded] = Folded

    def layout(
        self,
        read: Callable[[Attributes], Config],
        write: Callable[[Config], dict[str, Any]],
        key: Callable[[str], str | None],
        experts: object = None,
    ) -> GgufLayout:
        """The architecture as everything else knows them.

        Args:
            read, write: settings of a config.json -> design, and the other way.
            key: number of a design -> setting of a config.json.
            experts: the family's `Sparse`, where it has experts.
        """
        translation = Translation(self, read, write, key, experts)
        return GgufLayout(
            self.architecture,
            self.tensors,
            translation.config,
            translation.settings,
            self.factors,
            self.chosen,
            self.by_layer,
            self.others,
            self.ignored,
            self.zeros,
            self.sparse,
            self.fold,
        )

    def others(self) -> tuple[tuple[Row, ...], ...]:
        """Tables of files that join what is written apart, or hold apart what is written joined."""
        toggled = tuple({*self.joined} ^ {"qkv"})
        both = f"{_BLOCK}mlp.experts."
        pair = (both + "gate.weight", both + "up.weight")
        found = []
        for joined, own in itertools.product((self.joined, toggled), {self.rows, self.also or self.rows}):
            rows = dataclasses.replace(self, joined=joined, rows=own).tensors()
            apart = tuple(row for row in rows if not row.ours[0].startswith((both + "gate.", both + "up.")))
            found += [rows, (*apart, Row(f"{_LAYER}ffn_gate_up_exps.weight", pair, axis=1))]
        return tuple(found)

    def tensors(self) -> tuple[Row, ...]:
        """The tensor table."""
        own = {key for row in self.rows for key in row.ours}
        held = {part for name in self.joined for part in _JOINED[name][1]}
        rows: list[Row] = []
        for kind in ("weight", "bias"):
            names = {**TENSORS, **{k: v for k, v in self.names.items() if k not in OUTSIDE}}
            inside = [(f"{_BLOCK}{p}", f"{_LAYER}{name}") for p, name in names.items()]
            outside = {**OUTSIDE, **{k: v for k, v in self.names.items() if k in OUTSIDE}}
            for ours, theirs in (*outside.items(), *inside):
                part = ours.removeprefix(_BLOCK)
                if part in held or f"{ours}.{kind}" in own or not theirs.removeprefix(_LAYER):
                    continue
                turned = part.startswith("attn.") and part[5:] in ("q", "k", "q_norm", "k_norm")
                shift = 1.0 if self.shift and kind == "weight" and part in _NORMS else 0.0
                rows.append(
                    Row(
                        f"{theirs}.{kind}",
                        (f"{ours}.{kind}",),
                        pairs=self.pairs if turned else "half",
                        shift=shift,
                    )
                )
            for name in self.joined:
                theirs, parts = _JOINED[name]
                rows.append(
                    Row(
                        f"{_LAYER}{theirs}.{kind}",
                        tuple(f"{_BLOCK}{part}.{kind}" for part in parts),
                        pairs=self.pairs if name == "qkv" else "half",
                    )
                )
        for part, name in {**BARE, **{k: v for k, v in self.names.items() if k in BARE}}.items():
            if f"{_BLOCK}{part}" not in own:
                rows.append(Row(f"{_LAYER}{name}", (f"{_BLOCK}{part}",)))
        rows.append(Row("output.bias", ("unembed_bias",)))
        others = (row for row in _others(self.pairs) if not own.intersection(row.ours))
        return (*rows, *others, *self.rows)


_JOINED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "qkv": ("attn_qkv", ("attn.q", "attn.k", "attn.v")),
    "gate": ("ffn_up", ("mlp.gate", "mlp.up")),
}


def normed(key: str) -> Callable[[Attributes, Shapes, dict[str, Any]], Mapping[str, Any]]:
    """Reads from the tensors whether queries and keys have norms."""
    return lambda attributes, shapes, found: {key: any(name.endswith("attn_q_norm.weight") for name in shapes)}


def sharing(table: GgufTable, **changes: Any) -> GgufTable:
    """The same architecture for another family."""
    return dataclasses.replace(table, **changes)

"""DeepSeek 3.2 and GLM-5: latent attention to the few keys that an index chooses, and experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.gguf_settings import has
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.grouped_experts import GROUPED, GROUPED_ROWS
from glassformer.checkpoint.families.latent import LATENT_GGUF, LatentAlike
from glassformer.checkpoint.families.settings import attention_of
from glassformer.checkpoint.families.sparse import LISTED, Sparse, each, fused
from glassformer.checkpoint.tables import Row
from glassformer.errors import UnsupportedError
from glassformer.model.config import Config, Index, LatentAttention

_AT, _OURS = "self_attn.indexer.", "blocks.{i}.attn."
_NAMES = {"wq_b": "index_q", "wk": "index_k", "k_norm": "index_norm", "weights_proj": "index_weights"}


@dataclasses.dataclass(frozen=True)
class IndexedAlike(LatentAlike):
    """A family of `LatentAlike` whose attention has an index.

    Args:
        index_pairs: how the index's rotated dimensions pair, as `Row` has it: those of the attention are of their own.
        shares: layers may use the index of the layer before them.
    """

    index_pairs: str = "half"
    shares: bool = False

    def rows(self) -> tuple[Row, ...]:
        """The tensor table."""
        rows = list(super().rows())
        for theirs, ours in _NAMES.items():
            for kind in ("weight", "bias"):
                name = f"{self.layer}{_AT}{theirs}.{kind}"
                rows.append(Row(name, (f"{_OURS}{ours}.{kind}",), pairs=self.index_pairs))
        return tuple(rows)

    def config(self, attributes: Attributes) -> Config:
        """The design that the settings of a config.json describe."""
        config = super().config(attributes)
        if any(kind != "indexed_attention" for kind in attributes.sequence("layer_types") or ()):
            raise attributes.unsupported("layer_types", attributes.values["layer_types"])
        if self.shares:
            self._alone(attributes)
        index = Index(
            attributes.integer("index_n_heads", 64),
            attributes.integer("index_head_dim", 128),
            attributes.integer("index_topk", 2048),
        )
        layers = []
        for layer in config.layers:
            assert isinstance(layer.mixer, LatentAttention)
            layers.append(dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, index=index)))
        return dataclasses.replace(config, layers=tuple(layers))

    def _alone(self, attributes: Attributes) -> None:
        """Every layer has an index of its own; those that use another's are not expressed."""
        kinds = attributes.sequence("indexer_types")
        if kinds is not None:
            if any(kind != "full" for kind in kinds):
                raise attributes.unsupported("indexer_types", kinds)
            return
        attributes.only("index_topk_pattern")
        attributes.only("index_topk_freq", 0, 1)

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings that describe a design."""
        latent = attention_of(config)
        index = latent.index if isinstance(latent, LatentAttention) else None
        if index is None:
            raise UnsupportedError("it has layers whose attention has no index")
        kinds = {"indexer_types": ["full"] * config.n_layers} if self.shares else {}
        return {
            **super().settings(config),
            **kinds,
            "index_n_heads": index.n_heads,
            "index_head_dim": index.d_head,
            "index_topk": index.top,
            "layer_types": ["indexed_attention"] * config.n_layers,
        }


def _three_dense(attributes: Attributes) -> dict[str, Any]:
    """The first three layers are dense where nothing says otherwise."""
    said = "mlp_layer_types" in attributes or "first_k_dense_replace" in attributes
    return {} if said else {"first_k_dense_replace": 3}


# The index's tensors as GGUF names them, which are turned as those of the attention are.
_GGUF_NAMES = {"index_q": "attn_q_b", "index_k": "attn_k", "index_norm": "k_norm", "index_weights": "proj"}
_NUMBERS = {"head_count": "index_n_heads", "key_length": "index_head_dim", "top_k": "index_topk"}


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> Mapping[str, Any]:
    latent = LATENT_GGUF.read
    assert latent is not None
    layers = attributes.layers("block_count")
    kinds = attributes.values.get(attributes.prefix + "attention.indexer.types")
    attributes.asked.add(attributes.prefix + "attention.indexer.types")
    if kinds is None:  # every layer's own, where a layer's index is not left out
        kinds = [int(flag) for flag in has(shapes, "indexer.attn_k.weight", layers)]
    return {
        **latent(attributes, shapes, found),
        **{ours: attributes.integer(f"attention.indexer.{theirs}") for theirs, ours in _NUMBERS.items()},
        "layer_types": None,
        "indexer_types": ["full" if kind else "shared" for kind in kinds],
    }


def _write_gguf(config: Config) -> dict[str, Any]:
    latent, attention = LATENT_GGUF.write, attention_of(config)
    assert latent is not None
    index = attention.index if isinstance(attention, LatentAttention) else None
    if index is None:
        raise UnsupportedError("it has layers whose attention has no index")
    numbers = {"head_count": index.n_heads, "key_length": index.d_head, "top_k": index.top}
    return {**latent(config), **{f"attention.indexer.{name}": number for name, number in numbers.items()}}


_GLM = dataclasses.replace(
    LATENT_GGUF,
    architecture="glm-dsa",
    rows=tuple(
        Row(f"blk.{{i}}.indexer.{theirs}.{kind}", (f"{_OURS}{ours}.{kind}",), pairs="neighbours")
        for ours, theirs in _GGUF_NAMES.items()
        for kind in ("weight", "bias")
    ),
    read=_read_gguf,
    write=_write_gguf,
)


def _family(name: str, stem: str, groups: tuple[int, int], gguf: GgufTable | None = None, **more: Any) -> Sparse:
    return Sparse(
        IndexedAlike(
            name,
            stem,
            pairs="neighbours",
            keys={"d_head": "qk_rope_head_dim"},
            fixed={"mlp_bias": False},
            only={"mlp_bias": (False,), "rope_interleave": (True,), "scoring_func": ("sigmoid",)},
            **more,
        ),
        (*GROUPED_ROWS, *each()),
        **GROUPED | {"defaults": {"renormalise": True, "scale": 2.5, "groups": groups[0], "top_groups": groups[1]}},
        layers=LISTED,
        stacked=((*GROUPED_ROWS, *fused("mlp.experts.")),),
        before=_three_dense,
        gguf=gguf,
        no_effect=frozenset(
            {"num_nextn_predict_layers", "first_k_dense_replace", "index_skip_topk_offset", "topk_method"}
        ),
    )


INDEXED = (
    _family("deepseek_v32", "DeepseekV32", (8, 4), defaults={"eps": 1e-6}),
    _family(
        "glm_moe_dsa", "GlmMoeDsa", (1, 1), gguf=_GLM, defaults={"eps": 1e-5}, index_pairs="neighbours", shares=True
    ),
)

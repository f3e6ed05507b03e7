"""The one transformer: tokens in, a score for every possible next token out.

Built once from a `Config`; the forward never asks which family it is. It trains, runs and is looked
into through the same code. It knows no files, no tokenizer, and none of the taps that look at it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glassformer.errors import CheckpointError, ShapeError, near
from glassformer.model.attention import AttentionPart, Visible
from glassformer.model.cache import Cache
from glassformer.model.config import Config
from glassformer.model.layers import Linear, NormLayer, gate, linear, rotaries, softcap
from glassformer.model.sites import Looking, Tap, View, Where, see

Angles = tuple[Tensor, Tensor] | None


class FeedForwardPart(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        f = config.feed_forward
        self.gate = Linear(config.d_model, f.d_ff, f.bias) if f.gated else None
        self.up = Linear(config.d_model, f.d_ff, f.bias)
        self.down = Linear(f.d_ff, config.d_model, f.bias)
        self.activation = functools.partial(gate, f.activation)

    def forward(
        self, x: Float[Tensor, "batch query d_model"], view: View | None = None
    ) -> Float[Tensor, "batch query d_model"]:
        if self.gate is None:
            h = self.activation(see(view, "mlp.pre", self.up(x)))
        else:
            pre = see(view, "mlp.pre", self.gate(x))
            h = self.activation(pre, see(view, "mlp.pre_linear", self.up(x)))
        return self.down(see(view, "mlp.post", h))


class Block(nn.Module):
    """One layer: attention and feed-forward, each adding to the residual stream."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.parallel = config.parallel
        self.ln1 = NormLayer(config.d_model, config)
        self.attn = AttentionPart(config, layer)
        self.ln2 = NormLayer(config.d_model, config)
        self.mlp = FeedForwardPart(config)
        self.ln1_post = NormLayer(config.d_model, config) if config.norm.post else None
        self.ln2_post = NormLayer(config.d_model, config) if config.norm.post else None

    def forward(
        self,
        x: Float[Tensor, "batch query d_model"],
        angles: Angles,
        visible: Visible,
        cache: Cache | None = None,
        view: View | None = None,
    ) -> Float[Tensor, "batch query d_model"]:
        x = see(view, "resid_pre", x)
        a = self.attn(self.ln1(x, view, "ln1"), angles, visible, cache, view)
        a = see(view, "attn.out", a if self.ln1_post is None else self.ln1_post(a))
        middle = x if self.parallel else see(view, "resid_mid", x + a)
        m = self.mlp(self.ln2(middle, view, "ln2"), view)
        m = see(view, "mlp.out", m if self.ln2_post is None else self.ln2_post(m))
        return see(view, "resid_post", x + a + m if self.parallel else middle + m)


class Embedding(nn.Module):
    """A row for each token (or position)."""

    def __init__(self, rows: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, d_model))

    def forward(self, ids: Int[Tensor, "batch query"]) -> Float[Tensor, "batch query d_model"]:
        return F.embedding(ids, self.weight)


RunBlock = Callable[..., Tensor]


class Transformer(nn.Module):
    """A decoder-only transformer of the given design, with freshly drawn weights.

    `Transformer.empty(config)` allocates nothing; `load` then gives it a checkpoint's tensors.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.d_model)
        self.pos_embed = Embedding(config.context, config.d_model) if config.position.kind == "learned" else None
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.final = NormLayer(config.d_model, config)
        self.unembed = None if config.tied else Linear(config.d_model, config.vocab_size, False)
        self._rotary, self._local_rotary = rotaries(config)
        self._windowed = [config.window(i) is not None for i in range(config.n_layers)]
        if not self.embed.weight.is_meta:
            self.initialise()

    @classmethod
    def empty(cls, config: Config) -> Transformer:
        """The same module with no memory behind its parameters."""
        with torch.device("meta"):
            return cls(config)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: normal with deviation 0.02, output projections smaller by the root of
        how many of them add to the stream (GPT-2's choice), norms at identity, biases zero."""
        out_scale = 0.02 / (2 * self.config.n_layers) ** 0.5
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif p.ndim == 1:
                p.fill_(0.0 if self.config.norm.one_plus else 1.0)
            else:
                out = name.endswith(("attn.o.weight", "mlp.down.weight"))
                p.normal_(0.0, out_scale if out else 0.02, generator=generator)

    def load(self, tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> Transformer:
        """Take a checkpoint's tensors as the parameters, without copying those of the right dtype.

        Raises:
            CheckpointError: for a missing, unexpected or wrongly shaped tensor, by its name.
        """
        expected = {name: tuple(p.shape) for name, p in self.named_parameters()}
        missing = [name for name in expected if name not in tensors]
        if missing:
            raise CheckpointError(
                f"The checkpoint lacks {len(missing)} of the {len(expected)} tensors its config asks for, "
                f"first {missing[0]!r}."
            )
        for name in tensors:
            if name not in expected:
                raise CheckpointError(
                    f"The checkpoint holds {name!r}, which its config has no use for." + near(name, expected)
                )
        for name, shape in expected.items():
            tensor = tensors[name]
            if tuple(tensor.shape) != shape:
                raise CheckpointError(f"{name!r} has shape {tuple(tensor.shape)}; its config asks for {shape}.")
            owner, _, leaf = name.rpartition(".")
            value = tensor if dtype is None else tensor.to(dtype)
            setattr(self.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.embed.weight.device

    def forward(
        self,
        tokens: Int[Tensor, "batch query"],
        cache: Cache | None = None,
        mask: Bool[Tensor, "batch query"] | None = None,
        tap: Tap | None = None,
        *,
        last: bool = False,
    ) -> Float[Tensor, "batch out vocab"]:
        """Logits of the next token after every position (after the last one only, with `last`).

        Args:
            tokens: ids; with a cache, those that follow what it holds.
            cache: keys and values of earlier tokens; extended by this call.
            mask: False on left padding; positions count from the first True.
            tap: who looks, if anybody.

        Raises:
            ShapeError: for tokens that do not fit the cache, the positions or the vocabulary's type.
            SiteError: when a tap names a place that is absent or that this forward did not reach.
        """
        looking, where, visible = self._begin(tokens, cache, mask, tap)
        x = self._stream(tokens, cache, where, visible, looking, None)
        view = None if looking is None else looking.top
        if last and view is None:
            x = x[:, -1:]
        x = self.final(x, view, "final")
        logits = self.unembed_hidden(x[:, -1:] if last else x, view)
        if cache is not None:
            cache.advance(tokens.shape[1])
        if looking is not None:
            looking.finish()
        return logits

    def hidden(
        self,
        tokens: Int[Tensor, "batch query"],
        cache: Cache | None = None,
        mask: Bool[Tensor, "batch query"] | None = None,
        tap: Tap | None = None,
        *,
        run_block: RunBlock | None = None,
    ) -> Float[Tensor, "batch query d_model"]:
        """The residual stream after the final norm: what `unembed_hidden` turns into logits.

        `run_block(block, *args)` replaces the plain call of each block, for activation checkpointing.
        """
        looking, where, visible = self._begin(tokens, cache, mask, tap)
        x = self._stream(tokens, cache, where, visible, looking, run_block)
        x = self.final(x, None if looking is None else looking.top, "final")
        if cache is not None:
            cache.advance(tokens.shape[1])
        if looking is not None:
            looking.finish()
        return x

    def unembed_hidden(
        self, x: Float[Tensor, "batch query d_model"], view: View | None = None
    ) -> Float[Tensor, "batch query vocab"]:
        """Logits from the normed residual stream, soft-capped where the family caps."""
        logits = linear(x, self.unembedding)
        if self.config.logit_softcap is not None:
            logits = softcap(see(view, "logits.precap", logits), self.config.logit_softcap)
        return see(view, "logits", logits)

    @property
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """The matrix that reads the prediction out of the stream."""
        return self.embed.weight if self.unembed is None else self.unembed.weight

    def angles(self, positions: Int[Tensor, "batch query"], layer: int) -> Angles:
        """Cosines and sines by which this layer turns queries and keys at these positions."""
        rotary = self._local_rotary if self._windowed[layer] else self._rotary
        return None if rotary is None else rotary(positions, self.dtype)

    def _begin(
        self, tokens: Tensor, cache: Cache | None, mask: Tensor | None, tap: Tap | None
    ) -> tuple[Looking | None, Where, Visible]:
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise ShapeError(f"Tokens must be (batch, query) with at least one query; got {tuple(tokens.shape)}.")
        if mask is not None and mask.shape != tokens.shape:
            raise ShapeError(f"The mask must have the tokens' shape {tuple(tokens.shape)}; got {tuple(mask.shape)}.")
        start = 0 if cache is None else cache.length
        count = tokens.shape[1]
        if cache is None:
            keys = mask
        else:
            cache.check(*tokens.shape)
            keys = cache.key_mask(mask, count)
        if keys is None:
            positions = torch.arange(start, start + count, device=tokens.device).expand(tokens.shape)
        else:
            positions = (keys.long().cumsum(1) - 1).clamp(min=0)[:, start:]
        if self.pos_embed is not None:
            reach = start + count if keys is None else int(positions.max()) + 1
            if reach > self.config.context:
                raise ShapeError(f"This model has {self.config.context} trained positions; the text needs {reach}.")
        where = Where(positions, None if keys is None else keys[:, start:], start)
        looking = None if tap is None else Looking(tap, self.config, where)
        return looking, where, Visible(start, keys)

    def _stream(
        self,
        tokens: Tensor,
        cache: Cache | None,
        where: Where,
        visible: Visible,
        looking: Looking | None,
        run_block: RunBlock | None,
    ) -> Tensor:
        view = None if looking is None else looking.top
        x = self.embed(tokens)
        if self.config.embedding_scale is not None:
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype, device=x.device)
        x = see(view, "embed", x)
        if self.pos_embed is not None:
            x = x + see(view, "pos_embed", self.pos_embed(where.positions))
        full, local = self._both_angles(where.positions, x.dtype)
        for i, block in enumerate(self.blocks):
            angles = local if self._windowed[i] else full
            block_view = None if looking is None else looking.at(i)
            if run_block is None:
                x = block(x, angles, visible, cache, block_view)
            else:
                x = run_block(block, x, angles, visible, cache, block_view)
        return x

    def _both_angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Angles, Angles]:
        if self._rotary is None or self._local_rotary is None:
            return None, None
        full = self._rotary(positions, dtype)
        return full, full if self._local_rotary is self._rotary else self._local_rotary(positions, dtype)

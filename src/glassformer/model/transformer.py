"""The one transformer: tokens in, a score for every possible next token out.

Built once from a `Config`; the forward never asks which family it is. It trains, runs and is looked
into through the same code. It knows no files, no tokenizer, and none of the taps that look at it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glassformer.errors import CheckpointError, ShapeError, near
from glassformer.model.attention import Visible
from glassformer.model.cache import Cache
from glassformer.model.choices import Rotary, softmax_of
from glassformer.model.config import Config
from glassformer.model.layers import Embedding, Linear, linear, softcap
from glassformer.model.norms import NormLayer
from glassformer.model.parts.block import Block
from glassformer.model.parts.copies import gathered, spread
from glassformer.model.parts.head import HeadPart
from glassformer.model.parts.layer_embedding import LayerInputs
from glassformer.model.parts.passing import Pass
from glassformer.model.positions import Angles, RotaryTable, SinusoidTable
from glassformer.model.sites import Looking, Tap, View, Where, see

RunBlock = Callable[..., Tensor]


class Transformer(nn.Module):
    """A decoder-only transformer of the given design, with freshly drawn weights.

    `Transformer.empty(config)` allocates nothing; `load` then gives it a checkpoint's tensors.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.d_model if config.d_embed is None else config.d_embed
        self.embed = Embedding(config.vocab_size, width)
        self.project_in = None if config.d_embed is None else Linear(width, config.d_model, False)
        self.project_out = None if config.d_embed is None else Linear(config.d_model, width, False)
        self.pos_embed: Embedding | SinusoidTable | None = None
        if config.learned_positions:
            self.pos_embed = Embedding(config.context, config.d_model)
        elif config.sinusoids is not None:
            self.pos_embed = SinusoidTable(config.d_model, config.sinusoids)
        others, square = range((config.copies or 1) - 1), (config.d_model, config.d_model, False)
        self.spread = nn.ModuleList(Linear(*square) for _ in others)
        self.gather = nn.ModuleList(Linear(*square) for _ in others)
        d = config.layer_embedding
        rows = config.vocab_size if config.layer_vocab is None else config.layer_vocab
        self.layer_inputs = None if d is None else LayerInputs(config.n_layers, d, rows, config.d_model, config.norm)
        self.embed_norm = NormLayer(config.d_model, config.norm) if config.embedding_norm else None
        kinds = rotary_kinds(config)
        self.tables = [RotaryTable(rotary.dims(d_head), rotary.theta, rotary.scaling) for rotary, d_head in kinds]
        self.blocks = nn.ModuleList(Block(config, i, kinds) for i in range(config.n_layers))
        self.head = None if config.head is None else HeadPart(config.head, config.d_model, config.norm)
        last = config.norm if config.final_eps is None else dataclasses.replace(config.norm, eps=config.final_eps)
        self.final = NormLayer(config.d_model, last) if config.final_norm else None
        self.unembed = None if config.tied else Linear(width, config.vocab_size, False)
        self.unembed_bias = nn.Parameter(torch.empty(config.vocab_size)) if config.unembed_bias else None
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
        config = self.config
        out_scale = 0.02 / (2 * config.n_layers) ** 0.5
        norms = {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, NormLayer)}
        plus = {name for name in norms if self.get_submodule(name.rpartition(".")[0]).one_plus}
        for name, p in self.named_parameters():
            if name.endswith(("bias", ".sink", ".correction", ".gate_bias")) or name in plus:
                p.zero_()
            elif p.ndim <= 1:
                p.fill_(1.0)
            else:
                out = name.endswith((".o.weight", ".down.weight"))
                p.normal_(0.0, out_scale if out else 0.02, generator=generator)
        for block in self.blocks:
            begin = getattr(block.mixer, "begin", None)
            if begin is not None:
                begin(generator)

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
        """Data type of the weights."""
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.embed.weight.device

    def forward(
        self,
        tokens: Int[Tensor, "batch query"],
        cache: Cache | None = None,
        mask: Bool[Tensor, "batch query"] | None = None,
        tap: Tap | None = None,
        *,
        last: bool = False,
        lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch out vocab"]:
        """Logits of the next token after every position (after the last one only, with `last`).

        Args:
            tokens: ids; with a cache, those that follow what it holds.
            cache: keys and values of earlier tokens; extended by this call.
            mask: False on left padding; positions count from the first True.
            tap: who looks, if anybody.
            lengths: of the documents that lie one after another in the one row, where it holds several: none sees
                another, and each has positions of its own. For a config that `packs`, without cache and mask.

        Raises:
            ShapeError: for tokens that do not fit the cache, the positions or the vocabulary's type.
            SiteError: when a tap names a place that is absent or that this forward did not reach.
        """
        new = tokens.shape[-1]
        tokens, mask = self._whole(tokens, cache, mask)
        looking, state = self._begin(tokens, cache, mask, tap, lengths)
        x = self._blocks(self.embedded(tokens, state.where, looking), state, looking)
        view = None if looking is None else looking.top
        if last and view is None:
            x = x[:, -1:]
        x = self.normed(x, view)
        logits = self.unembed_hidden(x[:, -1:] if last else x, view)
        self._end(tokens, cache, state)
        if looking is not None:
            looking.finish()
        return logits[:, -new:]

    def hidden(
        self,
        tokens: Int[Tensor, "batch query"],
        cache: Cache | None = None,
        mask: Bool[Tensor, "batch query"] | None = None,
        tap: Tap | None = None,
        *,
        run_block: RunBlock | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch query d_model"]:
        """The residual stream after the final norm: what `unembed_hidden` turns into logits.

        Args:
            run_block: `run_block(block, *args)` replaces the plain call of each block, for activation checkpointing.
            lengths: of several documents in one row; see `forward`.
        """
        new = tokens.shape[-1]
        tokens, mask = self._whole(tokens, cache, mask)
        looking, state = self._begin(tokens, cache, mask, tap, lengths)
        x = self._blocks(self.embedded(tokens, state.where, looking), state, looking, run_block=run_block)
        x = self.normed(x, None if looking is None else looking.top)
        self._end(tokens, cache, state)
        if looking is not None:
            looking.finish()
        return x[:, -new:]

    def unembed_hidden(
        self, x: Float[Tensor, "*batch d_model"], view: View | None = None
    ) -> Float[Tensor, "*batch vocab"]:
        """Logits from the normed residual stream, soft-capped where the family caps."""
        matrix = self.embed.weight if self.unembed is None else self.unembed.weight
        logits = linear(x if self.project_out is None else self.project_out(x), matrix, self.unembed_bias)
        if self.config.logit_scale is not None:
            logits = logits * self.config.logit_scale
        if self.config.logit_softcap is not None:
            logits = softcap(see(view, "logits.precap", logits), self.config.logit_softcap)
        return see(view, "logits", logits)

    @property
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """The matrix that reads the prediction out of the stream."""
        matrix = self.embed.weight if self.unembed is None else self.unembed.weight
        return matrix if self.project_out is None else matrix @ self.project_out.weight

    def normed(self, x: Float[Tensor, "*batch wide"], view: View | None = None) -> Float[Tensor, "*batch d_model"]:
        """The residual stream after the head and the final norm, where they are: what the unembedding reads."""
        x = self.gathered(x)
        x = x if self.head is None else self.head(x, view)
        return see(view, "final.normed", x) if self.final is None else self.final(x, view, "final")

    def embedded(
        self, tokens: Int[Tensor, "batch query"], where: Where, looking: Looking | None = None
    ) -> Float[Tensor, "batch query wide"]:
        """The residual stream as it enters the first block."""
        view = None if looking is None else looking.top
        x = see(view, "embed", self.entering(self.embed(tokens)))
        if self.pos_embed is not None:
            x = x + see(view, "pos_embed", self.pos_embed(where.positions).to(x.dtype))
        return self.in_copies(x)

    def in_copies(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch wide"]:
        """The embedding as the stream that enters the first block: in copies, where the design has them."""
        return spread(x, self.spread) if self.spread else x

    def gathered(self, x: Float[Tensor, "*batch wide"], held: bool = False) -> Float[Tensor, "*batch d_model"]:
        """The stream, its copies made one where there are several and they are not one yet; where `held`, nothing goes
        back through the lengths that they are brought to."""
        return gathered(x, self.gather, held) if self.gather and x.shape[-1] == self.config.d_stream else x

    def entering(self, x: Float[Tensor, "*batch d_embed"]) -> Float[Tensor, "*batch d_model"]:
        """Rows of the embedding matrix as they enter the stream: scaled, widened and normed where the design does."""
        if self.config.embedding_scale is not None:
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype, device=x.device)
        if self.project_in is not None:
            x = self.project_in(x)
        return x if self.embed_norm is None else self.embed_norm(x)

    def stream(
        self,
        x: Float[Tensor, "batch query d_model"],
        positions: Int[Tensor, "batch query"],
        *,
        layers: Sequence[int] | None = None,
        start: int = 0,
        keys_mask: Bool[Tensor, "batch key"] | None = None,
        cache: Cache | None = None,
        tap: Tap | None = None,
        shared: dict[int, tuple[Tensor, Tensor]] | None = None,
        inputs: Mapping[int, Tensor] | None = None,
    ) -> Float[Tensor, "batch query d_model"]:
        """The residual stream after `layers` (all of them by default), given it before the first of them.

        Args:
            start: key slot of the first query, where `cache` holds earlier ones.
            keys_mask: False on key slots that hold padding.
            tap: sees the sites of these layers; others it declares are not reached, which is no error here.
            shared: keys and values (batch, kv_head, key, d_head) of layers before the first that later ones use; those
                of these layers are added.
            inputs: tokens' own vectors (batch, query, d_ple) in these layers, where the design has them.
        """
        where = Where(positions, None if keys_mask is None else keys_mask[:, start:], start)
        looking = None if tap is None else Looking(tap, self.config, where)
        lengths = None
        if cache is not None and cache.whole is not None:
            lengths = (positions.amax(1) + 1).clamp(min=cache.whole)
        held = {} if shared is None else shared
        state = Pass(
            where,
            Visible(start, keys_mask),
            self.angles(positions, lengths),
            cache,
            held,
            {} if inputs is None else inputs,
        )
        return self._blocks(x, state, looking, layers=layers)

    def inputs(self, tokens: Int[Tensor, "batch query"]) -> Mapping[int, Float[Tensor, "batch query d_ple"]]:
        """Tokens' own vectors in every layer; empty where the design has none."""
        return {} if self.layer_inputs is None else self.layer_inputs(tokens, self.entering(self.embed(tokens)))

    def angles(
        self, positions: Int[Tensor, "batch query"], lengths: Int[Tensor, " batch"] | None = None
    ) -> tuple[Angles, ...]:
        """Cosines and sines at these positions, for each of the rotary tables that layers name by number; of texts
        that end with the last of them, or are as long as `lengths` says."""
        return tuple(table(positions, self.dtype, lengths) for table in self.tables)

    def table(self, layer: int) -> int | None:
        """Which rotary table turns this layer's queries and keys; None where nothing is turned."""
        return getattr(self.blocks[layer].mixer, "table", None)

    def _whole(
        self, tokens: Tensor, cache: Cache | None, mask: Tensor | None
    ) -> tuple[Tensor, Bool[Tensor, "batch query"] | None]:
        """The tokens to compute: those given, or with those that the cache holds before them, which then is empty,
        where the text has grown past a length at which all its positions turn otherwise."""
        if cache is None or cache.tokens is None or cache.made is None or cache.length == 0 or tokens.ndim != 2:
            return tokens, mask
        held, fresh = cache.mask, tokens.shape[1] if mask is None else mask.sum(1)
        before = cache.length if held is None else held[:, : cache.length].sum(1)
        lengths = torch.zeros_like(cache.made) + before + fresh
        if all(torch.equal(table.regime(cache.made), table.regime(lengths)) for table in self.tables):
            return tokens, mask
        whole = torch.cat([cache.tokens[:, : cache.length], tokens], 1)
        if held is not None or mask is not None:
            old = torch.ones_like(whole[:, : cache.length], dtype=torch.bool)
            new = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
            mask = torch.cat([old if held is None else held[:, : cache.length], new], 1)
        cache.check(*tokens.shape)
        cache.truncate(0)
        return whole, mask

    def _end(self, tokens: Tensor, cache: Cache | None, state: Pass) -> None:
        """The forward is done, and the cache may count what it holds."""
        if cache is None:
            return
        if cache.tokens is not None:
            cache.tokens[:, cache.length : cache.length + tokens.shape[1]] = tokens
            cache.made = state.where.positions.amax(1) + 1
        cache.advance(tokens.shape[1])

    def _begin(
        self,
        tokens: Tensor,
        cache: Cache | None,
        mask: Tensor | None,
        tap: Tap | None,
        lengths: Sequence[int] | None = None,
    ) -> tuple[Looking | None, Pass]:
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise ShapeError(f"Tokens must be (batch, query) with at least one query; got {tuple(tokens.shape)}.")
        if mask is not None and mask.shape != tokens.shape:
            raise ShapeError(f"The mask must have the tokens' shape {tuple(tokens.shape)}; got {tuple(mask.shape)}.")
        start = 0 if cache is None else cache.length
        count = tokens.shape[1]
        if lengths is not None:
            check_lengths(tokens, lengths)
            if cache is not None or mask is not None or not self.config.packs:
                raise ShapeError("Several documents in one row are for softmax attention without cache and mask.")
        if cache is None:
            keys = mask
        else:
            cache.check(*tokens.shape)
            keys = cache.key_mask(mask, count)
        if lengths is not None:
            positions = torch.cat([torch.arange(n, device=tokens.device) for n in lengths])[None]
        elif keys is None:
            positions = torch.arange(start, start + count, device=tokens.device).expand(tokens.shape)
        else:
            positions = (keys.long().cumsum(1) - 1).clamp(min=0)[:, start:]
        if self.config.learned_positions:
            reach = start + count if keys is None and lengths is None else int(positions.max()) + 1
            if reach > self.config.context:
                raise ShapeError(f"This model has {self.config.context} trained positions; the text needs {reach}.")
        where = Where(positions, None if keys is None else keys[:, start:], start, tokens)
        looking = None if tap is None else Looking(tap, self.config, where)
        visible = Visible(start, keys, None if lengths is None else tuple(lengths))
        return looking, Pass(where, visible, self.angles(positions), cache, inputs=self.inputs(tokens))

    def _blocks(
        self,
        x: Tensor,
        state: Pass,
        looking: Looking | None,
        *,
        layers: Sequence[int] | None = None,
        run_block: RunBlock | None = None,
    ) -> Tensor:
        for i in range(self.config.n_layers) if layers is None else layers:
            block, view = self.blocks[i], None if looking is None else looking.at(i)
            x = block(x, state, view) if run_block is None else run_block(block, x, state, view)
        return x


def check_lengths(tokens: Int[Tensor, "batch query"], lengths: Sequence[int]) -> None:
    """That documents of these lengths fill one row.

    Raises:
        ShapeError: they do not.
    """
    if tokens.shape[0] != 1 or sum(lengths) != tokens.shape[1] or min(lengths, default=0) < 1:
        raise ShapeError(f"Documents of {sum(lengths)} tokens do not fill one row; got {tuple(tokens.shape)}.")


def rotary_kinds(config: Config) -> list[tuple[Rotary, int]]:
    """The different ways in which layers rotate, each with the size of the heads it is for."""
    found: list[tuple[Rotary, int]] = []
    for layer in config.layers:
        mixer = softmax_of(layer.mixer)
        if mixer is not None and mixer.rotary is not None and (mixer.rotary, mixer.d_head) not in found:
            found.append((mixer.rotary, mixer.d_head))
    return found

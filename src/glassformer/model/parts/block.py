"""One layer: a mixer and a feed-forward part, each adding to the residual stream."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.choices import (
    Attention,
    DifferentialAttention,
    Experts,
    FeedForward,
    GatedDelta,
    GatedLinearRecurrence,
    LatentAttention,
    LinearAttention,
    MatrixMemory,
    Parallel,
    Rotary,
    SelectiveStateSpace,
    ShortConvolution,
    StateSpace,
    recurrence_of,
    softmax_of,
)
from glassformer.model.config import Config
from glassformer.model.norms import NormLayer
from glassformer.model.parts.attention import AttentionPart
from glassformer.model.parts.copies import CopiesPart, LaurelPart
from glassformer.model.parts.differential import DifferentialAttentionPart
from glassformer.model.parts.experts import ExpertsPart
from glassformer.model.parts.feed_forward import FeedForwardPart
from glassformer.model.parts.gated_delta import GatedDeltaPart
from glassformer.model.parts.gated_linear_recurrence import GatedLinearRecurrencePart
from glassformer.model.parts.latent import LatentAttentionPart
from glassformer.model.parts.layer_embedding import LayerEmbeddingPart
from glassformer.model.parts.linear_attention import LinearAttentionPart
from glassformer.model.parts.matrix_memory import MatrixMemoryPart
from glassformer.model.parts.parallel import ParallelPart
from glassformer.model.parts.passing import Pass
from glassformer.model.parts.selective_state_space import SelectiveStateSpacePart
from glassformer.model.parts.short_convolution import ShortConvolutionPart
from glassformer.model.parts.state_space import StateSpacePart
from glassformer.model.sites import View, see

MixerPart = (
    AttentionPart
    | GatedDeltaPart
    | GatedLinearRecurrencePart
    | LinearAttentionPart
    | ParallelPart
    | MatrixMemoryPart
    | SelectiveStateSpacePart
    | ShortConvolutionPart
    | StateSpacePart
)
FeedPart = FeedForwardPart | ExpertsPart


class Block(nn.Module):
    """One layer. Its parts are attributes under their prefixes (`attn`, `ssm`, `mlp`), its norms `ln1` and `ln2`
    before the parts and `ln1_post` and `ln2_post` after them; those that the design lacks are None."""

    ln1: NormLayer | None
    ln2: NormLayer | None
    ln1_post: NormLayer | None
    ln2_post: NormLayer | None
    ln3_post: NormLayer | None

    def __init__(self, config: Config, layer: int, kinds: list[tuple[Rotary, int]]) -> None:
        super().__init__()
        choice = self.choice = config.layers[layer]
        self.layer = layer
        self.parallel, self.after_sum = choice.parallel, choice.norms == "sum"
        self.scalar = nn.Parameter(torch.empty(1)) if choice.scalar else None
        for name in ("ln1", "ln2", "ln1_post", "ln2_post", "ln3_post"):
            self.add_module(name, NormLayer(config.d_model, config.norm) if name in choice.norm_names else None)
        if (mixer := softmax_of(choice.mixer)) is not None:
            table = None if mixer.rotary is None else kinds.index((mixer.rotary, mixer.d_head))
            donates = any(isinstance(x.mixer, Attention) and x.mixer.keys_from == layer for x in config.layers)
            if isinstance(mixer, LatentAttention):
                self.attn: AttentionPart = LatentAttentionPart(mixer, config.d_model, layer, table)
            elif isinstance(mixer, DifferentialAttention):
                self.attn = DifferentialAttentionPart(mixer, config.d_model, config.norm, layer, table)
            else:
                self.attn = AttentionPart(mixer, config.d_model, config.norm, layer, table, donates)
        recurrence = recurrence_of(choice.mixer)
        if isinstance(recurrence, GatedDelta):
            self.delta = GatedDeltaPart(recurrence, config.d_model, layer)
        elif isinstance(recurrence, StateSpace):
            self.ssm = StateSpacePart(recurrence, config.d_model, layer)
        elif isinstance(recurrence, SelectiveStateSpace):
            self.mamba = SelectiveStateSpacePart(recurrence, config.d_model, layer)
        elif isinstance(recurrence, LinearAttention):
            self.linear = LinearAttentionPart(recurrence, config.d_model, layer)
        elif isinstance(recurrence, MatrixMemory):
            self.mlstm = MatrixMemoryPart(recurrence, config.d_model, layer)
        elif isinstance(recurrence, GatedLinearRecurrence):
            self.lru = GatedLinearRecurrencePart(recurrence, config.d_model, layer)
        elif isinstance(recurrence, ShortConvolution):
            self.conv = ShortConvolutionPart(recurrence, config.d_model, layer)
        if isinstance(choice.mixer, Parallel):
            self.mix = ParallelPart(choice.mixer, (self.attn, getattr(self, choice.mixer.recurrence.prefix)))
        if isinstance(choice.feed_forward, FeedForward):
            self.mlp: FeedPart = FeedForwardPart(choice.feed_forward, config.d_model)
        elif isinstance(choice.feed_forward, Experts):
            self.mlp = ExpertsPart(choice.feed_forward, config.d_model)
        copies = choice.copies
        self.copies = None if copies is None else CopiesPart(copies, config.d_model, config.norm)
        self.laurel = None if copies is None else LaurelPart(copies, config.d_model, config.norm)
        self.ple = None if choice.embedding is None else LayerEmbeddingPart(choice.embedding, config.d_model)

    @property
    def mixer(self) -> MixerPart | None:
        """The part that moves information between positions."""
        mixer = self.choice.mixer
        return None if mixer is None else getattr(self, mixer.prefix)

    @property
    def feed_forward(self) -> FeedPart | None:
        """The part that works at each position alone."""
        part = self.choice.feed_forward
        return None if part is None else getattr(self, part.prefix)

    def forward(
        self, x: Float[Tensor, "batch query d_model"], state: Pass, view: View | None = None
    ) -> Float[Tensor, "batch query d_model"]:
        """The residual stream after this layer."""
        x = see(view, "resid_pre", x)
        if self.copies is not None:
            return self._with_copies(x, state, view)
        x = self._parts(x, state, view)
        if self.ple is not None:
            x = see(view, "resid_late", x)
            x = x + self.add(3, self.ple(x, state.inputs[self.layer], view), view)
        return see(view, "resid_post", self.leaving(x))

    def _with_copies(self, x: Tensor, state: Pass, view: View | None) -> Tensor:
        """All copies of the stream after a layer that computes with the first one's prediction."""
        mixer, feed, copies = self.mixer, self.feed_forward, self.copies
        assert mixer is not None
        assert feed is not None
        assert copies is not None
        assert self.laurel is not None
        assert self.ple is not None
        predicted = copies.predicted(x)
        active = see(view, "resid_active", predicted[..., 0, :])
        read = self.read(1, active, view)
        laurel = see(view, "laurel.out", self.beside(read))
        added = self.add(1, mixer(read, state, view), view)
        middle = see(view, "resid_mid", self.joined(1, active, added) + laurel)
        m = self.add(2, self._fed(middle, self.read(2, middle, view), view), view)
        late = see(view, "resid_late", copies.corrected(self.replaced(predicted, active), self.joined(2, middle, m)))
        own = self.add(3, self.ple(copies.first(late), state.inputs[self.layer], view), view)
        return see(view, "resid_post", late + copies.beside(own))

    def beside(self, read: Tensor) -> Tensor:
        """What stands beside the mixer and reads what it reads, as it enters the stream."""
        assert self.laurel is not None
        return self.laurel(read) * self.choice.part_scale(1)

    def replaced(self, predicted: Tensor, active: Tensor) -> Tensor:
        """The predicted copies with the first one as the layer computed with it."""
        return torch.cat([active[..., None, :], predicted[..., 1:, :]], -2)

    def _parts(self, x: Tensor, state: Pass, view: View | None) -> Tensor:
        """The stream after mixer and feed-forward part."""
        mixer, feed = self.mixer, self.feed_forward
        if mixer is None:
            assert feed is not None
            added = self.add(2, self._fed(x, self.read(2, x, view), view), view)
            return self.joined(2, x, added)
        first = self.read(1, x, view)
        a = self.add(1, mixer(first, state, view), view)
        if feed is None:
            return self.joined(1, x, a)
        if self.parallel:
            second = first if self.ln2 is None and self.ln1 is not None else self.read(2, x, view)
            return x + a + self.add(2, self._fed(x, second, view), view)
        middle = see(view, "resid_mid", self.joined(1, x, a))
        m = self.add(2, self._fed(middle, self.read(2, middle, view), view), view)
        return self.joined(2, middle, m)

    def _fed(self, stream: Tensor, x: Tensor, view: View | None) -> Tensor:
        """What the feed-forward part gives of the normed stream `x`."""
        feed = self.feed_forward
        assert feed is not None
        return feed(x, view, stream) if isinstance(feed, ExpertsPart) else feed(x, view)

    def norm(self, part: int) -> NormLayer | None:
        """The norm before the mixer (1) or the feed-forward part (2); None where the part reads the stream itself."""
        if self.after_sum:
            return None
        return self.ln1 if part == 1 else self.ln2 if self.ln2 is not None or not self.parallel else self.ln1

    def post_norm(self, part: int) -> NormLayer | None:
        """The norm of what the mixer (1), the feed-forward part (2) or the layer's embedding (3) adds."""
        return (self.ln1_post, self.ln2_post, self.ln3_post)[part - 1]

    def read(self, part: int, x: Tensor, view: View | None = None) -> Tensor:
        """What the mixer (1) or the feed-forward part (2) reads of the stream."""
        norm = self.norm(part)
        return x if norm is None else norm(x, view, f"ln{part}")

    def add(self, part: int, out: Tensor, view: View | None = None) -> Tensor:
        """What enters the stream of a part's output: normed and scaled where the design says so."""
        norm = self.post_norm(part)
        if norm is not None:
            out = norm(out)
        scale = self.choice.part_scale(part)
        if scale != 1:
            out = out * scale
        choice = self.choice
        prefix = (choice.mixer, choice.feed_forward, choice.embedding)[part - 1].prefix  # type: ignore[union-attr]
        return see(view, f"{prefix}.out", out)

    def joined(self, part: int, x: Tensor, added: Tensor) -> Tensor:
        """The stream after a part was added: normed where norms stand after the sum."""
        keep = self.choice.stream_scale(part)
        x = (x if keep == 1 else x * keep) + added
        if not self.after_sum:
            return x
        norm = self.ln1 if part == 1 else self.ln2
        assert norm is not None
        return norm(x)

    def leaving(self, x: Tensor) -> Tensor:
        """The stream as it leaves the layer, from what all parts made of it."""
        return x if self.scalar is None else x * self.scalar

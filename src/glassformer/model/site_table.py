"""The table of named places of the transformer: name, axes, and meaning in one sentence.

It is the single source for documentation, tooltips and tests.
Axes: batch, query, key, head, kv_head, d_model, d_head, d_ff, vocab.
"""

from __future__ import annotations

from dataclasses import dataclass

RESIDUAL = ("batch", "query", "d_model")
SCALE = ("batch", "query", "one")
HEADS = ("batch", "query", "head", "d_head")
KV_HEADS = ("batch", "key", "kv_head", "d_head")
PER_HEAD = ("batch", "query", "head")
GRID = ("batch", "head", "query", "key")
HIDDEN = ("batch", "query", "d_ff")
EXPERTS = ("batch", "query", "expert")
OWN = ("batch", "query", "d_ple")
VOCAB = ("batch", "query", "vocab")


@dataclass(frozen=True)
class Site:
    """One named place: its name (within a block or whole), axes, and meaning in one sentence."""

    name: str
    axes: tuple[str, ...]
    meaning: str
    in_block: bool = True


SITES: tuple[Site, ...] = (
    Site("embed", RESIDUAL, "Each token's row of the embedding matrix, scaled or normed where the family does.", False),
    Site("pos_embed", RESIDUAL, "The vector of each position, trained or fixed, added to the embedding.", False),
    Site("resid_pre", RESIDUAL, "The residual stream as it enters the block."),
    Site("resid_active", RESIDUAL, "The prediction of the first of several copies, with which the layer computes."),
    Site("ln1.scale", SCALE, "What the norm before the mixer (attention or a recurrence) divides by."),
    Site("ln1.normed", RESIDUAL, "The residual stream after the norm before the mixer, learned scale included."),
    Site("attn.q", HEADS, "Queries: what each position asks for, before rotation."),
    Site("attn.k", KV_HEADS, "Keys: what each position offers to be found by, before rotation."),
    Site("attn.v", KV_HEADS, "Values: what each position hands over when it is attended to."),
    Site("attn.rot_q", HEADS, "Queries as the scores use them, after rotation by their position."),
    Site("attn.rot_k", KV_HEADS, "Keys as the scores use them, after rotation by their position."),
    Site("attn.index_q", ("batch", "query", "index_head", "d_index"), "How a position looks for keys to attend to."),
    Site("attn.index_k", ("batch", "key", "d_index"), "What a position is found by when keys are chosen."),
    Site("attn.index_weights", ("batch", "query", "index_head"), "What each head's finding counts in that choice."),
    Site("attn.scores", GRID, "Scaled query-key products, soft-capped, minus infinity where a key is hidden."),
    Site("attn.sink", PER_HEAD, "The share of attention that the head's sink takes and that hands over nothing."),
    Site("attn.pattern", GRID, "Attention weights: each row, a sink included, is a softmax and sums to one."),
    Site("attn.router", EXPERTS, "A router's score of each of a key head's query heads (mixtures of attention heads)."),
    Site("attn.gate", HEADS, "What multiplies each head's sum of values, from 0 on (output gates)."),
    Site(
        "attn.pair_scale",
        ("batch", "query", "pair"),
        "What the norm of each pair's difference divides by (differential attention).",
    ),
    Site("attn.z_scale", SCALE, "What the norm over all heads' outputs divides by (designs with one)."),
    Site(
        "attn.z",
        HEADS,
        "Each head's weighted sum of values, gated where there is a gate; the output projection reads it.",
    ),
    Site("attn.out", RESIDUAL, "What attention adds to the residual stream, after a post-norm where there is one."),
    Site("delta.gate", HEADS, "What gates each head's output, after its activation."),
    Site("delta.q", ("batch", "query", "key_head", "d_key"), "How a position reads the state: queries of one length."),
    Site("delta.k", ("batch", "key", "key_head", "d_key"), "Where a position is written in the state: unit keys."),
    Site("delta.v", KV_HEADS, "What each position hands over, by head, after the convolution: its values."),
    Site("delta.beta", PER_HEAD, "The share of a correction towards the value that each head makes at a position."),
    Site("delta.decay", PER_HEAD, "The logarithm of what each head's state keeps at a position."),
    Site(
        "delta.decays",
        ("batch", "query", "head", "d_key"),
        "The same where each channel of a head's keys has a decay of its own.",
    ),
    Site("delta.pattern", GRID, "The grid that decays and corrections imply: a head reads this times its values."),
    Site("delta.mixed", HEADS, "What each head reads from its state, before norm and gate."),
    Site("delta.z", HEADS, "Each head's output after norm and gate, before the output projection."),
    Site("delta.out", RESIDUAL, "What the delta rule adds to the residual stream, after any post-norm."),
    Site("ssm.gate", HEADS, "What gates each head's output, after its activation."),
    Site("ssm.x", KV_HEADS, "What each position hands over, by head, after the convolution: its values."),
    Site("ssm.b", ("batch", "key", "group", "d_state"), "How a position is written into the state: its keys."),
    Site("ssm.c", ("batch", "query", "group", "d_state"), "How a position reads the state: its queries."),
    Site("ssm.dt", PER_HEAD, "How much each head takes in at a position; its decay follows from it."),
    Site(
        "ssm.pattern",
        GRID,
        "The grid that decays imply: a head reads this times x (arXiv:2403.01590).",
    ),
    Site("ssm.mixed", HEADS, "What each head reads from its state, before gate and norm."),
    Site("ssm.z", HEADS, "Each head's output after gate and norm, before the output projection."),
    Site("ssm.out", RESIDUAL, "What the state space adds to the residual stream, after any post-norm."),
    Site("mamba.gate", HEADS, "What gates each channel's output, after its activation."),
    Site("mamba.x", KV_HEADS, "What each position hands over, by channel, after the convolution: its values."),
    Site("mamba.b", ("batch", "key", "d_state"), "How a position is written into every channel's state: its keys."),
    Site("mamba.c", ("batch", "query", "d_state"), "How a position reads every channel's state: its queries."),
    Site("mamba.dt", HEADS, "How much each channel takes in at a position; its decay follows from it."),
    Site("mamba.pattern", GRID, "The grid that decays imply: the mean over channels of each share's absolute value."),
    Site("mamba.mixed", HEADS, "What each channel reads from its state, before the gate."),
    Site("mamba.z", HEADS, "Each channel's output after the gate, before the output projection."),
    Site("mamba.out", RESIDUAL, "What the state space of channels adds to the residual stream, after any post-norm."),
    Site("mlstm.gate", HEADS, "What multiplies each head's normed output, between 0 and 1."),
    Site("mlstm.q", ("batch", "query", "key_head", "d_key"), "How a position reads the memory: its queries."),
    Site("mlstm.k", ("batch", "key", "key_head", "d_key"), "Where a position is written in the memory: its keys."),
    Site("mlstm.v", KV_HEADS, "What each position hands over, by head: its values."),
    Site("mlstm.input", PER_HEAD, "The logarithm of what each head takes in at a position."),
    Site("mlstm.decay", PER_HEAD, "The logarithm of what each head's memory keeps at a position."),
    Site("mlstm.pattern", GRID, "The grid that gates and divisor imply: a head reads this times its values."),
    Site("mlstm.mixed", HEADS, "What each head reads from its memory, before norm and gate."),
    Site("mlstm.z", HEADS, "Each head's output after norm and gate, before the output projection."),
    Site("mlstm.out", RESIDUAL, "What the matrix memory adds to the residual stream, after any post-norm."),
    Site("linear.gate", HEADS, "What multiplies each head's normed output, between 0 and 1."),
    Site("linear.q", ("batch", "query", "key_head", "d_key"), "How a position reads the state: its queries."),
    Site("linear.k", ("batch", "key", "key_head", "d_key"), "Where a position is written in the state: its keys."),
    Site("linear.v", KV_HEADS, "What each position hands over, by head: its values."),
    Site("linear.pattern", GRID, "Query-key products that fade with distance: a head reads this times its values."),
    Site("linear.mixed", HEADS, "What each head reads from its state, before norm and gate."),
    Site("linear.z", HEADS, "Each head's output after norm and gate, before the output projection."),
    Site("linear.out", RESIDUAL, "What linear attention adds to the residual stream, after any post-norm."),
    Site("lru.gate", HEADS, "What gates each channel's output, after its activation."),
    Site("lru.gate_in", HEADS, "What gates what each channel takes in, between 0 and 1."),
    Site("lru.decay", HEADS, "The logarithm of what each channel's number keeps at a position."),
    Site("lru.v", KV_HEADS, "What each position hands over, by channel, gated and scaled by what decays."),
    Site("lru.pattern", GRID, "The grid that decays imply: the mean over channels of each one's share."),
    Site("lru.mixed", HEADS, "What each channel holds, before the gate on its output."),
    Site("lru.z", HEADS, "Each channel's output after the gate, before the output projection."),
    Site("lru.out", RESIDUAL, "What the gated recurrence adds to the residual stream, after any post-norm."),
    Site("conv.gate", HEADS, "What gates each channel's output."),
    Site("conv.gate_in", HEADS, "What gates what each channel takes in."),
    Site("conv.v", KV_HEADS, "What each position hands over, by channel, after the gate on what it takes in."),
    Site("conv.pattern", GRID, "The convolution as a grid: the mean over channels of each weight's absolute value."),
    Site("conv.mixed", HEADS, "What the convolution gives, before the gate."),
    Site("conv.z", HEADS, "Each channel's output after the gate, before the output projection."),
    Site("conv.out", RESIDUAL, "What the short convolution adds to the residual stream, after any post-norm."),
    Site("mix.pattern", GRID, "The patterns of attention and of the recurrence beside it, head after head."),
    Site("mix.z", HEADS, "Outputs of attention's heads, then of the recurrence's, narrower ones filled up with zeros."),
    Site("mix.out", RESIDUAL, "What attention and the recurrence beside it add to the residual stream together."),
    Site("laurel.out", RESIDUAL, "What the normed stream and a matrix of low rank add beside attention (Gemma 3n)."),
    Site("resid_mid", RESIDUAL, "The residual stream between mixer and feed-forward (sequential blocks of two parts)."),
    Site("ln2.scale", SCALE, "What the norm before the feed-forward layer divides by."),
    Site("ln2.normed", RESIDUAL, "The residual stream after the norm before the feed-forward layer."),
    Site("mlp.router", EXPERTS, "The router's score of every expert, before softmax or sigmoid."),
    Site(
        "mlp.weights",
        EXPERTS,
        "What each expert's output is multiplied by: 0 for those that were not chosen; writing it switches experts.",
    ),
    Site("mlp.latent", ("batch", "query", "latent"), "What experts read where they work in a latent of their own."),
    Site("mlp.pre", HIDDEN, "Each neuron's input to the activation function (the gate, where there is one)."),
    Site("mlp.pre_linear", HIDDEN, "The linear half that the activated gate multiplies (gated layers)."),
    Site("mlp.post", HIDDEN, "Each neuron's output, its expert's weight in it, which scales the column it writes."),
    Site("mlp.shared_pre", HIDDEN, "As mlp.pre, of the feed-forward part that every token passes beside experts."),
    Site("mlp.shared_pre_linear", HIDDEN, "As mlp.pre_linear, of the part beside the experts."),
    Site("mlp.shared_post", HIDDEN, "As mlp.post, of the part beside the experts, before its gate."),
    Site("mlp.shared_gate", SCALE, "What multiplies the output of the part beside the experts, where it is gated."),
    Site("mlp.shared", RESIDUAL, "What the part beside the experts gives, its gate in it."),
    Site("mlp.out", RESIDUAL, "What the feed-forward layer adds to the residual stream, after any post-norm."),
    Site("resid_late", RESIDUAL, "The residual stream before the layer's own embedding of the token (Gemma 4)."),
    Site("ple.input", OWN, "The token's own vector in this layer: a row of a table, and a reading of its embedding."),
    Site("ple.pre", OWN, "What the stream gates that vector with, before the activation."),
    Site("ple.post", OWN, "The token's own vector, gated; the layer widens it to the stream."),
    Site("ple.out", RESIDUAL, "What the layer's own embedding of the token adds to the residual stream, normed."),
    Site("resid_post", RESIDUAL, "The residual stream as it leaves the block."),
    Site("head.scale", SCALE, "What the norm before the head's matrix divides by (designs with a head).", False),
    Site("head.normed", RESIDUAL, "The last residual stream as the head's matrix reads it.", False),
    Site(
        "head.pre",
        RESIDUAL,
        "What the head's matrix gives, before its activation; the final norm reads the rest.",
        False,
    ),
    Site("final.scale", SCALE, "What the final norm divides by.", False),
    Site("final.normed", RESIDUAL, "The last residual stream after the final norm: what the unembedding reads.", False),
    Site("logits.precap", VOCAB, "Scores of every next token before the soft cap (families that cap).", False),
    Site("logits", VOCAB, "Scores of every next token; their softmax is the prediction.", False),
)
BY_NAME: dict[str, Site] = {site.name: site for site in SITES}

# TransformerLens's names for the same places.
ALIASES: dict[str, str] = {
    "hook_embed": "embed",
    "hook_pos_embed": "pos_embed",
    "hook_resid_pre": "resid_pre",
    "ln1.hook_scale": "ln1.scale",
    "ln1.hook_normalized": "ln1.normed",
    "attn.hook_q": "attn.q",
    "attn.hook_k": "attn.k",
    "attn.hook_v": "attn.v",
    "attn.hook_rot_q": "attn.rot_q",
    "attn.hook_rot_k": "attn.rot_k",
    "attn.hook_attn_scores": "attn.scores",
    "attn.hook_pattern": "attn.pattern",
    "attn.hook_z": "attn.z",
    "hook_attn_out": "attn.out",
    "hook_resid_mid": "resid_mid",
    "ln2.hook_scale": "ln2.scale",
    "ln2.hook_normalized": "ln2.normed",
    "mlp.hook_pre": "mlp.pre",
    "mlp.hook_pre_linear": "mlp.pre_linear",
    "mlp.hook_post": "mlp.post",
    "hook_mlp_out": "mlp.out",
    "hook_resid_post": "resid_post",
    "ln_final.hook_scale": "final.scale",
    "ln_final.hook_normalized": "final.normed",
}

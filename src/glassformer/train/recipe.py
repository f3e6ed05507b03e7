"""What a training run is, as frozen data: model, data, optimiser, schedule and loop.

A recipe is a TOML file (or a name of one that comes with the package) plus `key=value` settings. Every key and value
is checked by name before anything is built (`settings.py` has what they may be); nothing here imports torch, reads
training text or does arithmetic.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from glassformer.errors import UsageError, near
from glassformer.model.config import Attention, Config, FeedForward, Norm, Rotary, uniform
from glassformer.train import designs
from glassformer.train.settings import check, coerce, pair

DEFAULT = "cpu-minutes"
EXPECTED = {"loss": "expected loss", "time": "expected time", "memory": "expected memory", "machine": "on"}
"""What a recipe states, in words."""


@dataclass(frozen=True)
class ModelSpec:
    """The model to train.

    Args:
        design: the family whose shape it has, which is also the family it exports as: "qwen3" (rotary, RMS norm,
            normed queries and keys, gated SiLU), "llama" (the same without query-key norms), "gpt2" (learned
            positions, layer norm, GELU), "relu2" (qwen3 with an ungated ReLU² feed-forward part; no other
            library loads it); or one of `designs.TINY`, made of other families' parts: experts, state spaces, …
        layers, width, heads, kv_heads, head_dims, d_ff: the shape; 0 means: kv_heads = heads, head_dims =
            width / heads, d_ff = 8/3 of the width for gated parts (rounded up to 32) and 4 times it for others; of
            experts, the share of that which makes a token's experts together as wide.
        experts, active: in designs with experts, how many there are and how many a token meets; 0 means 8 and 2.
        context: tokens a training row holds, and the longest text the model is made for.
        theta: rotary base.
        tied: the unembedding is the embedding.
        start: fine-tune from this SOURCE instead of random weights; the shape above is then ignored.
    """

    design: str = "qwen3"
    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 0
    head_dims: int = 0
    d_ff: int = 0
    experts: int = 0
    active: int = 0
    context: int = 256
    theta: float = 10_000.0
    tied: bool = False
    start: str = ""


@dataclass(frozen=True)
class DataSpec:
    """What is learned from.

    Args:
        data: files, folders, globs or `hf:` names; empty means Python's own standard library.
        tokenizer: "byte", "char", "bpe:SIZE", or a SOURCE whose tokenizer is used; with `start` it is that model's.
        held_out: share of the text kept aside to measure on.
        split: "document" keeps whole documents aside, "tail" the end of the text.
        chat: the data are conversations (jsonl, `{"messages": [...]}` or alike); the loss counts answers only.
        sampling: "epoch" shows each row once before any a second time; "random" draws rows at any offset.
        pack: documents that share a row are "apart" (none sees another, each has positions of its own) or "together".
        text_field: the field or column that holds the text, where the data's own names do not say.
        noise: share of the tokens read while training (never of those foretold) that are replaced by others of
            their row; it keeps a model from learning a small text by heart.
    """

    data: tuple[str, ...] = ()
    tokenizer: str = "byte"
    held_out: float = 0.05
    split: str = "document"
    chat: bool = False
    sampling: str = "epoch"
    pack: str = "apart"
    text_field: str = ""
    noise: float = 0.0


@dataclass(frozen=True)
class OptimizerSpec:
    """How gradients become steps.

    Args:
        kind: "muon" (Muon for the matrices of the blocks, AdamW for the rest) or "adamw" for everything.
        muon_lr, momentum, momentum_start, momentum_warmup, newton_schulz, muon_decay: Muon's rate; its momentum,
            rising from `momentum_start` over `momentum_warmup` steps; Newton–Schulz rounds; decoupled weight decay.
        embed_lr, head_lr, vector_lr, matrix_lr: AdamW's rates for embeddings, unembedding, vectors (norms, biases)
            and, with kind "adamw", the matrices.
        beta1, beta2, eps, adam_decay: AdamW's other numbers.
        cautious: weight decay only where it agrees with the step's direction.
        clip: largest gradient norm, 0 for no clipping.
        dropout: share of the numbers that embeddings and parts of blocks add to the stream which a step leaves out.
        balance: of a model with experts, what multiplies the loss that keeps their loads even (`balance.py`); 0 for
            none.
    """

    kind: str = "muon"
    muon_lr: float = 0.02
    momentum: float = 0.95
    momentum_start: float = 0.85
    momentum_warmup: int = 100
    newton_schulz: int = 5
    muon_decay: float = 0.0
    embed_lr: float = 0.02
    head_lr: float = 0.005
    vector_lr: float = 0.01
    matrix_lr: float = 0.001
    beta1: float = 0.8
    beta2: float = 0.95
    eps: float = 1e-10
    adam_decay: float = 0.0
    cautious: bool = False
    clip: float = 0.0
    dropout: float = 0.0
    balance: float = 0.01


@dataclass(frozen=True)
class ScheduleSpec:
    """How long, how much at a time, and at what pace.

    Args:
        steps: optimiser steps.
        batch: rows in a step, over all processes.
        warmup: steps over which the rate rises from 0.
        decay: share of the steps, at the end, over which it falls linearly.
        final: what is left of the rate at the end, as a share.
        batch_stages, length_stages: `[[share, value], ...]`: up to that share of the steps, this many rows, or
            tokens a row, instead of `batch` and `context`.
    """

    steps: int = 1000
    batch: int = 16
    warmup: int = 0
    decay: float = 0.6
    final: float = 0.0
    batch_stages: tuple[tuple[float, int], ...] = ()
    length_stages: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True)
class LoopSpec:
    """How the machine is used, and when to look and to save.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", ...
        precision: "auto", "bf16" (float32 weights, bfloat16 copies computed with) or "fp32".
        threads: processor threads, 0 for all cores.
        micro_batch: rows computed at once, 0 for as many as fit.
        memory: share of the free memory that a run may plan with.
        loss_chunk: tokens whose logits exist at once, 0 for a choice by vocabulary size.
        recompute: activation checkpointing: forget what is inside a block, compute it again for the gradient.
        compile: "off", "on" or "auto" (where it will pay).
        fused: on a processor, attention by explicit products instead of PyTorch's fused kernel.
        native: on a processor, the whole step in C++: "off", "on" or "auto" (plain designs that are small enough, runs
            that are long enough).
        deterministic: on a GPU, only kernels that give the same bits every time (slower).
        shard: "none" (every process holds the model) or "full" (FSDP2).
        seed: of weights and of the order of the data.
        log_every, eval_every, sample_every, save_every, probe_every: in steps, 0 for never (at the end, always).
        eval_tokens: held-out tokens measured at each look; the end measures up to 20 times as many.
        film: frames of the run kept to look back at, spaced by the logarithm of the step, each with a sample, probes,
            patterns and as many weights as fit into 10 MB for all of them; 0 for none.
        sample_prompt, sample_tokens: what samples start with, and how long they are.
        keep: checkpoints kept, beside the best.
        on_nan: "stop", or "skip" that batch.
        tensorboard: also write the journal's numbers for TensorBoard.
    """

    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    micro_batch: int = 0
    memory: float = 0.6
    loss_chunk: int = 0
    recompute: bool = False
    compile: str = "off"
    fused: bool = True
    native: str = "auto"
    deterministic: bool = False
    shard: str = "none"
    seed: int = 1
    log_every: int = 10
    eval_every: int = 100
    sample_every: int = 0
    save_every: int = 500
    probe_every: int = 0
    film: int = 0
    eval_tokens: int = 65_536
    sample_prompt: str = ""
    sample_tokens: int = 100
    keep: int = 2
    on_nan: str = "stop"
    tensorboard: bool = False


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter that is trained alone, beside the frozen model that `start` names.

    Args:
        adapter: "none" (the whole model is trained), "lora", or "dora" (rows are scaled as well).
        rank: of what is added to each matrix.
        alpha: what is added is multiplied by alpha / rank.
        rank_stable: by alpha / √rank instead (rsLoRA).
        targets: which matrices of blocks, such as `attn.q` or `mlp.*`; empty for all that PEFT's layout can hold.
        base: how the model's own matrices stand in memory: "float" (the type that is computed in), "q8_0" or "q4_0"
            (blocks of 8 or 4 bits, unpacked where they are used).
        adapter_lr: AdamW's rate for the adapter.
    """

    adapter: str = "none"
    rank: int = 16
    alpha: float = 32.0
    rank_stable: bool = False
    targets: tuple[str, ...] = ()
    base: str = "float"
    adapter_lr: float = 0.001

    @property
    def scale(self) -> float:
        """What multiplies the low-rank part."""
        return self.alpha / (self.rank**0.5 if self.rank_stable else self.rank)


@dataclass(frozen=True)
class Expect:
    """What a named recipe gives; each says itself whether that was measured or computed from a formula.

    Args:
        loss: at the end, on held-out text, and of which text.
        time, memory: of the whole run.
        machine: what they were measured on, or assume.
    """

    loss: str = ""
    time: str = ""
    memory: str = ""
    machine: str = ""


@dataclass(frozen=True)
class Recipe:
    """A whole training run; every key of the six sections has a name of its own."""

    name: str = "custom"
    about: str = ""
    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec = field(default_factory=DataSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    loop: LoopSpec = field(default_factory=LoopSpec)
    adapter: AdapterSpec = field(default_factory=AdapterSpec)
    expect: Expect = field(default_factory=Expect)

    def __post_init__(self) -> None:
        check(self)

    @property
    def exports(self) -> tuple[str, ...]:
        """The layouts that other libraries can load this model from."""
        return ("peft",) if self.adapter.adapter != "none" else designs.exports(self.model.design)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` gives the equal Recipe back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "the recipe") -> Recipe:
        """A Recipe from nested plain data.

        Raises:
            UsageError: for an unknown section or key (with near matches) or a value of the wrong kind.
        """
        parts: dict[str, Any] = {}
        if not isinstance(data, Mapping):
            raise UsageError(f"{where} is no recipe: it holds {data!r:.40} where tables of settings belong.")
        for key, value in data.items():
            if key in ("name", "about"):
                parts[key] = coerce(str, value, key)
            elif key in _SECTIONS:
                if not isinstance(value, Mapping):
                    raise UsageError(f"[{key}] in {where} must be a table of settings, not {value!r}.")
                parts[key] = _section(key, value, where)
            elif key in _OWNER:
                raise UsageError(f"{where} sets {key} at the top; it belongs under [{_OWNER[key]}].")
            else:
                raise UsageError(f"{where} has no key {key!r}." + near(key, [*_SECTIONS, "name", "about"]))
        return cls(**parts)

    def with_settings(self, settings: Iterable[str] | Mapping[str, Any]) -> Recipe:
        """The recipe with `key=value` settings applied; `steps=100` and `schedule.steps=100` are the same.

        Raises:
            UsageError: for a setting without `=`, an unknown key (with near matches), or an unfit value.
        """
        pairs = settings.items() if isinstance(settings, Mapping) else [pair(text) for text in settings]
        changed: dict[str, dict[str, Any]] = {}
        for key, value in pairs:
            section, _, short = key.rpartition(".")
            owner = _OWNER.get(short)
            if owner is None or (section and section != owner):
                known = [*_OWNER, *(f"{owner}.{short}" for short, owner in _OWNER.items())]
                raise UsageError(f"No recipe setting is called {key!r}." + near(key, known))
            changed.setdefault(owner, {})[short] = coerce(_TYPES[owner][short], value, short)
        parts = {s: dataclasses.replace(getattr(self, s), **values) for s, values in changed.items()}
        return dataclasses.replace(self, **parts)

    def shape(self, vocab_size: int) -> designs.RecipeShape:
        """What the recipe says of the model's shape."""
        given = {
            f.name: getattr(self.model, f.name) for f in dataclasses.fields(designs.RecipeShape) if f.name != "vocab"
        }
        return designs.RecipeShape(vocab=vocab_size, **given)

    def config(self, vocab_size: int) -> Config:
        """The transformer this recipe asks for, with this many tokens in its vocabulary."""
        m = self.model
        if m.design in designs.TINY:
            return designs.tiny(m.design, self.shape(vocab_size))
        gated = m.design in ("qwen3", "llama")
        d_ff = m.d_ff or (-(-m.width * 8 // 3 // 32) * 32 if gated else 4 * m.width)
        head_dims = m.head_dims or m.width // m.heads
        gpt2 = m.design == "gpt2"
        return uniform(
            vocab_size=vocab_size,
            d_model=m.width,
            n_layers=m.layers,
            context=m.context,
            mixer=Attention(
                n_heads=m.heads,
                n_kv_heads=m.kv_heads or m.heads,
                d_head=head_dims,
                bias=gpt2,
                out_bias=gpt2,
                qk_norm="head" if m.design in ("qwen3", "relu2") else None,
                rotary=None if gpt2 else Rotary(m.theta),
            ),
            feed_forward=FeedForward(
                d_ff=d_ff,
                activation="gelu_tanh" if gpt2 else "relu2" if m.design == "relu2" else "silu",
                gated=gated,
                bias=gpt2,
            ),
            norm=Norm(kind="layer", eps=1e-5) if gpt2 else Norm(kind="rms", eps=1e-6),
            learned_positions=gpt2,
            tied=m.tied or gpt2,
        )


_SECTIONS: dict[str, type] = {
    "model": ModelSpec,
    "data": DataSpec,
    "optimizer": OptimizerSpec,
    "schedule": ScheduleSpec,
    "loop": LoopSpec,
    "adapter": AdapterSpec,
    "expect": Expect,
}
_TYPES: dict[str, dict[str, Any]] = {name: get_type_hints(cls) for name, cls in _SECTIONS.items()}
_OWNER: dict[str, str] = {key: name for name in _SECTIONS if name != "expect" for key in _TYPES[name]}


def names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("glassformer.train") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(source: str | Path = DEFAULT) -> Recipe:
    """A recipe by name or from a TOML file.

    Raises:
        UsageError: when there is no such name or file, or the file is not a sound recipe.
    """
    text = str(source)
    path = Path(text)
    if text in names():
        raw = (resources.files("glassformer.train") / "recipes" / f"{text}.toml").read_bytes()
        where = f"Recipe {text!r}"
    elif path.is_file():
        raw, where = path.read_bytes(), str(path)
    elif text.endswith(".toml") or "/" in text:
        raise UsageError(f"There is no recipe file {text}.")
    else:
        raise UsageError(
            f"No recipe is called {text!r}; there are {', '.join(names())}, or a path to a .toml file."
            + near(text, names())
        )
    try:
        data = tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{where} is not sound TOML: {error}.") from error
    data.setdefault("name", path.stem)
    return Recipe.from_dict(data, where)


def _section(name: str, values: Mapping[str, Any], where: str) -> Any:
    known = _TYPES[name]
    for key in values:
        if key not in known:
            elsewhere = f" {key} belongs under [{_OWNER[key]}]." if key in _OWNER else near(key, known)
            raise UsageError(f"[{name}] in {where} has no key {key!r}." + elsewhere)
    return _SECTIONS[name](**{key: coerce(known[key], value, key) for key, value in values.items()})

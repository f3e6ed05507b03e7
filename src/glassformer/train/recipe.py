"""What a training run is, as frozen data: model, data, optimiser, schedule and loop.

A recipe is a TOML file (or a name of one that comes with the package) plus `key=value` settings. Every key is declared
here once, with what it may be, and checked by name before anything is built; docs/recipes.md follows. Nothing here
imports torch, reads training text or does arithmetic.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from glassformer.errors import UsageError, near
from glassformer.model.config import Attention, Config, FeedForward, Norm, Rotary, uniform
from glassformer.train import designs
from glassformer.train.settings import check, coerce, pair, setting

DEFAULT = "cpu-minutes"
EXPECTED = {"loss": "expected loss", "time": "expected time", "memory": "expected memory", "machine": "on"}
"""What a recipe states, in words."""


@dataclass(frozen=True)
class ModelSpec:
    """The model to train; with `start` its shape is that model's."""

    design: str = setting(
        "qwen3",
        "The family whose shape it has, which is also the family it exports as: qwen3 (rotary, RMS norm, normed "
        "queries and keys, gated SiLU), llama (the same without query-key norms), gpt2 (learned positions, layer "
        "norm, GELU), relu2 (qwen3 with an ungated ReLU² feed-forward part; no other library loads it), or a -tiny "
        "one made of other families' parts: experts, state spaces, ….",
        choices=designs.DESIGNS,
    )
    layers: int = setting(4, "Blocks.", least=1, most=100_000)  # far more take for ever to be counted
    width: int = setting(128, "Numbers of the stream at each position.", least=1)
    heads: int = setting(4, "Attention heads.", least=1)
    kv_heads: int = setting(0, "Heads that keys and values have; 0 for as many as heads.", least=0)
    head_dims: int = setting(0, "Numbers of a head; 0 for width / heads.", least=0)
    d_ff: int = setting(
        0,
        "Neurons of a feed-forward part; 0 for 8/3 of the width in gated parts (rounded up to 32) and 4 times it in "
        "others; of experts, the share of that which makes a token's experts together as wide.",
        least=0,
    )
    experts: int = setting(0, "In designs with experts, how many there are; 0 for 8.", least=0)
    active: int = setting(0, "How many of them a token meets; 0 for 2.", least=0)
    context: int = setting(256, "Tokens of a training row, and the longest text the model is made for.", least=1)
    theta: float = setting(10_000.0, "Base of the rotary positions.")
    tied: bool = setting(False, "The unembedding is the embedding.")
    start: str = setting("", "Fine-tune from this SOURCE instead of random weights; the shape above is then ignored.")


@dataclass(frozen=True)
class DataSpec:
    """What is learned from."""

    data: tuple[str, ...] = setting((), "Files, folders, globs or hf: names; none for Python's own standard library.")
    tokenizer: str = setting(
        "byte", "byte, char, bpe:SIZE, or a SOURCE whose tokenizer is used; with start it is that model's."
    )
    held_out: float = setting(0.05, "Share of the text kept aside to measure on.", least=0, below=1)
    split: str = setting(
        "document",
        "What is kept aside: whole documents, or the end of the text (tail).",
        choices=("document", "tail"),
    )
    chat: bool = setting(
        False, 'The data are conversations (jsonl, {"messages": [...]} or alike); the loss counts answers only.'
    )
    sampling: str = setting(
        "epoch",
        "epoch shows each row once before any a second time; random draws rows at any offset.",
        choices=("epoch", "random"),
    )
    pack: str = setting(
        "apart",
        "Documents that share a row are apart (none sees another, each has positions of its own) or together.",
        choices=("apart", "together"),
    )
    text_field: str = setting("", "The field or column that holds the text, where the data's own names do not say.")
    noise: float = setting(
        0.0,
        "Share of the tokens read while training (never of those foretold) that are replaced by others of their row; "
        "it keeps a model from learning a small text by heart.",
        least=0,
        below=1,
    )


@dataclass(frozen=True)
class OptimizerSpec:
    """How gradients become steps."""

    kind: str = setting(
        "muon",
        "muon (Muon for the matrices of the blocks, AdamW for the rest) or adamw for everything.",
        choices=("muon", "adamw"),
    )
    muon_lr: float = setting(0.02, "Muon's rate.", least=0)
    momentum: float = setting(0.95, "Muon's momentum.", least=0, below=1)
    momentum_start: float = setting(0.85, "Where it begins.", least=0, below=1)
    momentum_warmup: int = setting(100, "Steps over which it rises.", least=0)
    newton_schulz: int = setting(
        5, "Newton–Schulz rounds of Muon; three take less than two thirds of the time, for a little more loss.", least=1
    )
    muon_decay: float = setting(0.0, "Decoupled weight decay of Muon.", least=0)
    embed_lr: float = setting(0.02, "AdamW's rate for embeddings.", least=0)
    head_lr: float = setting(0.005, "AdamW's rate for the unembedding.", least=0)
    vector_lr: float = setting(0.01, "AdamW's rate for vectors: norms and biases.", least=0)
    matrix_lr: float = setting(0.001, "AdamW's rate for matrices, with kind=adamw.", least=0)
    beta1: float = setting(0.8, "AdamW's memory of gradients.", least=0, below=1)
    beta2: float = setting(0.95, "AdamW's memory of their squares.", least=0, below=1)
    eps: float = setting(1e-10, "What AdamW adds to their root.", above=0)
    adam_decay: float = setting(0.0, "Decoupled weight decay of AdamW.", least=0)
    cautious: bool = setting(False, "Weight decay only where it agrees with the step's direction.")
    clip: float = setting(0.0, "Largest gradient norm; 0 for no clipping.", least=0)
    dropout: float = setting(
        0.0,
        "Share of the numbers that embeddings and parts of blocks add to the stream which a step leaves out.",
        least=0,
        below=1,
    )
    balance: float = setting(
        0.01, "Of a model with experts, what multiplies the loss that keeps their loads even; 0 for none.", least=0
    )


@dataclass(frozen=True)
class ScheduleSpec:
    """How long, how much at a time, and at what pace."""

    steps: int = setting(1000, "Optimiser steps.", least=1)
    batch: int = setting(16, "Rows in a step, over all processes.", least=1)
    warmup: int = setting(0, "Steps over which the rate rises from 0.", least=0)
    decay: float = setting(0.6, "Share of the steps, at the end, over which it falls linearly.", least=0, most=1)
    final: float = setting(0.0, "What is left of the rate at the end, as a share.", least=0, most=1)
    batch_stages: tuple[tuple[float, int], ...] = setting(
        (), "[[share, value], …]: up to that share of the steps, so many rows a step instead of batch."
    )
    length_stages: tuple[tuple[float, int], ...] = setting((), "The same of tokens a row, instead of context.")


@dataclass(frozen=True)
class LoopSpec:
    """How the machine is used, and when to look and to save."""

    device: str = setting("auto", "auto, cpu, cuda, cuda:1, ….")
    precision: str = setting(
        "auto",
        "bf16 (float32 weights, bfloat16 copies computed with), fp32, or auto.",
        choices=("auto", "bf16", "fp32"),
    )
    threads: int = setting(
        0, "Processor threads; 0 for all cores.", least=0, most=1024
    )  # far more of them end the process: each has a stack of its own
    micro_batch: int = setting(0, "Rows computed at once; 0 for as many as fit.", least=0)
    memory: float = setting(0.6, "Share of the free memory that a run may plan with.", least=0, most=1)
    loss_chunk: int = setting(0, "Tokens whose logits exist at once; 0 for a choice by vocabulary size.", least=0)
    recompute: bool = setting(
        False, "Activation checkpointing: forget what is inside a block, compute it again for the gradient."
    )
    compile: str = setting(
        "off", "Compile the model: off, on, or auto (where it will pay).", choices=("off", "on", "auto")
    )
    fused: bool = setting(True, "On a processor, attention by explicit products instead of PyTorch's fused kernel.")
    native: str = setting(
        "auto",
        "On a processor, the whole step in C++: off, on, or auto (plain designs that are small enough, runs that are "
        "long enough).",
        choices=("off", "on", "auto"),
    )
    deterministic: bool = setting(False, "On a GPU, only kernels that give the same bits every time (slower).")
    shard: str = setting("none", "none (every process holds the model) or full (FSDP2).", choices=("none", "full"))
    seed: int = setting(1, "Of weights and of the order of the data.", least=0, most=2**63 - 1)
    log_every: int = setting(10, "Steps between lines of the journal; 0 for none but the last.", least=0)
    eval_every: int = setting(100, "Steps between looks at held-out text; 0 for the end alone.", least=0)
    sample_every: int = setting(0, "Steps between samples; 0 for the end alone.", least=0)
    save_every: int = setting(500, "Steps between checkpoints; 0 for the end alone.", least=0)
    probe_every: int = setting(0, "Steps between probes; 0 for the end alone.", least=0)
    film: int = setting(
        0,
        "Frames of the run kept to look back at, spaced by the logarithm of the step, each with a sample, probes, "
        "patterns and as many weights as fit into 10 MB for all of them; 0 for none.",
        least=0,
    )
    eval_tokens: int = setting(
        65_536, "Held-out tokens measured at each look; the end measures up to 20 times as many.", least=1
    )
    sample_prompt: str = setting("", "What samples start with.")
    sample_tokens: int = setting(100, "How long samples are.", least=0)
    keep: int = setting(2, "Checkpoints kept, beside the best.", least=1)
    on_nan: str = setting("stop", "At a loss that is no number: stop, or skip that batch.", choices=("stop", "skip"))
    tensorboard: bool = setting(False, "Also write the journal's numbers for TensorBoard.")


def short(key: str) -> str:
    """A matrix's native key as recipes name it: without block and "weight"."""
    return ".".join(key.split(".")[2:]).removesuffix(".weight")


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter that is trained alone, beside the frozen model that `start` names."""

    adapter: str = setting(
        "none",
        "none (the whole model is trained), lora, or dora (rows are scaled as well).",
        choices=("none", "lora", "dora"),
    )
    rank: int = setting(16, "Rank of what is added to each matrix.", least=1)
    alpha: float = setting(32.0, "What is added is multiplied by alpha / rank.", above=0)
    rank_stable: bool = setting(False, "By alpha / √rank instead (rsLoRA).")
    targets: tuple[str, ...] = setting(
        (),
        "Which matrices of blocks, such as attn.q or mlp.experts.*; none for all that PEFT's layout can hold but those "
        "of experts and routers.",
    )
    base: str = setting(
        "float",
        "How the model's own matrices stand in memory: float (the type that is computed in), q8_0 or q4_0 (blocks of 8 "
        "or 4 bits, unpacked where they are used).",
        choices=("float", "q8_0", "q4_0"),
    )
    adapter_lr: float = setting(0.001, "AdamW's rate for the adapter.", least=0)

    def names(self, key: str) -> bool:
        """Whether `targets` names the matrix with this native key."""
        return any(fnmatch(short(key), pattern) for pattern in self.targets)

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

    def sizes(self, vocab_size: int) -> designs.ModelSizes:
        """What the recipe says of the model's sizes."""
        given = {
            f.name: getattr(self.model, f.name) for f in dataclasses.fields(designs.ModelSizes) if f.name != "vocab"
        }
        return designs.ModelSizes(vocab=vocab_size, **given)

    def config(self, vocab_size: int) -> Config:
        """The transformer this recipe asks for, with this many tokens in its vocabulary."""
        m = self.model
        if m.design in designs.TINY:
            return designs.tiny(m.design, self.sizes(vocab_size))
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

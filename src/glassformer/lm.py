"""`Model`: what users hold. One transformer, its tokenizer, and the verbs on them.

This is the facade: it turns text into tensors and hands them to the packages below. It computes nothing itself; a model
is opened in `loading`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.interp.verbs import LooksInside
from glassformer.model import Config, Transformer
from glassformer.model.deferred import Deferred, awaited, whole

if TYPE_CHECKING:
    from glassformer.checkpoint import Checkpoint
    from glassformer.generate.constraints import Constraint
    from glassformer.generate.drafting import Drafter
    from glassformer.generate.reading import NativeReader, Reader
    from glassformer.generate.tokens import Engines, GeneratedToken
    from glassformer.model.sites import Tap
    from glassformer.predict.distribution import Distribution
    from glassformer.predict.neighbours import Neighbours
    from glassformer.tokenizer.generation import Generation
    from glassformer.tokenizer.tokenizer import Tokenizer


class Adaptation(NamedTuple):
    """A model that was opened with adapters: the checkpoint without them and with them, and what each is called."""

    without: Checkpoint
    whole: Checkpoint
    name: str
    adapters: tuple[str, ...]


class Model(LooksInside):
    """A transformer with its tokenizer.

    `edited(...)` gives a view that shares the weights; a `Model` itself never changes.

    Attributes:
        tokenizer: the tokenizer.
        name: how it was asked for; source: the path it was read from.
        precision: the weights' dtype, which every answer states.
        generation: how the checkpoint wants its answers to be drawn (its generation_config.json).
        taps: what `edited` put in, in order.
        ignored: keys of its config.json that were taken for absent; `name` says them too.
        adapters: names of the adapters in the weights; `adapted(False)` is the model without them.
    """

    def __init__(
        self,
        transformer: Transformer | Deferred,
        tokenizer: Tokenizer,
        *,
        name: str = "model",
        source: str = "",
        metadata: dict[str, Any] | None = None,
        taps: tuple[Tap, ...] = (),
    ) -> None:
        self._transformer = transformer
        self.tokenizer = tokenizer
        self.name = name
        self.source = source
        self.metadata = metadata or {}
        self.taps = taps
        self.adapters: tuple[str, ...] = ()
        self.ignored: tuple[str, ...] = ()
        self._adaptation: Adaptation | None = None
        self._engines: list[Engines] = []  # at most one; views of this model share it

    @property
    def transformer(self) -> Transformer:
        """The definition in torch; of a GGUF file it is made when first asked for."""
        return whole(self._transformer)

    @property
    def config(self) -> Config:
        """The design."""
        return self._transformer.config

    @property
    def bytes(self) -> int:
        """Bytes of the weights, in memory or mapped: of the file while the definition is not made."""
        if awaited(self._transformer):
            from glassformer.fetch.gguf_parts import paths_of

            return sum(path.stat().st_size for path in paths_of(Path(self.source)))
        return sum(one.numel() * one.element_size() for one in self.transformer.parameters())

    @property
    def generation(self) -> Generation:
        """How the checkpoint wants its answers to be drawn: `generation.sampling` holds its own defaults."""
        return self.tokenizer.generation

    @property
    def precision(self) -> str:
        """The weights' dtype: "float32", "bfloat16", …"""
        return "float32" if awaited(self._transformer) else str(self.transformer.dtype).removeprefix("torch.")

    def __repr__(self) -> str:
        edits = f", {len(self.taps)} edits" if self.taps else ""
        return (
            f"<glassformer.Model {self.name}: {self.config.n_layers} layers × {self.config.most_heads} heads, "
            f"width {self.config.d_model}, {self.precision}{edits}>"
        )

    # Next word

    def next(self, text: str | Sequence[int], bos: bool | None = None) -> Distribution:
        """The probability of every next token after a text, and of whole next words on request."""
        from glassformer.predict.distribution import Distribution
        from glassformer.tokenizer.prompt import remark

        ids = self.ids(text, bos)
        if isinstance(text, str):
            remark(self.tokenizer, text)
        reader = self.reader(len(ids))
        return Distribution(
            reader.read(ids),
            tokenizer=self.tokenizer,
            ids=ids,
            text=text if isinstance(text, str) else self.decode(ids),
            model=self.name,
            precision=reader.precision,
            continuations=partial(reader.after, ids),
            longest=reader.capacity - len(ids),
        )

    def logits(self, text: str | Sequence[int], bos: bool | None = None) -> Tensor:
        """Scores of every next token after every position, (query, vocab)."""
        ids = self.ids(text, bos)
        return torch.cat(list(self.reader(len(ids)).pieces(ids, len(ids))))

    def reader(self, capacity: int) -> Reader:
        """What computes the scores of texts of up to so many tokens, with this model's edits."""
        from glassformer.generate.reading import EagerReader

        if not self.taps and awaited(self._transformer):
            return self.engines.reader(capacity)
        return EagerReader(self.transformer, self.bound_tap())

    def neighbours(
        self,
        words: str = "",
        *,
        plus: Sequence[str] = (),
        minus: Sequence[str] = (),
        k: int = 10,
        matrix: str = "embedding",
    ) -> Neighbours:
        """The tokens whose vectors lie nearest to a word or a sum such as "king - man + woman", by cosine.

        Args:
            words: a word, or words with signs between spaces.
            plus, minus: more words.
            k: how many.
            matrix: "embedding" (what is read) or "unembedding" (what is said).

        Raises:
            TextError, UsageError: no word, or options out of range.
        """
        from glassformer.predict.neighbours import neighbours

        if matrix not in ("embedding", "unembedding"):
            raise UsageError(f"The matrix is embedding or unembedding; {matrix!r} is neither.")
        table = self.transformer.embed.weight if matrix == "embedding" else self.transformer.unembedding
        return neighbours(table.detach(), self.tokenizer, words, plus=plus, minus=minus, k=k)

    def scorer(self, capacity: int) -> Transformer | NativeReader:
        """What `predict.score.score` takes for texts of up to so many tokens: the transformer, or what answers while
        that is not made."""
        from glassformer.generate.reading import NativeReader

        reader = self.reader(capacity)
        return reader if isinstance(reader, NativeReader) else self.transformer

    # Text

    def generate(
        self,
        text: str | Sequence[int],
        *,
        max_tokens: int | None = 256,
        stop: str | Sequence[str | int] = (),
        alternatives: int = 0,
        precision: str = "exact",
        bos: bool | None = None,
        constraint: Constraint | None = None,
        drafter: Drafter | None = None,
        progress: Callable[[int, int], None] | None = None,
        cache_bits: int | None = None,
        **sampling: object,
    ) -> Generator[GeneratedToken]:
        """Continue a text, token by token; closing the generator, or leaving its loop, stops the computation.

        Args:
            text: the text, or its token ids.
            max_tokens: of the answer; None for as many as the context holds.
            stop: strings that end the answer and are not part of it, and ids of tokens that do, besides the
                tokenizer's own.
            alternatives: how many of the likeliest tokens each generated token lists.
            precision: "exact" is what the other verbs compute, in float32; "fast" is a GGUF file's own 4- and 8-bit
                blocks, else int8; or float32, bfloat16, int8, int4. Every token states what computed it. With edits
                the answer is always exact.
            bos: as for `encode`.
            constraint: a form that the answer must have: `.json()`, `.schema(…)`, `.regex(…)`, `.choice(…)` or
                `.grammar(…)` of `glassformer.generate.constraints.Constraint`.
            drafter: proposes tokens that are checked several at once; the answer stays the same.
            progress: called with (read, all) tokens of the text while it is read, from another thread.
            cache_bits: of a number of the keys and values that are kept: 32, 16, or 8 with one scale for each token and
                head; None is what goes with the precision.
            sampling: how tokens are chosen, by the names of `generate.settings.Sampling`: temperature, top_k, top_p,
                min_p, typical_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias, min_tokens,
                ignore_eos, stop_token_ids, seed. None, like leaving it out, changes nothing.

        Raises:
            TextError: an empty text, or one that leaves no room for an answer.
            UsageError: an option out of its range.
        """
        from glassformer.generate.tokens import generated_tokens, request
        from glassformer.tokenizer.prompt import remark

        ids = self.ids(text, bos)
        if isinstance(text, str):
            remark(self.tokenizer, text)
        asked = request(
            ids,
            stop,
            max_tokens=max_tokens,
            alternatives=alternatives,
            constraint=constraint,
            drafter=drafter,
            progress=progress,
            **sampling,
        )
        capacity = self.config.context if max_tokens is None else len(ids) + max_tokens
        tap = self.bound_tap()
        if tap is None:
            engine = self.engines.get(precision, capacity, cache_bits)
        elif tap.added is not None:
            engine = self.engines.get("exact", capacity, cache_bits)
        else:
            # Of its own, for one answer: its cache is no larger than that.
            capacity = min(capacity, self.config.context)
            engine = self.engines.make(native=False, slots=1, capacity=capacity, cache_bits=cache_bits)
        engine.limits.check(asked)
        return generated_tokens(engine.generate(asked, tap), self.tokenizer)

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Generator[GeneratedToken]:
        """The assistant's answer to a conversation of `{"role": ..., "content": ...}`, by the model's own template.

        Options are those of `generate`.

        Raises:
            TokenizerError: a model without a chat template. TextError: messages that its template refuses.
        """
        return self.generate(self.tokenizer.encode(self.tokenizer.render_chat(messages), bos=False), **options)

    @property
    def engines(self) -> Engines:
        """What computes this model's answers."""
        if not self._engines:
            from glassformer.generate.tokens import Engines

            self._engines.append(Engines(self._transformer, self.tokenizer, None if self.adapters else self.source))
        return self._engines[0]

    # Views

    def view(self, text: str, **options: object) -> Any:
        """The page for this model and a text, as a Jupyter widget; see `glassformer.notebook.view`."""
        # Drawing stands above this floor: it is found by name when asked for, and nothing here depends on it.
        return import_module("glassformer.notebook").view(self, text, **options)

    def adapted(self, on: bool = True) -> Model:
        """This model with the adapters that it was opened with, or without: a view that shares all other weights.

        Raises:
            UsageError: it was opened without an adapter.
        """
        opened = self._adaptation
        if opened is None:
            raise UsageError(f"{self.name} was opened without an adapter; name one: load(source, adapter=...).")
        names = opened.adapters if on else ()
        if names == self.adapters:
            return self
        checkpoint = opened.whole if on else opened.without
        return self._of(checkpoint, opened.whole.changed, names, opened.name)

    def with_adapter(self, adapter: str | Path, name: str | None = None) -> Model:
        """This model with an adapter put into it: a view that shares all weights that the adapter leaves as they are.

        Args:
            adapter: a folder in PEFT's layout. name: what the model is called then.

        Raises:
            CheckpointError: an adapter that does not fit. UsageError: a model that was not read from a checkpoint.
        """
        from glassformer.checkpoint import open_checkpoint

        if self.adapters or not Path(self.source).exists():
            raise UsageError(f"An adapter is put into a model as it was read; {self.name} is none.")
        base = open_checkpoint(Path(self.source), ignore=self.ignored)
        checkpoint = base.adapted([Path(adapter)])
        view = self._of(checkpoint, checkpoint.changed, (name or Path(adapter).name,), self.name)
        view._adaptation = Adaptation(base, checkpoint, self.name, view.adapters)
        return view

    def _of(self, checkpoint: Checkpoint, changed: Collection[str], adapters: tuple[str, ...], name: str) -> Model:
        """The model of another checkpoint that shares all weights but the changed ones."""
        from glassformer.checkpoint import tokenizer_of

        mine = dict(self.transformer.named_parameters())
        transformer = Transformer.empty(checkpoint.config)
        weights = {
            key: checkpoint.tensors[key].to(self.transformer.device)
            if key in changed or key not in mine
            else mine[key].data
            for key, _ in transformer.named_parameters()
        }
        view = copy.copy(self)
        view._transformer = transformer.load(weights, dtype=self.transformer.dtype)
        view.tokenizer = tokenizer_of(checkpoint)
        view.adapters, view.name, view._engines = adapters, "+".join((name, *adapters)), []
        return view


__all__ = ["Model"]

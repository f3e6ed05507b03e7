"""The engine: many requests at once over one model, token by token.

One thread owns the runner. Each step lets every active request put in what it has not put in yet (a piece of its
prompt, its last token, drafts to be checked), so requests join and leave at any step. Answers begin at once: where
the native library still has to be compiled, or a large model packed, the eager path answers until that is done. A
prompt whose beginning a slot already holds is not read again.

It knows runners, sampling and requests; it does not know servers, chats or checkpoints' formats.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glassformer.errors import GlassformerError, ServerError, UsageError
from glassformer.generate.batch import gather
from glassformer.generate.limits import Limits
from glassformer.generate.native_model import ROWS, NativeModel
from glassformer.generate.prefix_files import PrefixFiles
from glassformer.generate.request import Request, RequestHandle, TokenEvent
from glassformer.generate.runners import EagerRunner, Runner, work_alone
from glassformer.generate.sampling import generator
from glassformer.generate.sequence import Sequence
from glassformer.generate.slots import Slots
from glassformer.kernels import infer_abi
from glassformer.model.cache import KEPT, Cache, cache_bytes
from glassformer.model.deferred import awaited, whole

if TYPE_CHECKING:
    from glassformer.model.deferred import Deferred
    from glassformer.model.sites import Tap
    from glassformer.model.transformer import Transformer
    from glassformer.tokenizer.tokenizer import Tokenizer

PRECISIONS = ("exact", "fast", "float32", "bfloat16", "int8", "int4")
# Seconds without a request after which the engine's thread ends.
_IDLE = 10.0
# Parameters up to which packing the weights is waited for.
_QUICKLY_PACKED = 400_000_000
# Steps from one for first tokens alone to the next, so that those who answer are not kept waiting by many short ones.
_BETWEEN = 5
# Slots that keep prefixes, at most.
_MOST_SPARE = 256


class SlowWarning(UserWarning):
    """Answers come more slowly than they could, and in float32 whatever was asked; the message says why."""


class Engine:
    """Generation with one model.

    Args:
        transformer: the model; it answers itself until the native path is ready, and where there is none. One that
            is not made yet is not asked for while the native path answers from `source`.
        tokenizer: turns ids into text; None for ids only.
        precision: "exact" is float32; "fast" is the file's own blocks for a GGUF with such, else int8;
            or one of float32, bfloat16, int8, int4.
        source: the GGUF file the transformer came from: "exact" and "fast" then compute with its own blocks.
        slots: requests worked on at once; more wait.
        capacity: tokens of prompt and answer together; the model's context by default.
        use_native: False stays on the eager path.
        threads: of the native path; torch's number, as it is now, by default.
        cache_bits: of a number of the keys and values that are kept: 32, 16, or 8 with one scale for each token and
            head; None is what goes with the precision.
        prefix_cache: bytes of keys and values of earlier prompts and answers that are kept, beside what the slots
            hold, for prompts that begin alike; 0 keeps none.
        prefix_files: the same in files, which outlive the engine; not for a model with a recurrence.

    Attributes:
        limits: what its answers are held to.
        note: why the native path cannot be had, and what is slower without it; None while all is well.
        stepped: called on the engine's thread after every step, when all of its events have been told.

    Raises:
        UsageError: for an unknown precision.

    Warns:
        SlowWarning: with `note`, as soon as that is known.
    """

    def __init__(
        self,
        transformer: Transformer | Deferred,
        tokenizer: Tokenizer | None = None,
        *,
        precision: str = "exact",
        source: str | Path | None = None,
        slots: int = 4,
        capacity: int | None = None,
        use_native: bool = True,
        threads: int | None = None,
        cache_bits: int | None = None,
        prefix_cache: int = 0,
        prefix_files: PrefixFiles | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise UsageError(f"Precision {precision!r} is unknown; choose {', '.join(PRECISIONS)}.")
        if cache_bits is not None and cache_bits not in KEPT:
            raise UsageError(f"Keys and values are kept in {', '.join(map(str, KEPT))} bits; got {cache_bits}.")
        self.tokenizer, self._transformer = tokenizer, transformer
        self.config = transformer.config
        self.capacity = min(capacity or self.config.context, self.config.context)
        self.slots = slots
        self.limits = Limits(tokenizer, self.config.vocab_size, self.capacity)
        self.asked_precision = precision
        self.note: str | None = None
        self.stepped: Callable[[], None] = _nothing
        self._source = Path(source) if source is not None and str(source).endswith(".gguf") else None
        self._threads = threads or torch.get_num_threads()
        self.cache_bits = cache_bits
        spare = min(prefix_cache // max(1, self.capacity * cache_bytes(self.config, cache_bits or 32)), _MOST_SPARE)
        self._waiting: deque[RequestHandle] = deque()
        self._active: list[Sequence] = []
        self._steps = 0  # since one for first tokens alone
        self._rewinds = not Cache(self.config, 1, 1).recurrent
        self._slots = Slots(slots, spare, rewinds=self._rewinds)
        self._files = prefix_files if self._rewinds and not self.config.turns_by_length else None
        self._edited = ThreadPoolExecutor(1, "glassformer-edited")
        self._wake = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self.ready = threading.Event()
        self._next_runner: Runner | None = None
        native = use_native and (awaited(transformer) or self.transformer.device.type == "cpu")
        quick = (self._from_blocks and awaited(transformer)) or (native and self._quickly_packed())
        if native and quick:
            self._build()  # quicker than answering twice, or than making the transformer
        self._runner: Runner = self._next_runner or EagerRunner(
            self.transformer, slots=slots + spare, capacity=self.capacity, cache_bits=cache_bits
        )
        self._next_runner = None
        _open.add(self)
        if not native:
            self.ready.set()
        elif not quick:
            threading.Thread(target=self._build, name="glassformer-compile", daemon=True).start()

    # Use

    @property
    def transformer(self) -> Transformer:
        """The model; made now where it was not."""
        return whole(self._transformer)

    @property
    def precision(self) -> str:
        """Of what answers now: "float32", "Q4_1+Q8_0", "int8 (8-bit cache)", …"""
        return self._stated(self._next_runner or self._runner)

    def _stated(self, runner: Runner) -> str:
        return runner.precision + (f" ({self.cache_bits}-bit cache)" if self.cache_bits else "")

    @property
    def path(self) -> str:
        """What computes now, in words."""
        runner = self._next_runner or self._runner
        return f"native ({runner.instructions})" if isinstance(runner, NativeModel) else "eager"

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Requests being worked on."""
        return len(self._active)

    def submit(
        self, request: Request, on_event: Callable[[TokenEvent | BaseException], None] | None = None
    ) -> RequestHandle:
        """Queue a request; its steps come through the handle, or to `on_event` (called on the engine's thread).

        Raises:
            TextError: for an empty prompt, unknown ids, or one that leaves no room for an answer.
            UsageError: for stop strings that cannot be. ServerError: when the engine is closed.
        """
        self.limits.check(request)
        handle = RequestHandle(request, on_event)
        with self._wake:
            if self._closed:
                raise ServerError("The engine is closed; start another.")
            after = sum(one.request.priority <= request.priority for one in self._waiting)
            self._waiting.insert(after, handle)  # sorted by priority, so those before it are that many
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="glassformer-engine", daemon=True)
                self._thread.start()
            self._wake.notify()
        return handle

    def generate(self, request: Request, tap: Tap | None = None) -> Iterator[TokenEvent]:
        """The steps of one answer; leaving the loop cancels it.

        With a tap the answer is the edited model's; as with `Request.tap`.
        """
        if tap is not None:
            request = replace(request, tap=tap)
        handle = self.submit(request)
        try:
            yield from handle
        finally:
            handle.cancel()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the native path is there or known not to come; False when the time ran out."""
        return self.ready.wait(timeout)

    def close(self) -> None:
        """Cancel everything and let the thread end."""
        with self._wake:
            self._closed = True
            for handle in [*self._waiting, *(a.handle for a in self._active)]:
                handle.cancel()
            self._wake.notify()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._edited.shutdown(wait=False)
        if self._files is not None:
            self._files.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # The native path

    @property
    def _from_blocks(self) -> bool:
        """Whether the native path computes with the file's own blocks."""
        return self.asked_precision in ("fast", "exact") and self._source is not None

    def _quickly_packed(self) -> bool:
        """Whether packing takes about a second at most."""
        return infer_abi.compiled() and sum(p.numel() for p in self.transformer.parameters()) <= _QUICKLY_PACKED

    def _build(self) -> None:
        try:
            options: dict[str, Any] = {"slots": self.slots + self._slots.spare, "capacity": self.capacity}
            options |= {"threads": self._threads, "cache_bits": self.cache_bits}
            if self._from_blocks:
                assert self._source is not None
                runner = NativeModel.from_gguf(self._source, exact=self.asked_precision == "exact", **options)
            else:
                wanted = {"exact": "float32", "fast": "int8"}.get(self.asked_precision, self.asked_precision)
                runner = NativeModel.from_transformer(self.transformer, wanted, **options)
            with self._wake:
                self._next_runner = runner
        except GlassformerError as error:
            self.note = str(error)
        finally:
            self.ready.set()
        if self.note is not None:
            warnings.warn(self.note, SlowWarning, stacklevel=1)

    def _change_runner(self) -> None:
        with self._wake:
            if self._next_runner is None:
                return
            self._runner, self._next_runner = self._next_runner, None
        work_alone()
        self._slots.forget()
        for active in self._active:  # what they have read so far is read again, quickly
            if active.runner is None:
                active.done = 0

    # The loop

    def _serve(self) -> None:
        if isinstance(self._runner, NativeModel):
            work_alone()
        while True:
            with self._wake:
                if not (self._waiting or self._active or self._closed):
                    self._wake.wait(_IDLE)
                if not (self._waiting or self._active):
                    self._thread = None  # the next request starts another; an engine nobody uses can go
                    return
            try:
                self._change_runner()
                self._admit()
                if self._active:
                    self._step()
            except BaseException as error:
                self._fail(error)
            self.stepped()

    def _fail(self, error: BaseException) -> None:
        """An error of the step itself ends every request in it; the engine goes on."""
        for active in self._active:
            active.handle.put(error)
        self._active.clear()
        self._slots.forget()

    def _admit(self) -> None:
        while True:
            busy = {active.slot for active in self._active}
            free = [slot for slot in range(self.slots) if slot not in busy]
            with self._wake:
                if not free or not self._waiting:
                    return
                handle = self._waiting.popleft()
            if handle.cancelled:
                handle.put(TokenEvent(None, finish="cancelled", precision=self._stated(self._runner)))
                continue
            try:
                self._start(handle, free)
            except BaseException as error:
                handle.put(error)

    def _start(self, handle: RequestHandle, free: list[int]) -> None:
        request = handle.request
        if request.tap is not None:  # keys and values of an edited model are nobody else's
            capacity = min(self.capacity, len(request.prompt) + (request.max_tokens or self.capacity))
            active = self._sequence(handle, free[0])
            active.runner = self._edited_runner(request.tap, capacity)
        else:
            running = {a.slot: a.ids[: a.done] for a in self._active if a.runner is None}
            placed = self._slots.place(request.prompt, free, running)
            for source, target, length in placed.copies:
                self._runner.copy_prefix(source, target, length)
            handle.cached = placed.have
            runner = self._runner
            if self._files is not None and (
                found := self._files.load(runner.kind, request.prompt, placed.have, self.capacity)
            ):
                runner.put_prefix(placed.slot, found.length, found.kept)
                handle.cached = found.have
            active = self._sequence(handle, placed.slot, handle.cached)
        self._active.append(active)

    def _edited_runner(self, tap: Tap, capacity: int) -> Runner:
        """What computes an edited answer, always exactly: the native path where vectors are added after layers and that
        is all, else the transformer."""
        added = getattr(tap, "added", None)
        if added and isinstance(self._runner, NativeModel) and self._runner.precision == "float32":
            return self._runner.steered(added, capacity)
        return EagerRunner(self.transformer, capacity=capacity, tap=tap, cache_bits=self.cache_bits)

    def _sequence(self, handle: RequestHandle, slot: int, done: int = 0) -> Sequence:
        request = handle.request
        return Sequence(
            handle,
            slot,
            list(request.prompt),
            self.limits.stop_matcher(request),
            generator(request.sampling),
            self.capacity,
            done,
            self.limits.absent,
            self.limits.matcher(request),
        )

    def _step(self) -> None:
        for active in [a for a in self._active if a.handle.cancelled]:
            text = active.stop_matcher.finish()
            self._finish(active, TokenEvent(None, text, finish="cancelled", precision=self._stated(self._runner)))
        shared = [active for active in self._active if active.runner is None]
        first = [active for active in shared if not active.answered]
        rows = sum(len(active.ids) - active.done for active in first)
        self._steps += 1
        if 0 < 2 * rows <= len(shared) - len(first) and self._steps >= _BETWEEN:
            shared, self._steps = first, 0  # in less than half of the time that a step of all takes
        if shared:
            self._advance(self._runner, shared)
        for active in [a for a in self._active if a.runner is not None]:
            assert active.runner is not None
            try:
                self._advance(active.runner, [active])
            except BaseException as error:  # of an edit: the others go on
                self._drop(active, error)

    def _advance(self, runner: Runner, sequences: list[Sequence]) -> None:
        """Let every sequence put in what it has not put in yet, and take its next tokens."""
        batch = gather(sequences, max(ROWS, len(sequences)), self._rewinds)
        if isinstance(runner, NativeModel) or not isinstance(self._runner, NativeModel):
            logits = runner.forward(batch.tokens, batch.slots, batch.positions, batch.out)
        else:  # this thread's torch works alone; the transformer is quicker in one that has all cores
            logits = self._edited.submit(runner.forward, batch.tokens, batch.slots, batch.positions, batch.out).result()
        row = 0
        for active, count, wanted in batch.shares:
            active.done += count - len(active.drafts) if wanted else count
            size = len(active.request.prompt)
            if active.handle.read < size:
                active.handle.read = min(active.done, size)
                if active.request.progress is not None:
                    active.request.progress(active.handle.read, size)
            if wanted:
                self._take(active, logits[row : row + wanted], self._stated(runner))
                row += wanted

    def _take(self, active: Sequence, logits: torch.Tensor, precision: str) -> None:
        try:
            events = active.advance(logits, precision)
        except GlassformerError as error:  # such as a grammar that takes too long: the others go on
            self._drop(active, error)
            return
        for event in events[:-1]:
            active.handle.put(event)
        if events[-1].finish is not None:
            self._finish(active, events[-1])
        else:
            active.handle.put(events[-1])

    def _drop(self, active: Sequence, error: BaseException) -> None:
        with contextlib.suppress(ValueError):
            self._active.remove(active)
        active.handle.put(error)

    def _finish(self, active: Sequence, event: TokenEvent) -> None:
        with contextlib.suppress(ValueError):
            self._active.remove(active)
        if active.runner is None:
            read = active.ids[: active.done]
            self._slots.holds(active.slot, read)
            if self._files is not None:
                self._files.keep(self._runner.kind, read, lambda: self._runner.prefix(active.slot, len(read)))
        active.handle.put(event)


def _nothing() -> None:
    pass


_open: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _end() -> None:
    """End every engine before the interpreter does: it would end a thread inside torch by aborting the process."""
    for engine in list(_open):
        engine.close()

"""The llama.cpp side of the comparisons, run by the peers' interpreter: GGUF files, asked by message."""

from __future__ import annotations

import sys
import time
from typing import Any

from common import serve


class Peer:
    """llama-cpp-python's models, one per file, loaded at first use.

    Args:
        mapped: compute from the mapped file, without the copy in an order of its own that it makes of Q4_0 blocks.
    """

    def __init__(self, mapped: bool = False) -> None:
        import llama_cpp

        self.library = llama_cpp
        self.built = llama_cpp.llama_print_system_info().decode()
        # Its AMX buffers end the process with a segmentation fault at the first evaluation (0.3.36, GCC 12).
        # peers.txt says how to build it without them; where that was not done, switch them off.
        crash = "AMX_INT8 = 1" in self.built
        if crash or mapped:
            defaults = llama_cpp.llama_model_default_params

            def plain() -> Any:
                parameters = defaults()
                parameters.use_extra_bufts = False
                return parameters

            llama_cpp.llama_model_default_params = plain
        if crash:
            self.built += "(its AMX buffers switched off: they crash)"
        self.models: dict[str, Any] = {}
        self.many: dict[tuple[str, int], tuple[Any, Any, int]] = {}

    def __call__(self, do: str, **request: Any) -> Any:
        return getattr(self, do)(**request)

    def about(self) -> dict[str, Any]:
        return {"version": self.library.__version__, "built": self.built}

    def model(self, path: str, threads: int) -> Any:
        if path not in self.models:
            self.models[path] = self.library.Llama(
                path, n_ctx=2048, n_batch=2048, n_ubatch=512, n_threads=threads, n_threads_batch=threads, verbose=False
            )
        return self.models[path]

    def decode(self, path: str, ids: list[int], count: int, threads: int) -> dict[str, Any]:
        """Greedy decoding after a prompt: seconds of the `count` steps, and the tokens."""
        import numpy

        model = self.model(path, threads)
        model.reset()
        model._ctx.kv_cache_clear()
        model.eval(ids)
        vocab, answer = model.n_vocab(), []

        def best() -> int:
            logits = self.library.llama_get_logits_ith(model.ctx, -1)
            return int(numpy.ctypeslib.as_array(logits, (vocab,)).argmax())

        token = best()
        start = time.perf_counter()
        for _ in range(count):
            answer.append(token)
            model.eval([token])
            token = best()
        return {"seconds": time.perf_counter() - start, "ids": answer}

    def prefill(self, path: str, ids: list[int], threads: int) -> dict[str, Any]:
        """Seconds to read a text."""
        model = self.model(path, threads)
        model.reset()
        model._ctx.kv_cache_clear()
        start = time.perf_counter()
        model.eval(ids)
        return {"seconds": time.perf_counter() - start}

    def context(self, path: str, rows: int, size: int, threads: int) -> tuple[Any, Any]:
        """A context of its own for `rows` sequences of at most `size` tokens together, and its batch."""
        made = self.many.get((path, rows))
        if made is None or made[2] < size:
            c = self.library
            settings = c.llama_context_default_params()
            settings.n_ctx, settings.n_seq_max = size, rows
            settings.n_batch, settings.n_ubatch = size, 512
            settings.n_threads = settings.n_threads_batch = threads
            settings.kv_unified = True
            context = c.llama_init_from_model(self.model(path, threads).model, settings)
            made = self.many[path, rows] = context, c.llama_batch_init(size, 0, 1), size
        return made[0], made[1]

    def answer(self, path: str, prompts: list[list[int]], count: int, threads: int) -> dict[str, Any]:
        """Greedy answers of `count` tokens to all prompts at once: seconds of the whole, and the tokens."""
        import numpy

        c, rows = self.library, len(prompts)
        context, batch = self.context(path, rows, sum(map(len, prompts)) + rows * count, threads)
        c.llama_memory_clear(c.llama_get_memory(context), True)
        vocab = self.model(path, threads).n_vocab()

        def enter(tokens: list[tuple[int, int, int, bool]]) -> list[int]:
            batch.n_tokens = len(tokens)
            for i, (token, place, row, wanted) in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, place, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            if code := c.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode gave {code}")
            wanted = [i for i, one in enumerate(tokens) if one[3]]
            return [
                int(numpy.ctypeslib.as_array(c.llama_get_logits_ith(context, i), (vocab,)).argmax()) for i in wanted
            ]

        start = time.perf_counter()
        last = enter([(t, i, row, i == len(p) - 1) for row, p in enumerate(prompts) for i, t in enumerate(p)])
        answers = [[token] for token in last]
        for step in range(count - 1):
            last = enter([(token, len(prompts[row]) + step, row, True) for row, token in enumerate(last)])
            for found, token in zip(answers, last, strict=True):
                found.append(token)
        return {"seconds": time.perf_counter() - start, "ids": answers}


if __name__ == "__main__":
    serve(Peer("--mapped" in sys.argv))

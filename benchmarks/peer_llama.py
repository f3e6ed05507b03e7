"""The llama.cpp side of the comparisons, run by the peers' interpreter: GGUF files, asked by message."""

from __future__ import annotations

import time
from typing import Any

from common import serve


class Peer:
    """llama-cpp-python's models, one per file, loaded at first use."""

    def __init__(self) -> None:
        import llama_cpp

        self.library = llama_cpp
        self.built = llama_cpp.llama_print_system_info().decode()
        if "AMX_INT8 = 1" in self.built:
            # Its AMX buffers end the process with a segmentation fault at the first evaluation (0.3.36, GCC 12).
            # peers.txt says how to build it without them; where that was not done, switch them off.
            defaults = llama_cpp.llama_model_default_params

            def plain() -> Any:
                parameters = defaults()
                parameters.use_extra_bufts = False
                return parameters

            llama_cpp.llama_model_default_params = plain
            self.built += "(its AMX buffers switched off: they crash)"
        self.models: dict[str, Any] = {}

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


if __name__ == "__main__":
    serve(Peer())

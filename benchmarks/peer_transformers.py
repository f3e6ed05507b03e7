"""The transformers side of the comparisons, run by the peers' interpreter: one loaded GGUF, asked by message."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from common import serve


class Peer:
    """transformers' model of a GGUF file, in each precision asked for."""

    def __init__(self, gguf: Path) -> None:
        import torch
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer

        transformers.utils.logging.set_verbosity_error()
        self.torch, self.version = torch, transformers.__version__
        start = time.perf_counter()
        self.tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="sdpa"
        )
        self.models = {"float32": model.eval()}
        self.forms: dict[str, Any] = {}
        self.loading = time.perf_counter() - start

    def model(self, dtype: str) -> Any:
        if dtype not in self.models:
            import copy

            self.models[dtype] = copy.deepcopy(self.models["float32"]).to(getattr(self.torch, dtype))
        return self.models[dtype]

    def __call__(self, do: str, **request: Any) -> Any:
        with self.torch.inference_mode():
            return getattr(self, do)(**request)

    def about(self) -> dict[str, Any]:
        return {"transformers": self.version, "loading": self.loading}

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prefill(self, ids: list[int], dtype: str) -> dict[str, Any]:
        """Seconds to read `ids` into a fresh cache, and the scores of the token that follows."""
        model, rows = self.model(dtype), self.torch.tensor([ids])
        start = time.perf_counter()
        logits = model(rows, use_cache=True, logits_to_keep=1).logits
        return {"seconds": time.perf_counter() - start, "logits": logits[0, -1].float().tolist()}

    def decode(self, ids: list[int], count: int, dtype: str) -> dict[str, Any]:
        """Greedy decoding after a prompt: seconds of the `count` steps, and the tokens."""
        model = self.model(dtype)
        found = model(self.torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        token, answer = int(found.logits[0, -1].argmax()), []
        start = time.perf_counter()
        for _ in range(count):
            answer.append(token)
            rows = self.torch.tensor([[token]])
            found = model(rows, past_key_values=found.past_key_values, use_cache=True, logits_to_keep=1)
            token = int(found.logits[0, -1].argmax())
        return {"seconds": time.perf_counter() - start, "ids": answer}

    def answer(self, prompts: list[list[int]], count: int, kind: str) -> dict[str, Any]:
        """One prompt continued greedily; `kind` names the form and the precision, as in "compiled float32"."""
        form, dtype = kind.split()
        (ids,) = prompts
        if form == "eager":
            read = self.prefill(ids, dtype)["seconds"]
            return {"seconds": read + (self.decode(ids, count - 1, dtype)["seconds"] if count > 1 else 0.0)}
        rows = self.torch.tensor([ids])
        self.compiled(dtype)(rows)  # the first call of a length compiles
        start = time.perf_counter()
        self.compiled(dtype)(rows)
        return {"seconds": time.perf_counter() - start}

    def compiled(self, dtype: str) -> Any:
        """The reading of a text, compiled with its weights frozen."""
        if dtype not in self.forms:
            import torch._inductor.config as settings

            settings.freezing = True
            model = self.model(dtype)
            self.forms[dtype] = self.torch.compile(lambda rows: model(rows, use_cache=False, logits_to_keep=1).logits)
        return self.forms[dtype]

    def logprobs(self, windows: list[list[int]]) -> list[list[float]]:
        """Log-probability of every token but the first of each window."""
        found = []
        for ids in windows:
            rows = self.torch.tensor([ids])
            logits = self.model("float32")(rows).logits[0, :-1]
            chosen = self.torch.log_softmax(logits.double(), -1).gather(-1, rows[0, 1:, None])
            found.append(chosen[:, 0].tolist())
        return found

    def save_logits(self, ids: list[int], to: str) -> None:
        """All logits of a text, as a NumPy file."""
        import numpy

        numpy.save(to, self.model("float32")(self.torch.tensor([ids])).logits[0].numpy())


def main() -> None:
    gguf = Path(sys.argv[sys.argv.index("--worker") + 1])
    serve(Peer(gguf))


if __name__ == "__main__":
    main()

"""vLLM's side of the comparisons, run by its own interpreter: a Hugging Face folder in bfloat16, asked by message."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from common import serve

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
# Its CPU backend takes its threads and the room of its cache from the environment, before it is imported.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")  # by default it leaves one core to others
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, range(THREADS))))
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")  # the longest prompt fills the context, and one token more


class Peer:
    """One engine for all questions; nothing of one prompt serves the next."""

    def __init__(self, directory: str, longest: int) -> None:
        import vllm

        self.library = vllm
        self.engine = vllm.LLM(
            model=directory,
            dtype="bfloat16",
            max_model_len=longest,
            max_num_batched_tokens=longest,
            enable_prefix_caching=False,
        )

    def __call__(self, do: str, **request: Any) -> Any:
        return getattr(self, do)(**request)

    def about(self) -> str:
        return str(self.library.__version__)

    def answer(self, prompts: list[list[int]], count: int) -> dict[str, Any]:
        """Greedy answers of `count` tokens to all prompts at once: seconds of the whole, and the tokens."""
        settings = self.library.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        start = time.perf_counter()
        found = self.engine.generate(asked, settings, use_tqdm=False)
        return {"seconds": time.perf_counter() - start, "ids": [list(one.outputs[0].token_ids) for one in found]}


if __name__ == "__main__":
    place = sys.argv.index("--worker")
    serve(Peer(sys.argv[place + 1], int(sys.argv[place + 2])))

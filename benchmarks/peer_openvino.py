"""OpenVINO GenAI's side of the comparisons, run by its own interpreter: folders of int8 and int4, asked by message."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import serve

PAGES = 2  # GB for keys and values


class Peer:
    """A pipeline per format, exported by optimum at first use and kept beside the folder."""

    def __init__(self, directory: str) -> None:
        import openvino_genai

        self.library = openvino_genai
        self.directory = Path(directory)
        self.pipelines: dict[str, Any] = {}

    def __call__(self, do: str, **request: Any) -> Any:
        return getattr(self, do)(**request)

    def about(self) -> str:
        return str(self.library.__version__).split("-")[0]

    def pipeline(self, weights: str, threads: int) -> Any:
        if weights not in self.pipelines:
            place = self.directory.with_name(f"{self.directory.name}-openvino-{weights}")
            if not (place / "openvino_model.bin").exists():
                tool = Path(sys.executable).with_name("optimum-cli")
                task = ["--task", "text-generation-with-past", "--weight-format", weights]
                # widths that are no multiple of 128, its usual size of a group
                group = ["--group-size", "64"] if weights == "int4" else []
                command = [str(tool), "export", "openvino", "-m", str(self.directory), *task, *group, str(place)]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            schedule = self.library.SchedulerConfig()
            schedule.cache_size = PAGES
            schedule.enable_prefix_caching = False
            schedule.max_num_batched_tokens = 16384
            settings = {"INFERENCE_NUM_THREADS": threads}
            self.pipelines[weights] = self.library.ContinuousBatchingPipeline(str(place), schedule, "CPU", settings)
        return self.pipelines[weights]

    def answer(self, prompts: list[list[int]], count: int, weights: str, threads: int) -> dict[str, Any]:
        """Greedy answers of `count` tokens to all prompts at once: seconds of the whole, and the tokens."""
        import numpy
        import openvino

        pipeline = self.pipeline(weights, threads)
        settings = self.library.GenerationConfig(max_new_tokens=count, min_new_tokens=count, ignore_eos=True)
        settings.do_sample = False
        asked = [openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)) for prompt in prompts]
        start = time.perf_counter()
        found = pipeline.generate(asked, [settings] * len(asked))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "ids": [list(map(int, one.m_generation_ids[0])) for one in found]}


if __name__ == "__main__":
    serve(Peer(sys.argv[sys.argv.index("--worker") + 1]))

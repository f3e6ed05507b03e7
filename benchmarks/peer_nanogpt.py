"""nanoGPT beside us: its published recipes run as they are, and its model's steps timed in a process of their own.

Run by the benchmarks of training; the checkout is an argument and is copied, never changed.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CPU_RECIPE = {
    "device": "cpu", "compile": False, "eval_iters": 20, "log_interval": 1, "block_size": 64, "batch_size": 12,
    "n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.0,
}  # fmt: skip
"""From nanoGPT's README, "I only have a macbook"."""


def checkout(option: str | None) -> Path:
    """The checkout named on the command line: a work tree, or a bare repository that is unpacked."""
    from common import skip

    if not option:
        skip("no nanoGPT checkout was named; clone github.com/karpathy/nanoGPT and give its path with --nanogpt")
    path = Path(option)
    if (path / "train.py").exists() and (path / "model.py").exists():
        return path
    return skip(f"{path} is not a nanoGPT checkout: it holds no train.py and model.py")


def prepare(source: Path, work: Path, text: str) -> list[str]:
    """A copy of the checkout with the text laid out as its own preparation does; the characters in order."""
    import numpy as np

    shutil.copytree(source, work, ignore=shutil.ignore_patterns(".git"))
    letters = sorted(set(text))
    index = {letter: i for i, letter in enumerate(letters)}
    ids = np.array([index[letter] for letter in text], dtype=np.uint16)
    data = work / "data" / "shakespeare_char"
    data.mkdir(parents=True, exist_ok=True)
    cut = int(0.9 * len(ids))
    ids[:cut].tofile(data / "train.bin")
    ids[cut:].tofile(data / "val.bin")
    meta = {"vocab_size": len(letters), "itos": dict(enumerate(letters)), "stoi": index}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))  # the only form in which nanoGPT reads it
    return letters


def published(work: Path, environment: dict[str, str], steps: int = 2000) -> dict[str, float]:
    """Run the published CPU recipe; seconds of the process, from its first step to its last, and of a step.

    It evaluates before the first and after the last step only, so that no evaluation is counted.
    """
    settings = {**CPU_RECIPE, "max_iters": steps, "lr_decay_iters": steps, "eval_interval": steps}
    recipe = [f"--{key}={value}" for key, value in settings.items()]
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", "train.py", "config/train_shakespeare_char.py", *recipe, "--out_dir=out"],
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = last = 0.0
    each: list[float] = []
    for line in process.stdout:
        found = re.match(r"iter (\d+): loss [\d.]+, time ([\d.]+)ms", line)
        if found:
            now = time.perf_counter()
            number, spent = int(found[1]), float(found[2]) / 1e3
            if number == 0:
                first = now  # its own time also holds the evaluation, so the first step is not counted at all
            elif number < steps:
                last = now
                each.append(spent)
    if process.wait():
        raise RuntimeError(process.stderr.read() if process.stderr else "nanoGPT failed")
    return {"process": time.perf_counter() - began, "training": last - first, "step": sorted(each)[len(each) // 2]}


def weights(work: Path, config: Any) -> dict[str, Any]:
    """What nanoGPT saved, under our names, so that one evaluator measures both."""
    import torch

    return renamed(torch.load(work / "out" / "ckpt.pt", map_location="cpu", weights_only=True)["model"], config)


def renamed(saved: dict[str, Any], config: Any) -> dict[str, Any]:
    """nanoGPT's weights under our names."""
    import torch

    d = config.d_model
    found: dict[str, Any] = {}

    def norm(ours: str, theirs: str) -> None:
        found[f"{ours}.weight"] = saved[f"{theirs}.weight"]
        found[f"{ours}.bias"] = saved.get(f"{theirs}.bias", torch.zeros(d))

    def product(ours: str, weight: Any, bias: Any) -> None:
        found[f"{ours}.weight"] = weight
        found[f"{ours}.bias"] = torch.zeros(len(weight)) if bias is None else bias

    found["embed.weight"] = saved["transformer.wte.weight"]
    found["pos_embed.weight"] = saved["transformer.wpe.weight"]
    norm("final", "transformer.ln_f")
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        norm(f"{ours}.ln1", f"{theirs}.ln_1")
        norm(f"{ours}.ln2", f"{theirs}.ln_2")
        joined, bias = saved[f"{theirs}.attn.c_attn.weight"], saved.get(f"{theirs}.attn.c_attn.bias")
        for j, part in enumerate("qkv"):
            product(
                f"{ours}.attn.{part}", joined[j * d : (j + 1) * d], None if bias is None else bias[j * d : (j + 1) * d]
            )
        for name, other in (("attn.o", "attn.c_proj"), ("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj")):
            product(f"{ours}.{name}", saved[f"{theirs}.{other}.weight"], saved.get(f"{theirs}.{other}.bias"))
    return found


def worker() -> None:
    """Time nanoGPT's training steps: started with --worker CHECKOUT, asked by message."""
    from common import serve

    sys.path.insert(0, sys.argv[sys.argv.index("--worker") + 1])
    import torch
    from model import GPT, GPTConfig  # nanoGPT's

    state: dict[str, Any] = {}

    def handle(
        shape: dict[str, int] | None = None, batch: int = 1, steps: int = 1, best: bool = False
    ) -> dict[str, float]:
        if shape is not None:
            state.clear()
            torch.manual_seed(1)
            model = GPT(GPTConfig(**shape, dropout=0.0, bias=True))
            state["model"] = torch.compile(model) if best else model
            state["precision"] = torch.autocast("cpu", torch.bfloat16, enabled=best)
            state["optimizer"] = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")
            state["tokens"] = torch.randint(0, shape["vocab_size"], (batch, shape["block_size"] + 1))
            return {"parameters": sum(p.numel() for p in model.parameters())}
        tokens = state["tokens"]
        began = time.perf_counter()
        for _ in range(steps):
            with state["precision"]:
                _, loss = state["model"](tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(state["model"].parameters(), 1.0)
            state["optimizer"].step()
            state["optimizer"].zero_grad(set_to_none=True)
        return {"seconds": time.perf_counter() - began, "peak": _peak()}

    serve(handle)


def _peak() -> int:
    """Most memory this process ever held, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def option(parser: argparse.ArgumentParser) -> None:
    """The option that names the checkout."""
    parser.add_argument("--nanogpt", metavar="CHECKOUT", help="a work tree of github.com/karpathy/nanoGPT")


def read_text(path: str | None) -> str:
    """Tiny Shakespeare, from the file named or the optional data folder beside the checkout."""
    from common import DATA, skip

    file = Path(path) if path else DATA / "tinyshakespeare.txt"
    if not file.exists():
        skip(f"{file} is not there; name tiny Shakespeare's text with --text")
    return file.read_text("utf-8")


if __name__ == "__main__":
    if "--worker" in sys.argv:
        worker()
    else:
        print(json.dumps({"about": __doc__}))

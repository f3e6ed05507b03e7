"""Models of the size that people have: a file of random numbers in OLMoE-1B-7B's shape at 4 bits, opened and decoded.

    python sizes.py --directory DIR [--shape olmoe-1b-7b|qwen3-30b-a3b|tiny] [--keep]

The numbers are random: what is measured is opening, memory and speed, nothing that the model says. The file is made in
the directory named (4 GB for OLMoE's shape, 17 GB for Qwen3's) and deleted afterwards. Each side opens and decodes in a
process of its own; the first opening, which finds nothing of the file in the page cache, is not counted. The same
tokens are then asked of a process that may hold 8 GiB, mapped pages of the file included (a control group; where this
machine lets none be made, a limit on the process's data).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import HERE, Worker, alternate, arguments, report, serve, skip, table, verdict

SHAPES: dict[str, dict[str, int]] = {
    "olmoe-1b-7b": {
        "layers": 16,
        "d_model": 2048,
        "heads": 16,
        "kv_heads": 16,
        "d_head": 128,
        "d_ff": 1024,
        "experts": 64,
        "active": 8,
        "vocab": 50304,
    },
    "qwen3-30b-a3b": {
        "layers": 48,
        "d_model": 2048,
        "heads": 32,
        "kv_heads": 4,
        "d_head": 128,
        "d_ff": 768,
        "experts": 128,
        "active": 8,
        "vocab": 151936,
    },
    "tiny": {
        "layers": 2,
        "d_model": 256,
        "heads": 4,
        "kv_heads": 4,
        "d_head": 64,
        "d_ff": 64,
        "experts": 8,
        "active": 2,
        "vocab": 512,
    },
}
PROMPT, CONTEXT = 16, 512
LIMIT, READ = 8 << 30, 512 << 20


def write(path: Path, name: str) -> None:
    """A GGUF of random numbers: matrices in Q4_0 blocks, embedding and unembedding in Q8_0, the rest float32."""
    import gguf
    import numpy as np

    s, random = SHAPES[name], np.random.default_rng(0)
    architecture = "qwen3moe" if name.startswith("qwen3") else "olmoe"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"random numbers in the shape of {name}")
    writer.add_block_count(s["layers"])
    writer.add_context_length(4096)
    writer.add_embedding_length(s["d_model"])
    writer.add_feed_forward_length(s["d_ff"])
    writer.add_expert_feed_forward_length(s["d_ff"])
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_key_length(s["d_head"])
    writer.add_value_length(s["d_head"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_expert_count(s["experts"])
    writer.add_expert_used_count(s["active"])
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(s["vocab"])
    kinds = gguf.GGMLQuantizationType
    queries, keys = s["heads"] * s["d_head"], s["kv_heads"] * s["d_head"]
    whole = architecture == "olmoe"  # its norms of queries and keys run over all heads
    found: list[tuple[str, tuple[int, ...], Any]] = [("token_embd.weight", (s["vocab"], s["d_model"]), kinds.Q8_0)]
    for i in range(s["layers"]):
        at = f"blk.{i}."
        found += [(f"{at}{norm}.weight", (s["d_model"],), kinds.F32) for norm in ("attn_norm", "ffn_norm")]
        found += [
            (f"{at}attn_q.weight", (queries, s["d_model"]), kinds.Q4_0),
            (f"{at}attn_k.weight", (keys, s["d_model"]), kinds.Q4_0),
            (f"{at}attn_v.weight", (keys, s["d_model"]), kinds.Q4_0),
            (f"{at}attn_output.weight", (s["d_model"], queries), kinds.Q4_0),
            (f"{at}attn_q_norm.weight", (queries if whole else s["d_head"],), kinds.F32),
            (f"{at}attn_k_norm.weight", (keys if whole else s["d_head"],), kinds.F32),
            (f"{at}ffn_gate_inp.weight", (s["experts"], s["d_model"]), kinds.F32),
            (f"{at}ffn_gate_exps.weight", (s["experts"], s["d_ff"], s["d_model"]), kinds.Q4_0),
            (f"{at}ffn_up_exps.weight", (s["experts"], s["d_ff"], s["d_model"]), kinds.Q4_0),
            (f"{at}ffn_down_exps.weight", (s["experts"], s["d_model"], s["d_ff"]), kinds.Q4_0),
        ]
    found += [
        ("output_norm.weight", (s["d_model"],), kinds.F32),
        ("output.weight", (s["vocab"], s["d_model"]), kinds.Q8_0),
    ]
    for key, shape, kind in found:
        stored = gguf.quant_shape_to_byte_shape(shape, kind) if kind != kinds.F32 else shape
        dtype = np.dtype(np.float32 if kind == kinds.F32 else np.uint8)
        size = int(np.prod(stored)) * dtype.itemsize
        writer.add_tensor_info(key, stored, dtype, size, raw_dtype=None if kind == kinds.F32 else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for key, shape, kind in found:
        writer.write_tensor_data(_numbers(random, key, shape, kind, gguf))
    writer.close()


def _numbers(random: Any, key: str, shape: tuple[int, ...], kind: Any, gguf: Any) -> Any:
    """Random blocks whose numbers have about the size that trained ones have; norms are ones."""
    import numpy as np

    if kind == gguf.GGMLQuantizationType.F32:
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        return random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    width = gguf.GGML_QUANT_SIZES[kind][1]
    stored = gguf.quant_shape_to_byte_shape(shape, kind)
    blocks = random.integers(0, 256, (int(np.prod(stored)) // width, width), dtype=np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(0.02 / (4.6 if width == 18 else 73)).tobytes(), np.uint8)
    return blocks.reshape(stored)


def memory() -> dict[str, int]:
    """This process's anonymous and file-backed memory, in bytes."""
    text = Path("/proc/self/smaps_rollup").read_text()
    field = {name: int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1]) << 10 for name in ("Anonymous", "Rss")}  # type: ignore[index]
    return {"anonymous": field["Anonymous"], "file": field["Rss"] - field["Anonymous"]}


class Ours:
    """Our side, in a process of its own."""

    def __init__(self, path: str, threads: int) -> None:
        import torch

        from glassformer.generate.native_model import NativeModel
        from glassformer.kernels import infer_abi

        torch.set_num_threads(threads)
        infer_abi.library()
        before, start = memory(), time.perf_counter()
        self.model = NativeModel.from_gguf(path, capacity=CONTEXT, threads=threads)
        self.opened, self.before = time.perf_counter() - start, before

    def __call__(self, do: str, ids: list[int], count: int) -> Any:
        tokens: list[int] = []
        last = int(self.model.prefill(ids).argmax())
        start, spent = time.perf_counter(), time.process_time()
        for step in range(count):
            tokens.append(last)
            last = int(self.model.decode([last], [0], [len(ids) + step])[0].argmax())
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "processor": time.process_time() - spent,
            "ids": tokens,
            "opened": self.opened,
            **memory(),
            "packed": memory()["anonymous"] - self.before["anonymous"],
            "read": self.model.bytes_per_token(len(ids) + count // 2),
        }


def forget(path: Path) -> None:
    """Drop the file's pages from the page cache, so that whoever reads them next pays for them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def fits_twice(path: Path) -> bool:
    """Whether memory holds the file's pages and a copy of it beside them."""
    free = int(re.search(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)[1])  # type: ignore[index]
    return free << 10 > 2.2 * path.stat().st_size


def _open_once(path: Path, threads: int, count: int = 4, limit: Path | None = None) -> dict[str, Any]:
    """A fresh process that opens the file, answers and leaves; one of a control group, where one is named."""
    command = [sys.executable, str(HERE / "sizes.py"), "--worker", str(path), str(threads)]
    if limit is not None:
        command = ["sh", "-c", f'echo $$ > {limit}/cgroup.procs; exec "$@"', "sh", *command]
    request = json.dumps({"do": "decode", "ids": list(range(1, PROMPT + 1)), "count": count})
    done = subprocess.run(command, input=request + "\n", capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@contextlib.contextmanager
def limited() -> Iterator[tuple[Path | None, str]]:
    """A control group that may hold `LIMIT` bytes, or None and a limit on this process's children; and its name."""
    for root, name in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / f"glassformer-{os.getpid()}"
        try:
            group.mkdir()
            (group / name).write_text(str(LIMIT))
        except OSError:
            continue
        try:
            yield group, "a control group"
        finally:
            group.rmdir()
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, before[1]))
    try:
        yield None, "a limit on the process's data"
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextlib.contextmanager
def plain_read(threads: int) -> Iterator[Callable[[], float]]:
    """A function that reads `READ` bytes with all threads and gives the seconds, the best of three."""
    import ctypes

    from glassformer.kernels import infer_abi

    lib = infer_abi.library()
    place = lib.gf_allocate(READ)
    ctypes.memset(place, 1, READ)
    try:
        yield lambda: min(lib.gf_read(place, READ, threads) for _ in range(3))
    finally:
        lib.gf_free(place)


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--directory", help="where the file is made, and deleted again")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="olmoe-1b-7b", help="whose shape it has")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--keep", action="store_true", help="leave the file, or take the one that was left")
    options = parser.parse_args()
    if options.directory is None:
        skip("it makes a file of 4 to 17 GB; name a folder with --directory")
    path = Path(options.directory) / f"random-{options.shape}-q4_0.gguf"
    try:
        if not (options.keep and path.exists()):
            write(path, options.shape)
        measure(path, options)
    finally:
        if not options.keep:
            path.unlink(missing_ok=True)


def measure(path: Path, options: Any) -> None:
    """Both sides in turn, on one file."""
    ids, threads = list(range(1, PROMPT + 1)), options.threads
    _open_once(path, threads)
    again = _open_once(path, threads)
    forget(path)  # pages that another process read first would not count against the limit
    with limited() as (group, means):
        small = _open_once(path, threads, options.tokens, group)
    peers = Path(options.peers)
    there = peers.exists() and not subprocess.run([peers, "-c", "import llama_cpp"], capture_output=True).returncode
    with Worker(sys.executable, HERE / "sizes.py", str(path), str(threads), threads=threads) as ours:
        found: dict[str, Any] = {}

        def mine() -> float:
            found.update(ours.ask(do="decode", ids=ids, count=options.tokens))
            return found["seconds"]

        with contextlib.ExitStack() as stack:
            runners: dict[str, Callable[[], float]] = {
                "ours": mine,
                "reading": stack.enter_context(plain_read(threads)),
            }
            if there:
                mapped = () if fits_twice(path) else ("--mapped",)
                llama = stack.enter_context(Worker(str(peers), HERE / "peer_llama.py", *mapped, threads=threads))

                def theirs() -> float:
                    asked = llama.ask(do="decode", path=str(path), ids=ids, count=options.tokens, threads=threads)
                    found["same"] = sum(a == b for a, b in zip(asked["ids"], found.get("ids", []), strict=False))
                    return asked["seconds"]

                runners["theirs"] = theirs
                version = f"llama-cpp-python {llama.ask(do='about')['version']}"
                version += ", from the mapped file, which fits in memory but once" if mapped else ""
            times = alternate(options.rounds, **runners)
    reading = READ / statistics.median(times.pop("reading")) / 1e9
    speed = {who: options.tokens / statistics.median(seconds) for who, seconds in times.items()}
    read = found["read"] * speed["ours"] / 1e9
    same = sum(a == b for a, b in zip(small["ids"], found["ids"], strict=True))
    rows = [
        ("opened again, seconds", f"{again['opened']:.2f}", verdict(again["opened"], most=5)),
        ("anonymous memory, GB", f"{found['anonymous'] / 1e9:.2f}", verdict(found["anonymous"] / 1e9, most=2)),
        ("mapped from the file, GB", f"{found['file'] / 1e9:.2f}", ""),
        ("decode, tokens/s", f"{speed['ours']:.1f}", ""),
        ("processor time of a token, ms", f"{found['processor'] / options.tokens * 1e3:.1f}", ""),
        ("the same tokens within 8 GiB", f"{same} of {options.tokens}", verdict(same, least=options.tokens)),
        ("read for a token, GB", f"{found['read'] / 1e9:.2f}", ""),
        (
            "read for it, GB/s",
            f"{read:.1f}",
            f"{read / reading:.0%} of the {reading:.1f} of a plain read in turn ({verdict(read / reading, least=0.8)})",
        ),
    ]
    if there:
        ratio = speed["ours"] / speed["theirs"]
        rows.append((f"{version}, tokens/s", f"{speed['theirs']:.1f}", f"{ratio:.2f} × ({verdict(ratio, least=1.5)})"))
    else:
        rows.append(("llama.cpp", "skipped", "the peers have no llama_cpp; run make peers"))
    report(
        f"sizes-{options.shape}",
        f"Sizes people have: {options.shape}",
        table(("what", "measured", "asked"), rows),
        options,
        f"A file of random numbers in this shape ({path.stat().st_size / 1e9:.1f} GB; Q4_0, embeddings Q8_0): its "
        f"words mean nothing. {options.tokens} greedy tokens after {PROMPT}, medians of {options.rounds} runs in turn; "
        "1.5 × llama.cpp or 80 % of the read bandwidth of the same run is asked. Anonymous memory is the whole "
        f"process's, torch and all; {found['packed'] / 1e9:.2f} GB of it came with the model. 8 GiB were {means}; a "
        f"token took {small['seconds'] / options.tokens:.2f} s there."
        + (f" Both chose the same token {found['same']} times of {options.tokens}." if there else ""),
    )


if __name__ == "__main__":
    if "--worker" in sys.argv:
        os.environ.setdefault("OMP_NUM_THREADS", sys.argv[-1])
        serve(Ours(sys.argv[2], int(sys.argv[3])))
    else:
        main()

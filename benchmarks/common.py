"""What the benchmarks share: peers in processes of their own, alternating runs, medians and tables.

A benchmark is a script `benchmarks/<claim>.py` that runs us and the peer in turn on this machine in one
run and prints medians and ratios. It imports only the standard library at the top, because a script is
also run by the peers' interpreter (`Worker`), where Glassformer is not installed. One that cannot run
says why and leaves with the code `SKIPPED`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE = ROOT / "docs" / "benchmarks.md"
DATA = ROOT.parent / "shared" / "data"  # optional: texts that some benchmarks read
SKIPPED = 77
LEAVES = 60  # seconds that a worker has to leave in


def arguments(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes: peers, threads, rounds, and whether to save."""
    parser = argparse.ArgumentParser(
        description=(description or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--peers", default=str(ROOT / ".venv-peers/bin/python"), help="the peers' interpreter")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads for everybody")
    parser.add_argument("--rounds", type=int, default=defaults.get("rounds", 5), help="timed runs of each, in turn")
    parser.add_argument("--save", action="store_true", help="write the table into docs/benchmarks.md")
    return parser


def skip(reason: str) -> NoReturn:
    """Leave without a measurement, saying why."""
    print(f"skipped: {reason}")
    sys.exit(SKIPPED)


def need_peers(options: argparse.Namespace, module: str) -> None:
    """Skip when the peers' interpreter, or the module wanted in it, is not there."""
    if not Path(options.peers).exists():
        skip(f"no interpreter at {options.peers}; run make peers, or name one with --peers")
    if subprocess.run([options.peers, "-c", f"import {module}"], capture_output=True).returncode:
        skip(f"{options.peers} has no {module}; run make peers")


def need_chromium() -> str:
    """The browser's program; skips where there is none."""
    import shutil

    return (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or skip("there is no Chromium here (apt-get install chromium)")
    )


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(rounds: int, warmup: int = 1, **runners: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each runner, called in turn so that a slow moment of the machine hits all alike.

    Args:
        rounds: timed calls of each.
        warmup: calls of each before, not counted.
        runners: name -> a function that does the work once and returns the seconds it took.
    """
    for _ in range(warmup):
        for run in runners.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            time.sleep(0.3)  # lets the other side's threads stop spinning
            times[name].append(run())
    return times


def spread(times: Sequence[float]) -> str:
    """The median and the range, in seconds."""
    return f"{statistics.median(times):.3g} ({min(times):.3g}–{max(times):.3g})"


class Worker:
    """A function of a script, running in another interpreter and called by message.

    The script calls `serve(handler)` when it is started with `--worker`; each `ask` hands the handler
    one request (a JSON object) and returns its answer.
    """

    def __init__(self, python: str, script: str | Path, *args: str, threads: int = 2, **env: str) -> None:
        settings = {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
        }
        self.process = subprocess.Popen(
            [python, str(script), "--worker", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings, **env},
        )

    def ask(self, **request: Any) -> Any:
        """Send a request and wait for the answer; a worker that dies raises with its exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker {self.process.args!r} left with code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Let the worker finish; one that does not leave is ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(LEAVES)
        except subprocess.TimeoutExpired:  # what was measured is here
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def serve(handler: Callable[..., Any]) -> None:
    """Answer requests on standard input until it ends; what the handler prints goes to standard error."""
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(handler(**json.loads(line))), file=out, flush=True)


def two_sided(
    main: Callable[[], None],
    ours: Callable[[int], Callable[..., Any]],
    theirs: Callable[[Path, int], Callable[..., Any]],
) -> None:
    """Run a script that is also its own workers: "ours" with threads, "theirs" with SmolLM2's file and threads."""
    if "--worker" in sys.argv:
        role, *rest = sys.argv[sys.argv.index("--worker") + 1 :]
        serve(ours(int(rest[0])) if role == "ours" else theirs(Path(rest[0]), int(rest[1])))
    else:
        main()


def machine(threads: int | None = None) -> str:
    """One line on what this was measured on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found.group(1) if found else model
    parts = [model, f"{os.cpu_count()} cores", *([f"{threads} threads"] if threads else [])]
    with contextlib.suppress(ImportError):
        import torch

        parts.append(f"torch {torch.__version__}")
    return ", ".join([*parts, f"Python {platform.python_version()}", time.strftime("%Y-%m-%d")])


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table that is also readable on a terminal."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def verdict(value: float, *, least: float | None = None, most: float | None = None) -> str:
    """Whether a figure reaches what is asked of it."""
    met = (least is None or value >= least) and (most is None or value <= most)
    asked = f"≥ {least:g}" if least is not None else f"≤ {most:g}"
    return f"{asked}: {'met' if met else 'NOT met'}"


def report(name: str, title: str, body: str, options: argparse.Namespace, notes: str = "") -> None:
    """Print a benchmark's result, and with `--save` put it in its section of docs/benchmarks.md."""
    text = "\n\n".join(
        part for part in (f"## {title}", notes, body, f"Measured on {machine(options.threads)}.") if part
    )
    print(text)
    if not options.save:
        return
    page = PAGE.read_text("utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{begin}\n{text}\n{end}"
    if begin in page:
        before, _, rest = page.partition(begin)
        page = before + section + rest.partition(end)[2]
    else:
        page = page.rstrip() + f"\n\n{section}\n"
    PAGE.write_text(page, "utf-8")


def peak(work: Callable[[], Any]) -> tuple[float, float, float]:
    """Seconds, gigabytes added at the highest moment, and gigabytes still held afterwards."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest moment so far
    before = status("VmRSS")
    start = time.perf_counter()
    held = work()
    took = time.perf_counter() - start
    added, kept = status("VmHWM") - before, status("VmRSS") - before
    del held
    return took, added, kept


def status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e9
    raise RuntimeError(f"this system does not say {field}")


def rates(threads: int) -> dict[str, float]:
    """What this machine reaches now: GFLOP/s of matrix products through oneDNN, and GB/s of a plain read.

    Products of (1024, 2048) with (2048, 2048), the best of nine: float32 with a packed weight, bfloat16, and 8-bit
    integers into 32; reading, 512 MiB with all threads, the best of nine.
    """
    import ctypes

    import torch

    from glassformer.kernels import infer_abi

    rows, width = 1024, 2048
    x, w = torch.randn(rows, width), torch.randn(width, width)
    packed = torch.ops.mkldnn._reorder_linear_weight(w, rows)
    low, weight = x.bfloat16(), w.bfloat16()
    small, turned = (x * 40).to(torch.int8), (w.T * 40).to(torch.int8)
    works = {
        "float32": lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""),
        "bfloat16": lambda: torch.nn.functional.linear(low, weight),
        "int8": lambda: torch._int_mm(small, turned),
    }
    with torch.inference_mode():
        found = {
            name: 2e-9 * rows * width * width / min(seconds(work) for _ in range(9)) for name, work in works.items()
        }
    lib, size = infer_abi.library(), 512 << 20
    place = lib.gf_allocate(size)
    ctypes.memset(place, 1, size)
    found["reading"] = size / min(lib.gf_read(place, size, threads) for _ in range(9)) / 1e9
    lib.gf_free(place)
    return found


def smollm2() -> Path:
    """The catalogue's SmolLM2 GGUF, fetched when it is not on this machine yet."""
    from glassformer.fetch.sources import resolve

    return resolve("smollm2").path


def environment(threads: int, **more: str) -> Mapping[str, str]:
    """This process's environment with the number of threads set for every library."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **more}

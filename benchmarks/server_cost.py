"""What the server costs a streamed token, with 32 clients of a compiled load generator, and how long a short prompt
waits for its first token among as many answers.

The server's cost is the processor time of its own thread, which reads requests and writes events; the engine's threads
compute. Processor time hardly depends on what else a machine does; throughput does, and is printed beside the share of
the processor that the generator takes.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common import HERE, arguments, report, skip, smollm2, table, verdict
from server_common import Server

COST = 0.15  # ms of processor time a streamed token
SHARE = 0.8  # of the engine's own throughput, times what the generator leaves
LATER = 3.0  # times to first token: among answers, over alone


def generator(place: Path) -> Path:
    """The load generator, compiled."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        skip("there is no C++ compiler for the load generator")
    made = place / "load"
    subprocess.run(
        [compiler, "-O2", "-std=c++17", "-pthread", str(HERE / "load_generator.cpp"), "-o", str(made)], check=True
    )
    return made


def begun(program: Path, server: Server, *told: float) -> subprocess.Popen[str]:
    """The generator, running: clients, seconds, tokens, prompts, the number of the first prompt."""
    address = urlsplit(server.url)
    command = [str(program), str(address.hostname), str(address.port), *map(str, told)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def load(program: Path, server: Server, *told: float) -> dict[str, Any]:
    """What the generator saw, once it has ended."""
    found: dict[str, Any] = json.loads(begun(program, server, *told).communicate()[0])
    return found


def firsts(server: Server, seconds: float) -> float:
    """The median time to the first token of short prompts that come at random moments, in seconds."""
    address, draw, found = urlsplit(server.url), random.Random(0), []
    line = http.client.HTTPConnection(str(address.hostname), address.port)
    body = {"prompt": "The mole is a small animal that", "max_tokens": 8, "stream": True, "ignore_eos": True}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        time.sleep(draw.uniform(0.02, 0.12))
        start = time.perf_counter()
        line.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        came = [time.perf_counter() - start for event in line.getresponse() if b'"choices"' in event]
        found.append(came[0])
    return statistics.median(found)


def spent(pid: int) -> tuple[float, float]:
    """Processor seconds of a process' first thread, and of all its threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    each = {int(task.name): int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks}
    return each[pid], sum(each.values())


def alone(options: Any, source: Any) -> float:
    """The engine's own tokens a second, with as many answers at once, in this process."""
    import torch

    import glassformer as gf
    from glassformer.generate.engine import Engine
    from glassformer.generate.request import Request

    torch.set_num_threads(options.threads)
    model = gf.load("smollm2", device="cpu", dtype="float32")
    made = {"precision": options.precision, "source": source, "slots": options.clients, "capacity": 512}
    engine = Engine(model.transformer, model.tokenizer, **made)
    engine.wait()
    ids = tuple(model.encode("The mole is a small animal that"))
    rates = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        handles = [engine.submit(Request(ids, options.tokens, stop_ids=frozenset())) for _ in range(options.clients)]
        count = sum(event.id is not None for handle in handles for event in handle)
        rates.append(count / (time.perf_counter() - start))
    engine.close()
    return sorted(rates)[len(rates) // 2]


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--precision", default="fast")
    options = parser.parse_args()
    if not Path("/proc/self/task").is_dir():
        skip("threads' processor time is read from /proc")
    source = smollm2()
    rows: list[tuple[str, Any, str]] = []
    with tempfile.TemporaryDirectory() as place:
        program = generator(Path(place))
        rate = alone(options, source)
        settings = ["--slots", str(options.clients + 1), "--queue", "64", "--context", "512", "--prompt-cache", "0.2"]
        with Server(
            source, Path(place) / "log", "--precision", options.precision, *settings, threads=options.threads
        ) as server:
            firsts(server, 1)
            quiet = firsts(server, options.seconds / 4)
            before = spent(server.process.pid)
            found = load(program, server, options.clients, options.seconds, options.tokens)
            after = spent(server.process.pid)
            own, whole = after[0] - before[0], after[1] - before[1]
            cost = 1000 * own / max(found["tokens"], 1)
            left = whole / (whole + found["cpu"])
            running = begun(program, server, options.clients, options.seconds / 2, 400, 0)
            time.sleep(options.seconds / 8)
            among = firsts(server, options.seconds / 4)
            running.communicate()
            speed = found["tokens"] / found["seconds"]
            share = speed / (rate * left)
            rows += [
                ("streamed tokens", found["tokens"], ""),
                ("errors", found["errors"], verdict(found["errors"], most=0)),
                ("the server's processor time a token, ms", f"{cost:.3f}", verdict(cost, most=COST)),
                ("processor share of the generator", f"{1 - left:.1%}", ""),
                ("throughput, tokens/s", f"{speed:.0f}", ""),
                ("the engine alone, tokens/s", f"{rate:.0f}", ""),
                ("throughput of the engine's times what is left", f"{share:.2f}", verdict(share, least=SHARE)),
                ("time to first token, s: alone", f"{quiet:.3f}", ""),
                ("time to first token, s: among those who are answered", f"{among:.3f}", ""),
                ("the second over the first", f"{among / quiet:.1f}", verdict(among / quiet, most=LATER)),
            ]
            server.end()
    notes = (
        f"{options.clients} clients stream greedy answers of {options.tokens} tokens in {options.precision}, with one "
        "slot more than that; short prompts come at random moments; the prompt cache has 0.2 GB. The server's time is "
        "that of its own thread, of Linux's clock; the engine's threads are the rest."
    )
    report("server_cost", "Server: what it costs a token", table(("what", "figure", "asked"), rows), options, notes)


if __name__ == "__main__":
    main()

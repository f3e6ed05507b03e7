"""Malformed requests against the server: what schemathesis makes of our own description, and broken bytes. No 5xx."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common import HERE, ROOT, arguments, report, skip, smollm2, table, verdict
from server_common import Server, commit

PLACE = ROOT / ".bench" / "schemathesis"  # an environment of its own, made when first needed
PACKAGE = "schemathesis>=4,<5"
PROCESSES = 2
WHOLE = {"prompt": "The capital of France is", "max_tokens": 1, "temperature": 0.5, "stop": ["a", "b"], "logprobs": 1}


def program() -> Path:
    """The schemathesis program, installed first where it is missing."""
    bin_ = PLACE / ("Scripts" if os.name == "nt" else "bin")
    found = bin_ / "st"
    if not found.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PLACE)], check=True)
        done = subprocess.run([str(bin_ / "python"), "-m", "pip", "install", "--quiet", PACKAGE])
        if done.returncode:
            skip("schemathesis cannot be installed here")
    return found


def cover(server: Server, st: Path) -> None:
    """Schemathesis' own run through every way of contradicting the description once: methods, headers, each field."""
    command = [
        str(st), "run", f"{server.url}/openapi.json", "--checks", "not_a_server_error", "--mode", "negative",
        "--phases", "coverage", "--seed", "0", "--workers", "2", "--continue-on-failure", "--no-shrink",
        "--request-timeout", "60", "--suppress-health-check", "all", "--warnings", "off", "--include-method", "POST",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout[-3000:])


def fuzz(server: Server, st: Path, requests: int, limit: float) -> dict[str, Any]:
    """Requests by schemathesis' generator from several processes at once: their statuses, bodies and failures."""
    interpreter = str(st.with_name("python"))
    share = -(-requests // PROCESSES)
    running = [
        subprocess.Popen(
            [interpreter, str(HERE / "peer_schemathesis.py"), server.url, str(share), str(limit), str(1000 * i)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(PROCESSES)
    ]
    told = [json.loads(process.communicate()[0]) for process in running]
    for one in told:
        print("".join(failure + "\n" for failure in one["failures"]), end="", file=sys.stderr)
    lost = sum(n for one in told for status, n in one["statuses"].items() if not status.isdigit())
    return {"bodies": len({digest for one in told for digest in one["bodies"]}), "lost": lost}


def broken(generator: random.Random) -> bytes:
    """A request that was sound before something happened to it."""
    body = bytearray(json.dumps(WHOLE).encode())
    for _ in range(generator.randint(1, 6)):
        at = generator.randrange(len(body))
        kind = generator.randrange(5)
        if kind == 0:
            body[at] = generator.randrange(256)
        elif kind == 1:
            del body[at:]
            body += b" "
        elif kind == 2:
            body[at:at] = generator.randbytes(generator.randint(1, 20))
        elif kind == 3:
            body[at:at] = generator.choice([b"\\ud800", b"1e999", b"NaN", b"null", b"[" * 2000, b"9" * 5000, b"\0"])
        else:
            body[at:at] = bytes(body[: generator.randrange(len(body))])
    length = len(body) if generator.random() < 0.8 else generator.choice([0, 1, len(body) + 50, 10**12, -1])
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n"
    kinds = ["application/json", "text/plain", "application/json; charset=utf-16", "a/b", ""]
    return f"{head}content-type: {generator.choice(kinds)}\r\nconnection: close\r\n\r\n".encode() + bytes(body)


def send(address: tuple[str, int], request: bytes, leave: bool) -> int:
    """The status of the answer; 0 where there was none, or nobody waited for it."""
    with socket.create_connection(address, timeout=30) as line:
        try:
            line.sendall(request)
            if leave:
                return 0
            line.settimeout(2)
            answer = line.recv(200)
        except (TimeoutError, ConnectionError):
            return 0
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def statuses(server: Server) -> dict[str, int]:
    """How many answers of each status the server counted."""
    found: dict[str, int] = {}
    for name, value in server.metrics().items():
        if name.startswith("glassformer_requests_total{") and "/metrics" not in name:
            status = name.partition('status="')[2].partition('"')[0]
            found[status] = found.get(status, 0) + int(value)
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="malformed requests by schemathesis")
    parser.add_argument("--bytes", type=int, default=1000, help="broken requests besides")
    parser.add_argument("--minutes", type=float, default=20.0, help="give up after this long")
    options = parser.parse_args()
    st = program()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        # Answers of two tokens: what some requests mean after all costs little.
        with Server(
            smollm2(), Path(place) / "log", "--max-tokens", "2", "--context", "256", threads=options.threads
        ) as server:
            server.described()  # made once; on a busy machine that takes longer than schemathesis waits
            cover(server, st)
            covered = sum(statuses(server).values())
            print(f"{covered} requests by coverage", file=sys.stderr, flush=True)
            least = max(options.requests - covered, options.requests // 5)  # by the generator
            made = fuzz(server, st, least, 60 * options.minutes - (time.monotonic() - start))
            minutes = (time.monotonic() - start) / 60
            by_schema = statuses(server)
            generator = random.Random(7)
            address = (urlsplit(server.url).hostname or "", urlsplit(server.url).port or 0)
            requests = [(broken(generator), generator.random() < 0.1) for _ in range(options.bytes)]
            with ThreadPoolExecutor(8) as pool:
                raw = Counter(pool.map(lambda one: send(address, *one), requests))
            good = send(address, _sound(), False)
            code = server.end()
        log = (Path(place) / "log").read_text()
    fives = sum(n for status, n in by_schema.items() if status.startswith("5"))
    fives += sum(n for status, n in raw.items() if status >= 500)
    tracebacks = log.count("Traceback")
    count = sum(by_schema.values())
    listed = ", ".join(f"{status}: {n}" for status, n in sorted(by_schema.items()))
    rows = [
        ("requests by schemathesis", count, verdict(count, least=options.requests)),
        ("of these by status", listed, ""),
        ("different bodies of the generator", made["bodies"], ""),
        ("without an answer", made["lost"], verdict(made["lost"], most=0)),
        ("minutes", f"{minutes:.1f}", ""),
        ("broken bytes, by status (0: no answer awaited)", ", ".join(f"{s}: {n}" for s, n in sorted(raw.items())), ""),
        ("answers of 500 and above", fives, verdict(fives, most=0)),
        ("tracebacks in the log", tracebacks, verdict(tracebacks, most=0)),
        ("a sound request afterwards", good, verdict(good, most=200)),
        ("exit code after SIGTERM", code, verdict(code, most=0)),
    ]
    notes = (
        "Schemathesis makes requests that contradict /openapi.json (its negative mode) against every route that takes "
        "a body: its coverage of every field once, then its random generator, two at a time." + commit()
    )
    report("server_fuzz", "Server: malformed requests", table(("what", "figure", "asked"), rows), options, notes)


def _sound() -> bytes:
    body = json.dumps(WHOLE).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    return f"{head}content-type: application/json\r\nconnection: close\r\n\r\n".encode() + body


if __name__ == "__main__":
    main()

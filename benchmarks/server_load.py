"""Many clients stream from one server at once: errors, memory, time to first token, throughput, and the same texts."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import arguments, report, skip, smollm2, spread, table, verdict
from server_common import Server

OPENINGS = [
    "Once upon a time, in a small village by the sea,",
    "The capital of France is",
    "To make a good soup, begin with",
    "The three most important inventions of the nineteenth century were",
    "A prime number is",
    "Dear Sir or Madam,",
    "The mole is a small animal that",
    "In the year 1905, Albert Einstein",
]
ENDINGS = ["", " Let us think.", " That is,", " First,"]
PROMPTS = [f"{opening}{ending}" for ending in ENDINGS for opening in OPENINGS]
GROWTH = 1.05  # of memory, from after the first quarter to the end


@dataclass
class Answer:
    """One streamed answer.

    Attributes:
        first: seconds to its first token. logprobs: of the tokens taken. gaps: between each place's two likeliest.
    """

    prompt: int
    first: float = 0.0
    text: str = ""
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


async def stream(client: Any, url: str, prompt: int, tokens: int) -> Answer:
    """One greedy answer."""
    body = {"prompt": PROMPTS[prompt], "max_tokens": tokens, "temperature": 0, "stream": True, "logprobs": 2}
    answer, start = Answer(prompt), time.perf_counter()
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"status {response.status_code}: {(await response.aread()).decode()[:200]}")
        done = False
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                for choice in event["choices"]:
                    answer.first = answer.first or time.perf_counter() - start
                    answer.text += choice["text"]
                    found = choice["logprobs"] or {"tokens": [], "token_logprobs": [], "top_logprobs": []}
                    answer.tokens += found["tokens"]
                    answer.logprobs += found["token_logprobs"]
                    for top in found["top_logprobs"]:
                        best = sorted(top.values(), reverse=True)
                        answer.gaps.append(best[0] - best[1] if len(best) > 1 else float("inf"))
        if not done:
            raise RuntimeError("the stream ended before [DONE]")
    return answer


async def load(url: str, options: Any, server: Server) -> tuple[list[Answer], list[str], list[float], float]:
    """Everybody asks again and again until the time is over."""
    import httpx

    answers: list[Answer] = []
    errors: list[str] = []
    memory: list[float] = []
    start = end = 0.0

    async def one(number: int) -> None:
        turn = number
        while time.perf_counter() < end:
            try:
                answers.append(await stream(client, url, turn % len(PROMPTS), options.tokens))
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
            turn += 7

    async def watch() -> None:
        while True:
            memory.append(server.resident())
            await asyncio.sleep(max(0.5, options.seconds / 40))

    watching = asyncio.create_task(watch())
    # A connection each, in one pool: 64 clients of the library would spend the first seconds reading certificates.
    limits = httpx.Limits(max_connections=options.clients, max_keepalive_connections=options.clients)
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        start = time.perf_counter()
        end = start + options.seconds
        await asyncio.gather(*(one(number) for number in range(options.clients)))
    watching.cancel()
    return answers, errors, memory, time.perf_counter() - start


async def alone(url: str, options: Any, wanted: set[int]) -> dict[int, Answer]:
    """The same prompts, one after another."""
    import httpx

    async with httpx.AsyncClient(timeout=300) as client:
        return {prompt: await stream(client, url, prompt, options.tokens) for prompt in sorted(wanted)}


def compare(answers: list[Answer], references: dict[int, Answer]) -> tuple[float, int, list[float]]:
    """The batching noise (the largest difference of a log-probability while the tokens are the same), how many texts
    are equal, and the two likeliest tokens' gap where each other one parts."""
    noise, equal, parted = 0.0, 0, []
    for answer in answers:
        reference = references[answer.prompt]
        same = 0
        for mine, theirs in zip(answer.tokens, reference.tokens, strict=False):
            if mine != theirs:
                break
            noise = max(noise, abs(answer.logprobs[same] - reference.logprobs[same]))
            same += 1
        if answer.text == reference.text:
            equal += 1
        else:
            parted.append(reference.gaps[same] if same < len(reference.gaps) else 0.0)
    return noise, equal, parted


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--precision", default="fast")
    parser.add_argument("--log", type=Path, help="keep the server's log here")
    options = parser.parse_args()
    try:
        import httpx  # noqa: F401
        import psutil  # noqa: F401
    except ImportError as error:
        skip(f"{error.name} is not installed; make test installs it")
    source = smollm2()
    with tempfile.TemporaryDirectory() as place:
        log = options.log or Path(place) / "log"
        settings = ["--slots", str(options.slots), "--queue", str(2 * options.clients), "--context", "1024"]
        with Server(source, log, "--precision", options.precision, *settings, threads=options.threads) as server:
            asyncio.run(alone(server.url, options, {0}))  # warm
            answers, errors, memory, took = asyncio.run(load(server.url, options, server))
            references = asyncio.run(alone(server.url, options, {answer.prompt for answer in answers}))
            told, code = server.told, server.end()
        failed = [line for line in log.read_text().splitlines() if '"level": "error"' in line]
    noise, equal, parted = compare(answers, references)
    settled = memory[len(memory) // 4 :]
    firsts = sorted(answer.first for answer in answers)
    tokens = sum(len(answer.tokens) for answer in answers)
    wrong = [gap for gap in parted if gap > noise]
    rows = [
        (
            "errors",
            f"{len(errors)}" + (f" ({errors[0]})" if errors else ""),
            verdict(len(errors) + len(failed), most=0),
        ),
        ("answers", len(answers), ""),
        ("throughput, tokens/s", f"{tokens / took:.0f}", ""),
        ("time to first token, s: median", f"{statistics.median(firsts):.2f}", ""),
        ("time to first token, s: 95 of 100", f"{firsts[int(0.95 * (len(firsts) - 1))]:.2f}", ""),
        ("memory, MiB: after a quarter", f"{settled[0]:.0f}", ""),
        ("memory, MiB: at the end", f"{settled[-1]:.0f}", verdict(settled[-1] / settled[0], most=GROWTH)),
        ("texts equal to the same request alone", f"{equal} of {len(answers)}", ""),
        ("batching noise, largest |Δ log-probability|", f"{noise:.1e}", ""),
        ("texts that part where the gap is above the noise", len(wrong), verdict(len(wrong), most=0)),
        ("exit code after SIGTERM", code, verdict(code, most=0)),
    ]
    report(
        "server_load",
        f"Server: {options.clients} streaming clients for {options.seconds:g} s",
        table(("what", "figure", "asked"), rows),
        options,
        f"{told.partition(' is served')[0]}, {options.slots} slots; greedy answers of {options.tokens} tokens to "
        f"{len(PROMPTS)} prompts with their log-probabilities. The clients run on the same machine. A client waits "
        f"for a slot before its first token. Time to first token over all answers: {spread(firsts)} s.",
    )


if __name__ == "__main__":
    main()

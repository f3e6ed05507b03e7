"""Memory of the server over ten thousand different prompts, with a prompt cache that keeps to its budget."""

from __future__ import annotations

import tempfile
from pathlib import Path

from common import arguments, report, skip, table, verdict
from server_common import Server
from server_cost import generator, load
from server_routes import tiny

GROWTH = 1.05
CACHE = 0.2  # GB


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument(
        "--prompts", type=int, default=10_000, help="different prompts, after a quarter as many to settle"
    )
    parser.add_argument("--model", help="a model that is installed; by default a tiny random one, quick to answer")
    options = parser.parse_args()
    if not Path("/proc/self/task").is_dir():
        skip("the load generator is made for Linux")
    first, half = options.prompts // 4, options.prompts // 2
    with tempfile.TemporaryDirectory() as place:
        program, source = generator(Path(place)), options.model or tiny(Path(place))
        settings = ["--slots", str(options.clients), "--queue", "64", "--context", "256", "--prompt-cache", str(CACHE)]
        with Server(source, Path(place) / "log", *settings, threads=options.threads) as server:
            held, answers, errors = [], 0, 0
            for prompts in (first, half, options.prompts - half):
                found = load(program, server, options.clients, 3600, 1, prompts, answers)
                answers, errors = answers + found["answers"], errors + found["errors"]
                held.append(server.resident())
            code = server.end()
    growth, leak = held[-1] / held[0], 1024 * (held[-1] - held[0]) / (answers - first)
    rows = [
        ("different prompts", answers, verdict(answers, least=options.prompts)),
        ("errors", errors, verdict(errors, most=0)),
        (f"memory, MiB: after {first:,}, {first + half:,} and all", ", ".join(f"{m:.0f}" for m in held), ""),
        ("the last over the first", f"{growth:.3f}", verdict(growth, most=GROWTH)),
        ("KiB a prompt between them", f"{leak:.2f}", ""),
        ("exit code after SIGTERM", code, verdict(code, most=0)),
    ]
    of = options.model or "A tiny random model"
    notes = (
        f"{of} answers {options.clients} clients of a compiled load generator, one token each; every prompt is "
        f"another, of about 25 tokens. The prompt cache has {CACHE:g} GB."
    )
    report(
        "server_memory",
        "Server: memory over different prompts",
        table(("what", "figure", "asked"), rows),
        options,
        notes,
    )


if __name__ == "__main__":
    main()

"""Ten thousand malformed requests over all routes of the server, drawn from its own description: none may be a 5xx.

Each request begins as one that its route takes, and something that the description tells about it is broken: a field of
another type, beyond its bounds, missing, unknown, or nested; a body that is none; a header or method that does not fit.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import ROOT, arguments, report, skip, table, verdict
from server_common import Server, commit

TALK = [{"role": "user", "content": "a"}]
# What each route takes, so that what is broken of it is the only thing wrong.
SOUND: dict[str, Any] = {
    "/v1/completions": {"prompt": "The mole", "max_tokens": 1},
    "/v1/chat/completions": {"messages": TALK, "max_tokens": 1},
    "/v1/responses": {"input": "a", "max_output_tokens": 1},
    "/v1/messages": {"messages": TALK, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": TALK},
    "/v1/embeddings": {"input": "a"},
    "/api/chat": {"messages": TALK, "options": {"num_predict": 1}, "stream": False},
    "/api/generate": {"prompt": "a", "options": {"num_predict": 1}, "stream": False},
    "/api/embed": {"input": "a"},
    "/api/embeddings": {"prompt": "a"},
    "/api/show": {},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
}
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, -(2**63), 10**40, 0.5, -1e308, 1e308, "", "x", "\x00", "\ud7ff", "🦔" * 40,
    "-5", "a" * 3000, [], [[]], [None], [1, "a"], {}, {"": 1}, {"a": {"b": []}}, {"$ref": "#/x"},
    [[1, 2], ["a"]], [{}] * 70,
]  # fmt: skip
BODIES = [
    b"",
    b"{",
    b"[]",
    b'"x"',
    b"null",
    b"nan",
    b"[" * 3000,
    b"\xff\xfe",
    b'{"a": 1e999}',
    b'{"a": "\\ud800"}',
    b"{}",
]
TYPES = ["application/json", "text/plain", "application/json; charset=utf-16", "", "multipart/form-data", "a/b;c"]


class Breaker:
    """Draws malformed requests of a server.

    Args:
        described: its OpenAPI description. examples: of what its views are asked.
    """

    def __init__(self, described: dict[str, Any], examples: dict[str, Any], seed: int) -> None:
        self.random = random.Random(seed)
        self.schemas = described["components"]["schemas"]
        self.routes = [(p, m.upper()) for p, ways in described["paths"].items() for m in ways]
        self.bodies = {
            path: ways["post"]["requestBody"]["content"]["application/json"]["schema"]
            for path, ways in described["paths"].items()
            if "requestBody" in ways.get("post", {})
        }
        self.sound = {
            path: SOUND.get(path, examples.get(path.rpartition("/")[2], {"text": "a"})) for path in self.bodies
        }

    def request(self) -> dict[str, Any]:
        """One request, as httpx takes it."""
        draw = self.random
        path, method = draw.choice(self.routes)
        path = path.replace("{model}", draw.choice(["x", "%00", "..%2f..", "a" * 400, "é"])).replace("{id}", "x")
        headers: dict[str, str] = {}
        if draw.random() < 0.04:
            method = draw.choice(["PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE"])
        if path not in self.bodies:
            query = draw.choice(["", "?model=x", "?a=%00", "?limit=-1", "?model=" + "b" * 300])
            return {"method": method, "url": path + query, "headers": headers}
        headers["content-type"] = "application/json" if draw.random() < 0.96 else draw.choice(TYPES)
        if draw.random() < 0.03:
            headers[draw.choice(["content-encoding", "accept", "x-request-id", "x-api-key", "origin"])] = draw.choice(
                ["gzip", "br", "text/event-stream", "application/vnd.safetensors", "null", "x" * 2000]
            )
        if draw.random() < 0.06:
            return {"method": method, "url": path, "headers": headers, "content": draw.choice(BODIES)}
        body = copy.deepcopy(self.sound[path])
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            self.spoil(body, self.bodies[path])
        return {"method": method, "url": path, "headers": headers, "content": json.dumps(body).encode()}

    def spoil(self, body: Any, schema: Any) -> None:
        """Break one thing of a body, somewhere in it."""
        draw, schema = self.random, self.resolved(schema)
        if not isinstance(body, dict):
            return
        fields = schema.get("properties", {})
        inside = [name for name in body if isinstance(body[name], dict | list) and body[name]]
        if inside and draw.random() < 0.3:
            name = draw.choice(inside)
            inner, below = body[name], self.resolved(fields.get(name, {}))
            if isinstance(inner, list):
                at = draw.randrange(len(inner))
                if isinstance(inner[at], dict):
                    self.spoil(inner[at], below.get("items", {}))
                else:
                    inner[at] = copy.deepcopy(draw.choice(ODD))
            else:
                self.spoil(inner, below)
            return
        way = draw.random()
        if way < 0.1 and body:
            del body[draw.choice(list(body))]
        elif way < 0.15:
            body[draw.choice(["colour", "__class__", "", "a" * 200, "Model"])] = copy.deepcopy(draw.choice(ODD))
        elif fields:
            name = draw.choice(list(fields))
            body[name] = self.value(self.resolved(fields[name]), 3)

    def value(self, schema: dict[str, Any], depth: int) -> Any:
        """A value that breaks a schema, or follows it until something deeper breaks."""
        draw = self.random
        if draw.random() < 0.45 or depth == 0:
            return copy.deepcopy(draw.choice(ODD))
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                return self.value(self.resolved(draw.choice(schema[key])), depth)
        if "enum" in schema or "const" in schema:
            return draw.choice([*schema.get("enum", []), schema.get("const"), "other", 3])
        kind = schema.get("type")
        if kind in ("integer", "number"):
            ends = [schema[k] for k in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum") if k in schema]
            return draw.choice([*(end + step for end in ends for step in (-1, 0, 1)), 0, 7, 2**70, "3"])
        if kind == "string":
            return draw.choice(["a", "", "x" * (schema.get("maxLength", 500) + 1), "\n", "日本"])
        if kind == "array":
            return [
                self.value(self.resolved(schema.get("items", {})), depth - 1) for _ in range(draw.choice([0, 1, 3, 80]))
            ]
        if kind == "object":
            named = schema.get("properties", {})
            keys = draw.sample(list(named), min(len(named), draw.randint(0, 4)))
            return {key: self.value(self.resolved(named[key]), depth - 1) for key in keys}
        return copy.deepcopy(draw.choice(ODD))

    def resolved(self, schema: Any) -> dict[str, Any]:
        while isinstance(schema, dict) and "$ref" in schema:
            schema = self.schemas[schema["$ref"].rsplit("/", 1)[-1]]
        return schema if isinstance(schema, dict) else {}


def ask(client: Any, request: dict[str, Any]) -> tuple[int | str, bool]:
    """The status of an answer, and whether an error in it has its API's own shape."""
    import httpx

    try:
        answer = client.request(**request)
    except httpx.HTTPError as error:
        return type(error).__name__, True
    except (UnicodeError, ValueError, TypeError):
        return "not sent", True
    if answer.status_code < 400 or request["method"] == "HEAD":
        return answer.status_code, True
    path = request["url"].partition("?")[0]
    try:
        told = answer.json()["error"]
        ours = isinstance(told, str) if path.startswith("/api/") else isinstance(told["message"], str)
    except (ValueError, KeyError, TypeError):
        ours = False
    return answer.status_code, ours


def tiny(place: Path) -> Path:
    """A tiny random model that talks, made by the tests' own hand."""
    sys.path.insert(0, str(ROOT))
    from tests.serve.running import TEMPLATE
    from tests.tiny import tiny_directory

    made = tiny_directory(place / "tiny", max_position_embeddings=256)
    (made / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    return made


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--log", type=Path, help="keep the server's log here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="a model that is installed; by default a tiny random one, quick to look into")
    options = parser.parse_args()
    try:
        import httpx
    except ImportError as error:
        skip(f"{error.name} is not installed; make test installs it")
    from glassformer.views import VIEWS
    from glassformer.views.examples import example

    counts: Counter[tuple[int | str, bool]] = Counter()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        limits = ["--max-tokens", "2", "--context", "256", "--time-limit", "5", "--slots", "4", "--queue", "64"]
        source = options.model or tiny(Path(place))
        with Server(source, Path(place) / "log", *limits, threads=options.threads) as server:
            described = server.described()
            breaker = Breaker(described, {name: example(name) for name in VIEWS}, options.seed)
            requests = [breaker.request() for _ in range(options.requests)]
            worst: list[str] = []

            def one(request: dict[str, Any]) -> None:
                found = ask(client, request)
                counts[found] += 1
                if (isinstance(found[0], int) and found[0] >= 500) or not found[1]:
                    worst.append(
                        f"{found} {request['method']} {request['url'][:100]} {str(request.get('content'))[:400]}"
                    )

            with httpx.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(options.clients) as pool:
                list(pool.map(one, requests))
                good = client.post("/v1/completions", json=SOUND["/v1/completions"]).status_code
            code = server.end()
        if options.log:
            shutil.copy(Path(place) / "log", options.log)
        tracebacks = (Path(place) / "log").read_text().count("Traceback")
    print("".join(f"{line}\n" for line in worst[:10]), end="")
    fives = sum(n for (status, _), n in counts.items() if isinstance(status, int) and status >= 500)
    shapeless = sum(n for (_, ours), n in counts.items() if not ours)
    by_status: Counter[str] = Counter()
    for (status, _), n in counts.items():
        by_status[str(status)] += n
    rows = [
        ("requests", sum(counts.values()), verdict(sum(counts.values()), least=options.requests)),
        ("routes", len(breaker.routes), ""),
        ("by status", ", ".join(f"{status}: {n}" for status, n in sorted(by_status.items())), ""),
        ("answers of 500 and above", fives, verdict(fives, most=0)),
        ("errors without their API's shape", shapeless, verdict(shapeless, most=0)),
        ("tracebacks in the log", tracebacks, verdict(tracebacks, most=0)),
        ("a sound request afterwards", good, verdict(good, most=200)),
        ("exit code after SIGTERM", code, verdict(code, most=0)),
        ("minutes", f"{(time.monotonic() - start) / 60:.1f}", ""),
    ]
    notes = (
        "Every request is drawn from /openapi.json and broken in one to three places; those that mean something after "
    )
    notes += "all are answered (200), and views that take longer than the 5 s allowed end with 408." + commit()
    report(
        "server_routes",
        "Server: malformed requests to every route",
        table(("what", "figure", "asked"), rows),
        options,
        notes,
    )


if __name__ == "__main__":
    main()

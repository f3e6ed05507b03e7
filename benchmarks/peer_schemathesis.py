"""Requests that contradict a server's own OpenAPI description, made and sent by schemathesis in this process.

Run by the interpreter that schemathesis is installed for. Its command line spends most of its time on what a count of
statuses does not need (recording, checking and reporting every exchange); here the same generator's cases go over one
connection that is kept. Prints one JSON object: how many answers of each status there were, digests of the bodies that
were sent, and the commands that repeat the worst.

python peer_schemathesis.py URL REQUESTS SECONDS SEED
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import Any

ROUND = 500  # cases of one operation under one seed; the first of a seed are the simplest


def main(url: str, requests: int, limit: float, start: int) -> None:
    import requests as http
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings

    described = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in described.get_all_operations()]
    operations = [one for one in operations if one.method.upper() == "POST"]
    end = time.monotonic() + limit
    statuses: dict[str, int] = {}
    bodies: set[str] = set()
    failures: list[str] = []
    made = 0

    with http.Session() as session:

        def send(case: Any) -> None:
            nonlocal made
            if made >= requests or time.monotonic() > end:
                return
            try:
                answer = case.call(base_url=url, session=session, timeout=60)
                status = str(answer.status_code)
                body = answer.request.body or b""
                body = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body)
                bodies.add(hashlib.sha256(body).hexdigest()[:16])
            except http.RequestException as error:
                status = type(error).__name__
            made += 1
            statuses[status] = statuses.get(status, 0) + 1
            if not status.isdigit() or status >= "500":
                failures.append(f"{status}: {case.as_curl_command()[:500]}")

        number = start
        while made < requests and time.monotonic() < end:
            for one in operations:
                count = min(ROUND, max(1, (requests - made + 1) // len(operations)))
                cases = one.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
                run = settings(
                    max_examples=count, phases=[Phase.generate], database=None, deadline=None,
                    suppress_health_check=list(HealthCheck),
                )(given(cases)(send))  # fmt: skip
                seed(number)(run)()
            number += 1
    print(json.dumps({"statuses": statuses, "bodies": sorted(bodies), "failures": failures[:10]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))

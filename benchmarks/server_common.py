"""A `glassformer serve` process for the server's benchmarks."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from common import ROOT, environment


def commit() -> str:
    """Which code was measured, as a sentence; "" where git does not say."""
    try:
        told = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except OSError:
        return ""
    return f" The code is that of {told.stdout.strip()}." if told.returncode == 0 else ""


class Server:
    """A server process on a free port, standing in `folder`; its log goes to a file.

    Attributes:
        url: its address, without a path. process: the running program.
    """

    def __init__(
        self, source: str | Path, log: Path, *options: str, threads: int = 2, folder: Path | None = None
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glassformer", "serve", str(source), "--port", "0", *options],
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment(threads),
        )
        assert self.process.stderr is not None
        self.told = self.process.stderr.readline().strip()
        found = re.search(r"(http://\S+)/v1$", self.told)
        if found is None:
            raise RuntimeError(f"the server did not start: {self.told}")
        self.url = found[1]
        self._log = log
        self._reader = threading.Thread(target=self._keep, daemon=True)
        self._reader.start()

    def _keep(self) -> None:
        assert self.process.stderr is not None
        with self._log.open("w") as file:
            for line in self.process.stderr:
                file.write(line)

    def resident(self) -> float:
        """MiB of memory in use."""
        import psutil

        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def metrics(self) -> dict[str, float]:
        """Every number of /metrics by its name with labels."""
        import httpx

        rows = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return {r.rpartition(" ")[0]: float(r.rpartition(" ")[2]) for r in rows if not r.startswith("#")}

    def described(self) -> dict[str, Any]:
        """/openapi.json."""
        import httpx

        found: dict[str, Any] = httpx.get(f"{self.url}/openapi.json", timeout=300).json()
        return found

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        code = self.process.wait(timeout=120)
        self._reader.join(10)
        return code

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

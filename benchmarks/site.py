"""The static site: what `glassformer site` writes for the default model, how heavy it is and how soon it shows.

A dozen texts with SmolLM2, opened in Chromium from the disk. No peer: the figures are what a host stores and a visitor
waits for.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import arguments, environment, need_chromium, report, spread, table, verdict

TOTAL_MB, FIRST_MB, PAINT_MS = 25, 3, 1500
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
# … milliseconds to the first frame in which the stage holds its numbers.
STAGE = """async () => {
  while (!document.querySelector(".stage-room")?.stage?.data) await new Promise((done) => requestAnimationFrame(done));
  return performance.now();
}"""


def opened(page: Path, program: str, rounds: int) -> tuple[list[float], list[float]]:
    """First paint and the stage's first picture, each in milliseconds."""
    from playwright.sync_api import sync_playwright

    paint, stage = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(rounds):
            sheet = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
            sheet.goto(page.as_uri())
            stage.append(sheet.evaluate(STAGE))
            while (at := sheet.evaluate(PAINT)) is None:
                sheet.wait_for_timeout(10)
            paint.append(at)
            sheet.close()
        browser.close()
    return paint, stage


def main() -> None:
    options = arguments(__doc__, rounds=5).parse_args()
    program = need_chromium()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "site"
        began = time.perf_counter()
        command = [sys.executable, "-m", "glassformer", "site", str(folder), "--json"]
        run = subprocess.run(
            command, check=True, env=environment(options.threads), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        wrote = time.perf_counter() - began
        sizes = json.loads(run.stdout)["files"]
        paint, stage = opened(folder / "index.html", program, options.rounds)
    total, first = sum(sizes.values()) / 1e6, sizes["index.html"] / 1e6
    shown = statistics.median(paint)
    rows = [
        (f"{len(sizes)} pages in all (MB)", f"{total:.1f}", verdict(total, most=TOTAL_MB)),
        ("before the first picture: the whole first page (MB)", f"{first:.2f}", verdict(first, most=FIRST_MB)),
        ("the largest page (MB)", f"{max(sizes.values()) / 1e6:.2f}", ""),
        ("first paint from disk (ms)", spread(paint), verdict(shown, most=PAINT_MS)),
        ("the stage's numbers are there (ms)", spread(stage), ""),
        ("writing it (s)", f"{wrote:.0f}", ""),
    ]
    report("site", "The static site", table(("what", "median (range)", "asked"), rows), options)


if __name__ == "__main__":
    main()

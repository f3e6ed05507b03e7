"""The README's picture: the page on SmolLM2, photographed in Chromium.

    python scripts/make_picture.py

Needs the extras "serve" and "test" (playwright) and a Chromium on the path.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "page.png"
VIEW = "#text=The%20capital%20of%20France%20is&layer=23&head=4&tab=attention"


def main() -> None:
    """Start the page, wait until it has drawn everything, and write the picture."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("There is no chromium on the path; install one to take the picture.")
    command = [sys.executable, "-m", "glassformer", "open", "--no-browser"]
    page_server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert page_server.stderr is not None
        address = next(found[0] for line in page_server.stderr if (found := re.search(r"http://\S+", line)))
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1500, "height": 860}, color_scheme="light")
            page.goto(address + VIEW)
            page.get_by_text("Layer 23, head 4").first.wait_for(timeout=120_000)
            page.locator(".thumb").nth(200).wait_for(timeout=120_000)
            page.wait_for_timeout(4000)
            PICTURE.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(PICTURE))
            browser.close()
    finally:
        page_server.terminate()
        page_server.wait(20)
    print(f"Wrote {PICTURE.relative_to(Path.cwd()) if PICTURE.is_relative_to(Path.cwd()) else PICTURE}.")


if __name__ == "__main__":
    main()

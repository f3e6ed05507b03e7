"""The page in a browser: how soon what is typed is answered, and how much travels.

SmolLM2 behind `glassformer open`, Chromium in front of it. No peer: the figures are what a person at the
page waits for.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common import arguments, environment, need_chromium, report, spread, table, verdict

# 29 tokens; one more is typed.
TEXT = (
    "The American shrew mole is a small mammal that lives in the damp forests of the coast, where it digs for "
    "worms under the fallen leaves and"
)
REPORT = (
    "The quick brown fox jumps over the lazy dog while the old clock on the wall strikes nine and nobody in the house "
    "seems to notice, for the fire is warm, the soup is hot, and the story that grandmother tells is long. " * 2
)
# About 300 tokens for the stage, and about 2,220, until whose page rests.
MANY = (
    "The old shepherd walked with his dog through the village and looked at the river while the bank on the other "
    "side was still in the shade and the mole dug its way under the grass. " * 8
).strip()
PROSE = ("the mole and the bank of the river are " * 247).strip()
# Frames a second of the stage's film: median and 5th percentile at 1,400 px, median at 2,560 px; first motion, ms.
FILM_FRAMES, FILM_SLOW, FILM_WIDE, MOTION_MS = 50, 30, 24, 1000
MANY_FRAMES = 24  # … of about 300 tokens, at any width
KEY_MS, HEAD_MS, ROOM_MS, WHY_MS, PAINT_MS, FRAMES, SCRIPT_KB, REPORT_MB = 300, 150, 150, 2000, 1000, 30, 350, 5

# Runs in the page: milliseconds from the input event to the frame after the bars have changed.
TYPE = """async (text) => {
  const box = document.getElementById("composer");
  box.focus();
  const bars = document.querySelector("[aria-label='Most probable next tokens']");
  const before = bars.textContent;
  const start = performance.now();
  const changed = new Promise((done) => {
    const watcher = new MutationObserver(() => {
      if (bars.textContent === before) return;
      watcher.disconnect();
      requestAnimationFrame(() => done(performance.now() - start));
    });
    watcher.observe(bars, { childList: true, subtree: true, characterData: true });
  });
  box.value = text;
  box.dispatchEvent(new Event("input"));
  return changed;
}"""
# … from the click on a thumbnail to the frame in which its matrix is drawn.
HEAD = """async ([layer, head]) => {
  const start = performance.now();
  const real = CanvasRenderingContext2D.prototype.putImageData;
  const drawn = new Promise((done) => {
    CanvasRenderingContext2D.prototype.putImageData = function (image, ...rest) {
      real.call(this, image, ...rest);
      // The matrix is drawn at once, empty, and again when its numbers are there.
      if (image.data.some((v, i) => i % 4 === 3 && v > 0)) requestAnimationFrame(() => done(performance.now() - start));
    };
  });
  document.querySelector(`[data-layer="${layer}"][data-head="${head}"]`).click();
  const took = await drawn;
  CanvasRenderingContext2D.prototype.putImageData = real;
  return took;
}"""
# … from the click on a room's tab, its files not fetched yet, to the frame in which it stands.
ROOM = """async (room) => {
  const start = performance.now();
  const panel = document.getElementById(`room-${room}`);
  document.getElementById(`tab-${room}`).click();
  while (panel.hidden || !panel.children.length) await new Promise((done) => requestAnimationFrame(done));
  return performance.now() - start;
}"""
# … from asking why to its first sentence; the rest comes after it.
WHY = """async () => {
  const start = performance.now();
  document.getElementById("tab-why").click();
  while (!document.querySelector("#room-why .sentence")) await new Promise((done) => requestAnimationFrame(done));
  return performance.now() - start;
}"""
# … milliseconds from the navigation to the first frame in which the stage has moved.
MOTION = """async () => {
  for (;;) {
    const stage = document.querySelector(".stage-room")?.stage;
    if (stage?.data && stage.t > 0) return performance.now();
    await new Promise((done) => requestAnimationFrame(done));
  }
}"""
# … every gap between frames, and what each drew, over the whole of the first scene.
FILM = """async () => {
  const stage = document.querySelector(".stage-room").stage;
  stage.pause();
  stage.held = true;
  stage.t = 0;
  stage.start();
  while (stage.t < 1) await new Promise((done) => setTimeout(done, 100));
  return { ...stage.stats, tokens: stage.data.count, layers: stage.data.layers, arcs: stage.data.arcs.length };
}"""
# … frames a second while the matrix is scrolled from corner to corner.
SCROLL = """async () => {
  const scroller = document.querySelector(".scroller");
  const far = scroller.scrollHeight - scroller.clientHeight;
  const times = [];
  const start = performance.now();
  await new Promise((done) => {
    const frame = (now) => {
      times.push(now);
      const at = (performance.now() - start) / 3000;
      scroller.scrollTo(at * far, at * far);
      if (at < 1) requestAnimationFrame(frame); else done();
    };
    requestAnimationFrame(frame);
  });
  return { far, frames: (times.length - 1) / ((times[times.length - 1] - times[0]) / 1000) };
}"""


def start(threads: int, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The server and the address that it prints."""
    command = [sys.executable, "-m", "glassformer", "open", "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(threads), cwd=folder)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http\S+token=\S+", line):
            return process, found[0]
    raise RuntimeError("glassformer open ended without an address")


def settled(page: Any) -> None:
    page.wait_for_timeout(300)
    page.wait_for_selector('[aria-busy="true"]', state="detached", timeout=300_000)


def measure(address: str, program: str, rounds: int) -> dict[str, Any]:
    """All timings, in milliseconds; frames a second; bytes of scripts and styles."""
    from playwright.sync_api import Response, sync_playwright

    found: dict[str, Any] = {name: [] for name in ("paint", "key", "head", "room", "why", "motion", "rest")}
    found |= {"film": {}, "many": {}}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1400, "height": 900})
        page = context.new_page()
        sizes: dict[str, int] = {}

        def weigh(response: Response) -> None:
            if response.url.endswith((".js", ".css")):
                sizes[response.url] = len(response.body())

        page.on("response", weigh)
        page.goto(address)
        settled(page)
        page.remove_listener("response", weigh)  # what comes later may be left behind by the next address
        found["bytes"] = sum(sizes.values())
        found["files"] = len(sizes)
        for _ in range(rounds):
            page.goto("about:blank")
            page.goto(address)
            page.wait_for_selector("#composer")
            paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
            while (at := page.evaluate(paint)) is None:
                page.wait_for_timeout(10)
            found["paint"].append(at)
        fragment = f"#text={quote(TEXT)}&tab=size"  # the bars alone, then with the heads beside them
        page.goto("about:blank")
        page.goto(address + fragment)
        settled(page)
        found["tokens"] = page.locator(".panel.words .chip").count()
        for i in range(rounds + 1):
            took = page.evaluate(TYPE, TEXT + [" the", " a", " some", " its"][i % 4])
            settled(page)
            if i:
                found["key"].append(took)
        page.click("#tab-attention")
        settled(page)
        for i in range(rounds + 1):
            took = page.evaluate(HEAD, [3 + i, i % 9])
            settled(page)
            if i:
                found["head"].append(took)
        for i in range(3):
            page.goto("about:blank")
            page.goto(address + f"#text={quote(TEXT + [' this', ' that', ' those'][i])}&tab=attention")
            settled(page)
            found["why"].append(page.evaluate(WHY))
            page.wait_for_timeout(500)
        page.goto("about:blank")
        page.goto(address + fragment)
        settled(page)
        for room in ("depth", "why", "compare", "vectors", "meaning", "texts", "learning"):
            found["room"].append(page.evaluate(ROOM, room))
            settled(page)
        for width, height in ((1400, 900), (2560, 1440)):
            sheet = browser.new_context(viewport={"width": width, "height": height}).new_page()
            sheet.goto(address + f"#text={quote(TEXT + ' the')}")
            found["motion"].append(sheet.evaluate(MOTION))
            settled(sheet)
            found["film"][width] = sheet.evaluate(FILM)
            sheet.close()
        for width, height in ((1400, 900), (375, 800)):
            sheet = browser.new_context(viewport={"width": width, "height": height}).new_page()
            sheet.goto(address + f"#text={quote(MANY)}")
            sheet.locator(".stage-view").scroll_into_view_if_needed()  # on a phone it begins below the fold
            sheet.evaluate(MOTION)
            settled(sheet)
            found["many"][width] = sheet.evaluate(FILM)
            sheet.close()
        for _ in range(2):  # the second time its trace is there
            page.goto("about:blank")
            began = time.perf_counter()
            page.goto(address + f"#text={quote(PROSE)}&layer=5&head=3")
            page.wait_for_selector("#composer")
            settled(page)
            found["rest"].append(time.perf_counter() - began)
        found["long"] = page.inner_text("#facts")
        page.evaluate(SCROLL)  # the tiles come in
        settled(page)
        found["scroll"] = page.evaluate(SCROLL)
        browser.close()
    return found


def _film(width: int, film: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of the stage's film at one width: frames a second, and how many parts a frame drew."""
    gaps = sorted(film["gaps"])
    middle, slow = 1000 / statistics.median(gaps), 1000 / gaps[min(len(gaps) - 1, int(0.95 * len(gaps)))]
    what = f"stage, {film['tokens']} tokens × {film['layers']} layers, {film['arcs']} arcs, {width} px"
    drawn = f"{statistics.median(film['drawn']):.0f} (at most {max(film['drawn'])})"
    many = film["tokens"] > 100
    least = MANY_FRAMES if many else FILM_FRAMES if width < 2000 else FILM_WIDE
    rows = [(f"{what}: frames/s", f"{middle:.0f}", verdict(middle, least=least))]
    if many:
        rows.append((f"{what}: frames/s, 5th percentile", f"{slow:.0f}", ""))
    elif width < 2000:
        rows.append((f"{what}: frames/s, 5th percentile", f"{slow:.0f}", verdict(slow, least=FILM_SLOW)))
    return [*rows, (f"{what}: parts drawn a frame", drawn, "")]


def main() -> None:
    options = arguments(__doc__, rounds=9).parse_args()
    program = need_chromium()
    with tempfile.TemporaryDirectory() as folder:
        process, address = start(options.threads, Path(folder))
        try:
            found = measure(address, program, options.rounds)
        finally:
            process.terminate()
            process.wait()
        file = Path(folder) / "report.html"
        began = time.perf_counter()
        command = [sys.executable, "-m", "glassformer", "report", REPORT.strip(), "-o", str(file)]
        subprocess.run(command, check=True, env=environment(options.threads), stderr=subprocess.DEVNULL)
        wrote = time.perf_counter() - began
        megabytes = file.stat().st_size / 1e6
    key, head, paint = (statistics.median(found[name]) for name in ("key", "head", "paint"))
    frames, kilobytes = found["scroll"]["frames"], found["bytes"] / 1000
    films = [_film(width, film) for width, film in found["film"].items()]
    films += [_film(width, film) for width, film in found["many"].items()]
    rows = [
        *[row for film in films for row in film],
        (
            "opening to the stage's first motion (ms)",
            spread(found["motion"]),
            verdict(max(found["motion"]), most=MOTION_MS),
        ),
        (f"key press to new bars, {found['tokens'] + 1} tokens (ms)", spread(found["key"]), verdict(key, most=KEY_MS)),
        ("opening a head (ms)", spread(found["head"]), verdict(head, most=HEAD_MS)),
        ("why: first sentence, 30 tokens (ms)", spread(found["why"]), verdict(max(found["why"]), most=WHY_MS)),
        ("opening a room (ms)", spread(found["room"]), verdict(max(found["room"]), most=ROOM_MS)),
        ("first paint (ms)", spread(found["paint"]), verdict(paint, most=PAINT_MS)),
        (f"scripts and styles, {found['files']} files (kB)", f"{kilobytes:.0f}", verdict(kilobytes, most=SCRIPT_KB)),
        (
            f"a text of {found['long'].split()[0]} tokens: until the page rests (s), first and second time",
            " and ".join(f"{took:.1f}" for took in found["rest"]),
            "",
        ),
        ("scrolling the matrix of a long text (frames/s)", f"{frames:.0f}", verdict(frames, least=FRAMES)),
        (f"a report of a long text, {wrote:.0f} s (MB)", f"{megabytes:.1f}", verdict(megabytes, most=REPORT_MB)),
    ]
    report(
        "page", "The page", table(("what", "median (range)", "asked"), rows), options, f"Long text: {found['long']}."
    )


if __name__ == "__main__":
    main()

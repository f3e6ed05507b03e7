"""Kill a training process with SIGKILL at moments of every kind, resume it each time, compare with a run never killed.

A child process trains a tiny model. It is killed at the n-th time that Python is about to change a file of the run
(audit events of opening for writing, renaming, removing and making), or between two steps. For the first kill of a
run the kinds of moments take turns and n is drawn among those of the kind; then `--resume` goes on, is perhaps killed
again at any moment, and so on until the run has finished. Its losses must be those of a run that was never killed, to
the bit, and nothing half-written may be left.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = {
    "layers": 1,
    "width": 32,
    "heads": 2,
    "context": 16,
    "tokenizer": "bpe:300",
    "held_out": 0.1,
    "native": "off",
    "steps": 12,
    "batch": 4,
    "precision": "fp32",
    "threads": 1,
    "log_every": 1,
    "eval_every": 4,
    "save_every": 2,
    "eval_tokens": 256,
    "keep": 2,
    "device": "cpu",
}
_MADE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def kind_of(path: Path, event: str, root: Path, begun: bool) -> str:
    """What was about to happen to a file of the run."""
    try:
        inside = path.relative_to(root)
    except ValueError:
        return "the run directory is made"
    if inside.parts[:1] == ("checkpoints",) and len(inside.parts) > 1:
        if event == "os.rename":
            return "a checkpoint is put in place or set aside"
        return "old checkpoints are removed" if event in ("os.remove", "os.rmdir") else "a checkpoint is written"
    if not begun:
        return "a run or its resumption starts up"
    return "the model beside the checkpoints is published" if event != "step" else "a step"


def child(place: str, data: str, cache: str, moment: int, label: str) -> None:
    """Train, or go on, until the run has finished or `moment` changes of files and steps were counted."""
    os.environ["GLASSFORMER_CACHE"] = cache
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    from glassformer.train import train
    from glassformer.train.loop import Run

    root, count, begun = Path(place), 0, False
    kinds: list[str] = []

    def reached(path: Path, event: str) -> None:
        nonlocal count
        count += 1
        kinds.append(kind_of(path, event, root, begun))
        if count == moment:
            with open(label, "w") as file:
                file.write(kinds[-1])
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") or count >= moment > 0:
            return
        name = arguments[0]
        if not isinstance(name, (str, os.PathLike)) or not os.fspath(name).startswith(place):
            return
        if event != "open" or (isinstance(arguments[2], int) and arguments[2] & _MADE):
            reached(Path(name), event)

    plain = Run._one_step

    def one_step(self: Run) -> Any:
        nonlocal begun
        begun = True
        result = plain(self)
        reached(root / "step", "step")
        return result

    Run._one_step = one_step  # type: ignore[method-assign]
    sys.addaudithook(audit)
    train("cpu-minutes", data=data, out=place, resume=True, quiet=True, settings=SETTINGS)
    with open(label, "w") as file:
        json.dump(kinds, file)


def attempt(place: Path, data: Path, moment: int) -> str:
    """One process; what it was killed at, or, when it finished, the kinds of all its moments as a JSON list."""
    label = place.parent / "label"
    label.unlink(missing_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["glassformer.train.run"])
    process = context.Process(
        target=child, args=(str(place), str(data), str(place.parent / "cache"), moment, str(label))
    )
    process.start()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"A run ended with code {process.exitcode} after a kill; its directory is {place}.")
    return label.read_text()


def losses(place: Path) -> list[tuple[int, float]]:
    """What the journal holds of every step."""
    events = [json.loads(line) for line in (place / "journal.jsonl").read_text().splitlines()]
    return [(event["step"], event["loss"]) for event in events if event["event"] == "step"]


def strays(place: Path) -> list[str]:
    """Temporary files that are left."""
    return [str(path) for path in place.rglob("*") if path.name.startswith(".")]


def trial(folder: Path, data: Path, moments: list[int]) -> Counter[str]:
    """A run that is killed at each of these moments (counted in each process from its start), then let finish."""
    killed: Counter[str] = Counter()
    place = folder / "run"
    for moment in [*moments, 0]:
        found = attempt(place, data, moment)
        if found.startswith("["):
            break
        killed[found] += 1
    return killed


def main(seed: int = 1) -> int:
    from common import arguments, report, table

    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=45, help="at least so many")
    options = parser.parse_args()
    kills = options.kills
    draw = random.Random(seed)
    killed: Counter[str] = Counter()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        data = Path(folder, "text.txt")
        data.write_text("".join(f"{i % 7} cats sat on {i % 11} mats by {i % 13} doors.\n" for i in range(500)))
        straight = Path(folder, "straight")
        straight.mkdir()
        kinds = json.loads(attempt(straight / "run", data, 0))
        by_kind = [[n for n, kind in enumerate(kinds, 1) if kind == one] for one in sorted(set(kinds))]
        right, number = losses(straight / "run"), 0
        while sum(killed.values()) < kills:
            number += 1
            home = Path(folder, str(number))
            home.mkdir()
            first = draw.choice(by_kind[number % len(by_kind)])
            later = [draw.randrange(1, len(kinds)) for _ in range(draw.randrange(0, 3))]
            killed += trial(home, data, [first, *later])
            same = losses(home / "run") == right and not strays(home / "run")
            wrong += not same
            print(
                f"run {number}: {sum(killed.values())} kills so far, {'the same' if same else 'DIFFERENT'}", flush=True
            )
    rows = [[kind, str(count)] for kind, count in killed.most_common()]
    rows.append(["all", f"{sum(killed.values())} in {number} runs of {SETTINGS['steps']} steps"])
    rows.append(["runs whose losses differ in a bit, or that left a stray", str(wrong)])
    text = table(("killed while", "times"), rows)
    report("kill", "Killed and resumed", text, options)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

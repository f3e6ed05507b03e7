"""A fixed time on this machine: who learns Python's standard library best in five (or sixty) minutes of training steps.

The text is every .py file of the running Python's standard library; a file is held out where the SHA-256 of its path
there begins with a number divisible by 20. Every entry sees the same tokens (a byte-pair encoding of 1,024, learned
from the training part), and is measured by one evaluator in float32: bits a byte over the whole held-out part, in
windows of its own context that do not overlap. Only the steps count; each entry takes as many as fit, from the pace of
its first ones, so that its schedule ends when the time does.

    python benchmarks/board.py --minutes 5 --entry cpu-minutes --seed 1 --save
    python benchmarks/board.py --minutes 5 --entry nanogpt --nanogpt CHECKOUT --save

A finished run becomes a row of the board in docs/benchmarks.md, with its commit and machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from common import PAGE, ROOT, arguments, machine, table
from peer_nanogpt import checkout, option, renamed

PACE = 20  # steps by which an entry's pace is known
HEAD = ("minutes", "entry", "seed", "parameters", "steps", "bits a byte", "commit", "machine")
NANOGPT = {"block_size": 256, "n_layer": 4, "n_head": 3, "n_embd": 192}
NANOGPT_BATCH = 12


def files() -> tuple[list[Path], list[Path]]:
    """Training files and held-out files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    train, held = [], []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if "site-packages" in name or "dist-packages" in name:
            continue
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        (held if number % 20 == 0 else train).append(path)
    return train, held


def texts(paths: list[Path]) -> list[str]:
    """The readable ones among files, as text."""
    found = []
    for path in paths:
        try:
            found.append(path.read_text("utf-8"))
        except UnicodeDecodeError:  # a test of encodings
            continue
    return found


def bits_per_byte(transformer: Any, documents: list[list[int]], size: int, length: int) -> float:
    """-log2 p of all tokens but each document's first, over the bytes of the documents."""
    import torch
    import torch.nn.functional as F

    total = 0.0
    with torch.inference_mode():
        for ids in documents:
            for at in range(0, len(ids) - 1, length):
                x = torch.tensor([ids[at : at + length + 1]])
                logits = transformer(x[:, :-1]).float()[0]
                total += F.cross_entropy(logits, x[0, 1:], reduction="sum").item()
    return total / math.log(2) / size


def ours(options: Any, work: Path, train: Path, tokenizer: Path) -> tuple[Any, int, float]:
    """A recipe of ours: the model, its steps, and the seconds of these."""
    import glassformer
    from glassformer.train import train as run
    from glassformer.train.recipe import load

    plain = {
        "data": (str(train),), "tokenizer": str(tokenizer), "held_out": 0.0, "seed": options.seed,
        "threads": options.threads, "eval_every": 0, "sample_every": 0, "save_every": 0, "log_every": 1,
    }  # fmt: skip
    recipe = load(options.entry).with_settings({**plain, **dict(setting.split("=", 1) for setting in options.set)})

    def timed(steps: int, place: Path) -> tuple[Path, float]:
        made = run(recipe.with_settings({"steps": steps}), out=place, quiet=True).path
        events = [json.loads(line) for line in (made / "journal.jsonl").read_text().splitlines()]
        began = next(e["seconds"] for e in events if e["event"] == "start")
        return made, [e["seconds"] for e in events if e["event"] == "step"][-1] - began

    _, once = timed(PACE, work / "pace")
    steps = max(1, int(options.minutes * 60 / (once / PACE)))
    made, spent = timed(steps, work / "run")
    return glassformer.load(made, device="cpu", dtype="float32").transformer, steps, spent


def theirs(options: Any, ids: list[int], vocab: int) -> tuple[Any, int, float]:
    """nanoGPT's model with its optimiser and schedule, in bfloat16 and compiled."""
    import torch

    from glassformer.model import Transformer
    from glassformer.train.recipe import Recipe

    sys.path.insert(0, str(checkout(options.nanogpt)))
    from model import GPT, GPTConfig  # nanoGPT's

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    shape = {**NANOGPT, "vocab_size": vocab, **{k: int(v) for k, v in (s.split("=", 1) for s in options.set)}}
    model = GPT(GPTConfig(**shape, dropout=0.0, bias=True))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    compiled, data, length = torch.compile(model), torch.tensor(ids), shape["block_size"]

    def step(number: int, steps: int) -> None:
        """As its train.py: linear warm-up of 100 steps, then a cosine from 1e-3 to 1e-4."""
        share = min(1.0, max(0.0, (number - 100) / max(1, steps - 100)))
        rate = 1e-3 * (number + 1) / 101 if number < 100 else 1e-4 + 0.45e-3 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(data) - length - 1, (NANOGPT_BATCH,)).tolist()
        x = torch.stack([data[i : i + length] for i in starts])
        y = torch.stack([data[i + 1 : i + 1 + length] for i in starts])
        with torch.autocast("cpu", torch.bfloat16):
            _, loss = compiled(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    before = {name: x.clone() for name, x in model.state_dict().items()}
    step(0, 10**9)  # compiles
    began = time.perf_counter()
    for number in range(PACE):
        step(number, 10**9)
    steps = max(1, int(options.minutes * 60 / ((time.perf_counter() - began) / PACE)))
    model.load_state_dict(before)
    optimizer.state.clear()
    began = time.perf_counter()
    for number in range(steps):
        step(number, steps)
    spent = time.perf_counter() - began
    design = {
        "design": "gpt2", "layers": shape["n_layer"], "heads": shape["n_head"], "width": shape["n_embd"],
        "context": length,
    }  # fmt: skip
    config = Recipe().with_settings(design).config(vocab)
    return Transformer.empty(config).load(renamed(model.state_dict(), config)), steps, spent


def main() -> None:
    parser = arguments(__doc__)
    option(parser)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--entry", default="cpu-minutes", help="one of our recipes, or nanogpt")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the entry")
    options = parser.parse_args()
    from glassformer.tokenizer.train import train_bpe

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        train, held = (texts(found) for found in files())
        file = work / "train.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in train), "utf-8")
        tokenizer = train_bpe(train, 1024)
        tokenizer.save(work / "tokenizer")
        if options.entry == "nanogpt":
            end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
            ids = [i for document in tokenizer.encode_many(train) for i in [*document, *end]]
            model, steps, spent = theirs(options, ids, tokenizer.vocab_size)
        else:
            model, steps, spent = ours(options, work, file, work / "tokenizer")
        size = sum(len(text.encode()) for text in held)
        found = bits_per_byte(model, tokenizer.encode_many(held), size, model.config.context)
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    entry = " ".join([options.entry, *options.set])
    count = f"{sum(p.numel() for p in model.parameters()):,}"
    row = (f"{spent / 60:.2f}", entry, options.seed, count, steps, f"{found:.4f}", commit, machine(options.threads))
    print(table(HEAD, [row]))
    print(f"Python {sys.version.split()[0]}: {len(train)} files to learn from, {len(held)} held out ({size:,} bytes).")
    if options.save:
        save(row)


def save(row: tuple[Any, ...]) -> None:
    """Add a row to the board."""
    page, begin, end = PAGE.read_text("utf-8"), "<!-- board -->", "<!-- /board -->"
    if begin not in page:
        page = page.rstrip() + f"\n\n{begin}\n## The board\n\n{table(HEAD, [])}\n{end}\n"
    before, _, rest = page.partition(begin)
    section, _, after = rest.partition(end)
    lines = section.strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    rows = [r for r in rows if not set(r[0]) <= {"-"}]
    rows = sorted([*rows, [str(cell) for cell in row]], key=lambda r: (float(r[0]) > 10, float(r[5])))
    PAGE.write_text(f"{before}{begin}\n## The board\n\n{_about()}\n\n{table(HEAD, rows)}\n{end}{after}", "utf-8")


def _about() -> str:
    return " ".join((__doc__ or "").split("\n\n")[1].split())


if __name__ == "__main__":
    main()

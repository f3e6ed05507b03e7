"""Text to token shards: the rate per core against tiktoken with the same merges, and memory against size.

The BPE is trained here on the standard library, and tiktoken gets the same merges as ranks. Ours is the whole of
`build_corpus` (reading, hashing, tokenising, checksums, writing), each time with a tokenizer that nothing has been
asked of before; tiktoken's is `encode_ordinary` and an array, on texts that lie in memory already. We encode with
tiktoken too, with an equal expression for words that it matches sooner, so its rate with that one stands beside.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from common import DATA, alternate, arguments, report, seconds, table, verdict

SIZES = (16, 128)  # MB of data for the two measurements of memory
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""  # tiktoken's for GPT-2


def train(texts: list[str], size: int) -> Any:
    """A byte-level BPE with GPT-2's words."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from glassformer.tokenizer.tokenizer import Tokenizer

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, eos_id=0)


def sample(size: int) -> list[str]:
    """Python files of this interpreter, the standard library's first and then what is installed, to `size` bytes."""
    found: list[str] = []
    for folder in (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"]):
        for path in sorted(Path(folder).rglob("*.py")):
            if size <= 0:
                return found
            if folder == sysconfig.get_paths()["purelib"] or "site-packages" not in path.parts:
                found.append(str(path))
                size -= path.stat().st_size
    return found


def as_tiktoken(tokenizer: Any, pattern: str = PATTERN) -> Any:
    """The same merges in tiktoken."""
    import tiktoken

    from glassformer.tokenizer.parts import byte_letters

    letters = byte_letters()
    ranks = {bytes([byte]): byte for byte in range(256)}
    for left, right in json.loads(tokenizer.backend.to_str())["model"]["merges"]:
        ranks[bytes(letters[c] for c in left + right)] = len(ranks)
    return tiktoken.Encoding("same", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def memory(folder: str, size: int) -> None:
    """In a process of its own: prepare `size` MB and print the peak of this process's own memory, in bytes."""
    from glassformer.data.corpus import build_corpus
    from glassformer.tokenizer.tokenizer import Tokenizer

    peak = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.is_set():
            status = Path("/proc/self/status").read_text()
            anonymous = next(line for line in status.splitlines() if line.startswith("RssAnon"))
            peak = max(peak, 1024 * int(anonymous.split()[1]))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    corpus = build_corpus(Path(folder, f"{size}.txt"), Tokenizer.from_directory(folder), workers=0)
    over.set()
    watcher.join()
    print(json.dumps({"peak": peak, "tokens": len(corpus.train) + len(corpus.held_out)}))


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--megabytes", type=int, default=24, help="of Python code, from this interpreter's folder")
    parser.add_argument("--vocab", type=int, default=50_257, help="tokens of the BPE")
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = "1"  # per core: everybody on one thread
    import numpy

    from glassformer.data.corpus import build_corpus, text_iterator
    from glassformer.tokenizer import tiktoken_encoder
    from glassformer.tokenizer.encode import Encoder
    from glassformer.tokenizer.tokenizer import Tokenizer

    code = sample(options.megabytes * 1_000_000)
    english = [
        str(DATA / name)
        for name in ("wikitext-2-valid.txt", "wikitext-2-test.txt", "tinyshakespeare.txt")
        if (DATA / name).exists()
    ]
    texts = list(text_iterator(None))
    tokenizer = train(texts, options.vocab)
    encoding, regrouped = as_tiktoken(tokenizer), as_tiktoken(tokenizer, tiktoken_encoder.GPT2)
    rows = []
    for name, spec in (("Python code", code), ("English", english)):
        if spec == []:
            rows.append((name, "no texts beside the checkout", "", "", "", "", "", "", ""))
            continue
        texts = list(text_iterator(spec))
        size = sum(len(text.encode()) for text in texts)
        library = Encoder(tokenizer, fast=False)
        part = texts[:: max(1, len(texts) // 200)]
        start = time.perf_counter()
        expected = library.encode(part)
        slow = sum(map(len, expected)) / (time.perf_counter() - start)
        for text, ids in zip(part, expected, strict=True):
            if [tokenizer.token_bytes(i) for i in ids.tolist()] != encoding.decode_tokens_bytes(
                encoding.encode_ordinary(text)
            ):
                raise SystemExit(f"tiktoken and the tokenizers library disagree on {text[:60]!r}")
        tokens = sum(len(encoding.encode_to_numpy(text, disallowed_special=())) for text in texts)

        def ours(workers: int = 0, spec: Any = spec) -> float:
            new = Tokenizer(tokenizer.backend, eos_id=0)
            with tempfile.TemporaryDirectory() as cache:
                return seconds(lambda: build_corpus(spec, new, cache_dir=cache, workers=workers))

        def theirs(encoding: Any = encoding, texts: list[str] = texts) -> float:
            return seconds(lambda: [numpy.array(encoding.encode_ordinary(t), dtype=numpy.uint16) for t in texts])

        def start_up() -> float:
            new = Tokenizer(tokenizer.backend, eos_id=0)
            assert new.serialised  # which the cache's key needs anyway: not the start's
            return seconds(lambda: Encoder(new))

        timed = alternate(
            options.rounds, 0, ours=ours, tiktoken=theirs, start=start_up, regrouped=lambda: theirs(regrouped)
        )
        our_whole, their_time, start_time, regrouped_time = (
            statistics.median(timed[who]) for who in ("ours", "tiktoken", "start", "regrouped")
        )
        our_time = our_whole - start_time
        all_cores = ours(options.threads)
        rows.append(
            (
                name,
                f"{size / 1e6:.1f} MB",
                f"{tokens / our_time / 1e6:.2f}",
                f"{start_time:.2f} s",
                f"{tokens / their_time / 1e6:.2f}",
                f"{their_time / our_time:.2f} ({verdict(their_time / our_time, least=0.9)})",
                f"{tokens / regrouped_time / 1e6:.2f}",
                f"{slow / 1e6:.2f}",
                f"{tokens / all_cores / 1e6:.2f}",
            )
        )
    head = (
        "text", "size", "ours, M tokens/s a core", "after a start of", "tiktoken", "ratio", "tiktoken, our words",
        "tokenizers, one core", f"ours, {options.threads} processes",
    )  # fmt: skip
    peaks = _memory(tokenizer, texts)
    growth = peaks[1] / peaks[0]
    report(
        "data_preparation",
        "Data preparation",
        table(head, rows)
        + f"\n\nPeak memory of one process while preparing {SIZES[0]} and {SIZES[1]} MB: {peaks[0] / 1e6:.0f} and "
        f"{peaks[1] / 1e6:.0f} MB, {growth:.2f} × ({verdict(growth, most=1.1)}).",
        options,
        f"A byte-level BPE of {tokenizer.vocab_size:,} tokens trained on the standard library; the pieces were found "
        "equal on a sample first. Ours is all of the preparation, from files to checked shards; tiktoken's is encoding "
        "alone; neither counts the encoder's start. Where ids are provably tiktoken's, we encode with tiktoken, whose "
        "expression for words is written so that more of it is matched by an automaton. The columns after the ratio: "
        "tiktoken with that expression (what is between it and ours is reading, hashing, checking and writing), what "
        "the tokenizers library alone would give, and several processes with everything counted.",
    )


def _memory(tokenizer: Any, texts: list[str]) -> list[int]:
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        chunk = "".join(texts).encode()[: 1 << 22]
        for size in SIZES:
            with Path(folder, f"{size}.txt").open("wb") as file:
                for _ in range(size * 1_000_000 // len(chunk)):
                    file.write(chunk)
            done = subprocess.run(
                [sys.executable, __file__, "--memory", folder, str(size)],
                check=True,
                stdout=subprocess.PIPE,
                env={**os.environ, "GLASSFORMER_CACHE": folder},
            )
            peaks.append(json.loads(done.stdout)["peak"])
    return peaks


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        memory(sys.argv[2], int(sys.argv[3]))
    else:
        main()

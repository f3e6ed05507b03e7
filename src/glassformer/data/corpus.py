"""Text to training data: read once, tokenised once, kept as shards that the next run opens at once.

`build_corpus` is the whole interface; `text_iterator` streams the raw text for training a tokenizer.
Shards lie under the cache folder, named by a hash of content and settings; they appear there whole or
not at all. Memory does not grow with the data. This module knows nothing about models or training.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glassformer.data.readers import LONGEST, PIECE, Piece, ProgressCallback, cut_everywhere, hub_version, read
from glassformer.data.shards import FILE, INDEX, Shards, StreamWriter
from glassformer.data.sources import FileSource, Findings, HubSource, Source, Spec, expand
from glassformer.errors import DataError, EmptyDataError, TooFewDocumentsError
from glassformer.system import files, locks, sealed
from glassformer.tokenizer.encode import Encoder, token_dtype

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer

LAYOUT = 2
FAST = 1 << 21  # bytes of data from which a faster encoder's start pays
SPLITS = ("tail", "document")
CUT = "longer than 16 million characters for a tokenizer that wants documents whole, cut between words"


@dataclass(frozen=True)
class Corpus:
    """Tokenised data.

    Args:
        train, held_out: the tokens of each part.
        hash: of the tokens themselves and of how they are split; equal data has an equal hash anywhere.
        bytes_per_token: bytes of original text per token, over both parts.
        findings: what was read, and what could not be read as it stood.
        directory: where the shards lie.
        sources: names of what was read.
    """

    train: Shards
    held_out: Shards
    hash: str
    bytes_per_token: float
    findings: Findings
    directory: Path
    sources: tuple[str, ...] = ()

    def origins(self, shards: Shards, documents: Sequence[int]) -> list[str]:
        """Where documents of one of the parts are from, by their numbers there: "chats.jsonl:17"."""
        found = [shards.origin(number) for number in documents]
        return [f"{self.sources[source]}:{line}" if line else self.sources[source] for source, line in found]

    def verify(self) -> None:
        """Check every byte against its checksum (reading does so as it goes).

        Raises:
            DataError: naming the damaged file.
        """
        self.train.verify()
        self.held_out.verify()


def build_corpus(
    spec: Spec,
    tokenizer: Tokenizer,
    *,
    held_out: str = "tail",
    fraction: float = 0.1,
    cache_dir: str | Path | None = None,
    progress: ProgressCallback | None = None,
    workers: int | None = None,
    invalid: str = "replace",
    text_field: str | None = None,
    chat: bool = False,
) -> Corpus:
    """Tokenised data from whatever `spec` names; opened at once when it was made before.

    Args:
        spec: None for Python's own standard library; a file (text, .jsonl, .parquet, also .gz and .zst),
            a folder, a glob, "-" for standard input, "hf:NAME" for a Hugging Face set; or a list of these.
        tokenizer: documents are encoded with literals of special tokens read as text, begin-of-text
            before and end-of-text after each where the tokenizer has them.
        held_out: "tail" holds out the last tokens, "document" whole documents chosen by a hash of their
            beginning, so that copies stay on one side.
        fraction: how much is held out, in [0, 1).
        cache_dir: where shards are kept; `GLASSFORMER_CACHE`, else the user's cache folder.
        progress: called as (stage, bytes done, bytes in all or None).
        workers: processes that tokenise; None chooses by the size of the data and the machine, 0 stays
            in this one.
        invalid: documents that are not UTF-8 are kept with faulty bytes "replace"d, or left out ("skip").
        text_field: the field or column with the text in jsonl, tables and sets.
        chat: where a row holds both a text and a conversation, the conversation is read.

    Raises:
        DataError: nothing there, nothing usable, or no room to write.
        TokenizerError: a text that the vocabulary cannot spell.
    """
    if held_out not in SPLITS:
        raise DataError(f"Data is held out by {' or '.join(SPLITS)}; got {held_out!r}.")
    if not 0 <= fraction < 1:
        raise DataError(f"The held-out fraction must be in [0, 1); got {fraction}.")
    if invalid not in ("replace", "skip"):
        raise DataError(f"Faulty UTF-8 is met with replace or skip; got {invalid!r}.")
    findings = Findings()
    sources = expand(spec, findings)
    prints = _fingerprints(sources, progress)
    settings = {
        "layout": LAYOUT,
        "tokenizer": tokenizer_hash(tokenizer),
        "held_out": held_out,
        "fraction": fraction,
        "invalid": invalid,
        "text_field": text_field,
        "chat": chat,
    }
    key = _digest(json.dumps([settings, [p.key for p in prints]], sort_keys=True).encode())
    home = corpora_dir(cache_dir)
    found = _open(home / key)
    if found is not None:
        return found
    return _build(home, key, sources, prints, findings, tokenizer, settings, progress, workers)


def text_iterator(
    spec: Spec, findings: Findings | None = None, *, text_field: str | None = None, chat: bool = False
) -> Iterator[str]:
    """The raw text of a spec in pieces of about 128 thousand characters, for training a tokenizer.

    Conversations give their contents.
    """
    findings = findings if findings is not None else Findings()
    for piece in read(expand(spec, findings), findings, text_field=text_field, chat=chat):
        if piece.messages is None:
            yield piece.text
        else:
            yield from (m["content"] for m in piece.messages if m["content"])


def corpora_dir(cache_dir: str | Path | None = None) -> Path:
    """Where shards are kept: in `corpora/` of `cache_dir`, else of `GLASSFORMER_CACHE`, else of the user's cache."""
    base = cache_dir or os.environ.get("GLASSFORMER_CACHE")
    if not base:
        import platformdirs

        base = platformdirs.user_cache_dir("glassformer", appauthor=False)
    return Path(base).expanduser() / "corpora"


def tokenizer_hash(tokenizer: Any) -> str:
    """A hash of everything that decides how a tokenizer encodes data."""
    parts: list[object] = [
        tokenizer.vocab_size,
        getattr(tokenizer, "eos_id", None),
        getattr(tokenizer, "adds_bos", False),
    ]
    serialised = getattr(tokenizer, "serialised", None)
    parts.append(type(tokenizer).__qualname__ if serialised is None else _digest(serialised.encode()))
    parts.append(getattr(tokenizer, "chat_template", None))
    return _digest(json.dumps(parts).encode())


# --- the key -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Print:
    """What a source is known by: its key, and for a file its size and time of change when it was hashed."""

    key: object
    size: int = 0
    changed: int = -1


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _fingerprints(sources: Sequence[Source], progress: ProgressCallback | None) -> list[_Print]:
    prints = []
    done = 0
    buffer = memoryview(bytearray(1 << 17))
    for source in sources:
        if isinstance(source, HubSource):
            asked = [source.name, source.revision, source.config, source.split, source.text]
            prints.append(_Print(["hub", *asked, hub_version(source)]))
            continue
        hasher = hashlib.blake2b(digest_size=16)
        try:
            with source.path.open("rb", buffering=0) as file:
                state = os.fstat(file.fileno())
                while size := file.readinto(buffer):
                    hasher.update(buffer[:size])
                    done += size
                    if progress and state.st_size > 1 << 24:
                        progress("reading", done, None)
            prints.append(_Print([source.name, hasher.hexdigest()], state.st_size, state.st_mtime_ns))
        except OSError as error:
            prints.append(_Print([source.name, f"not readable: {error.errno}"]))
    return prints


# --- building ------------------------------------------------------------------------------------


def _open(directory: Path) -> Corpus | None:
    """The corpus in a folder; None when there is none or it is not sound."""
    try:
        index = json.loads((directory / INDEX).read_text("utf-8"))
        if index["layout"] != LAYOUT or index.get("sha256", sealed.checksum(index)) != sealed.checksum(index):
            return None
        parts = {}
        for name in ("train", "held_out"):
            part = index["parts"][name]
            parts[name] = Shards(
                directory, index["streams"][part["stream"]], part["start"], part["stop"], part["text_bytes"]
            )
        return Corpus(
            **parts,
            hash=index["hash"],
            bytes_per_token=index["bytes_per_token"],
            findings=Findings.from_dict(index["report"]),
            directory=directory,
            sources=tuple(index["sources"]),
        )
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None


def _build(
    home: Path,
    key: str,
    sources: Sequence[Source],
    prints: Sequence[_Print],
    findings: Findings,
    tokenizer: Tokenizer,
    settings: dict[str, Any],
    progress: ProgressCallback | None,
    workers: int | None,
) -> Corpus:
    told = "waiting for another process that is tokenising the same data"
    with locks.locked(home / key, None if progress is None else lambda: progress(told, 0, None), raises=DataError):
        found = _open(home / key)  # another builder may have made it while we waited
        if found is not None:
            return found
        if (home / key).exists():
            findings.note("damaged shards in the cache, made anew", str(home / key))
            files.remove_folder(home / key)
        files.sweep(home)  # what killed builders of any corpus left; of this one even those of other machines:
        files.sweep(home, of=key, alone=True)  # the lock is ours
        draft = files.temporary(home / key)
        try:
            draft.mkdir()
            changed = _write(draft, sources, prints, findings, tokenizer, settings, progress, workers)
            # What was not what had been hashed must not be found under that hash.
            final = home / (f"{key}-{secrets.token_hex(4)}" if changed else key)
            files.publish(draft, final)
        except OSError as error:
            raise DataError(f"The token shards could not be written under {home}: {error.strerror}.") from error
        finally:
            files.remove(draft)
    found = _open(final)
    if found is None:
        raise DataError(f"The token shards just written to {final} cannot be read back; is the disk sound?")
    return found


def _write(
    work: Path,
    sources: Sequence[Source],
    prints: Sequence[_Print],
    findings: Findings,
    tokenizer: Tokenizer,
    settings: dict[str, Any],
    progress: ProgressCallback | None,
    workers: int | None,
) -> bool:
    """Read, tokenise and write everything into `work`; returns whether a file changed in the meantime."""
    from glassformer.data.parallel import encode_pieces

    dtype = token_dtype(tokenizer.vocab_size)
    prefix = np.array(tokenizer.encode("", True) if getattr(tokenizer, "adds_bos", False) else [], dtype)
    eos = getattr(tokenizer, "eos_id", None)
    end = np.array([] if eos is None else [eos], dtype)
    by_document = settings["held_out"] == "document"
    names = ("train", "held_out") if by_document else ("all",)
    streams = {name: StreamWriter(work, name, dtype, FILE) for name in names}
    hasher = hashlib.blake2b(json.dumps([settings["held_out"], settings["fraction"]]).encode(), digest_size=16)
    known = all(isinstance(s, FileSource) and s.path.suffix.lower() not in (".gz", ".zst", ".parquet") for s in sources)
    total = sum(p.size for p in prints) if known else None
    encoder = Encoder(tokenizer, fast=total is None or total >= FAST)
    stops: frozenset[int] = getattr(tokenizer, "stop_ids", frozenset())
    numbers: dict[str, int] = {}
    out = streams[names[0]]
    whole = not (encoder.light or encoder.joins(cut_everywhere(PROBE)))
    try:
        pieces = read(
            sources,
            findings,
            invalid=settings["invalid"],
            text_field=settings["text_field"],
            chat=settings["chat"],
            piece=LONGEST if whole else PIECE,
        )
        done = 0
        for piece, encoded in encode_pieces(pieces, encoder, workers, total):
            if encoded.refused is not None:
                findings.note(f"{encoded.refused}, left out", piece.origin)
                findings.documents -= 1
                continue
            if encoded.remark is not None:
                findings.note(encoded.remark, piece.origin)
            if whole and piece.first and not piece.last:
                findings.note(CUT, piece.origin)
            if piece.first:
                if by_document:
                    out = streams["held_out" if _held_out(piece, settings["fraction"]) else "train"]
                name, _, line = piece.origin.rpartition(":")
                if not line.isdecimal() or not name:
                    name, line = piece.origin, "0"
                out.open_document(numbers.setdefault(name, len(numbers)), int(line))
                hasher.update(b"document" + names.index(out.name).to_bytes(1))
                if len(prefix) and piece.messages is None:
                    out.append(prefix)
                    hasher.update(prefix.tobytes())
            out.append(encoded.ids, encoded.mask, encoded.text_bytes)
            hasher.update(encoded.ids.data)
            if encoded.mask is not None:
                hasher.update(encoded.mask.data)
            if piece.last and len(end) and not (piece.messages is not None and int(encoded.ids[-1]) in stops):
                # an answer that the template ends with no token of its own is ended by this one
                ended = encoded.mask is not None and bool(np.isin(encoded.ids[encoded.mask], list(stops)).any())
                out.append(end, None if piece.messages is None else np.array([not ended]))
                hasher.update(end.tobytes())
            done += encoded.text_bytes
            if progress:
                progress("tokenising", done, total)
        entries = {name: stream.close() for name, stream in streams.items()}
    except BaseException:
        for stream in streams.values():
            stream.abandon()
        raise
    _refuse_nothing(entries, settings, findings)
    index = {
        "layout": LAYOUT,
        "settings": settings,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hash": hasher.hexdigest(),
        "vocab_size": tokenizer.vocab_size,
        "streams": entries,
        "parts": _parts(work, entries, settings, tokenizer),
        "report": findings.to_dict(),
        "sources": list(numbers),
    }
    tokens = sum(entry["tokens"] for entry in entries.values())
    index["bytes_per_token"] = sum(entry["text_bytes"] for entry in entries.values()) / tokens
    changed = _changed(sources, prints, findings)
    index["report"] = findings.to_dict()
    sealed.write(work / INDEX, index, indent=None, raises=DataError)
    return changed


PROBE = """import os
def first(a, b):
    return a + b  # sum

class Second:
\tpass
A line of words, and another; 123 of them.
"Quoted" (and more); x = 3 * y[2] + 0.5, isn't it?

Über Straße, 日本語 1234 5\r\nnext\r\n  # two

\tlast don't"""


def _held_out(piece: Piece, fraction: float) -> bool:
    start = json.dumps(piece.messages) if piece.messages is not None else piece.text[: PIECE // 2]
    digest = hashlib.blake2b(start.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64 < fraction


def _refuse_nothing(entries: dict[str, dict[str, Any]], settings: dict[str, Any], findings: Findings) -> None:
    tokens = {name: entry["tokens"] for name, entry in entries.items()}
    if not sum(tokens.values()):
        why = " ".join(findings.sentences()) or "There were no documents."
        raise EmptyDataError(f"There is nothing to learn from in this data. {why}")
    if settings["held_out"] == "document" and settings["fraction"] > 0 and not all(tokens.values()):
        raise TooFewDocumentsError(
            f"Holding out {settings['fraction']:g} of {findings.documents} documents leaves one part empty; hold out "
            "the end of the text instead, or another share."
        )


def _parts(
    work: Path, entries: dict[str, dict[str, Any]], settings: dict[str, Any], tokenizer: Tokenizer
) -> dict[str, dict[str, Any]]:
    if settings["held_out"] == "document":
        return {
            name: {"stream": name, "start": 0, "stop": entry["tokens"], "text_bytes": entry["text_bytes"]}
            for name, entry in entries.items()
        }
    entry = entries["all"]
    cut = int(entry["tokens"] * (1 - settings["fraction"]))
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for ids in Shards(work, entry, cut, entry["tokens"], 0).chunks(1 << 16):
        counts += np.bincount(ids, minlength=len(counts))
    counts[list(tokenizer.special_ids)] = 0
    used = np.flatnonzero(counts).tolist()
    behind = sum(map(operator.mul, counts[used].tolist(), map(len, map(tokenizer.token_bytes, used))))
    return {
        "train": {"stream": "all", "start": 0, "stop": cut, "text_bytes": entry["text_bytes"] - behind},
        "held_out": {"stream": "all", "start": cut, "stop": entry["tokens"], "text_bytes": behind},
    }


def _changed(sources: Sequence[Source], prints: Sequence[_Print], findings: Findings) -> bool:
    changed = False
    for source, seen in zip(sources, prints, strict=True):
        if isinstance(source, HubSource):
            continue
        try:
            state = source.path.stat()
            now = (state.st_size, state.st_mtime_ns)
        except OSError:
            now = (0, -1)
        if now != (seen.size, seen.changed):
            changed = True
            if now[1] >= 0:
                findings.note("changed while they were read", source.name)
    return changed

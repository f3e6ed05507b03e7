"""From sources to documents: plain and compressed files, lines, tables, hub sets.

A document is one text file, one line of a jsonl file, one row of a table, or one conversation. Long
documents come in pieces, so that no file is ever held whole. Nothing is dropped in silence: whatever
cannot be read as it stands is counted and named in a `Findings`. This module knows nothing about tokens.
"""

from __future__ import annotations

import codecs
import json
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from glassformer.data.compressed import open_bytes
from glassformer.data.conversations import SHAPES, conversation, whole_characters
from glassformer.data.sources import FileSource, Findings, HubSource, Source
from glassformer.errors import DataError, near

PIECE = 1 << 17  # characters a piece aims at
LONGEST = 1 << 24  # characters of a piece for tokenizers that want documents whole
CHUNK = 1 << 16  # bytes read at a time: of much larger strings, made and let go, malloc leaves its heap in holes
LONGEST_LINE = 1 << 28  # bytes of one jsonl line
TEXT_FIELDS = ("text", "content")


@dataclass(frozen=True)
class Piece:
    """A stretch of a document, whole when both `first` and `last`; conversations are always whole.

    Args:
        origin: where it came from, for messages ("notes.txt", "chats.jsonl:17").
        text: its characters; empty for a conversation.
        first, last: whether it opens, closes its document.
        messages: a conversation ({"role", "content"} each), or None.
        size: bytes of the text as UTF-8.
    """

    origin: str
    text: str
    first: bool = True
    last: bool = True
    messages: list[dict[str, Any]] | None = None

    @property
    def size(self) -> int:
        """Bytes of the text as UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode("utf-8", "surrogatepass"))


def read(
    sources: Iterable[Source],
    findings: Findings,
    *,
    invalid: str = "replace",
    text_field: str | None = None,
    piece: int = PIECE,
    chat: bool = False,
) -> Iterator[Piece]:
    """The pieces of every document, in order.

    Args:
        findings: counts documents and bytes, and names what could not be read as it stood.
        invalid: documents with bytes that are not UTF-8 are kept with those bytes "replace"d by
            U+FFFD, or left out with "skip"; both are counted and named.
        text_field: the field or column that holds the text; None takes "text", "content" or, in a
            table, the only column of strings.
        piece: characters a piece aims at; cuts fall where `cut_everywhere` has them.
        chat: where a row holds both a text and a conversation, the conversation is read.
    """
    for source in sources:
        found = False
        stream = (
            _hub_rows(source, findings, text_field, chat)
            if isinstance(source, HubSource)
            else _file(source, findings, invalid, text_field, piece, chat)
        )
        for one in stream:
            found = True
            findings.documents += one.first
            findings.bytes += one.size
            yield one
        findings.files += found


def _file(
    source: FileSource, findings: Findings, invalid: str, text_field: str | None, piece: int, chat: bool
) -> Iterator[Piece]:
    suffixes = [s.lower() for s in source.path.suffixes[-2:]]
    packed = suffixes.pop() if suffixes and suffixes[-1] in (".gz", ".zst") else ""
    kind = suffixes[-1] if suffixes else ""
    try:
        if kind == ".parquet" and not packed:
            yield from _parquet(source, findings, text_field, chat)
        elif kind in (".jsonl", ".ndjson"):
            yield from _lines(source, packed, findings, invalid, text_field, chat)
        else:
            yield from _plain(source, packed, findings, invalid, piece)
    except FileNotFoundError:
        findings.note("gone before they could be read", source.name)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            findings.note(f"unreadable ({error.strerror})", source.name)
        else:
            findings.note("broken off or damaged; what was read before is kept", source.name)


_replaced = threading.local()


def _count_replaced(error: UnicodeError) -> tuple[str, int]:
    _replaced.count = getattr(_replaced, "count", 0) + 1
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd", error.end


codecs.register_error("glassformer.replace", _count_replaced)


def _characters(chunks: Iterable[bytes]) -> Iterator[tuple[str, int]]:
    """Decoded text of chunks of bytes (the last one empty), each with how many faults were replaced so far."""
    decoder = codecs.getincrementaldecoder("utf-8")("glassformer.replace")
    faults = 0
    start = True
    for data in chunks:
        _replaced.count = 0
        text = decoder.decode(data, final=not data)
        faults += _replaced.count
        if start and text:
            text, start = text.removeprefix("\ufeff"), False
        if text:
            yield text, faults
        elif not data and faults:
            yield "", faults


def _plain(source: FileSource, packed: str, findings: Findings, invalid: str, piece: int) -> Iterator[Piece]:
    with open_bytes(source.path, packed) as stream:
        head = stream.read(1 << 13)
        if b"\0" in head:
            utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            findings.note("in UTF-16, not UTF-8, left out" if utf16 else "not text, left out", source.name)
            return
        if invalid == "skip":  # a long document is told to be sound before its first piece goes out
            faults = 0
            for _, faults in _characters(_rejoined(head, stream)):
                if faults:
                    findings.note("not valid UTF-8, left out", source.name)
                    return
            stream.close()
            stream = open_bytes(source.path, packed)
            head = b""
        with stream:
            yield from _pieces(_characters(_rejoined(head, stream)), source.name, findings, piece)


def _rejoined(head: bytes, stream: IO[bytes]) -> Iterator[bytes]:
    """A stream's bytes, of which the first have been looked at; ends with an empty one."""
    if head:
        yield head
    while data := stream.read(CHUNK):
        yield data
    yield b""


# Where words end for every pre-tokenizer that splits at spaces: after a lone line break, or before a lone space.
# Beside other white space the end of a piece would change how the run is cut.
_CUT = re.compile(r"(?<=\S\n)(?=\S)|(?<=\S)(?= \S)")


def cut_everywhere(text: str) -> list[str]:
    """A text in the smallest pieces that long documents are ever cut into."""
    return [part for part in _CUT.split(text) if part]


def _pieces(chunks: Iterable[tuple[str, int]], name: str, findings: Findings, piece: int) -> Iterator[Piece]:
    held: list[str] = []
    length = faults = 0
    first = True
    for text, now in chunks:
        faults = now
        held.append(text)
        length += len(text)
        if length < 2 * piece:
            continue
        ready, rest = _last_cut("".join(held), name, findings)
        held, length = [rest], len(rest)
        for part in _split(ready, piece):
            yield Piece(name, part, first=first, last=False)
            first = False
    text = "".join(held)
    if faults:
        findings.note("not valid UTF-8, faulty bytes replaced", name)
    if text or not first:
        yield Piece(name, text, first=first, last=True)
    else:
        findings.note("empty, left out", name)


def _last_cut(text: str, name: str, findings: Findings) -> tuple[str, str]:
    """What lies before the last place to cut, and the rest; everything is rest when there is none."""
    for reach in (1 << 10, 1 << 14, len(text)):
        at = max((found.start() for found in _CUT.finditer(text, max(0, len(text) - reach))), default=0)
        if at:
            return text[:at], text[at:]
    if len(text) >= 2 * LONGEST:
        findings.note("without a space for 32 million characters, cut there", name)
        return text, ""
    return "", text


def _split(text: str, piece: int) -> Iterator[str]:
    start = 0
    while len(text) - start > piece:
        found = _CUT.search(text, start + piece)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    if start < len(text):
        yield text[start:]


def _lines(
    source: FileSource, packed: str, findings: Findings, invalid: str, text_field: str | None, chat: bool
) -> Iterator[Piece]:
    with open_bytes(source.path, packed) as stream:
        number = 0
        while raw := stream.readline(LONGEST_LINE):
            number += 1
            name = f"{source.name}:{number}"
            if len(raw) == LONGEST_LINE:
                findings.note("lines longer than 256 MiB, left out", name)
                while len(stream.readline(LONGEST_LINE)) == LONGEST_LINE:
                    pass
                continue
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if not raw.strip():
                continue
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError:
                if invalid == "skip":
                    findings.note("not valid UTF-8, left out", name)
                    continue
                findings.note("not valid UTF-8, faulty bytes replaced", name)
                line = raw.decode("utf-8", "replace")
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                findings.note("lines that are not JSON, left out", name)
                continue
            yield from _record(record, name, findings, text_field, chat)


def _record(record: object, name: str, findings: Findings, text_field: str | None, chat: bool) -> Iterator[Piece]:
    whole = record
    if isinstance(record, dict):
        fields = (text_field,) if text_field else TEXT_FIELDS
        text = next((record[f] for f in fields if f in record), None)
        if text_field is None and (chat or text is None or "messages" in record):
            told = conversation(record)
            if told is not None:
                if isinstance(told, str):
                    findings.note(f"{told}, left out", name)
                else:
                    yield Piece(name, "", messages=told)
                return
        record = text
    if not isinstance(record, str):
        wanted = text_field or " or ".join(TEXT_FIELDS)
        findings.note(f"without a text in {wanted}, left out", name)
        if isinstance(whole, dict):
            findings.columns.update(str(key) for key, value in whole.items() if isinstance(value, str) and value)
    elif not record:
        findings.note("empty, left out", name)
    else:
        yield Piece(name, whole_characters(record))


def _parquet(source: FileSource, findings: Findings, text_field: str | None, chat: bool) -> Iterator[Piece]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise DataError(
            f"{source.name} is a Parquet table; install its reader with: pip install 'glassformer[data]'"
        ) from None
    try:
        table = parquet.ParquetFile(source.path)
    except pyarrow.ArrowInvalid:
        findings.note("damaged Parquet tables, left out", source.name)
        return
    import pyarrow.types as types

    with table:
        schema = table.schema_arrow
        strings = [f.name for f in schema if types.is_string(f.type) or types.is_large_string(f.type)]
        columns, field = _columns(source.name, list(schema.names), strings, text_field, chat)
        row = 0
        try:
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    yield from _record(record, f"{source.name}:{row}", findings, field, chat)
        except (pyarrow.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            findings.note("broken off or damaged; what was read before is kept", source.name)


def _columns(
    name: str, names: list[str], strings: list[str], text_field: str | None, chat: bool
) -> tuple[list[str], str | None]:
    """The columns of a table that are read, and the one that holds the text; None where that goes by its name."""
    if text_field is not None:
        if text_field not in names:
            raise DataError(
                f"{name} has no column {text_field!r}; it has {', '.join(names)}." + near(text_field, names)
            )
        return [text_field], text_field
    texts = [wanted for wanted in TEXT_FIELDS if wanted in names][:1]
    shape = next((keys for keys in SHAPES if all(key in names for key in keys)), None)
    if shape is not None and (chat or not texts or shape == ("messages",)):
        return [*shape, *(["input"] if shape[0] == "instruction" and "input" in names else [])], None
    if texts or len(strings) == 1:
        column = texts[0] if texts else strings[0]
        return [column], column
    how = (
        f"as in {name}?text=COLUMN"
        if name.startswith("hf:")
        else "with --set text_field=COLUMN (train) or --text-field"
    )
    raise DataError(f"{name} has the columns {', '.join(names)}; say which holds the text, {how}.")


def _hub_rows(source: HubSource, findings: Findings, text_field: str | None, chat: bool) -> Iterator[Piece]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(
            f"hf:{source.name} is read through the datasets library; install it with: pip install 'glassformer[data]'"
        ) from None
    name = f"hf:{source.name}"
    try:
        rows = datasets.load_dataset(
            source.name, name=source.config, split=source.split, revision=source.revision, streaming=True
        )
        field: str | None = None
        for number, row in enumerate(rows, start=1):
            record = dict(row)
            if number == 1:  # streamed sets need not say their columns before
                strings = [column for column, value in record.items() if isinstance(value, str)]
                _, field = _columns(name, list(record), strings, source.text or text_field, chat)
            yield from _record(record, f"{name}:{number}", findings, field, chat)
    except DataError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:300].rstrip(".")
        raise DataError(
            f"{name} could not be read through datasets ({what}); check the name, the split and the network."
        ) from error


def hub_version(source: HubSource) -> object:
    """What stands for a set's content: the commit it is at, or of a local folder what its files look like.

    None when the hub cannot be asked.
    """
    folder = Path(source.name)
    if folder.is_dir():
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return [[p.relative_to(folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(source.name, revision=source.revision, timeout=10).sha
    except Exception:  # no network, no such set, no access: reading says which
        return None


ProgressCallback = Callable[[str, int, int | None], None]
"""Called with the stage ("reading", "tokenising"), the bytes done, and the bytes in all where known."""

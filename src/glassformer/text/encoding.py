"""Whole documents to arrays of ids, as fast as the tokenizer allows.

One `Encoder` per process. Characters and bytes are table look-ups; other tokenizers go through their
own library. Literals of special tokens in a document are read as ordinary text, in conversations as
the tokens they name. It knows nothing about files or shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import GlassformerError, TextError, TokenizerError

if TYPE_CHECKING:
    from glassformer.text.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """Ids of a text or conversation, its loss mask (None: every token), and the bytes of its text."""

    ids: NDArray[Any]
    mask: NDArray[np.bool_] | None
    text_bytes: int


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest of uint16 and uint32, little-endian, that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class Encoder:
    """Encodes documents, pieces of documents and conversations.

    Args:
        tokenizer: the tokenizer; anything with `encode(text, bos)` and `vocab_size` does.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._table = _table(tokenizer, self.dtype)
        self._plain: Any = None
        backend = getattr(tokenizer, "backend", None)
        if backend is not None and self._table is None:
            import tokenizers

            # A copy: reading literals as ordinary text is a switch on the whole tokenizer.
            self._plain = tokenizers.Tokenizer.from_str(backend.to_str())
            self._plain.encode_special_tokens = True

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """The ids of each text, without begin-of-text tokens.

        Raises:
            TokenizerError: a text that the vocabulary cannot spell.
        """
        if self._table is not None:
            return [self._look_up(text) for text in texts]
        if self._plain is not None and getattr(self.tokenizer, "_whole", True):
            try:
                found = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
            except UnicodeEncodeError:
                raise TextError("A text holds half a surrogate pair, which no encoding can carry.") from None
            return [np.array(encoding.ids, dtype=self.dtype) for encoding in found]
        if self._plain is not None:
            return [np.array(self.tokenizer.encode(text, False, specials=False), self.dtype) for text in texts]
        return [np.array(self.tokenizer.encode(text, False), dtype=self.dtype) for text in texts]

    def _look_up(self, text: str) -> NDArray[Any]:
        assert self._table is not None
        by_bytes, table, unknown = self._table
        if by_bytes:
            return table[np.frombuffer(text.encode(), dtype=np.uint8)]
        points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        if len(points) and int(points.max()) >= len(table):
            ids = np.full(len(points), unknown, dtype=self.dtype)
            inside = points < len(table)
            ids[inside] = table[points[inside]]
        else:
            ids = table[points]
        if (ids == unknown).any():
            self.tokenizer.encode(text, False)  # names the characters
            raise TokenizerError("This tokenizer does not know every character of the text.")
        return ids

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> Encoded | None:
        """A conversation by the chat template; the mask is True on what the assistant said.

        Each answer is encoded on its own after its prompt, as it is when the model answers.

        Returns:
            None when the template rewrites earlier turns, so that prompt and answers cannot be told apart.

        Raises:
            TokenizerError: no chat template.
            TextError: messages that the template refuses.
        """
        tokenizer = self.tokenizer
        parts: list[tuple[str, bool]] = []
        done = ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = tokenizer.render_chat(messages[:number], generation_prompt=True) if number else done
            answered = tokenizer.render_chat(messages[: number + 1], generation_prompt=False)
            if not prompt.startswith(done) or not answered.startswith(prompt):
                return None
            parts += [(prompt[len(done) :], False), (answered[len(prompt) :], True)]
            done = answered
        if not parts:
            return None
        ids: list[int] = []
        mask: list[bool] = []
        for text, answer in parts:
            if text:
                found = tokenizer.encode(text, False)
                ids += found
                mask += [answer] * len(found)
        if tokenizer.adds_bos and (not ids or ids[0] != tokenizer.bos_id):
            prefix = tokenizer.encode("", True)
            ids, mask = prefix + ids, [False] * len(prefix) + mask
        return Encoded(np.array(ids, self.dtype), np.array(mask, bool), len(done.encode("utf-8", "replace")))

    def cuts_at_lines(self, sample: str) -> bool:
        """Whether encoding `sample` line by line gives what encoding it whole gives."""
        lines = sample.split("\n")
        pieces: list[str] = []
        for number, line in enumerate(lines):
            text = line + "\n" if number < len(lines) - 1 else line
            if pieces and (not line or line[0].isspace() or not pieces[-1].endswith("\n")):
                pieces[-1] += text
            elif text:
                pieces.append(text)
        try:
            apart = self.encode(pieces)
            return bool(np.array_equal(np.concatenate(apart), self.encode([sample])[0]))
        except GlassformerError:
            return False


def _table(tokenizer: Tokenizer, dtype: np.dtype[Any]) -> tuple[bool, NDArray[Any], int] | None:
    """For a tokenizer of single bytes or characters: (by bytes?, value -> id, the id that says unknown)."""
    source = getattr(tokenizer, "_json", None)
    if source is None or source.get("normalizer") is not None:
        return None
    model = source["model"]
    vocab: dict[str, int] = model.get("vocab", {}) if isinstance(model.get("vocab"), dict) else {}
    added = {token["content"] for token in source["added_tokens"]}
    if any(not token["special"] for token in source["added_tokens"]):
        return None
    letters = {token: id for token, id in vocab.items() if token not in added}
    if model.get("merges") or not letters or any(len(token) != 1 for token in letters) or model.get("unk_token"):
        return None
    unknown = int(np.iinfo(dtype).max)
    if tokenizer.vocab_size > unknown:
        return None
    kind = getattr(tokenizer, "_kind", "")
    if kind == "bytes":
        from glassformer.text.tokenizer import byte_letters

        spelled = byte_letters()
        if set(letters) != set(spelled):
            return None
        table = np.zeros(256, dtype=dtype)
        for letter, id in letters.items():
            table[spelled[letter]] = id
        return True, table, unknown
    if kind == "plain" and model["type"] == "BPE":
        table = np.full(1 + max(map(ord, letters)), unknown, dtype=dtype)
        for letter, id in letters.items():
            table[ord(letter)] = id
        return False, table, unknown
    return None

"""Whole documents to arrays of ids, as fast as the tokenizer allows.

One `Encoder` per process. Characters and bytes are table look-ups; other tokenizers go through their
own library. Literals of special tokens in a document are read as ordinary text, in conversations as
the tokens they name. It knows nothing about files or shards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import GlassformerError, TextError, TokenizerError
from glassformer.tokenizer.tiktoken_encoder import tiktoken_encoder

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer


Batch = Callable[[Sequence[str]], list[NDArray[np.integer]]]
NO_ANSWER = "conversations without an answer"
REFUSED = "conversations that the chat template does not take"
LAST_ALONE = "conversations whose earlier turns the chat template rewrites, learned by their last answer alone"


class Encoded(NamedTuple):
    """Ids of a text or conversation.

    Attributes:
        ids: (token).
        mask: True where a token asks for loss; None for every token.
        text_bytes: of its text as UTF-8.
        refused: why there is nothing to learn from it (then there are no ids), as in "2 REFUSED".
        remark: what of it is not learned, in the same form.
    """

    ids: NDArray[np.integer]
    mask: NDArray[np.bool_] | None
    text_bytes: int
    refused: str | None = None
    remark: str | None = None

    @classmethod
    def without(cls, why: str) -> Encoded:
        """Nothing, and why."""
        return cls(np.empty(0, np.uint16), None, 0, refused=why)


def token_dtype(vocab_size: int) -> np.dtype[np.integer]:
    """The smallest of uint16 and uint32, little-endian, that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class Encoder:
    """Encodes documents, pieces of documents and conversations.

    Args:
        tokenizer: the tokenizer; anything with `encode(text, bos)` and `vocab_size` does.
        fast: whether tiktoken is used where it gives the same ids; worth its start on megabytes of text.
    """

    def __init__(self, tokenizer: Tokenizer, *, fast: bool = True) -> None:
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._batch: Batch | None = None
        self.light = False  # whether encoding is a look-up, for which starting processes does not pay
        self.quick = False  # whether tiktoken encodes
        serialised = getattr(tokenizer, "serialised", None)
        if serialised is not None:
            source = json.loads(serialised)
            self._batch = _table(source, self.dtype, tokenizer)
            self.light = self._batch is not None
            if self._batch is None:
                self._batch = tiktoken_encoder(tokenizer, self.dtype, source) if fast else None
                self.quick = self._batch is not None
                self._batch = self._batch or _library(serialised, source, self.dtype)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.integer]]:
        """The ids of each text, without begin-of-text tokens.

        Raises:
            TokenizerError: a text that the vocabulary cannot spell.
        """
        if self._batch is not None:
            try:
                return self._batch(texts)
            except UnicodeEncodeError:
                raise TextError("A text holds half a surrogate pair, which no encoding can carry.") from None
        options = {"specials": False} if hasattr(self.tokenizer, "backend") else {}
        return [np.array(self.tokenizer.encode(text, False, **options), dtype=self.dtype) for text in texts]

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> Encoded:
        """A conversation by the chat template; the mask is True on what the assistant said and the token that ends it.

        What counts is what the template marks with `{% generation %}`, where it does; else what it writes after the
        prompt of each answer. Where it writes earlier turns differently once there are later ones, the last answer
        alone is learned. Each answer is encoded on its own after its prompt, as it is when the model answers.

        Raises:
            TokenizerError: no chat template.
        """
        tokenizer = self.tokenizer
        if tokenizer.chat_template is None:
            tokenizer.render_chat(messages)  # says so
        if not any(message["role"] == "assistant" for message in messages):
            return Encoded.without(NO_ANSWER)
        try:
            parts, remark = self._parts(messages)
        except (TextError, TokenizerError) as error:
            return Encoded.without(f"{REFUSED} ({' '.join(str(error).split())[:200].rstrip('.')})")
        if not any(answer and text for text, answer in parts):
            return Encoded.without(NO_ANSWER)
        stops: frozenset[int] = getattr(tokenizer, "stop_ids", frozenset())
        ids: list[int] = []
        mask: list[bool] = []
        for text, answer in parts:
            if text:
                found = tokenizer.encode(text, False)
                # an answer is over with its last end token; a line break that a template writes behind is no part of it
                last = max((i for i, id in enumerate(found) if id in stops), default=len(found) - 1) if answer else -1
                ids += found
                mask += [True] * (last + 1) + [False] * (len(found) - last - 1)
        if tokenizer.adds_bos and (not ids or ids[0] != tokenizer.bos_id):
            prefix = tokenizer.encode("", True)
            ids, mask = prefix + ids, [False] * len(prefix) + mask
        size = sum(len(text.encode("utf-8", "replace")) for text, _ in parts)
        return Encoded(np.array(ids, self.dtype), np.array(mask, bool), size, remark=remark)

    def _parts(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, bool]], str | None]:
        """A conversation's text in pieces, each with whether it is an answer; and what of it is not learned."""
        tokenizer = self.tokenizer
        marked = tokenizer.render_marked(messages)
        if marked is not None:
            return marked, None
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        parts: list[tuple[str, bool]] = []
        done = ""
        for number in answers:
            prompt, answered = self._turn(messages, number)
            if not prompt.startswith(done) or not answered.startswith(prompt):
                break
            parts += [(prompt[len(done) :], False), (answered[len(prompt) :], True)]
            done = answered
        else:
            return parts, None
        prompt, answered = self._turn(messages, answers[-1])
        if not answered.startswith(prompt):
            raise TextError("it writes the prompt of an answer differently once the answer is there")
        return [(prompt, False), (answered[len(prompt) :], True)], LAST_ALONE

    def _turn(self, messages: Sequence[Mapping[str, Any]], number: int) -> tuple[str, str]:
        """The text that an answer follows, and the text with it."""
        render = self.tokenizer.render_chat
        prompt = render(messages[:number], generation_prompt=True) if number else ""
        return prompt, render(messages[: number + 1], generation_prompt=False)

    def joins(self, pieces: Sequence[str]) -> bool:
        """Whether encoding the pieces of a text one by one gives what encoding it whole gives."""
        try:
            apart = np.concatenate(self.encode(pieces))
            return bool(np.array_equal(apart, self.encode(["".join(pieces)])[0]))
        except GlassformerError:
            return False


def _table(source: Mapping[str, Any], dtype: np.dtype[np.integer], tokenizer: Tokenizer) -> Batch | None:
    """For a tokenizer of single bytes or characters: its ids are looked up."""
    from glassformer.tokenizer.parts import byte_letters

    model, added = source["model"], source["added_tokens"]
    vocab: object = model.get("vocab")
    if not isinstance(vocab, dict) or model.get("merges") or model.get("unk_token") or source.get("normalizer"):
        return None
    letters = {token: id for token, id in vocab.items() if token not in {t["content"] for t in added}}
    unknown = int(np.iinfo(dtype).max)
    if (
        model["type"] != "BPE"
        or not letters
        or any(len(token) != 1 for token in letters)
        or any(not token["special"] for token in added)
        or max(letters.values()) >= unknown
    ):
        return None
    if tokenizer.kind == "bytes":
        spelled = byte_letters()
        if set(letters) != set(spelled):
            return None
        of_byte = np.zeros(256, dtype=dtype)
        of_byte[[spelled[letter] for letter in letters]] = list(letters.values())
        return lambda texts: [of_byte[np.frombuffer(text.encode(), dtype=np.uint8)] for text in texts]
    if tokenizer.kind != "plain":
        return None
    of_point = np.full(0x110000, unknown, dtype=dtype)
    of_point[[ord(letter) for letter in letters]] = list(letters.values())

    def look_up(text: str) -> NDArray[np.integer]:
        ids = of_point[np.frombuffer(text.encode("utf-32-le"), dtype="<u4")]
        if (ids == unknown).any():
            tokenizer.encode(text, False)  # refuses the text, and names the characters
            raise TokenizerError("This tokenizer does not know every character of the text.")
        return ids

    return lambda texts: [look_up(text) for text in texts]


def _library(serialised: str, source: Mapping[str, Any], dtype: np.dtype[np.integer]) -> Batch | None:
    """For a byte-level vocabulary with all 256 bytes: the tokenizers library, many texts at a time."""
    from glassformer.tokenizer.parts import byte_letters

    vocab: object = source["model"].get("vocab")
    byte_level = (source.get("decoder") or {}).get("type") == "ByteLevel"
    if not byte_level or not isinstance(vocab, dict) or not set(byte_letters()) <= set(vocab):
        return None
    import tokenizers

    plain = tokenizers.Tokenizer.from_str(serialised)
    plain.encode_special_tokens = True
    return lambda texts: [
        np.array(found.ids, dtype=dtype) for found in plain.encode_batch_fast(list(texts), add_special_tokens=False)
    ]

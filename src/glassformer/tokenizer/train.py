"""Vocabularies from text: byte-pair encodings, bytes, and characters.

All of them are `Tokenizer`s on the `tokenizers` library: they save to files that transformers loads, and GGUF
can hold them. This module knows texts; where they come from is `glassformer.data.corpus`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from glassformer.errors import DataError, UsageError
from glassformer.tokenizer.parts import byte_letters
from glassformer.tokenizer.pretokenizers import ALIASES, PRE, cut, takes_whole
from glassformer.tokenizer.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
_FLOOR = len(byte_letters())


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    end_of_text: str | None = END_OF_TEXT,
    pre: str = "gpt-2",
    min_frequency: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Tokenizer:
    """A byte-level byte-pair encoding learned from texts (Sennrich et al. 2016; bytes as in GPT-2).

    Every text can be encoded by it, for all 256 bytes are in it. The end-of-text token has id 0.

    Args:
        texts: read once, one at a time.
        vocab_size: tokens in all; fewer come out when the texts hold no more pairs worth a token.
        end_of_text: the special token between texts, or None.
        pre: how text is cut before pairs are counted, by its GGUF name ("gpt-2", "llama-bpe", "smollm", ...).
        min_frequency: a pair seen less often gets no token.
        progress: told the characters read so far.

    Raises:
        UsageError: a vocabulary smaller than the bytes, or an unknown `pre`.
        DataError: no text at all.
    """
    import tokenizers
    from tokenizers import decoders, models, trainers

    least = _FLOOR + (end_of_text is not None)
    if vocab_size < least:
        raise UsageError(f"A byte-level vocabulary has {least} tokens or more; {vocab_size} are too few.")
    name = ALIASES.get(pre, pre)
    if name not in PRE:
        raise UsageError(f"Pre-tokenizer {pre!r} is unknown; known are {', '.join(PRE)}.")
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=takes_whole(pre)))
    backend.pre_tokenizer = cut(name)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=[] if end_of_text is None else [end_of_text],
        initial_alphabet=sorted(byte_letters()),
    )
    backend.train_from_iterator(_counted(texts, progress), trainer)
    return _made(backend, end_of_text)


def byte_tokenizer(*, end_of_text: str | None = END_OF_TEXT) -> Tokenizer:
    """Bytes as tokens: the id of a byte is the byte; the end of text, unless None, is 256."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    backend = tokenizers.Tokenizer(models.BPE(dict(byte_letters()), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _made(backend, end_of_text)


def char_tokenizer(texts: str | Iterable[str], *, end_of_text: str | None = None) -> Tokenizer:
    """Characters as tokens, in the order of their code points, as far as the texts have them.

    A text with any other character is refused when it is encoded.

    Raises:
        DataError: no text at all.
    """
    import tokenizers
    from tokenizers import decoders, models

    letters: set[str] = set()
    for text in _counted([texts] if isinstance(texts, str) else texts, None):
        letters.update(text)
    backend = tokenizers.Tokenizer(models.BPE({letter: id for id, letter in enumerate(sorted(letters))}, []))
    backend.decoder = decoders.Fuse()
    return _made(backend, end_of_text)


def _made(backend: object, end_of_text: str | None) -> Tokenizer:
    import tokenizers

    assert isinstance(backend, tokenizers.Tokenizer)
    end = None
    if end_of_text is not None:
        backend.add_special_tokens([tokenizers.AddedToken(end_of_text, special=True, normalized=False)])
        end = backend.token_to_id(end_of_text)
    return Tokenizer(backend, bos_id=end, eos_id=end, adds_bos=False)


def _counted(texts: Iterable[str], progress: Callable[[int], None] | None) -> Iterator[str]:
    total = 0
    for text in texts:
        if text:
            total += len(text)
            yield text
            if progress is not None:
                progress(total)
    if not total:
        raise DataError("There is no text to make a vocabulary from; every file given is empty.")

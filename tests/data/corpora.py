"""A tokenizer, a cache of its own, and documents, for the tests of data."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from glassformer.data import corpus as corpus_module
from glassformer.data.corpus import build_corpus
from glassformer.tokenizer.tokenizer import Tokenizer

SENTENCES = [f"The {n} lamps were lit, and the sea said: {n * 7} times no.\nThen it slept.\n" for n in range(400)]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def bpe(specials: list[str]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=specials,
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return backend


@pytest.fixture(scope="module", name="tokenizer")
def a_tokenizer() -> Tokenizer:
    """A byte-level BPE with an end-of-text token and a chat template."""
    return Tokenizer(bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]), eos_id=0, chat_template=TEMPLATE)


@pytest.fixture(name="cache")
def a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def texts(corpus: corpus_module.Corpus, tokenizer: Tokenizer) -> list[str]:
    """The documents of the training part as text, without the end-of-text ids."""
    train = corpus.train
    edges = train.documents
    return [
        tokenizer.decode(train.slice(int(a), int(b - a)).tolist()).removesuffix("<|endoftext|>")
        for a, b in itertools.pairwise(edges)
    ]


def whole(spec: object, tokenizer: Tokenizer, **options: object) -> corpus_module.Corpus:
    return build_corpus(spec, tokenizer, fraction=0.0, **options)  # type: ignore[arg-type]

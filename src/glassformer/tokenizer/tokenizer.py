"""Text to ids and back, exactly.

One `Tokenizer` on top of the `tokenizers` library, whatever it came from: a directory with a
`tokenizer.json`, a GGUF file's metadata, or training. It knows text, ids and the bytes an id stands for;
it does not know the model, and a model's vocabulary may be larger than the tokenizer's.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.errors import TextError, TokenizerError
from glassformer.tokenizer.generation import Generation
from glassformer.tokenizer.parts import (
    DEFAULT_TEMPLATE,
    NAMED_TOKENS,
    byte_letters,
    byte_points,
    byte_token,
    content_of,
    decoder_kind,
    ids_in,
    is_whole,
)
from glassformer.tokenizer.post_processor import around
from glassformer.tokenizer.stream import StreamDecoder

if TYPE_CHECKING:
    import tokenizers

# Names that end an assistant's turn or a text in the families we load: a guess, for files that name no end at all.
END_NAMES = frozenset(
    {
        "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>",
        "<end_of_turn>", "<turn|>", "<|end|>", "<|eot|>", "<|return|>", "<|EOT|>", "<EOT>", "<｜end▁of▁sentence｜>",
    }
)  # fmt: skip


class TextWarning(UserWarning):
    """Something about a text that is allowed and probably not meant; the message says what."""


class Tokenizer:
    """Text to ids and back.

    Made by `Tokenizer.from_directory`, `Tokenizer.from_gguf` or the training functions of
    `glassformer.tokenizer.train`.

    Attributes:
        bos_id, eos_id: begin and end of text, or None.
        stop_ids: ids after which a text or a turn is over: those that the files name; where they name none, special
            tokens with a name that ends texts elsewhere.
        special_ids: ids that stand for no text (control tokens).
        adds_bos: whether `encode` puts `bos_id` first when not told otherwise.
        chat_templates: Jinja sources by name; `chat_template` is the one called "default", or None.
        generation: how the checkpoint wants its answers to be drawn.
        vocab_size: one more than the largest id.
        kind: how tokens spell bytes: "bytes" (byte-level), "spaces" (SentencePiece-style) or "plain" (characters).
        gguf: the GGUF fields it was built from, or None.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        adds_bos: bool | None = None,
        stop_ids: Iterable[int] = (),
        chat_template: str | None = None,
        chat_templates: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        gguf: Mapping[str, Any] | None = None,
        generation: Generation | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.config = dict(config or {})
        self.gguf = dict(gguf) if gguf is not None else None
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.chat_templates = dict(chat_templates or {})
        if chat_template is not None:
            self.chat_templates[DEFAULT_TEMPLATE] = chat_template
        self.generation = generation or Generation()
        self._added = {id: (token.content, token.special) for id, token in backend.get_added_tokens_decoder().items()}
        self.special_ids = frozenset(id for id, (_, special) in self._added.items() if special)
        said = frozenset(stop_ids) | (frozenset() if eos_id is None else {eos_id})
        self.stop_ids = said or frozenset(id for id in self.special_ids if self._added[id][0] in END_NAMES)
        self._vocab: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(self._vocab.values(), default=-1)
        self.kind, self._strips = decoder_kind(backend.decoder)
        prefix, self._suffix = around(backend)
        if adds_bos is None:
            adds_bos = bool(prefix)
        self._prefix = prefix or ([] if bos_id is None else [bos_id])
        if adds_bos and not self._prefix:
            raise TokenizerError("The tokenizer says that it adds a begin-of-text token and names none.")
        self.adds_bos = adds_bos
        self._letters = None if is_whole(backend) else self._alphabet()

    # Where tokenizers come from ----------------------------------------------------------------

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a model directory: `tokenizer.json` and what stands beside it.

        Raises:
            TokenizerError: no tokenizer.json, a broken one, or one whose decoding we cannot do exactly.
        """
        from glassformer.tokenizer.hf_files import read_directory

        return cls(**read_directory(Path(path)))

    @classmethod
    def from_gguf(cls, fields: Mapping[str, Any]) -> Tokenizer:
        """A tokenizer from a GGUF file's metadata (`tokenizer.*` keys with plain Python values).

        Raises:
            TokenizerError: fields that are missing, contradict themselves or name what we cannot build.
        """
        from glassformer.tokenizer.gguf_vocab import build

        return cls(**build(fields))

    # Text to ids -------------------------------------------------------------------------------

    def encode(self, text: str, bos: bool | None = None, *, specials: bool = True) -> list[int]:
        """The ids of a text.

        Args:
            text: any text; literals of special tokens in it become those tokens.
            bos: whether the begin-of-text token goes first; None does what the tokenizer says.
            specials: False reads literals of special tokens as ordinary text.

        Warns:
            TextWarning: the text begins with the begin-of-text literal and another one is put before it.

        Raises:
            TextError: not a string, or a string that holds half a surrogate pair.
            TokenizerError: begin of text asked for where there is none, or a character that the vocabulary lacks.
        """
        ids = self._ids(text, specials)
        if not (self.adds_bos if bos is None else bos):
            return ids
        if not self._prefix:
            raise TokenizerError("This tokenizer has no begin-of-text token; leave --bos (bos=True) away.")
        if ids and self.bos_id is not None and ids[0] == self.bos_id:
            literal = self.token_text(self.bos_id)
            warnings.warn(
                f"The text begins with {literal!r} and the tokenizer adds another one; use --no-bos (bos=False) "
                "or take it out of the text.",
                TextWarning,
                stacklevel=2,
            )
        return [*self._prefix, *ids]

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, in parallel, without begin-of-text tokens."""
        for text in texts:
            self._check(text)
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def _ids(self, text: str, specials: bool) -> list[int]:
        self._check(text)
        backend = self._backend if specials else self._plain
        return list(backend.encode(text, add_special_tokens=False).ids)

    def _check(self, text: str) -> None:
        if not isinstance(text, str):
            raise TextError(f"A text is a string; this is a {type(text).__name__}.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(
                f"The text holds half a surrogate pair at character {error.start}, which no encoding can carry."
            ) from None
        known = self._letters
        if known is None:
            return
        if self.kind == "bytes":
            lacking = [c for c in dict.fromkeys(text) if not known.issuperset(c.encode())]
            if lacking:
                warnings.warn(
                    f"The tokenizer has no token for some bytes of {_shown(lacking)}, and drops them.",
                    TextWarning,
                    stacklevel=4,
                )
            return
        lacking = [c for c in dict.fromkeys(text) if c not in known]
        if lacking:
            raise TokenizerError(
                f"This tokenizer knows {len(known)} characters and the text holds others: {_shown(lacking)}."
            )

    def _alphabet(self) -> frozenset[Any] | None:
        """The characters (or bytes, of a byte-level tokenizer) that can be encoded; None when all can."""
        singles = {token for token in self._vocab if len(token) == 1}
        if self.kind != "bytes":
            spaces = {" "} if self.kind == "spaces" and "▁" in singles else set()
            return frozenset(singles | spaces).union(*(content for content, _ in self._added.values()))
        letters = byte_letters()
        known = frozenset(letters[c] for c in singles if c in letters)
        # Bytes 192, 193 and 245 to 255 occur in no UTF-8 text.
        return None if known >= {b for b in range(245) if b not in (192, 193)} else known

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        # A second backend: the switch is mutable state, and one tokenizer may serve many threads.
        import tokenizers

        backend = tokenizers.Tokenizer.from_str(self.serialised)
        backend.encode_special_tokens = True
        return backend

    # Ids to text -------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], *, specials: bool = True) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            specials: whether special tokens show as their literals or not at all.
        """
        stream = self.stream(start=True, specials=specials)
        return "".join([*(stream.push(int(id)) for id in ids), stream.finish()])

    def stream(self, *, start: bool = False, specials: bool = True) -> StreamDecoder:
        """Decodes ids one at a time without splitting a character.

        Args:
            start: whether the ids begin a text; False when they continue one, where SentencePiece's
                leading space is a true space.
            specials: whether special tokens show as their literals or not at all.
        """

        def literal(id: int) -> str | None:
            token = self._added.get(id)
            if token is None:
                return None
            return "" if token[1] and not specials else token[0]

        return StreamDecoder(self.token_bytes, literal, strip=start and self._strips)

    def token_bytes(self, id: int) -> bytes:
        """The exact bytes that a token stands for; of a special token, its literal's.

        Ids beyond the tokenizer's vocabulary (models round theirs up) stand for nothing: `b""`.
        """
        if id < 0:
            raise TokenizerError(f"A token id is 0 or more; {id} is not.")
        table = self._bytes
        return table[id] if id < len(table) else b""

    def token_text(self, id: int) -> str:
        """A token as text, for people: U+FFFD where its bytes are not whole characters."""
        return self.token_bytes(id).decode("utf-8", "replace")

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        as_bytes = byte_points()
        for token, id in self._vocab.items():
            if id in self._added:
                table[id] = self._added[id][0].encode()
            elif self.kind == "bytes" and not token.isascii():  # the letters within ASCII stand for themselves
                try:
                    table[id] = token.translate(as_bytes).encode("latin-1")
                except UnicodeEncodeError:
                    table[id] = token.encode()
            elif self.kind == "spaces":
                byte = byte_token(token)
                table[id] = bytes([byte]) if byte is not None else token.replace("▁", " ").encode()
            else:
                table[id] = token.encode()
        return table

    @functools.cached_property
    def token_ids(self) -> tuple[int, ...]:
        """The ids that have a token, in order. A model may have more rows, between them and after, which no text
        reaches: nothing that is drawn may be one of those."""
        return tuple(sorted(set(self._vocab.values())))

    def id_of(self, text: str) -> int | None:
        """The one token that stands for exactly this text, or None; of several, the first ordinary one."""
        return self._by_bytes.get(text.encode("utf-8", "surrogatepass"))

    @functools.cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for id, spelled in enumerate(self._bytes):
            if spelled:
                known = found.setdefault(spelled, id)
                if known != id and self._bytes_only(known):
                    found[spelled] = id
        return found

    def _bytes_only(self, id: int) -> bool:
        return self.kind == "spaces" and byte_token(self._backend.id_to_token(id) or "") is not None

    # Chats, saving, exporting --------------------------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        """The chat template that is used when none is named."""
        return self.chat_templates.get(DEFAULT_TEMPLATE)

    @chat_template.setter
    def chat_template(self, template: str | None) -> None:
        if template is None:
            self.chat_templates.pop(DEFAULT_TEMPLATE, None)
        else:
            self.chat_templates[DEFAULT_TEMPLATE] = template

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        generation_prompt: bool = True,
        *,
        template: str | None = None,
        **variables: object,
    ) -> str:
        """The text of a conversation by the model's chat template; encode it with `bos=False`.

        Args:
            messages: `{"role": ..., "content": ...}`, in order.
            generation_prompt: whether the text ends where the assistant begins to speak.
            template: which of the model's templates, by name; None for "tool_use" where there is one and tools are
                given, else the default.
            variables: more names for the template (`tools`, ...).

        Raises:
            TokenizerError: no chat template, none of that name, or a broken one.
            TextError: messages that are malformed or refused by the template.
        """
        from glassformer.tokenizer.chat import render

        source = self.chat_templates[self._template_name(template, bool(variables.get("tools")))]
        return render(source, messages, generation_prompt=generation_prompt, variables=self.named_tokens() | variables)

    def render_marked(self, messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]] | None:
        """A conversation's text in pieces, each with whether the default template marks it as the assistant's by
        `{% generation %}`; None where it marks nothing. Raises as `render_chat` does."""
        from glassformer.tokenizer.chat import render_marked

        source = self.chat_templates[self._template_name(None, False)]
        return render_marked(source, messages, variables=self.named_tokens())

    def _template_name(self, asked: str | None, tools: bool) -> str:
        known = self.chat_templates
        if not known:
            raise TokenizerError(
                "This model has no chat template: it was not trained on conversations. Use completion instead."
            )
        name = asked or ("tool_use" if tools and "tool_use" in known else DEFAULT_TEMPLATE)
        if name not in known:
            raise TokenizerError(
                f"This model has no chat template called {name!r}; it has {', '.join(sorted(known))}. Name one of them."
            )
        return name

    def named_tokens(self) -> dict[str, str]:
        """What templates call the special tokens: those that the checkpoint names; "" for begin and end without one."""
        found = {name: token for name in NAMED_TOKENS if (token := content_of(self.config.get(name))) is not None}
        return found | {"bos_token": self._literal(self.bos_id), "eos_token": self._literal(self.eos_id)}

    def _literal(self, id: int | None) -> str:
        return "" if id is None else self.token_text(id)

    def save(self, directory: str | Path) -> None:
        """Writes the files that transformers loads: `tokenizer.json`, `tokenizer_config.json`, the chat templates, and
        `generation_config.json` with the ids that end an answer and the defaults of drawing one."""
        from glassformer.tokenizer.hf_files import write_directory

        write_directory(self, Path(directory))

    def gguf_fields(self, model: str = "") -> dict[str, Any]:
        """The `tokenizer.*` and `general.sampling.*` metadata of a GGUF file for this tokenizer.

        Args:
            model: the model's name in the file, by which llama.cpp treats some tokenizers in a way of their own.

        Raises:
            TokenizerError: GGUF has no word for what this tokenizer does.
        """
        from glassformer.tokenizer.gguf_vocab_writer import fields

        return fields(self, model)

    @property
    def end_ids(self) -> int | list[int] | None:
        """`stop_ids` as other libraries' configurations say them: one id, or a list that begins with the end of text;
        in the order of the files they came from."""
        said = ids_in(self.generation.settings.get("eos_token_id"))
        if set(said) != self.stop_ids:
            first = [] if self.eos_id is None else [self.eos_id]
            said = first + sorted(self.stop_ids - set(first))
        return said if len(said) > 1 else said[0] if said else None

    @property
    def around(self) -> tuple[list[int], list[int]]:
        """The ids that this tokenizer puts before a text and, for whole texts only, after it."""
        return (list(self._prefix) if self.adds_bos else [], list(self._suffix))

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The `tokenizers.Tokenizer` underneath; do not change it."""
        return self._backend

    @functools.cached_property
    def serialised(self) -> str:
        """The backend as the text of a `tokenizer.json`, made once: it has megabytes."""
        return str(self._backend.to_str())

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, kind={self.kind!r}, adds_bos={self.adds_bos})"


def _shown(characters: Sequence[str]) -> str:
    return ", ".join(repr(c) for c in characters[:5]) + (", ..." if len(characters) > 5 else "")

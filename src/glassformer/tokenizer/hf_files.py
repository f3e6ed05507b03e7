"""Tokenizer files in a model directory: tokenizer.json and the configuration beside it.

Reads what the reference library reads and writes what it loads. It knows file names and their meaning;
what a tokenizer does with them is `glassformer.tokenizer.tokenizer`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.errors import TokenizerError
from glassformer.system import files
from glassformer.tokenizer.generation import Generation
from glassformer.tokenizer.parts import DEFAULT_TEMPLATE, NAMED_TOKENS, content_of, ids_in
from glassformer.tokenizer.post_processor import around, put_around

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer

GENERATION = "generation_config.json"
TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
# Classes of transformers that do what tokenizer.json says; the others may be told otherwise by add_bos_token.
_GENERIC = (None, "PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} is not readable JSON: {error}.") from None
    if not isinstance(found, dict):
        raise TokenizerError(f"{path} should hold a JSON object; it holds a {type(found).__name__}.")
    return found


def _templates(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name: files of their own before chat_template.json before tokenizer_config.json."""
    found = _json(directory / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
    else:
        named = found if isinstance(found, dict) else {DEFAULT_TEMPLATE: found}
    templates = {str(name): text for name, text in named.items() if isinstance(text, str) and text}
    files = {DEFAULT_TEMPLATE: directory / TEMPLATE}
    files |= {file.stem: file for file in sorted((directory / MORE_TEMPLATES).glob("*.jinja"))}
    for name, file in files.items():
        if not file.is_file():
            continue
        try:
            templates[name] = file.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{file} is not readable text: {error}.") from None
    return templates


def read_directory(directory: Path) -> dict[str, Any]:
    """The arguments of the `Tokenizer` of a directory; see `Tokenizer.from_directory`."""
    import tokenizers

    file = directory / "tokenizer.json"
    if not file.is_file():
        others = [n for n in ("tokenizer.model", "vocab.json", "spiece.model") if (directory / n).is_file()]
        there = f" (there is {' and '.join(others)})" if others else ""
        raise TokenizerError(
            f"{directory} has no tokenizer.json{there}; load its tokenizer with transformers once and save it there "
            "with save_pretrained, which writes one."
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise TokenizerError(f"{file} is not a tokenizer that the tokenizers library reads: {error}.") from None

    config = _json(directory / "tokenizer_config.json")
    specials = _json(directory / "special_tokens_map.json")
    named = bool(config or specials)
    config = {n: specials[n] for n in NAMED_TOKENS if specials.get(n)} | {
        k: v for k, v in config.items() if v is not None
    }
    _add_tokens(backend, config, file)
    vocab = backend.get_vocab(with_added_tokens=True)

    def id_of(name: str) -> int | None:
        content = content_of(config.get(name))
        return vocab.get(content) if content is not None else None

    generation = Generation(_json(directory / GENERATION), str(directory / GENERATION))
    model = _json(directory / "config.json")
    # As in transformers: what generation_config.json says goes before config.json.
    stops = ids_in(generation.settings.get("eos_token_id")) or ids_in(model.get("eos_token_id"))
    bos, eos = id_of("bos_token"), id_of("eos_token")
    if not named:  # a lone tokenizer.json: the model's own configuration names them
        bos = next(iter(ids_in(model.get("bos_token_id"))), None)
        eos = next(iter(ids_in(model.get("eos_token_id"))), None)
    adds = None if config.get("tokenizer_class") in _GENERIC else config.get("add_bos_token")
    return {
        "backend": backend,
        "bos_id": bos,
        "eos_id": eos,
        "adds_bos": adds and bos is not None if isinstance(adds, bool) else None,
        "stop_ids": stops,
        "chat_templates": _templates(directory, config),
        "config": config,
        "generation": generation,
    }


def _add_tokens(backend: Any, config: dict[str, Any], file: Path) -> None:
    """Tokens that only tokenizer_config.json names, and its flags where both name one."""
    from tokenizers import AddedToken

    known = backend.get_added_tokens_decoder()
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise TokenizerError(f"added_tokens_decoder in {file.parent / 'tokenizer_config.json'} should be an object.")
    for key, entry in sorted(listed.items(), key=lambda item: int(item[0]) if item[0].isdigit() else -1):
        content = content_of(entry)
        if content is None or not key.isdigit():
            raise TokenizerError(
                f"added_tokens_decoder in {file.parent / 'tokenizer_config.json'} has a bad entry {key!r}."
            )
        flags = {k: bool(entry[k]) for k in ("single_word", "lstrip", "rstrip", "normalized", "special") if k in entry}
        if int(key) in known and str(known[int(key)]) == content:
            continue
        token = AddedToken(content, **flags)
        if flags.get("special"):
            backend.add_special_tokens([token])
        else:
            backend.add_tokens([token])
        if backend.token_to_id(content) != int(key):
            raise TokenizerError(
                f"{file} and tokenizer_config.json disagree: the added token {content!r} has id "
                f"{backend.token_to_id(content)} in one and {key} in the other."
            )
    for name in NAMED_TOKENS:
        content = content_of(config.get(name))
        id = backend.token_to_id(content) if content is not None else None
        if id is not None and not (id in known and known[id].special):
            backend.add_special_tokens([content])


def write_directory(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes the files of a tokenizer; see `Tokenizer.save`."""
    backend = tokenizer.backend
    if around(backend) != tokenizer.around:  # a configuration said otherwise, and other libraries do not ask it
        backend = type(backend).from_str(tokenizer.serialised)
        put_around(backend, *tokenizer.around)
    config = {
        k: v for k, v in tokenizer.config.items() if k not in ("chat_template", "added_tokens_decoder", "auto_map")
    }
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["add_bos_token"] = tokenizer.adds_bos
    config["clean_up_tokenization_spaces"] = False
    config |= {name: token for name in NAMED_TOKENS if (token := content_of(config.get(name))) is not None}
    for name, id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        if id is not None:
            config[name] = tokenizer.token_text(id)
    files.write_json(directory / "tokenizer_config.json", config)
    _write_templates(tokenizer, directory)
    generation = generation_settings(tokenizer)
    if generation:
        files.write_json(directory / GENERATION, generation)
    else:
        (directory / GENERATION).unlink(missing_ok=True)
    # the last, so that whoever waits for it finds the others
    files.write_text(directory / "tokenizer.json", backend.to_str(pretty=True))


def generation_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of generation_config.json: everything that the model's own said, and the ids as they are here."""
    settings = {k: v for k, v in tokenizer.generation.settings.items() if k != "_from_model_config"}
    padding = content_of(tokenizer.config.get("pad_token"))
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.end_ids,
        "pad_token_id": settings.get(
            "pad_token_id", None if padding is None else tokenizer.backend.token_to_id(padding)
        ),
    }
    return settings | {name: id for name, id in ids.items() if id is not None}


def _write_templates(tokenizer: Tokenizer, directory: Path) -> None:
    written = set()
    for name, text in tokenizer.chat_templates.items():
        if Path(name).name != name:
            raise TokenizerError(f"The chat template called {name!r} cannot be saved: its name is no file name.")
        file = directory / TEMPLATE if name == DEFAULT_TEMPLATE else directory / MORE_TEMPLATES / f"{name}.jinja"
        files.write_text(file, text)
        written.add(file)
    for old in [directory / TEMPLATE, *(directory / MORE_TEMPLATES).glob("*.jinja")]:
        if old not in written:
            old.unlink(missing_ok=True)

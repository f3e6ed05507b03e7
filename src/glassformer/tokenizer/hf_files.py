"""Tokenizer files in a model directory: tokenizer.json and the configuration beside it.

Reads what the reference library reads and writes what it loads. It knows file names and their meaning;
what a tokenizer does with them is `glassformer.tokenizer.tokenizer`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.system import files
from glassformer.tokenizer.tokenizer import Tokenizer


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


def _content(token: Any) -> str | None:
    """A token in a configuration is its text or an object with its text."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _template(directory: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, else chat_template.json, else the configuration's; the default of several."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{file} is not readable text: {error}.") from None
    found = _json(directory / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) and found else None


def _ids(value: Any) -> list[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    return [v for v in value if isinstance(v, int)] if isinstance(value, list) else []


def read_directory(directory: Path) -> Tokenizer:
    """The tokenizer of a directory; see `Tokenizer.from_directory`."""
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
    _add_tokens(backend, config, file)
    vocab = backend.get_vocab(with_added_tokens=True)

    def id_of(name: str) -> int | None:
        content = _content(config.get(name)) or _content(specials.get(name))
        return vocab.get(content) if content is not None else None

    generation = _json(directory / "generation_config.json")
    model = _json(directory / "config.json")
    stops = _ids(generation.get("eos_token_id")) + _ids(model.get("eos_token_id"))
    bos, eos = id_of("bos_token"), id_of("eos_token")
    if not config and not specials:  # a lone tokenizer.json: the model's own configuration names them
        bos = next(iter(_ids(model.get("bos_token_id"))), None)
        eos = next(iter(_ids(model.get("eos_token_id"))), None)
    adds = config.get("add_bos_token")
    return Tokenizer(
        backend,
        bos_id=bos,
        eos_id=eos,
        adds_bos=adds and bos is not None if isinstance(adds, bool) else None,
        stop_ids=stops,
        chat_template=_template(directory, config),
        config=config,
    )


def _add_tokens(backend: Any, config: dict[str, Any], file: Path) -> None:
    """Tokens that only tokenizer_config.json names, and its flags where both name one."""
    from tokenizers import AddedToken

    known = backend.get_added_tokens_decoder()
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise TokenizerError(f"added_tokens_decoder in {file.parent / 'tokenizer_config.json'} should be an object.")
    for key, entry in sorted(listed.items(), key=lambda item: int(item[0]) if item[0].isdigit() else -1):
        content = _content(entry)
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
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        content = _content(config.get(name))
        id = backend.token_to_id(content) if content is not None else None
        if id is not None and not (id in known and known[id].special):
            backend.add_special_tokens([content])


def write_directory(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes the files of a tokenizer; see `Tokenizer.save`."""
    files.write_with(directory / "tokenizer.json", lambda draft: tokenizer.backend.save(str(draft)))
    config = {
        k: v for k, v in tokenizer.config.items() if k not in ("chat_template", "added_tokens_decoder", "auto_map")
    }
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["add_bos_token"] = tokenizer.adds_bos
    config["clean_up_tokenization_spaces"] = False
    for name, id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        if id is not None:
            config[name] = tokenizer.token_text(id)
    files.write_json(directory / "tokenizer_config.json", config)
    template = directory / "chat_template.jinja"
    if tokenizer.chat_template is not None:
        files.write_text(template, tokenizer.chat_template)
    else:
        template.unlink(missing_ok=True)

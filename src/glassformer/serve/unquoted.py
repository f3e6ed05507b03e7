"""Grammars of values in the notations that are not JSON: texts without quotes, or between a family's own marks.

Two notations stand here. *Bare* (GLM, Qwen's coder, DeepSeek's DSML): one argument after another, texts as they are and
everything else as JSON. *Marked* (Gemma): the whole of it with bare keys, and texts between two marks. What such a
notation cannot be held to is refused by its name. The rules are written in llguidance's dialect of Lark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from glassformer.errors import UsageError
from glassformer.generate.constraints import closed

# JSON as models write it: without this they may write spaces for ever.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_SAID = frozenset({"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"})
_SAID |= {"$schema", "$id", "$comment", "$defs", "definitions", "type", "discriminator", "nullable", "strict"}
_KEYS: dict[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "boolean": frozenset(),
    "null": frozenset(),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}
_MARKED_KEY = re.compile(r"""[^\s{}\[\],:"'\x00](?:[^{}\[\],:"\x00]*[^\s{}\[\],:"\x00])?""")


def quoted(text: str) -> str:
    """A text in a grammar."""
    return json.dumps(text, ensure_ascii=False)


def resolved(schema: object, root: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with the reference that it is, if any, followed within its root.

    Raises:
        UsageError: a reference that leads nowhere, or out of the document.
    """
    seen: set[str] = set()
    while isinstance(schema, Mapping) and "$ref" in schema:
        where = str(schema["$ref"])
        found: object = root
        for part in where.removeprefix("#").strip("/").split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            found = found.get(part) if isinstance(found, Mapping) else None
        if where in seen or not where.startswith("#/") or not isinstance(found, Mapping | bool):
            raise UsageError(f"tools: the reference {where[:100]!r} leads to no schema.")
        seen.add(where)
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**found, **rest} if isinstance(found, Mapping) else found
    if isinstance(schema, Mapping):
        joined = schema.get("allOf")
        if isinstance(joined, list) and len(joined) == 1:
            rest = {key: value for key, value in schema.items() if key != "allOf"}
            return {**resolved(joined[0], root), **rest}
        return dict(schema)
    return {}


def bare_text(schema: object, root: Mapping[str, Any]) -> bool:
    """Whether a bare argument of this schema is written as it is: it can be nothing but a text."""
    found = resolved(schema, root)
    options = _options(found)
    if options is not None:
        return all(isinstance(one, str) for one in options)
    return found.get("type") == "string"


def _options(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    found = schema.get("enum")
    return list(found) if isinstance(found, list) else None


class Values:
    """Writes the rules of values.

    Args:
        rules: where they go.
        mark: a mark's piece of a grammar: its special token, or its letters.
        tool: whose arguments these are, for messages.
        root: the schema that references lead into.
        never: marks that no text may hold, spelled by whatever tokens: they would end the call.
    """

    def __init__(
        self,
        rules: list[str],
        mark: Callable[[str], str],
        tool: str,
        root: Mapping[str, Any],
        never: tuple[str, ...] = (),
    ) -> None:
        self._rules, self._mark, self._tool, self._root, self._never = rules, mark, tool, root, never
        self._quote = ""
        self._named: dict[str, str] = {}

    def refuse(self, what: str) -> UsageError:
        """What is raised for something that no answer can be held to."""
        return UsageError(
            f"tools: no answer can be held to {what} in the parameters of {self._tool!r}, because of the form in which "
            "this model writes calls; leave it out."
        )

    def pairs(self) -> tuple[dict[str, Any], frozenset[str]]:
        """The properties of the arguments, in order, and those that have to be there.

        Raises:
            UsageError: arguments that are not simply named one by one.
        """
        root = resolved(self._root, self._root)
        return self._properties(root), frozenset(root.get("required", ()))

    def _properties(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        self._check(schema, "object")
        named, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(named, Mapping) or not isinstance(required, list):
            raise self.refuse("properties that are no object, or required that is no list")
        for name in required:
            if name not in named:
                raise self.refuse(f"the required property {name!r}, which has no schema,")
        return dict(named)

    def _check(self, schema: Mapping[str, Any], kind: str) -> None:
        for key in schema:
            if key not in _KEYS[kind] and key not in _SAID and not key.startswith("x-"):
                raise self.refuse(repr(key))

    # Texts

    def text(self, schema: Mapping[str, Any], end: str) -> str:
        """A text as it is, up to a mark and with it."""
        self._check(schema, "string")
        name = f"VALUE_{len(self._rules)}"
        least, most, pattern = schema.get("minLength", 0), schema.get("maxLength"), schema.get("pattern")
        parts = ["/(.|\\n)*/"]
        if least or most is not None:
            parts = [f"/(.|\\n){{{int(least)},{'' if most is None else int(most)}}}/"]
        if pattern is not None:
            parts.append(_searched(str(pattern)))
        parts += [f"~/(.|\\n)*{_escaped(one)}(.|\\n)*/" for one in (end.strip(), *self._never)]
        mark = self._mark(end)
        if mark.startswith("<["):
            self._rules.append(f"{name}: " + " & ".join(parts))
            return f"{name} {mark}"
        self._rules.append(f"{name}_TEXT: " + " & ".join(parts))
        self._rules.append(f"{name}: {name}_TEXT {quoted(end)}")
        return name

    # Bare

    def bare(self, schema: object, end: str) -> str:
        """A bare argument, up to a mark and with it."""
        if schema is False:
            raise self.refuse("a value that nothing may be")
        if not bare_text(schema, self._root):
            return f"{self.json(schema)} {self._mark(end)}"
        found = resolved(schema, self._root)
        options = _options(found)
        if options is None:
            return self.text(found, end)
        return "(" + " | ".join(quoted(one) for one in options) + f") {self._mark(end)}"

    def json(self, schema: object) -> str:
        """A value as JSON."""
        inner = schema if isinstance(schema, Mapping) else {}
        whole = {**inner, **{k: self._root[k] for k in ("$defs", "definitions") if k in self._root}}
        name = f"value_{len(self._rules)}"
        written = {**closed(without_words(whole)), "x-guidance": SPACING}
        self._rules.append(f"{name}: %json {json.dumps(written, ensure_ascii=False)}")
        return name

    # Marked

    def marked(self, quote: str) -> str:
        """The arguments between braces, with texts between two of these marks."""
        self._quote = quote
        root = dict(self._root)
        if not root.get("properties"):
            root.setdefault("additionalProperties", False)
        return self._object(root)

    def _value(self, schema: object) -> str:
        if schema is False:
            raise self.refuse("a value that nothing may be")
        if isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
            where = schema["$ref"]
            if where not in self._named:  # first its name, so that it may lead to itself
                self._named[where] = name = f"named_{len(self._named)}_{len(self._rules)}"
                self._rules.append(f"{name}: {self._plain(resolved(schema, self._root))}")
            return self._named[where]
        return self._plain(resolved(schema, self._root))

    def _plain(self, schema: dict[str, Any]) -> str:
        options = _options(schema)
        if options is not None:
            return "(" + " | ".join(self._literal(one) for one in options) + ")"
        for key in ("anyOf", "oneOf"):
            if key in schema:
                rest = {k: v for k, v in schema.items() if k not in (key, *_SAID)}
                if rest or not isinstance(schema[key], list) or not schema[key]:
                    raise self.refuse(f"{key} beside {', '.join(rest)}" if rest else key)
                if key == "oneOf" and not self._apart(schema[key]):
                    raise self.refuse("oneOf of schemas that may hold at once")
                return "(" + " | ".join(self._value(one) for one in schema[key]) + ")"
        kinds = schema.get("type")
        if kinds is None:
            guessed = [kind for kind in ("object", "array") if _KEYS[kind] & set(schema)]
            kinds = guessed if len(guessed) == 1 else list(_KEYS)
            if len(guessed) != 1 and set(schema) - _SAID:
                raise self.refuse(f"{', '.join(sorted(set(schema) - _SAID))} without a type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if schema.get("nullable") is True and "null" not in kinds:
            kinds = [*kinds, "null"]
        used: frozenset[str] = frozenset().union(*(_KEYS.get(str(kind), frozenset()) for kind in kinds))
        return "(" + " | ".join(self._typed(str(kind), schema, used) for kind in kinds) + ")"

    def _typed(self, kind: str, schema: dict[str, Any], used: frozenset[str]) -> str:
        if kind not in _KEYS:
            raise self.refuse(f"the type {kind!r}")
        others = used - _KEYS[kind]
        schema = {key: value for key, value in schema.items() if key not in others}
        self._check(schema, kind)
        if kind == "string":
            return f"{self._mark(self._quote)} {self.text(schema, self._quote)}"
        if kind in ("integer", "number"):
            return self.json({"type": kind, **{k: v for k, v in schema.items() if k in _KEYS[kind]}})
        if kind == "array":
            return self._array(schema)
        if kind == "object":
            return self._object(schema)
        return '("true" | "false")' if kind == "boolean" else '"null"'

    def _any(self) -> str:
        """Any value; one rule, which leads to itself."""
        if "" not in self._named:
            self._named[""] = "anything"
            self._rules.append(f"anything: {self._plain({})}")
        return "anything"

    def _array(self, schema: dict[str, Any]) -> str:
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        if most is not None and int(most) < max(least, 1):
            if least:
                raise self.refuse("minItems above maxItems")
            return '"[]"'
        item = self._any() if schema.get("items", True) in (True, {}) else self._value(schema["items"])
        more = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else int(most) - 1}}}'
        return f'"[" {item} {more} "]"' if least else f'"[" ({item} {more})? "]"'

    def _object(self, schema: dict[str, Any]) -> str:
        named, required = self._properties(schema), set(schema.get("required", ()))
        if not named:
            more = schema.get("additionalProperties", True)
            if more is False:
                return '"{}"'
            value = self._any() if more in (True, {}) else self._value(more)
            key = "/[A-Za-z_][A-Za-z0-9_]{0,40}/"
            return f'"{{" ({key} ":" {value} ("," {key} ":" {value})*)? "}}"'
        rule = f"object_{len(self._rules)}"
        self._rules.append("")  # its place, so that names stay apart
        place = len(self._rules) - 1
        ordered = sorted(named, key=str.lower)  # as the templates write them
        lines = []
        for number, key in enumerate(ordered):
            if not _MARKED_KEY.fullmatch(key) or self._quote in key:
                raise self.refuse(f"the property {key!r}")
            one = f"{quoted(key + ':')} {self._value(named[key])}"
            skipped = "" if key in required else f" | {rule}_{number + 1}"
            lines.append(f"{rule}_{number}: {one} {rule}_{number + 1}_more{skipped}")
            skipped = skipped and f"{skipped}_more"
            lines.append(f'{rule}_{number}_more: "," {one} {rule}_{number + 1}_more{skipped}')
        lines += [f'{rule}_{len(ordered)}: ""', f'{rule}_{len(ordered)}_more: ""']
        self._rules[place] = "\n".join([f'{rule}: "{{" {rule}_0 "}}"', *lines])
        return rule

    def _literal(self, value: object) -> str:
        if isinstance(value, str):
            if self._quote in value:
                raise self.refuse(f"the text {value!r}")
            mark = self._mark(self._quote)
            return f"{mark} {quoted(value)} {mark}" if value else f"{mark} {mark}"
        if isinstance(value, dict | list):
            raise self.refuse("an enum of objects or arrays")
        return quoted(json.dumps(value))

    def _apart(self, schemas: list[object]) -> bool:
        """Whether no value can follow two of these schemas: their types differ, or a property that each has to hold
        does."""
        found = [resolved(one, self._root) for one in schemas]
        kinds = [one.get("type") for one in found]
        if all(isinstance(kind, str) for kind in kinds) and len(set(map(str, kinds))) == len(kinds):
            return not {"integer", "number"} <= set(kinds)
        shared = set.intersection(*(set(one.get("required", ())) for one in found)) if found else set()
        for key in shared:
            told = [_options(resolved(one.get("properties", {}).get(key, {}), self._root)) for one in found]
            flat = [json.dumps(value) for options in told for value in options or ()]
            if all(told) and len(set(flat)) == len(flat):
                return True
        return False


def without_words(schema: object) -> Any:
    """A schema without what only describes it."""
    if isinstance(schema, dict):
        return {
            key: _inner(key, value) for key, value in schema.items() if key not in ("description", "title", "$schema")
        }
    return schema


def _inner(key: str, value: object) -> Any:
    if key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, dict):
        return {name: without_words(one) for name, one in value.items()}  # names, whatever they are
    if key in ("enum", "const", "default", "examples"):
        return value
    return [without_words(one) for one in value] if isinstance(value, list) else without_words(value)


def _escaped(text: str) -> str:
    """A text in a regular expression of a grammar."""
    return re.sub(r"[.+*?()|\[\]{}^$\\/]", lambda found: "\\" + found[0], text)


def _searched(pattern: str) -> str:
    """A schema's pattern, which may stand anywhere in the text, as an expression of the whole text."""
    begin, end = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[1 if begin else 0 : len(pattern) - 1 if end else None]
    inner = re.sub(r"(?<!\\)/", r"\\/", inner)
    before, after = ("" if at else r"(.|\n)*" for at in (begin, end))
    return f"/{before}({inner}){after}/"
